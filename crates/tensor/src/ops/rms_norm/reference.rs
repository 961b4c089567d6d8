//! RMSNorm in plain loops.

/// y and the inverse root mean squares.
pub(super) fn forward(x: &[f32], w: &[f32], eps: f32) -> (Vec<f32>, Vec<f32>) {
    let (mut y, mut inverse) = (vec![], vec![]);
    for row in x.chunks(w.len()) {
        let mut sum = 0.0;
        for x in row {
            sum += x * x;
        }
        let r = 1.0 / (sum / w.len() as f32 + eps).sqrt();
        inverse.push(r);
        for i in 0..w.len() {
            y.push(row[i] * r * w[i]);
        }
    }
    (y, inverse)
}

/// dx and dw.
pub(super) fn backward(g: &[f32], x: &[f32], w: &[f32], inverse: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let n = w.len();
    let (mut dx, mut dw) = (vec![], vec![0.0; n]);
    for (t, &r) in inverse.iter().enumerate() {
        let mut dot = 0.0;
        for i in 0..n {
            dot += g[t * n + i] * w[i] * x[t * n + i];
            dw[i] += g[t * n + i] * x[t * n + i] * r;
        }
        for i in 0..n {
            dx.push(r * (g[t * n + i] * w[i] - x[t * n + i] * r * r * dot / n as f32));
        }
    }
    (dx, dw)
}
