//! Log-sum-exp and softmax gradient of a chunk of logits on the CPU, rows in parallel.

use crate::simd::{LANES, exp, max, multiversion, sum_lanes};
use crate::threads;

/// The negative log-likelihood of each row of `z`, given its target and weight. With `differentiate` the logits are
/// overwritten by weight * (softmax - onehot).
pub(super) fn losses(z: &mut [f32], vocabulary: usize, rows: &[(usize, f32)], differentiate: bool) -> Vec<f32> {
    let mut nll = vec![0f32; rows.len()];
    let shared = threads::Shared::new(&mut nll);
    threads::for_each_rows(z, vocabulary, |range, z| {
        // SAFETY: pieces of rows are disjoint.
        let nll = unsafe { shared.slice(range.clone()) };
        for ((z, nll), &(target, weight)) in z.chunks_exact_mut(vocabulary).zip(nll).zip(&rows[range]) {
            *nll = loss(z, target, weight, differentiate);
        }
    });
    nll
}

multiversion! {
    fn loss(z: &mut [f32], target: usize, weight: f32, differentiate: bool) -> f32 {
        let largest = max(z);
        let score = z[target];
        if !differentiate {
            let sum = crate::simd::sum2(z, z, |z, _| exp(z - largest));
            return sum.ln() + (largest - score);
        }
        let mut lanes = [0f32; LANES];
        let mut parts = z.chunks_exact_mut(LANES);
        for part in &mut parts {
            for i in 0..LANES {
                part[i] = exp(part[i] - largest);
                lanes[i] += part[i];
            }
        }
        for (i, z) in parts.into_remainder().iter_mut().enumerate() {
            *z = exp(*z - largest);
            lanes[i] += *z;
        }
        let sum = sum_lanes(lanes);
        let factor = weight / sum;
        z.iter_mut().for_each(|z| *z *= factor);
        z[target] -= weight;
        sum.ln() + (largest - score)
    }
}
