//! RMSNorm on the CPU: rows in parallel, the weight's gradient by fixed pieces of rows.

use crate::error::Result;
use crate::gradients::Write;
use crate::ops::sum_pieces;
use crate::simd::{multiversion, sum2};
use crate::threads;

pub(super) fn forward(x: &[f32], w: &[f32], eps: f32, y: &mut [f32], inverse: &mut [f32]) {
    let n = w.len();
    let inverse = threads::Shared::new(inverse);
    threads::for_each_rows(y, n, |rows, y| {
        // SAFETY: pieces of rows are disjoint.
        let inverse = unsafe { inverse.slice(rows.clone()) };
        forward_rows(&x[rows.start * n..rows.end * n], w, eps, y, inverse);
    });
}

multiversion! {
    fn forward_rows(x: &[f32], w: &[f32], eps: f32, y: &mut [f32], inverse: &mut [f32]) {
        let n = w.len();
        for ((x, y), inverse) in x.chunks_exact(n).zip(y.chunks_exact_mut(n)).zip(inverse) {
            let r = 1.0 / (sum2(x, x, |a, b| a * b) / n as f32 + eps).sqrt();
            *inverse = r;
            for ((y, &x), &w) in y.iter_mut().zip(x).zip(w) {
                *y = x * r * w;
            }
        }
    }
}

pub(super) fn input_gradient(g: &[f32], x: &[f32], w: &[f32], inverse: &[f32], dx: &mut [f32], write: Write) {
    let n = w.len();
    threads::for_each_rows(dx, n, |rows, dx| {
        let range = rows.start * n..rows.end * n;
        input_gradient_rows(&g[range.clone()], &x[range], w, &inverse[rows], dx, write);
    });
}

multiversion! {
    fn input_gradient_rows(g: &[f32], x: &[f32], w: &[f32], inverse: &[f32], dx: &mut [f32], write: Write) {
        let n = w.len();
        let rows = g.chunks_exact(n).zip(x.chunks_exact(n)).zip(dx.chunks_exact_mut(n)).zip(inverse);
        for (((g, x), dx), &r) in rows {
            let mut lanes = [0f32; crate::simd::LANES];
            for i in 0..n {
                lanes[i % crate::simd::LANES] += g[i] * w[i] * x[i];
            }
            let c = crate::simd::sum_lanes(lanes) * r * r / n as f32;
            match write {
                Write::Replace => {
                    for i in 0..n {
                        dx[i] = r * (g[i] * w[i] - x[i] * c);
                    }
                }
                Write::Add => {
                    for i in 0..n {
                        dx[i] += r * (g[i] * w[i] - x[i] * c);
                    }
                }
            }
        }
    }
}

pub(super) fn weight_gradient(g: &[f32], x: &[f32], inverse: &[f32], dw: &mut [f32], write: Write) -> Result<()> {
    let n = dw.len();
    sum_pieces(inverse.len(), dw, write, |rows, sums| {
        let range = rows.start * n..rows.end * n;
        weight_gradient_rows(&g[range.clone()], &x[range], &inverse[rows], sums);
    })
}

multiversion! {
    fn weight_gradient_rows(g: &[f32], x: &[f32], inverse: &[f32], sums: &mut [f32]) {
        let n = sums.len();
        for ((g, x), &r) in g.chunks_exact(n).zip(x.chunks_exact(n)).zip(inverse) {
            for ((sum, &g), &x) in sums.iter_mut().zip(g).zip(x) {
                *sum += g * x * r;
            }
        }
    }
}
