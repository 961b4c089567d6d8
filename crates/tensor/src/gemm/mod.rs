//! Owns matrix multiplication: packed panels and register tiles of our own, chosen by instruction set at run time.
//! Refuses shapes that do not fit (asserts: operators have checked them).
//!
//! Two arithmetics, both with f32 sums: products of f32 numbers, and products of bf16 numbers, to which every operand is
//! rounded (to nearest even) while it is packed. Where the processor has no bf16 products the second one multiplies in f32
//! what it was given. 16-bit operands widen, and wide ones narrow, while they are packed: no converted copy exists.
//!
//! Why our own: the order of every sum follows from the shape alone, so results have the same bits whatever the number of
//! threads; several products add up, or share an operand, in one call; and the tiles reach 90 % and more of the
//! processor's peak, where general libraries stay below 85 % (measured by `examples/gemm.rs`).

mod blocked;
mod kernel;
mod kernel_bf16;
mod pack;
mod pack_pairs;
mod panels;
mod passes;
#[cfg(test)]
mod tests;
mod thin;

use std::ops::Range;

pub(crate) use pack::Unit;
pub(crate) use pack_pairs::Pair;
pub(crate) use panels::{Left, Pooled, Right, Tiles};

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::gradients::Write;
use crate::profile;
use crate::tensor::Tensor;
use crate::threads::Shared;

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

    fn element_bytes(&self) -> usize {
        match self {
            Elements::F32(_) => 4,
            Elements::BF16(_) | Elements::F16(_) => 2,
        }
    }

    fn address(&self) -> usize {
        match self {
            Elements::F32(data) => data.as_ptr().addr(),
            Elements::BF16(data) | Elements::F16(data) => data.as_ptr().addr(),
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

    /// As [`Mat::strided`] for the bits of bf16 numbers.
    #[cfg(test)]
    pub(crate) fn strided_bf16(data: &'a [u16], rows: usize, cols: usize, row_stride: usize) -> Mat<'a> {
        Mat::checked(Elements::BF16(data), rows, cols, row_stride)
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

    /// Some rows.
    pub(crate) fn rows(self, range: Range<usize>) -> Mat<'a> {
        self.t().depths(range).t()
    }

    /// Some columns.
    pub(crate) fn columns(self, range: Range<usize>) -> Mat<'a> {
        assert!(self.col_stride == 1);
        self.depths(range)
    }

    pub(crate) fn num_rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn num_cols(&self) -> usize {
        self.cols
    }

    /// Some depths of a left side.
    fn depths(self, range: Range<usize>) -> Mat<'a> {
        assert!(range.start <= range.end && range.end <= self.cols);
        let skip = if self.rows == 0 || range.is_empty() { 0 } else { range.start * self.col_stride };
        let data = match self.data {
            Elements::F32(data) => Elements::F32(&data[skip..]),
            Elements::BF16(data) => Elements::BF16(&data[skip..]),
            Elements::F16(data) => Elements::F16(&data[skip..]),
        };
        Mat { data, cols: range.len(), ..self }
    }

    /// The transpose.
    pub(crate) fn t(self) -> Mat<'a> {
        let Mat { data, rows, cols, row_stride, col_stride } = self;
        Mat { data, rows: cols, cols: rows, row_stride: col_stride, col_stride: row_stride }
    }

    /// Whether both are the same elements in the same layout.
    fn is_same(&self, other: &Mat<'_>) -> bool {
        self.data.address() == other.data.address()
            && [self.rows, self.cols, self.row_stride, self.col_stride]
                == [other.rows, other.cols, other.row_stride, other.col_stride]
    }
}

/// The elements of a matrix for writing. Matrices made by `split_columns` share them and write to their own columns.
#[derive(Clone, Copy)]
enum ElementsMut<'a> {
    F32(Shared<'a, f32>),
    BF16(Shared<'a, u16>),
}

/// A row-major matrix for writing.
pub(crate) struct MatMut<'a> {
    data: ElementsMut<'a>,
    /// Place of the first element.
    start: usize,
    rows: usize,
    cols: usize,
    row_stride: usize,
}

