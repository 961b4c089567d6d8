//! The operator against the plain reference, for odd numbers of heads and columns that stay.

use super::*;
use crate::gradients::Gradients;
use crate::ops::testing::{agree, random};

fn reference_params(groups: &[(usize, Vec<f32>)]) -> Vec<Param> {
    let make = |(_, w): &(usize, Vec<f32>)| Param::new("w", Tensor::from_f32(w, &[w.len()]).unwrap());
    let params: Vec<Param> = groups.iter().map(make).collect();
    params.iter().for_each(|p| p.set_trainable(true));
    params
}

#[test]
fn operator_agrees_with_reference() {
    for (t, d, counts, rest) in [(0, 3, [2, 1], 5), (1, 1, [1, 1], 0), (3, 16, [3, 1], 16), (130, 17, [5, 5], 7)] {
        let width = counts.iter().sum::<usize>() * d + rest;
        let (x, g) = (random(1, t * width), random(2, t * width));
        let groups: Vec<(usize, Vec<f32>)> = (0..2).map(|i| (counts[i], random(3 + i as u64, d))).collect();
        let params = reference_params(&groups);
        let tape = Tape::record();
        let input = tape.leaf(Tensor::from_f32(&x, &[t, width]).unwrap());
        let asked: Vec<(usize, &Param)> = counts.into_iter().zip(&params).collect();
        let y = tape.head_norm(input.clone(), &asked, d, 1e-3).unwrap();
        let place = format!("{t} {d} {counts:?} {rest}");
        assert!(agree(y.value().f32s().unwrap(), &reference::forward(&x, width, &groups, 1e-3), 2e-6), "{place}");
        assert_eq!(input.value().f32s().unwrap(), x, "the input stays");
        let (dx, dws) = reference::backward(&g, &x, width, &groups, 1e-3);
        let mut grads = Gradients::new();
        let upstream = Tensor::from_f32(&g, &[t, width]).unwrap();
        let found = tape.backward_with(&[(y, upstream)], &[input], &mut grads).unwrap();
        assert!(agree(found[0].as_ref().unwrap().f32s().unwrap(), &dx, 5e-6), "{place}: dx");
        for (param, dw) in params.iter().zip(dws) {
            assert!(agree(grads.get(param).unwrap().f32s().unwrap(), &dw, 5e-6), "{place}: dw");
        }
        // Without gradients nothing is kept and the result is the same.
        let alone = Tape::inference();
        let y = alone.head_norm(alone.constant(Tensor::from_f32(&x, &[t, width]).unwrap()), &asked, d, 1e-3).unwrap();
        assert!(agree(y.value().f32s().unwrap(), &reference::forward(&x, width, &groups, 1e-3), 2e-6), "{place}");
    }
}

#[test]
fn bf16_is_rounded_once() {
    let (d, groups) = (24, vec![(3, random(3, 24)), (2, random(4, 24))]);
    let width = 5 * d + 10;
    let x = Tensor::from_f32(&random(1, 4 * width), &[4, width]).unwrap().cast(DType::BF16).unwrap();
    let wide = x.to_vec_f32().unwrap();
    let params = reference_params(&groups);
    let asked: Vec<(usize, &Param)> = [3, 2].into_iter().zip(&params).collect();
    let tape = Tape::inference();
    let y = tape.head_norm(tape.constant(x), &asked, d, 1e-6).unwrap().value().to_vec_f32().unwrap();
    for (found, exact) in y.iter().zip(reference::forward(&wide, width, &groups, 1e-6)) {
        assert!((found - exact).abs() <= 2f32.powi(-8) * exact.abs() + 1e-7, "{found} {exact}");
    }
}

#[test]
fn wrong_shapes_are_refused() {
    let tape = Tape::inference();
    let w = Param::new("w", Tensor::zeros(&[4], DType::F32).unwrap());
    let x = || tape.constant(Tensor::zeros(&[2, 7], DType::F32).unwrap());
    assert!(tape.head_norm(x(), &[(2, &w)], 4, 1e-6).is_err());
    assert!(tape.head_norm(x(), &[(1, &w)], 3, 1e-6).is_err());
    assert!(tape.head_norm(x(), &[(1, &w)], 4, 1e-6).is_ok());
}
