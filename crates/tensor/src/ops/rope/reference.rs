//! Rotary position embedding in plain loops.

/// x rotated by the angles whose cosines and sines are given.
pub(super) fn rotate(x: &[f32], num_heads: usize, head_dim: usize, cos: &[f32], sin: &[f32], half: usize) -> Vec<f32> {
    let mut y = x.to_vec();
    for t in 0..x.len() / (num_heads * head_dim) {
        for head in 0..num_heads {
            let start = (t * num_heads + head) * head_dim;
            for i in 0..half {
                let (c, s) = (cos[t * half + i], sin[t * half + i]);
                y[start + i] = x[start + i] * c - x[start + half + i] * s;
                y[start + half + i] = x[start + half + i] * c + x[start + i] * s;
            }
        }
    }
    y
}
