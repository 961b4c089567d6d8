//! RMSNorm on the CPU: rows in parallel, the weight's gradient by fixed pieces of rows.

use crate::element::Element;
use crate::error::Result;
use crate::gradients::Write;
use crate::ops::sum_pieces;
use crate::simd::{multiversion, sum_zip, sum_zip3};
use crate::threads;

pub(super) fn forward<X: Element, Y: Element>(x: &[X], w: &[f32], eps: f32, y: &mut [Y], inverse: &mut [f32]) {
    let n = w.len();
    let inverse = threads::Shared::new(inverse);
    threads::for_each_rows(y, n, |rows, y| {
        // SAFETY: pieces of rows are disjoint.
        let inverse = unsafe { inverse.slice(rows.clone()) };
        forward_rows(&x[rows.start * n..rows.end * n], w, eps, y, inverse);
    });
}

multiversion! {
    fn forward_rows<X: Element, Y: Element>(x: &[X], w: &[f32], eps: f32, y: &mut [Y], inverse: &mut [f32]) {
        let n = w.len();
        for ((x, y), inverse) in x.chunks_exact(n).zip(y.chunks_exact_mut(n)).zip(inverse) {
            let r = 1.0 / (sum_zip(x, x, |a, b| a.wide() * b.wide()) / n as f32 + eps).sqrt();
            *inverse = r;
            for ((y, &x), &w) in y.iter_mut().zip(x).zip(w) {
                *y = Y::narrow(x.wide() * r * w);
            }
        }
    }
}

pub(super) fn input_gradient<X: Element, Y: Element, D: Element>(
    g: &[Y],
    x: &[X],
    w: &[f32],
    inverse: &[f32],
    dx: &mut [D],
    write: Write,
) {
    let n = w.len();
    threads::for_each_rows(dx, n, |rows, dx| {
        let range = rows.start * n..rows.end * n;
        input_gradient_rows(&g[range.clone()], &x[range], w, &inverse[rows], dx, write);
    });
}

multiversion! {
    fn input_gradient_rows<X: Element, Y: Element, D: Element>(
        g: &[Y], x: &[X], w: &[f32], inverse: &[f32], dx: &mut [D], write: Write,
    ) {
        let n = w.len();
        let rows = g.chunks_exact(n).zip(x.chunks_exact(n)).zip(dx.chunks_exact_mut(n)).zip(inverse);
        for (((g, x), dx), &r) in rows {
            let c = sum_zip3(g, w, x, |g, w, x| g.wide() * w * x.wide()) * r * r / n as f32;
            let parts = dx.iter_mut().zip(g).zip(w).zip(x);
            match write {
                Write::Replace => parts.for_each(|(((dx, g), w), x)| {
                    *dx = D::narrow(r * (g.wide() * w - x.wide() * c));
                }),
                Write::Add => parts.for_each(|(((dx, g), w), x)| {
                    *dx = D::narrow(dx.wide() + r * (g.wide() * w - x.wide() * c));
                }),
            }
        }
    }
}

pub(super) fn weight_gradient<X: Element, Y: Element>(
    g: &[Y],
    x: &[X],
    inverse: &[f32],
    dw: &mut [f32],
    write: Write,
) -> Result<()> {
    let n = dw.len();
    sum_pieces(inverse.len(), dw, write, |rows, sums| {
        let range = rows.start * n..rows.end * n;
        weight_gradient_rows(&g[range.clone()], &x[range], &inverse[rows], sums);
    })
}

multiversion! {
    fn weight_gradient_rows<X: Element, Y: Element>(g: &[Y], x: &[X], inverse: &[f32], sums: &mut [f32]) {
        let n = sums.len();
        for ((g, x), &r) in g.chunks_exact(n).zip(x.chunks_exact(n)).zip(inverse) {
            for ((sum, g), x) in sums.iter_mut().zip(g).zip(x) {
                *sum += g.wide() * x.wide() * r;
            }
        }
    }
}
