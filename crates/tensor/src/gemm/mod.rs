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
#[cfg(test)]
mod tests;
mod thin;

use std::ops::Range;

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::gradients::Write;
use crate::simd;
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

/// The elements of a matrix for writing.
enum ElementsMut<'a> {
    F32(&'a mut [f32]),
    BF16(&'a mut [u16]),
}

/// A row-major matrix for writing.
pub(crate) struct MatMut<'a> {
    data: ElementsMut<'a>,
    rows: usize,
    cols: usize,
    row_stride: usize,
}

impl<'a> MatMut<'a> {
    /// A contiguous matrix.
    pub(crate) fn new(data: &'a mut [f32], rows: usize, cols: usize) -> MatMut<'a> {
        assert!(rows * cols <= data.len());
        MatMut { data: ElementsMut::F32(data), rows, cols, row_stride: cols }
    }

    /// A contiguous matrix of bf16 numbers; sums are rounded to nearest even once they are complete.
    pub(crate) fn bf16(data: &'a mut [u16], rows: usize, cols: usize) -> MatMut<'a> {
        assert!(rows * cols <= data.len());
        MatMut { data: ElementsMut::BF16(data), rows, cols, row_stride: cols }
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

    fn fill_zero(&mut self) {
        for i in 0..self.rows {
            let row = i * self.row_stride..i * self.row_stride + self.cols;
            match &mut self.data {
                ElementsMut::F32(data) => data[row].fill(0.0),
                ElementsMut::BF16(data) => data[row].fill(0),
            }
        }
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

/// The numbers that are multiplied; sums are f32 in both.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Arithmetic {
    /// Operands widen to f32.
    F32,
    /// Operands are rounded to bf16 where the processor multiplies such numbers, and widen to f32 elsewhere.
    BF16,
}

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

/// to (+)= alpha * sum of a.b over the terms + bias.
pub(crate) struct Output<'a> {
    to: MatMut<'a>,
    write: Write,
    alpha: f32,
    /// Added to every row; as long as a row.
    bias: Option<&'a [f32]>,
    terms: Vec<Term<'a>>,
}

impl<'a> Output<'a> {
    /// to (+)= a.b.
    pub(crate) fn new(to: MatMut<'a>, write: Write, a: Mat<'a>, b: Mat<'a>) -> Output<'a> {
        Output { to, write, alpha: 1.0, bias: None, terms: vec![] }.plus(a, b)
    }

    /// Adds another product.
    pub(crate) fn plus(mut self, a: Mat<'a>, b: Mat<'a>) -> Output<'a> {
        assert!(self.to.rows == a.rows && self.to.cols == b.cols && a.cols == b.rows);
        if a.cols > 0 {
            self.terms.push(Term { a, b });
        }
        self
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

/// to = alpha a.b, or to += alpha a.b, multiplied in f32.
pub(crate) fn gemm(to: MatMut<'_>, write: Write, alpha: f32, a: Mat<'_>, b: Mat<'_>, threads: Threads) -> Result<()> {
    multiply(Arithmetic::F32, vec![Output::new(to, write, a, b).scaled(alpha)], threads)
}

/// Computes all outputs, which have equally many rows; an `a` that several of them share is packed once.
pub(crate) fn multiply(arithmetic: Arithmetic, mut outputs: Vec<Output<'_>>, threads: Threads) -> Result<()> {
    outputs.retain_mut(|output| {
        let MatMut { rows, cols, .. } = output.to;
        if output.terms.is_empty() && output.write == Write::Replace && output.bias.is_none() {
            output.to.fill_zero();
        }
        rows > 0 && cols > 0 && !output.terms.is_empty()
    });
    let Some(first) = outputs.first() else { return Ok(()) };
    let rows = first.to.rows;
    assert!(outputs.iter().all(|output| output.to.rows == rows));
    if outputs.iter().all(thin::fits) {
        outputs.into_iter().for_each(|output| thin::multiply(arithmetic, output, threads));
        return Ok(());
    }
    match arithmetic {
        Arithmetic::BF16 if simd::has_bf16() => blocked::multiply(kernel_bf16::best(), outputs, threads),
        _ => blocked::multiply(kernel::best(), outputs, threads),
    }
}

/// The place of `range` in units of `step`, cut at `limit`.
fn span(index: usize, step: usize, limit: usize) -> Range<usize> {
    index * step..((index + 1) * step).min(limit)
}
