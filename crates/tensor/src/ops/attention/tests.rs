//! The tiled kernel against whole score rows, over sequences that fill, straddle and miss tiles.

use std::sync::Arc;

use super::cpu::{self, Kept, Rows, RowsMut};
use super::{AttentionSpec, Mask, reference};
use crate::gemm::{Mat, Pair, Unit};
use crate::ops::testing::{agree, random};
use crate::simd::has_bf16;
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
            for mask in [Mask::Causal, Mask::Full] {
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
    cpu::forward::<P, f32>(spec, mats(), rows_mut(&mut o, nq), &mut lse).unwrap();
    assert!(agree(&o, &reference::forward(spec, &q, &k, &v), tolerances[0]), "{spec:?}: output");
    let (mut dq, mut dk, mut dv) = (vec![f32::NAN; q.len()], vec![f32::NAN; k.len()], vec![f32::NAN; v.len()]);
    let side = |data| Rows { data, stride: nq };
    let kept = Kept { o: side(&o), lse: &lse, g: side(&g), g_mat: Mat::new(&g, g.len() / nq, nq) };
    let to = [rows_mut(&mut dq, nq), rows_mut(&mut dk, nkv), rows_mut(&mut dv, nkv)];
    cpu::backward::<P, f32>(spec, mats(), &kept, to).unwrap();
    let expected = reference::backward(spec, &q, &k, &v, &g);
    for ((name, found), expected) in [("dq", dq), ("dk", dk), ("dv", dv)].into_iter().zip(expected) {
        assert!(agree(&found, &expected, tolerances[1]), "{spec:?}: {name}");
    }
}
