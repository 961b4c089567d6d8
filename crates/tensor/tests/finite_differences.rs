//! Owns the comparison of every gradient with difference quotients of the forward pass. Refuses fixtures.

#![allow(clippy::unwrap_used)] // A test helper that fails is a failed test.

use std::sync::Arc;

use tensor::{
    Activation, AttentionSpec, Gradients, LearnedAngles, LinearWeights, LoraWeights, Mask, Param, Result, RopeTable,
    Tape, Taps, Tensor, Var, Window,
};

fn numbers(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

type Op = Box<dyn Fn(&Tape, &[Var], &[Param]) -> Result<Var>>;

/// Compares gradients of sum(output * fixed numbers) with central differences, for inputs and weights of these shapes.
///
/// With steps of h = 1/64 the quotient is off by h^2 / 6 of the third derivative (about 1e-4 of the scale for functions
/// of order 1) and by 1e-7 of the output over h (about 1e-5): 3e-3 of the largest gradient leaves room for curvature.
fn check(name: &str, inputs: &[&[usize]], params: &[&[usize]], op: Op) {
    let tensors = |shapes: &[&[usize]], seed: u64| -> Vec<Tensor> {
        let make = |(i, shape): (usize, &&[usize])| {
            Tensor::from_f32(&numbers(seed + i as u64, shape.iter().product()), shape).unwrap()
        };
        shapes.iter().enumerate().map(make).collect()
    };
    let (inputs, weights) = (tensors(inputs, 10), tensors(params, 20));
    let run = |inputs: &[Tensor], weights: &[Tensor], tape: &Tape| -> (Vec<Var>, Vec<Param>, Var) {
        let vars: Vec<Var> = inputs.iter().map(|x| tape.leaf(x.clone())).collect();
        let params: Vec<Param> = weights.iter().map(|w| Param::new("w", w.clone())).collect();
        params.iter().for_each(|p| p.set_trainable(true));
        let output = op(tape, &vars, &params).unwrap();
        (vars, params, output)
    };
    let tape = Tape::record();
    let (vars, params, output) = run(&inputs, &weights, &tape);
    let upstream = numbers(99, output.value().num_elements());
    let upstream_tensor = Tensor::from_f32(&upstream, output.shape()).unwrap();
    let mut grads = Gradients::new();
    let of_inputs = tape.backward_with(&[(output, upstream_tensor)], &vars, &mut grads).unwrap();
    let value = |inputs: &[Tensor], weights: &[Tensor]| -> f64 {
        let (_, _, output) = run(inputs, weights, &Tape::inference());
        output.value().f32s().unwrap().iter().zip(&upstream).map(|(&y, &g)| f64::from(y) * f64::from(g)).sum()
    };
    let found: Vec<Vec<f32>> = (of_inputs.iter().map(|g| g.as_ref().unwrap().to_vec_f32().unwrap()))
        .chain(params.iter().map(|p| grads.get(p).unwrap().to_vec_f32().unwrap()))
        .collect();
    let all: Vec<Tensor> = inputs.iter().chain(&weights).cloned().collect();
    let h = 1.0 / 64.0;
    for (which, found) in found.iter().enumerate() {
        let scale = found.iter().fold(1e-3f32, |m, x| m.max(x.abs()));
        for (i, &found) in found.iter().enumerate() {
            let at = |step: f32| {
                let mut moved = all.clone();
                let mut data = all[which].to_vec_f32().unwrap();
                data[i] += step;
                moved[which] = Tensor::from_f32(&data, all[which].shape()).unwrap();
                value(&moved[..inputs.len()], &moved[inputs.len()..])
            };
            let quotient = ((at(h) - at(-h)) / f64::from(2.0 * h)) as f32;
            assert!(
                (found - quotient).abs() <= 3e-3 * scale,
                "{name}: argument {which}, element {i}: {found} {quotient}"
            );
        }
    }
}

fn weights(p: &[Param], bias: bool, lora: bool) -> LinearWeights {
    let mut rest = p[1..].iter().cloned();
    let bias = if bias { rest.next() } else { None };
    let lora = if lora { rest.next().zip(rest.next()) } else { None };
    let lora = lora.map(|(a, b)| LoraWeights { a, b, scale: 0.7, dropout: 0.0 });
    LinearWeights { weight: p[0].clone(), bias, lora }
}

#[test]
fn linear() {
    check("linear", &[&[3, 5]], &[&[4, 5], &[4]], Box::new(|t, x, p| t.linear(&x[0], &weights(p, true, false))));
    check(
        "linear_add with lora",
        &[&[3, 5], &[3, 4]],
        &[&[4, 5], &[4], &[2, 5], &[4, 2]],
        Box::new(|t, x, p| t.linear_add(&x[0], &weights(p, true, true), x[1].clone())),
    );
}

#[test]
fn norms() {
    check("rms_norm", &[&[3, 7]], &[&[7]], Box::new(|t, x, p| t.rms_norm(&x[0], &p[0], 0.1)));
    let head_norm: Op = Box::new(|t, x, p| t.head_norm(x[0].clone(), &[(2, &p[0]), (1, &p[1])], 4, 0.1));
    check("head_norm", &[&[3, 14]], &[&[4], &[4]], head_norm);
    check("layer_norm", &[&[3, 7]], &[&[7], &[7]], Box::new(|t, x, p| t.layer_norm(&x[0], &p[0], &p[1], 0.1)));
}

#[test]
fn activations() {
    for a in [Activation::Gelu, Activation::GeluTanh, Activation::QuickGelu, Activation::Silu] {
        check("activation", &[&[2, 9]], &[], Box::new(move |t, x, _| t.activation(&x[0], a)));
        check("gated", &[&[2, 18]], &[], Box::new(move |t, x, _| t.gated(&x[0], a)));
    }
}

#[test]
fn attention() {
    for (mask, cu_q, cu_k) in [
        (Mask::Causal, [0, 3, 5], [0, 3, 5]),
        (Mask::Causal, [0, 3, 4], [0, 2, 6]),
        (Mask::Full, [0, 1, 3], [0, 4, 4]),
        (Mask::Window(2), [0, 5, 6], [0, 5, 9]),
    ] {
        let rows = |cu: [usize; 3]| cu[2];
        let spec = AttentionSpec {
            num_heads: 4,
            num_kv_heads: 2,
            head_dim: 3,
            scale: 0.8,
            mask,
            cu_q: Arc::from(cu_q),
            cu_k: Arc::from(cu_k),
        };
        let op: Op = Box::new(move |t, x, _| t.attention(&x[0], &x[1], &x[2], &spec));
        check("attention", &[&[rows(cu_q), 12], &[rows(cu_k), 6], &[rows(cu_k), 6]], &[], op);
    }
}

#[test]
fn rope() {
    let rope: Op = Box::new(|t, x, _| {
        let angles = Tensor::from_f32(&numbers(5, 3 * 2), &[3, 2])?;
        t.rope(x[0].clone(), 2, 6, &RopeTable::from_angles(&angles, 1.5)?)
    });
    check("rope", &[&[3, 12]], &[], rope);
    let learned: Op = Box::new(|t, x, p| {
        let mut angles = numbers(5, 4 * 2);
        let rows = vec![2, 0];
        for &row in &rows {
            angles[row as usize * 2..][..2].copy_from_slice(p[0].value().f32s()?);
        }
        let table = RopeTable::from_angles(&Tensor::from_f32(&angles, &[4, 2])?, 1.5)?;
        t.rope_learned(x[0].clone(), 2, 6, &table, &LearnedAngles { rows, angles: p[0].clone() })
    });
    check("rope_learned", &[&[4, 13]], &[&[1, 2]], learned);
}

#[test]
fn moving_and_combining() {
    check("add", &[&[2, 3], &[2, 3]], &[], Box::new(|t, x, _| t.add(&x[0], &t.add(&x[1], &x[0])?)));
    check("mul", &[&[2, 3], &[2, 3]], &[], Box::new(|t, x, _| t.mul(&x[0], &t.mul(&x[1], &x[0])?)));
    check("scale", &[&[2, 3]], &[], Box::new(|t, x, _| t.scale(&x[0], -0.3)));
    check("embedding", &[], &[&[4, 3]], Box::new(|t, _, p| t.embedding(&[1, 1, 3], &p[0])));
    check("add_table", &[&[3, 2]], &[&[4, 2]], Box::new(|t, x, p| t.add_table(&x[0], &[2, 0, 2], &p[0])));
    check("gather_rows", &[&[3, 2]], &[], Box::new(|t, x, _| t.gather_rows(&x[0], &[2, 2, 0, 2])));
    check("scatter_rows", &[&[4, 2], &[2, 2]], &[], Box::new(|t, x, _| t.scatter_rows(&x[0], &[3, 1], &x[1])));
    check("add_rows", &[&[4, 2], &[3, 2]], &[], Box::new(|t, x, _| t.add_rows(x[0].clone(), &[3, 1, 3], &x[1])));
    let taps = Taps { rows: vec![0, 3, 3, 1, 2, 2], weights: vec![0.25, 0.75, 1.0, -0.5, 0.3, 0.6] };
    check("blend_table", &[&[3, 2]], &[&[4, 2]], Box::new(move |t, x, p| t.blend_table(x[0].clone(), &taps, &p[0])));
    check("concat_rows", &[&[1, 2], &[3, 2]], &[], Box::new(|t, x, _| t.concat_rows(x)));
    check("concat_cols", &[&[3, 1], &[3, 2]], &[], Box::new(|t, x, _| t.concat_cols(x)));
    check("slice_rows", &[&[4, 2]], &[], Box::new(|t, x, _| t.slice_rows(&x[0], 1..3)));
    check("slice_cols", &[&[2, 5]], &[], Box::new(|t, x, _| t.slice_cols(&x[0], 2..4)));
    check("avg_pool_grid", &[&[2 * 3 * 5, 2]], &[], Box::new(|t, x, _| t.avg_pool_grid(&x[0], 2, [3, 5], [2, 2])));
    check("max_pool_grid", &[&[2 * 3 * 5, 2]], &[], Box::new(|t, x, _| t.max_pool_grid(&x[0], 2, [3, 5], 2)));
    check("unfold_grid", &[&[2 * 3 * 5, 2]], &[], Box::new(|t, x, _| t.unfold_grid(&x[0], 2, [3, 5], 2)));
    check("bilinear_grid", &[&[3 * 2, 2]], &[], Box::new(|t, x, _| t.bilinear_grid(&x[0], 1, [3, 2], [4, 5])));
}

#[test]
fn linear_cross_entropy() {
    let op: Op = Box::new(|t, x, p| {
        Ok(t.linear_cross_entropy(&x[0], &weights(p, true, true), &[2, -100, 0, 6], &[0.5, 9.0, 1.0, 2.0])?.loss)
    });
    check("linear_cross_entropy", &[&[4, 3]], &[&[7, 3], &[7], &[2, 3], &[7, 2]], op);
}

#[test]
fn checkpoint() {
    let op: Op = Box::new(|t, x, p| {
        let p = p.to_vec();
        t.checkpoint(x, move |t, x| {
            let h = t.layer_norm(&x[0], &p[1], &p[2], 0.1)?;
            t.mul(&t.linear(&h, &LinearWeights::new(p[0].clone(), None))?, &x[1])
        })
    });
    check("checkpoint", &[&[3, 5], &[3, 4]], &[&[4, 5], &[5], &[5]], op);
}

#[test]
fn columns_of_convolutions() {
    for (width, stride, padding) in [(3, 1, 1), (3, 2, 1), (2, 3, 0)] {
        let window = Window { width, stride, padding };
        check("unfold", &[&[2 * 6, 3]], &[], Box::new(move |t, x, _| t.unfold(&x[0], 2, window)));
    }
}