impl<'a> MatMut<'a> {
    /// A contiguous matrix.
    pub(crate) fn new(data: &'a mut [f32], rows: usize, cols: usize) -> MatMut<'a> {
        MatMut::strided(data, rows, cols, cols)
    }

    /// A row-major matrix whose rows stand `row_stride` apart.
    pub(crate) fn strided(data: &'a mut [f32], rows: usize, cols: usize, row_stride: usize) -> MatMut<'a> {
        assert!(rows == 0 || cols == 0 || (row_stride >= cols && (rows - 1) * row_stride + cols <= data.len()));
        MatMut { data: ElementsMut::F32(Shared::new(data)), start: 0, rows, cols, row_stride }
    }

    /// A contiguous matrix of bf16 numbers; sums are rounded to nearest even once they are complete.
    pub(crate) fn bf16(data: &'a mut [u16], rows: usize, cols: usize) -> MatMut<'a> {
        assert!(rows * cols <= data.len());
        MatMut { data: ElementsMut::BF16(Shared::new(data)), start: 0, rows, cols, row_stride: cols }
    }

    /// A two-dimensional tensor of f32 or bf16.
    pub(crate) fn of(tensor: &'a mut Tensor) -> Result<MatMut<'a>> {
        let [rows, cols] = *tensor.shape() else {
            return Err(Error::shape("gemm", "matrix", "[rows, cols]", tensor.shape()));
        };
        match tensor.dtype() {
            DType::F32 => Ok(MatMut::new(tensor.f32s_mut()?, rows, cols)),
            DType::BF16 => Ok(MatMut::bf16(tensor.halves_mut()?, rows, cols)),
            found => Err(Error::DType { op: "gemm", what: "result", expected: "`F32` or `BF16`", found }),
        }
    }

    /// Consecutive columns as matrices of their own; as wide as the matrix in all.
    pub(crate) fn split_columns(self, widths: &[usize]) -> Vec<MatMut<'a>> {
        assert!(widths.iter().sum::<usize>() == self.cols);
        let mut start = self.start;
        let mut parts = vec![];
        for &cols in widths {
            parts.push(MatMut { start, cols, ..self });
            start += cols;
        }
        parts
    }

    /// Sets every element to zero.
    fn fill_zero(&mut self) {
        for i in 0..self.rows {
            let row = self.start + i * self.row_stride..self.start + i * self.row_stride + self.cols;
            // SAFETY: the columns of this matrix are its own.
            unsafe {
                match &self.data {
                    ElementsMut::F32(data) => data.slice(row).fill(0.0),
                    ElementsMut::BF16(data) => data.slice(row).fill(0),
                }
            }
        }
    }

    /// Where a part of the matrix starts, for a tile of `num_rows` by `num_cols` from a row and column on.
    fn at(&self, row: usize, col: usize, num_rows: usize, num_cols: usize) -> kernel::To {
        let at = self.start + row * self.row_stride + col;
        let range = at..at + (num_rows - 1) * self.row_stride + num_cols;
        match &self.data {
            ElementsMut::F32(data) => kernel::To::F32(data.at(range)),
            ElementsMut::BF16(data) => kernel::To::BF16(data.at(range)),
        }
    }
}

/// The numbers that are multiplied; sums are f32 in both.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Arithmetic {
    /// Operands widen to f32.
    F32,
    /// Operands are rounded to bf16 where the processor multiplies such numbers, and widen to f32 elsewhere.
    BF16,
}

/// Runs a body with `$P` as the units of packed panels for an arithmetic on this processor.
macro_rules! with_units {
    ($arithmetic:expr, $P:ident => $body:expr) => {
        match $arithmetic {
            $crate::gemm::Arithmetic::BF16 if $crate::simd::has_bf16() => {
                type $P = $crate::gemm::Pair;
                $body
            }
            _ => {
                type $P = f32;
                $body
            }
        }
    };
}
pub(crate) use with_units;

impl Arithmetic {
    /// The arithmetic of an operator whose input has this dtype.
    pub(crate) fn of(dtype: DType) -> Arithmetic {
        match dtype {
            DType::BF16 => Arithmetic::BF16,
            _ => Arithmetic::F32,
        }
    }
}

/// One of the products that a result is the sum of.
#[derive(Clone, Copy)]
pub(crate) struct Term<'a> {
    pub(crate) a: Mat<'a>,
    pub(crate) b: Mat<'a>,
}

/// to (+)= alpha * (from + sum of a.b over the terms) + bias.
pub(crate) struct Output<'a> {
    to: MatMut<'a>,
    write: Write,
    alpha: f32,
    /// Sums over terms computed before, as large as the result.
    from: Option<&'a [f32]>,
    /// Added to every row; as long as a row.
    bias: Option<&'a [f32]>,
    terms: Vec<Term<'a>>,
}

