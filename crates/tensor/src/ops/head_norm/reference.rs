//! The norms of heads in plain loops.

/// y; `groups` are numbers of heads with their weights.
pub(super) fn forward(x: &[f32], width: usize, groups: &[(usize, Vec<f32>)], eps: f32) -> Vec<f32> {
    let mut y = x.to_vec();
    for row in 0..x.len() / width {
        let mut at = row * width;
        for (count, w) in groups {
            for _ in 0..*count {
                let r = inverse(&x[at..at + w.len()], eps);
                for i in 0..w.len() {
                    y[at + i] = x[at + i] * r * w[i];
                }
                at += w.len();
            }
        }
    }
    y
}

fn inverse(head: &[f32], eps: f32) -> f32 {
    let mut sum = 0.0;
    for x in head {
        sum += x * x;
    }
    1.0 / (sum / head.len() as f32 + eps).sqrt()
}

/// dx and the gradient of each weight.
pub(super) fn backward(
    g: &[f32],
    x: &[f32],
    width: usize,
    groups: &[(usize, Vec<f32>)],
    eps: f32,
) -> (Vec<f32>, Vec<Vec<f32>>) {
    let mut dx = g.to_vec();
    let mut dws: Vec<Vec<f32>> = groups.iter().map(|(_, w)| vec![0.0; w.len()]).collect();
    for row in 0..x.len() / width {
        let mut at = row * width;
        for ((count, w), dw) in groups.iter().zip(&mut dws) {
            for _ in 0..*count {
                let r = inverse(&x[at..at + w.len()], eps);
                let mut dot = 0.0;
                for i in 0..w.len() {
                    dot += g[at + i] * w[i] * x[at + i];
                    dw[i] += g[at + i] * x[at + i] * r;
                }
                for i in 0..w.len() {
                    dx[at + i] = r * (g[at + i] * w[i] - x[at + i] * r * r * dot / w.len() as f32);
                }
                at += w.len();
            }
        }
    }
    (dx, dws)
}
