//! The tiled kernel against whole score rows, over sequences that fill, straddle and miss tiles.

use std::sync::Arc;

use super::cpu::{self, Kept, Rows, RowsMut};
use super::{AttentionSpec, Mask, reference};
use crate::gemm::{Mat, Pair, Unit};
use crate::gradients::Gradients;
use crate::ops::testing::{agree, random};
use crate::simd::has_bf16;
use crate::tape::Tape;
use crate::tensor::Tensor;
use crate::threads::Shared;

fn rows_mut(data: &mut [f32], stride: usize) -> RowsMut<'_, f32> {
    RowsMut { data: Shared::new(data), start: 0, stride }
}

#[test]
fn kernel_agrees_with_reference() {
    let shapes: [(&[usize], &[usize]); 4] = [
        (&[0, 1], &[0, 1]),
        (&[0, 64, 64, 193], &[0, 64, 64, 193]),
        (&[0, 3, 130], &[0, 520, 1100]),
        (&[0, 70, 71], &[0, 10, 1034]),
    ];
    for (cu_q, cu_k) in shapes {
        for (num_heads, num_kv_heads, head_dim) in [(1, 1, 8), (4, 2, 5)] {
            for mask in [Mask::Causal, Mask::Full, Mask::Window(1), Mask::Window(7), Mask::Window(300)] {
                let (cu_q, cu_k) = (Arc::from(cu_q), Arc::from(cu_k));
                let spec = AttentionSpec { num_heads, num_kv_heads, head_dim, scale: 0.7, mask, cu_q, cu_k };
                check::<f32>(&spec, [3e-6, 5e-6]);
                // Units of two depths: edges of what a mask hides fall inside of them. Products of bf16 numbers differ.
                if has_bf16() {
                    check::<Pair>(&spec, [0.03, 0.06]);
                }
            }
        }
    }
}

fn check<P: Unit>(spec: &AttentionSpec, tolerances: [f32; 2]) {
    let rows = |cu: &[usize]| cu[cu.len() - 1];
    let (nq, nkv) = (spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim);
    let q: Vec<f32> = random(1, rows(&spec.cu_q) * nq).iter().map(|x| 3.0 * x).collect();
    let (k, v) = (random(2, rows(&spec.cu_k) * nkv), random(3, rows(&spec.cu_k) * nkv));
    let g = random(4, q.len());
    let (mut o, mut lse) = (vec![f32::NAN; q.len()], vec![f32::NAN; rows(&spec.cu_q) * spec.num_heads]);
    let mats = || [(&q, nq), (&k, nkv), (&v, nkv)].map(|(x, width)| Mat::new(x, x.len() / width, width));
    cpu::forward::<P, f32>(spec, None, mats(), rows_mut(&mut o, nq), &mut lse).unwrap();
    assert!(agree(&o, &reference::forward(spec, &q, &k, &v), tolerances[0]), "{spec:?}: output");
    let (mut dq, mut dk, mut dv) = (vec![f32::NAN; q.len()], vec![f32::NAN; k.len()], vec![f32::NAN; v.len()]);
    let side = |data| Rows { data, stride: nq };
    let kept = Kept { o: side(&o), lse: &lse, g: side(&g), g_mat: Mat::new(&g, g.len() / nq, nq) };
    let to = [rows_mut(&mut dq, nq), rows_mut(&mut dk, nkv), rows_mut(&mut dv, nkv)];
    cpu::backward::<P, f32>(spec, None, mats(), &kept, to).unwrap();
    let expected = reference::backward(spec, &q, &k, &v, &g);
    for ((name, found), expected) in [("dq", dq), ("dk", dk), ("dv", dv)].into_iter().zip(expected) {
        assert!(agree(&found, &expected, tolerances[1]), "{spec:?}: {name}");
    }
}

/// The work that is counted is the number of pairs that the reference's loops visit.
#[test]
fn pairs_are_counted() {
    let shapes: [(&[usize], &[usize]); 4] =
        [(&[0, 1], &[0, 1]), (&[0, 9, 9, 30], &[0, 9, 9, 30]), (&[0, 3, 13], &[0, 20, 51]), (&[0, 30], &[0, 8])];
    for (cu_q, cu_k) in shapes {
        for mask in [Mask::Causal, Mask::Full, Mask::Window(1), Mask::Window(5), Mask::Window(64)] {
            let (cu_q, cu_k) = (Arc::from(cu_q), Arc::from(cu_k));
            let spec = AttentionSpec { num_heads: 1, num_kv_heads: 1, head_dim: 1, scale: 1.0, mask, cu_q, cu_k };
            let mut pairs = 0;
            reference::for_each_query(&spec, |_, _, keys| pairs += keys.len() as u64);
            assert_eq!(spec.work(), pairs, "{spec:?}");
        }
    }
}

