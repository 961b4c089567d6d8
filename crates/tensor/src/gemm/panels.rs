//! Owns products of packed panels on one thread, for kernels that use a packed side many times. Refuses edges: results are
//! padded to whole tiles.

use std::ops::Range;

use super::kernel::{Kernel, Place};
use super::pack::Unit;
use super::{Mat, Write};
use crate::error::Result;
use crate::memory::Buffer;

/// Numbers or packed units in a pooled buffer, with arbitrary content at first.
pub(crate) struct Pooled<T> {
    buffer: Buffer,
    len: usize,
    elements: std::marker::PhantomData<T>,
}

impl<T: Unit> Pooled<T> {
    pub(crate) fn new(len: usize) -> Result<Pooled<T>> {
        Ok(Pooled { buffer: Buffer::stale(len * size_of::<T>())?, len, elements: std::marker::PhantomData })
    }

    pub(crate) fn get(&self) -> &[T] {
        // SAFETY: the buffer is aligned, initialised and holds `len` elements; every bit pattern is a unit.
        unsafe { std::slice::from_raw_parts(self.buffer.as_ptr().cast(), self.len) }
    }

    pub(crate) fn get_mut(&mut self) -> &mut [T] {
        // SAFETY: as above; the exclusive borrow is handed on.
        unsafe { std::slice::from_raw_parts_mut(self.buffer.as_ptr().cast(), self.len) }
    }
}

/// A packed left side.
#[derive(Clone, Copy)]
pub(crate) struct Left<'a, P> {
    pub(crate) panels: &'a [P],
    pub(crate) rows: usize,
    /// Units of the depth.
    pub(crate) units: usize,
}

/// Some columns and depths of a packed right side.
#[derive(Clone, Copy)]
pub(crate) struct Right<'a, P> {
    /// From the first panel that is used on.
    pub(crate) panels: &'a [P],
    pub(crate) cols: usize,
    /// Units of the depth that the panels hold.
    pub(crate) panel_units: usize,
    /// First unit that is used.
    pub(crate) first_unit: usize,
}

/// The register tiles of one kind of units.
pub(crate) struct Tiles<P> {
    kernel: Kernel<P>,
}

impl<P: Unit> Tiles<P> {
    /// The tiles of this processor.
    pub(crate) fn best() -> Tiles<P> {
        Tiles { kernel: P::kernel() }
    }

    /// Rows of a left panel.
    pub(crate) fn rows(&self) -> usize {
        self.kernel.mr
    }

    /// `n` rounded up to whole right panels: the columns that a result needs.
    pub(crate) fn padded(&self, n: usize) -> usize {
        n.next_multiple_of(self.kernel.nr)
    }

    /// Units of a packed left side.
    pub(crate) fn left_size(&self, rows: usize, depth: usize) -> usize {
        rows.next_multiple_of(self.kernel.mr) * depth.div_ceil(P::DEPTHS)
    }

    /// Units of a packed right side.
    pub(crate) fn right_size(&self, cols: usize, depth: usize) -> usize {
        self.padded(cols) * depth.div_ceil(P::DEPTHS)
    }

    /// Packs a left side `[rows, depth]`.
    pub(crate) fn pack_left<'a>(&self, mat: Mat<'_>, to: &'a mut [P]) -> Left<'a, P> {
        let (width, units) = (self.kernel.mr, mat.cols.div_ceil(P::DEPTHS));
        P::pack(&mat, 0..mat.rows, width, width * units, to);
        Left { panels: to, rows: mat.rows, units }
    }

    /// Packs a right side `[depth, cols]`.
    pub(crate) fn pack_right(&self, mat: Mat<'_>, to: &mut [P]) {
        let (width, units) = (self.kernel.nr, mat.rows.div_ceil(P::DEPTHS));
        P::pack(&mat.t(), 0..mat.cols, width, width * units, to);
    }

    /// to (+)= alpha left.right over the part of the left side's units that `part` gives for the rows and columns of each
    /// tile; a tile without any is left as it is. Rows of `to` stand `stride` apart and are as long as the padded columns.
    pub(crate) fn run(
        &self,
        left: Left<'_, P>,
        right: Right<'_, P>,
        part: impl Fn(Range<usize>, Range<usize>) -> Range<usize>,
        to: &mut [f32],
        stride: usize,
        write: Write,
        alpha: f32,
    ) {
        let Kernel { mr, nr, run, .. } = self.kernel;
        let (rows, cols, units) = (left.rows, self.padded(right.cols), left.units);
        if rows == 0 || cols == 0 {
            return;
        }
        assert!(stride >= cols && (rows - 1) * stride + cols <= to.len());
        assert!(right.first_unit + units <= right.panel_units);
        for col in (0..cols).step_by(nr) {
            let b = &right.panels[col * right.panel_units + right.first_unit * nr..][..units * nr];
            for row in (0..rows).step_by(mr) {
                let num_rows = mr.min(rows - row);
                let part = part(row..row + num_rows, col..right.cols.min(col + nr));
                if part.is_empty() {
                    continue;
                }
                let (a, b) = (&left.panels[row * units..][..units * mr], &b[part.start * nr..part.end * nr]);
                let a = &a[part.start * mr..part.end * mr];
                let place = Place {
                    alpha,
                    add: write == Write::Add,
                    ..Place::plain(to[row * stride + col..].as_mut_ptr(), stride)
                };
                // SAFETY: panels hold the part's units times their width, and the assertion bounds the place of every whole
                // tile.
                unsafe { run(num_rows, part.len(), a.as_ptr(), b.as_ptr(), &place) };
            }
        }
    }
}
