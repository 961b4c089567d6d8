//! LayerNorm on the CPU: rows in parallel, the weight's gradient by fixed pieces of rows.

use crate::element::Element;
use crate::error::Result;
use crate::gradients::Write;
use crate::ops::sum_pieces;
use crate::simd::{multiversion, sum_zip, sum_zip3};
use crate::threads;

pub(super) fn forward<X: Element, Y: Element>(
    x: &[X],
    w: &[f32],
    b: &[f32],
    eps: f32,
    y: &mut [Y],
    moments: &mut [f32],
) {
    let n = w.len();
    let moments = threads::Shared::new(moments);
    threads::for_each_rows(y, n, |rows, y| {
        // SAFETY: pieces of rows are disjoint.
        let moments = unsafe { moments.slice(2 * rows.start..2 * rows.end) };
        forward_rows(&x[rows.start * n..rows.end * n], w, b, eps, y, moments);
    });
}

multiversion! {
    fn forward_rows<X: Element, Y: Element>(
        x: &[X], w: &[f32], b: &[f32], eps: f32, y: &mut [Y], moments: &mut [f32],
    ) {
        let n = w.len();
        for ((x, y), moments) in x.chunks_exact(n).zip(y.chunks_exact_mut(n)).zip(moments.chunks_exact_mut(2)) {
            let mean = sum_zip(x, x, |a, _| a.wide()) / n as f32;
            let variance = sum_zip(x, x, |a, _| (a.wide() - mean) * (a.wide() - mean)) / n as f32;
            let r = 1.0 / (variance + eps).sqrt();
            moments[0] = mean;
            moments[1] = r;
            for (((y, &x), &w), &b) in y.iter_mut().zip(x).zip(w).zip(b) {
                *y = Y::narrow((x.wide() - mean) * r * w + b);
            }
        }
    }
}

pub(super) fn input_gradient<X: Element, Y: Element, D: Element>(
    g: &[Y],
    x: &[X],
    w: &[f32],
    moments: &[f32],
    dx: &mut [D],
    write: Write,
) {
    let n = w.len();
    threads::for_each_rows(dx, n, |rows, dx| {
        let range = rows.start * n..rows.end * n;
        input_gradient_rows(&g[range.clone()], &x[range], w, &moments[2 * rows.start..2 * rows.end], dx, write);
    });
}

multiversion! {
    fn input_gradient_rows<X: Element, Y: Element, D: Element>(
        g: &[Y], x: &[X], w: &[f32], moments: &[f32], dx: &mut [D], write: Write,
    ) {
        let n = w.len();
        let rows = g.chunks_exact(n).zip(x.chunks_exact(n)).zip(dx.chunks_exact_mut(n)).zip(moments.chunks_exact(2));
        for (((g, x), dx), moments) in rows {
            let (mean, r) = (moments[0], moments[1]);
            let sum = sum_zip(g, w, |g, w| g.wide() * w) / n as f32;
            let dot = sum_zip3(g, w, x, |g, w, x| g.wide() * w * (x.wide() - mean) * r) / n as f32;
            let slope = |g: Y, w: f32, x: X| r * (g.wide() * w - sum - (x.wide() - mean) * r * dot);
            let parts = dx.iter_mut().zip(g).zip(w).zip(x);
            match write {
                Write::Replace => parts.for_each(|(((dx, &g), &w), &x)| *dx = D::narrow(slope(g, w, x))),
                Write::Add => parts.for_each(|(((dx, &g), &w), &x)| *dx = D::narrow(dx.wide() + slope(g, w, x))),
            }
        }
    }
}

pub(super) fn weight_gradient<X: Element, Y: Element>(
    g: &[Y],
    x: &[X],
    moments: &[f32],
    dw: &mut [f32],
    write: Write,
) -> Result<()> {
    let n = dw.len();
    sum_pieces(moments.len() / 2, dw, write, |rows, sums| {
        let range = rows.start * n..rows.end * n;
        weight_gradient_rows(&g[range.clone()], &x[range], &moments[2 * rows.start..2 * rows.end], sums);
    })
}

multiversion! {
    fn weight_gradient_rows<X: Element, Y: Element>(g: &[Y], x: &[X], moments: &[f32], sums: &mut [f32]) {
        let n = sums.len();
        for ((g, x), moments) in g.chunks_exact(n).zip(x.chunks_exact(n)).zip(moments.chunks_exact(2)) {
            for ((sum, g), x) in sums.iter_mut().zip(g).zip(x) {
                *sum += g.wide() * (x.wide() - moments[0]) * moments[1];
            }
        }
    }
}
