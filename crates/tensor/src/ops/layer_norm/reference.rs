//! LayerNorm in plain loops.

/// y, and mean and inverse deviation of each row.
pub(super) fn forward(x: &[f32], w: &[f32], b: &[f32], eps: f32) -> (Vec<f32>, Vec<f32>) {
    let n = w.len();
    let (mut y, mut moments) = (vec![], vec![]);
    for row in x.chunks(n) {
        let mean = row.iter().sum::<f32>() / n as f32;
        let mut variance = 0.0;
        for x in row {
            variance += (x - mean) * (x - mean);
        }
        let r = 1.0 / (variance / n as f32 + eps).sqrt();
        moments.extend([mean, r]);
        for i in 0..n {
            y.push((row[i] - mean) * r * w[i] + b[i]);
        }
    }
    (y, moments)
}

/// dx and dw.
pub(super) fn backward(g: &[f32], x: &[f32], w: &[f32], moments: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let n = w.len();
    let (mut dx, mut dw) = (vec![], vec![0.0; n]);
    for (t, moment) in moments.chunks(2).enumerate() {
        let (mut sum, mut dot) = (0.0, 0.0);
        for i in 0..n {
            let (g, z) = (g[t * n + i], (x[t * n + i] - moment[0]) * moment[1]);
            sum += g * w[i];
            dot += g * w[i] * z;
            dw[i] += g * z;
        }
        for i in 0..n {
            let z = (x[t * n + i] - moment[0]) * moment[1];
            dx.push(moment[1] * (g[t * n + i] * w[i] - sum / n as f32 - z * dot / n as f32));
        }
    }
    (dx, dw)
}