impl<'a> Output<'a> {
    /// to (+)= a.b.
    pub(crate) fn new(to: MatMut<'a>, write: Write, a: Mat<'a>, b: Mat<'a>) -> Output<'a> {
        Output::empty(to, write).plus(a, b)
    }

    /// to (+)= the sum of the products to come.
    pub(crate) fn empty(to: MatMut<'a>, write: Write) -> Output<'a> {
        Output { to, write, alpha: 1.0, from: None, bias: None, terms: vec![] }
    }

    /// Adds another product.
    pub(crate) fn plus(mut self, a: Mat<'a>, b: Mat<'a>) -> Output<'a> {
        assert!(self.to.rows == a.rows && self.to.cols == b.cols && a.cols == b.rows);
        if a.cols > 0 {
            self.terms.push(Term { a, b });
        }
        self
    }

    fn flops(&self) -> u64 {
        self.terms.iter().map(|term| 2 * (self.to.rows * self.to.cols * term.a.cols) as u64).sum()
    }

    /// Multiplies the sum of the products.
    pub(crate) fn scaled(self, alpha: f32) -> Output<'a> {
        Output { alpha, ..self }
    }

    /// Adds a vector to every row.
    pub(crate) fn with_bias(self, bias: Option<&'a [f32]>) -> Output<'a> {
        assert!(bias.is_none_or(|bias| bias.len() == self.to.cols));
        Output { bias, ..self }
    }
}

/// Computes all outputs, which have equally many rows; an `a` that several of them share is packed once. A row's bits do not
/// depend on the rows beside it.
pub(crate) fn multiply(arithmetic: Arithmetic, outputs: Vec<Output<'_>>) -> Result<()> {
    let outputs = prepared(outputs);
    if outputs.is_empty() {
        return Ok(());
    }
    with_units!(arithmetic, P => passes::multiply::<P>(outputs))
}

/// As [`multiply`] for generating token by token: few rows read large matrices once and pack nothing. Their sums have another
/// order than those of many rows.
pub(crate) fn multiply_few_rows(arithmetic: Arithmetic, outputs: Vec<Output<'_>>) -> Result<()> {
    let outputs = prepared(outputs);
    if outputs.is_empty() {
        return Ok(());
    }
    if outputs.iter().all(|output| thin::fits(arithmetic, output)) {
        return thin::multiply(arithmetic, outputs);
    }
    with_units!(arithmetic, P => passes::multiply::<P>(outputs))
}

/// The outputs that are left to compute, counted.
fn prepared(mut outputs: Vec<Output<'_>>) -> Vec<Output<'_>> {
    outputs.retain_mut(|output| {
        let MatMut { rows, cols, .. } = output.to;
        if output.terms.is_empty() && output.write == Write::Replace && output.bias.is_none() {
            output.to.fill_zero();
        }
        rows > 0 && cols > 0 && !output.terms.is_empty()
    });
    assert!(outputs.windows(2).all(|pair| pair[0].to.rows == pair[1].to.rows));
    profile::add_flops(outputs.iter().map(Output::flops).sum());
    outputs
}

/// The place of `range` in units of `step`, cut at `limit`.
fn span(index: usize, step: usize, limit: usize) -> Range<usize> {
    index * step..((index + 1) * step).min(limit)
}
