//! The norms of heads on the CPU, in place, rows in parallel; weight gradients by fixed pieces of rows.

use std::ops::Range;

use crate::element::Element;
use crate::error::Result;
use crate::gradients::Write;
use crate::ops::sum_pieces;
use crate::simd::{multiversion, sum_zip, sum_zip3};
use crate::threads;

/// Which heads of a row are meant.
pub(super) struct Heads {
    /// Elements of a row.
    pub(super) width: usize,
    /// Heads that have an inverse, of all groups.
    pub(super) all: usize,
    /// The heads of this group.
    pub(super) range: Range<usize>,
    pub(super) head_dim: usize,
}

impl Heads {
    fn columns(&self) -> Range<usize> {
        self.range.start * self.head_dim..self.range.end * self.head_dim
    }

    /// Where the inverses of this group stand for a row.
    fn inverses(&self, row: usize) -> Range<usize> {
        row * self.all + self.range.start..row * self.all + self.range.end
    }
}

/// Normalises the heads in place and writes their inverse root mean squares.
pub(super) fn forward<E: Element>(x: &mut [E], w: &[f32], eps: f32, heads: &Heads, inverse: &mut [f32]) {
    let inverse = threads::Shared::new(inverse);
    threads::for_each_rows(x, heads.width, |rows, x| {
        for (row, x) in rows.zip(x.chunks_exact_mut(heads.width)) {
            // SAFETY: the inverses of a row belong to the task that has the row.
            let inverse = unsafe { inverse.slice(heads.inverses(row)) };
            forward_row(&mut x[heads.columns()], w, eps, inverse);
        }
    });
}

multiversion! {
    fn forward_row<E: Element>(x: &mut [E], w: &[f32], eps: f32, inverse: &mut [f32]) {
        let d = w.len();
        for (x, inverse) in x.chunks_exact_mut(d).zip(inverse) {
            let r = 1.0 / (sum_zip(x, x, |a, b| a.wide() * b.wide()) / d as f32 + eps).sqrt();
            *inverse = r;
            for (x, &w) in x.iter_mut().zip(w) {
                *x = E::narrow(x.wide() * r * w);
            }
        }
    }
}

/// Replaces the gradient of y by that of x, in the columns of the heads.
pub(super) fn input_gradient<E: Element>(g: &mut [E], x: &[E], w: &[f32], inverse: &[f32], heads: &Heads) {
    threads::for_each_rows(g, heads.width, |rows, g| {
        for (row, g) in rows.zip(g.chunks_exact_mut(heads.width)) {
            let x = &x[row * heads.width..][heads.columns()];
            input_gradient_row(&mut g[heads.columns()], x, w, &inverse[heads.inverses(row)]);
        }
    });
}

multiversion! {
    fn input_gradient_row<E: Element>(g: &mut [E], x: &[E], w: &[f32], inverse: &[f32]) {
        let d = w.len();
        for ((g, x), &r) in g.chunks_exact_mut(d).zip(x.chunks_exact(d)).zip(inverse) {
            let c = sum_zip3(g, w, x, |g, w, x| g.wide() * w * x.wide()) * r * r / d as f32;
            for ((g, w), x) in g.iter_mut().zip(w).zip(x) {
                *g = E::narrow(r * (g.wide() * w - x.wide() * c));
            }
        }
    }
}

pub(super) fn weight_gradient<E: Element>(
    g: &[E],
    x: &[E],
    inverse: &[f32],
    heads: &Heads,
    dw: &mut [f32],
    write: Write,
) -> Result<()> {
    sum_pieces(x.len() / heads.width.max(1), dw, write, |rows, sums| {
        for row in rows {
            let at = row * heads.width;
            let (g, x) = (&g[at..][heads.columns()], &x[at..][heads.columns()]);
            weight_gradient_row(g, x, &inverse[heads.inverses(row)], sums);
        }
    })
}

multiversion! {
    fn weight_gradient_row<E: Element>(g: &[E], x: &[E], inverse: &[f32], sums: &mut [f32]) {
        let d = sums.len();
        for ((g, x), &r) in g.chunks_exact(d).zip(x.chunks_exact(d)).zip(inverse) {
            for ((sum, g), x) in sums.iter_mut().zip(g).zip(x) {
                *sum += g.wide() * x.wide() * r;
            }
        }
    }
}
