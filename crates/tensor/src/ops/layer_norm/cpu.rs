//! LayerNorm on the CPU: rows in parallel, the weight's gradient by fixed pieces of rows.

use crate::error::Result;
use crate::gradients::Write;
use crate::ops::sum_pieces;
use crate::simd::{LANES, multiversion, sum_lanes, sum2};
use crate::threads;

pub(super) fn forward(x: &[f32], w: &[f32], b: &[f32], eps: f32, y: &mut [f32], moments: &mut [f32]) {
    let n = w.len();
    let moments = threads::Shared::new(moments);
    threads::for_each_rows(y, n, |rows, y| {
        // SAFETY: pieces of rows are disjoint.
        let moments = unsafe { moments.slice(2 * rows.start..2 * rows.end) };
        forward_rows(&x[rows.start * n..rows.end * n], w, b, eps, y, moments);
    });
}

multiversion! {
    fn forward_rows(x: &[f32], w: &[f32], b: &[f32], eps: f32, y: &mut [f32], moments: &mut [f32]) {
        let n = w.len();
        for ((x, y), moments) in x.chunks_exact(n).zip(y.chunks_exact_mut(n)).zip(moments.chunks_exact_mut(2)) {
            let mean = sum2(x, x, |a, _| a) / n as f32;
            let variance = sum2(x, x, |a, _| (a - mean) * (a - mean)) / n as f32;
            let r = 1.0 / (variance + eps).sqrt();
            moments[0] = mean;
            moments[1] = r;
            for (((y, &x), &w), &b) in y.iter_mut().zip(x).zip(w).zip(b) {
                *y = (x - mean) * r * w + b;
            }
        }
    }
}

pub(super) fn input_gradient(g: &[f32], x: &[f32], w: &[f32], moments: &[f32], dx: &mut [f32], write: Write) {
    let n = w.len();
    threads::for_each_rows(dx, n, |rows, dx| {
        let range = rows.start * n..rows.end * n;
        input_gradient_rows(&g[range.clone()], &x[range], w, &moments[2 * rows.start..2 * rows.end], dx, write);
    });
}

multiversion! {
    fn input_gradient_rows(g: &[f32], x: &[f32], w: &[f32], moments: &[f32], dx: &mut [f32], write: Write) {
        let n = w.len();
        let rows = g.chunks_exact(n).zip(x.chunks_exact(n)).zip(dx.chunks_exact_mut(n)).zip(moments.chunks_exact(2));
        for (((g, x), dx), moments) in rows {
            let (mean, r) = (moments[0], moments[1]);
            let (mut sums, mut dots) = ([0f32; LANES], [0f32; LANES]);
            for i in 0..n {
                let s = g[i] * w[i];
                sums[i % LANES] += s;
                dots[i % LANES] += s * (x[i] - mean) * r;
            }
            let sum = sum_lanes(sums) / n as f32;
            let dot = sum_lanes(dots) / n as f32;
            for i in 0..n {
                let d = r * (g[i] * w[i] - sum - (x[i] - mean) * r * dot);
                dx[i] = if write == Write::Add { dx[i] + d } else { d };
            }
        }
    }
}

pub(super) fn weight_gradient(g: &[f32], x: &[f32], moments: &[f32], dw: &mut [f32], write: Write) -> Result<()> {
    let n = dw.len();
    sum_pieces(moments.len() / 2, dw, write, |rows, sums| {
        let range = rows.start * n..rows.end * n;
        weight_gradient_rows(&g[range.clone()], &x[range], &moments[2 * rows.start..2 * rows.end], sums);
    })
}

multiversion! {
    fn weight_gradient_rows(g: &[f32], x: &[f32], moments: &[f32], sums: &mut [f32]) {
        let n = sums.len();
        for ((g, x), moments) in g.chunks_exact(n).zip(x.chunks_exact(n)).zip(moments.chunks_exact(2)) {
            for ((sum, &g), &x) in sums.iter_mut().zip(g).zip(x) {
                *sum += g * (x - moments[0]) * moments[1];
            }
        }
    }
}
