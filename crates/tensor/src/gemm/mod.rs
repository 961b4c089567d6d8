//! Owns f32 matrix multiplication: packed panels and register tiles of our own, chosen by instruction set at run time.
//! Refuses shapes that do not fit (asserts: operators have checked them) and dtypes other than f32 for results.
//!
//! Why our own: 16-bit weights widen while they are packed, so no wide copy exists; the order of every sum follows from
//! the shape alone, so results have the same bits whatever the number of threads; and the tiles reach 90 % and more of
//! the processor's peak, where general libraries stay below 85 % (measured by `examples/gemm.rs`).

mod blocked;
mod kernel;
mod pack;
#[cfg(test)]
mod tests;
mod thin;

use std::ops::Range;

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::gradients::Write;
use crate::tensor::Tensor;

/// The elements of a matrix for reading.
#[derive(Clone, Copy)]
enum Elements<'a> {
    F32(&'a [f32]),
    BF16(&'a [u16]),
    F16(&'a [u16]),
}

impl Elements<'_> {
    fn len(&self) -> usize {
        match self {
            Elements::F32(data) => data.len(),
            Elements::BF16(data) | Elements::F16(data) => data.len(),
        }
    }
}

/// A matrix for reading. One of the strides is 1; a transpose is free.
#[derive(Clone, Copy)]
pub(crate) struct Mat<'a> {
    data: Elements<'a>,
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Mat<'a> {
    /// A contiguous row-major matrix.
    pub(crate) fn new(data: &'a [f32], rows: usize, cols: usize) -> Mat<'a> {
        Mat::strided(data, rows, cols, cols)
    }

    /// A row-major matrix whose rows stand `row_stride` apart.
    pub(crate) fn strided(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Mat<'a> {
        Mat::checked(Elements::F32(data), rows, cols, row_stride)
    }

    /// A two-dimensional float tensor, whatever its dtype.
    pub(crate) fn of(tensor: &'a Tensor) -> Result<Mat<'a>> {
        let [rows, cols] = *tensor.shape() else {
            return Err(Error::shape("gemm", "matrix", "[rows, cols]", tensor.shape()));
        };
        let data = match tensor.dtype() {
            DType::F32 => Elements::F32(tensor.f32s()?),
            DType::BF16 => Elements::BF16(tensor.halves()?),
            DType::F16 => Elements::F16(tensor.halves()?),
            found => return Err(Error::DType { op: "gemm", what: "matrix", expected: "a float", found }),
        };
        Ok(Mat::checked(data, rows, cols, cols))
    }

    fn checked(data: Elements<'a>, rows: usize, cols: usize, row_stride: usize) -> Mat<'a> {
        assert!(rows == 0 || cols == 0 || (row_stride >= cols && (rows - 1) * row_stride + cols <= data.len()));
        Mat { data, rows, cols, row_stride, col_stride: 1 }
    }

    /// The transpose.
    pub(crate) fn t(self) -> Mat<'a> {
        let Mat { data, rows, cols, row_stride, col_stride } = self;
        Mat { data, rows: cols, cols: rows, row_stride: col_stride, col_stride: row_stride }
    }
}

/// A row-major f32 matrix for writing.
pub(crate) struct MatMut<'a> {
    data: &'a mut [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
}

impl<'a> MatMut<'a> {
    /// A contiguous matrix.
    pub(crate) fn new(data: &'a mut [f32], rows: usize, cols: usize) -> MatMut<'a> {
        assert!(rows * cols <= data.len());
        MatMut { data, rows, cols, row_stride: cols }
    }
}

/// Who computes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Threads {
    /// The calling thread, inside of a task.
    One,
    /// The engine's workers.
    All,
}

/// to = alpha a.b, or to += alpha a.b, accumulated in f32.
pub(crate) fn gemm(to: MatMut<'_>, write: Write, alpha: f32, a: Mat<'_>, b: Mat<'_>, threads: Threads) -> Result<()> {
    assert!(to.rows == a.rows && to.cols == b.cols && a.cols == b.rows);
    let (m, n, k) = (to.rows, to.cols, a.cols);
    if m == 0 || n == 0 {
        return Ok(());
    }
    if k == 0 {
        if write == Write::Replace {
            (0..m).for_each(|i| to.data[i * to.row_stride..][..n].fill(0.0));
        }
        return Ok(());
    }
    crate::profile::add_flops(2 * m as u64 * n as u64 * k as u64);
    if thin::fits(m, &b) && matches!(a.data, Elements::F32(_)) {
        thin::multiply(to, write, alpha, a, b, threads);
        return Ok(());
    }
    blocked::multiply(kernel::best(), to, write, alpha, a, b, threads)
}

/// The place of `range` in units of `step`, cut at `limit`.
fn span(index: usize, step: usize, limit: usize) -> Range<usize> {
    index * step..((index + 1) * step).min(limit)
}