/// Values that are unit vectors give the masked probabilities themselves; from them every gradient follows in plain loops.
#[test]
fn dropout_masks_probabilities_alike_in_both_directions() {
    // Sequences of 300 keys straddle the tiles of both passes.
    let (num_keys, p) = (300, 0.3);
    for mask in [Mask::Full, Mask::Causal] {
        let (cu_q, cu_k) = (Arc::from([0, 3, 75]), Arc::from([0, num_keys, 2 * num_keys]));
        let spec = AttentionSpec { num_heads: 2, num_kv_heads: 2, head_dim: num_keys, scale: 0.4, mask, cu_q, cu_k };
        let width = 2 * num_keys;
        let q: Vec<f32> = random(1, 75 * width).iter().map(|x| 2.0 * x).collect();
        let k = random(2, 2 * num_keys * width);
        let unit: Vec<f32> =
            (0..2 * num_keys * width).map(|i| f32::from((i / width) % num_keys == i % num_keys)).collect();
        let run = |v: &[f32], g: &[f32]| {
            let tape = Tape::record().with_rng(3, 4);
            let leaf = |x: &[f32]| tape.leaf(Tensor::from_f32(x, &[x.len() / width, width]).unwrap());
            let inputs = [leaf(&q), leaf(&k), leaf(v)];
            let o = tape.attention_with_dropout(inputs.each_ref(), &spec, p).unwrap();
            let upstream = Tensor::from_f32(g, &[75, width]).unwrap();
            let found = tape.backward_with(&[(o.clone(), upstream)], &inputs, &mut Gradients::new()).unwrap();
            let found: Vec<Vec<f32>> = found.into_iter().map(|g| g.unwrap().to_vec_f32().unwrap()).collect();
            (o.value().to_vec_f32().unwrap(), found)
        };
        let g = random(4, q.len());
        let masked = run(&unit, &g).0;
        let plain = reference::forward(&spec, &q, &k, &unit);
        let mut dropped = 0;
        for (masked, plain) in masked.iter().zip(&plain).filter(|(_, plain)| **plain > 0.0) {
            dropped += usize::from(*masked == 0.0);
            assert!(*masked == 0.0 || (masked * (1.0 - p) / plain - 1.0).abs() < 1e-4, "{masked} of {plain}");
        }
        let share = dropped as f32 / plain.iter().filter(|p| **p > 0.0).count() as f32;
        assert!((share - p).abs() < 0.02, "{share}");
        // The same masks with other values: o = M v, dv = M^T g, ds = P (m dp - D).
        let v = random(5, k.len());
        let (o, found) = run(&v, &g);
        let [mut expected, mut dq, mut dk, mut dv] = [q.len(), q.len(), k.len(), v.len()].map(|len| vec![0f32; len]);
        for (i, head) in (0..75).flat_map(|i| [(i, 0), (i, 1)]) {
            let (row, first) = (i * width + head * num_keys, if i < 3 { 0 } else { num_keys });
            let key = |j: usize| (first + j) * width + head * num_keys;
            let dot = |a: &[f32], b: &[f32]| -> f32 { a.iter().zip(b).map(|(a, b)| a * b).sum() };
            let dp: Vec<f32> =
                (0..num_keys).map(|j| dot(&g[row..row + num_keys], &v[key(j)..key(j) + num_keys])).collect();
            let mean: f32 = (0..num_keys).map(|j| masked[row + j] * dp[j]).sum();
            for j in 0..num_keys {
                let (m, p_j) = (masked[row + j], plain[row + j]);
                let ds = spec.scale * (m * dp[j] - p_j * mean);
                for c in 0..num_keys {
                    expected[row + c] += m * v[key(j) + c];
                    dv[key(j) + c] += m * g[row + c];
                    dk[key(j) + c] += ds * q[row + c];
                    dq[row + c] += ds * k[key(j) + c];
                }
            }
        }
        assert!(agree(&o, &expected, 1e-5), "{mask:?}: output");
        for ((name, found), expected) in ["dq", "dk", "dv"].into_iter().zip(found).zip([dq, dk, dv]) {
            assert!(agree(&found, &expected, 2e-5), "{mask:?}: {name}");
        }
    }
}
