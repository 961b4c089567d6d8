//! Attention in plain loops, whole score rows, sums in f32.

use super::{AttentionSpec, Mask};

/// Calls `f(sequence, head, query row, key rows that it sees)`.
pub(super) fn for_each_query(spec: &AttentionSpec, mut f: impl FnMut(usize, usize, std::ops::Range<usize>)) {
    for s in 0..spec.cu_q.len() - 1 {
        let (q0, q1, k0, k1) = (spec.cu_q[s], spec.cu_q[s + 1], spec.cu_k[s], spec.cu_k[s + 1]);
        for head in 0..spec.num_heads {
            for i in q0..q1 {
                let end = match spec.mask {
                    Mask::Full => k1,
                    Mask::Causal | Mask::Window(_) => (k1 + i + 1).saturating_sub(q1).max(k0),
                };
                let start = match spec.mask {
                    Mask::Window(n) => end.saturating_sub(n).max(k0),
                    _ => k0,
                };
                f(head, i, start..end);
            }
        }
    }
}

fn probabilities(spec: &AttentionSpec, q: &[f32], k: &[f32], keys: std::ops::Range<usize>, kv: usize) -> Vec<f32> {
    let (d, width) = (spec.head_dim, spec.num_kv_heads * spec.head_dim);
    let scores: Vec<f32> =
        keys.map(|j| spec.scale * (0..d).map(|c| q[c] * k[j * width + kv * d + c]).sum::<f32>()).collect();
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f32 = scores.iter().map(|s| (s - max).exp()).sum();
    scores.iter().map(|s| (s - max).exp() / sum).collect()
}

/// o.
pub(super) fn forward(spec: &AttentionSpec, q: &[f32], k: &[f32], v: &[f32]) -> Vec<f32> {
    let d = spec.head_dim;
    let (nq, nkv) = (spec.num_heads * d, spec.num_kv_heads * d);
    let mut o = vec![0.0; q.len()];
    for_each_query(spec, |head, i, keys| {
        let kv = head / (spec.num_heads / spec.num_kv_heads);
        let p = probabilities(spec, &q[i * nq + head * d..], k, keys.clone(), kv);
        for (j, p) in keys.zip(p) {
            for c in 0..d {
                o[i * nq + head * d + c] += p * v[j * nkv + kv * d + c];
            }
        }
    });
    o
}

/// dq, dk, dv.
pub(super) fn backward(spec: &AttentionSpec, q: &[f32], k: &[f32], v: &[f32], g: &[f32]) -> [Vec<f32>; 3] {
    let d = spec.head_dim;
    let (nq, nkv) = (spec.num_heads * d, spec.num_kv_heads * d);
    let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
    for_each_query(spec, |head, i, keys| {
        let kv = head / (spec.num_heads / spec.num_kv_heads);
        let at = i * nq + head * d;
        let p = probabilities(spec, &q[at..], k, keys.clone(), kv);
        let dp: Vec<f32> = keys.clone().map(|j| (0..d).map(|c| g[at + c] * v[j * nkv + kv * d + c]).sum()).collect();
        let mean: f32 = p.iter().zip(&dp).map(|(p, dp)| p * dp).sum();
        for ((j, p), dp) in keys.zip(p).zip(dp) {
            let ds = p * (dp - mean) * spec.scale;
            for c in 0..d {
                let kj = j * nkv + kv * d + c;
                dv[kj] += p * g[at + c];
                dk[kj] += ds * q[at + c];
                dq[at + c] += ds * k[kj];
            }
        }
    });
    [dq, dk, dv]
}
