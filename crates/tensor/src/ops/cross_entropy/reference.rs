//! Cross-entropy of logits in plain loops.

/// nll by row and dz, for targets and weights by row.
pub(super) fn losses(z: &[f32], vocabulary: usize, rows: &[(usize, f32)]) -> (Vec<f32>, Vec<f32>) {
    let (mut nll, mut dz) = (vec![], vec![]);
    for (z, &(target, weight)) in z.chunks(vocabulary).zip(rows) {
        let max = z.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut sum = 0.0;
        for z in z {
            sum += (z - max).exp();
        }
        nll.push(max + sum.ln() - z[target]);
        for (i, z) in z.iter().enumerate() {
            let onehot = if i == target { 1.0 } else { 0.0 };
            dz.push(weight * ((z - max).exp() / sum - onehot));
        }
    }
    (nll, dz)
}
