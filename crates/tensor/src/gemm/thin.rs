//! Owns products of a few rows with a large matrix, as in generating one token at a time: the matrix is read once,
//! nothing is packed. Refuses many rows.

use super::kernel::Place;
use super::{Arithmetic, Elements, Mat, Output, Term};
use crate::dtype::{bf16_to_f32, f16_to_f32, f32_to_bf16};
use crate::gradients::Write;
use crate::simd::{LANES, multiversion, sum_lanes};
use crate::threads;

/// Rows up to which reading B once beats packing it.
const MAX_ROWS: usize = 8;
/// Columns of C that one task computes.
const TASK_COLS: usize = 64;

/// Whether this module is the right one: few rows, and contiguous columns of B.
pub(super) fn fits(output: &Output<'_>) -> bool {
    output.to.rows <= MAX_ROWS && output.terms.iter().all(|term| term.b.row_stride == 1)
}

/// One output whose terms all have contiguous columns of B. Rows of A are rounded as the arithmetic says; B is used as it
/// is, so that f32 weights keep their digits.
pub(super) fn multiply(arithmetic: Arithmetic, output: Output<'_>) {
    let (m, n) = (output.to.rows, output.to.cols);
    let depth: usize = output.terms.iter().map(|term| term.a.cols).sum();
    // Rows of A are read again for every column: contiguous f32 ones are.
    let rows: Vec<Vec<f32>> = output.terms.iter().map(|term| rows_of(arithmetic, &term.a)).collect();
    let parallel = n * depth > 128 * 1024;
    threads::for_each(n.div_ceil(TASK_COLS), parallel, |task| {
        for j in super::span(task, TASK_COLS, n) {
            let mut sums = [0f32; MAX_ROWS];
            for (Term { b, .. }, rows) in output.terms.iter().zip(&rows) {
                let column = j * b.col_stride..j * b.col_stride + b.rows;
                match b.data {
                    Elements::F32(b) => dots_f32(rows, &b[column], &mut sums[..m]),
                    Elements::BF16(b) => dots_bf16(rows, &b[column], &mut sums[..m]),
                    Elements::F16(b) => dots_f16(rows, &b[column], &mut sums[..m]),
                }
            }
            let place = Place {
                from: std::ptr::null(),
                from_stride: 0,
                alpha: output.alpha,
                bias: output.bias.map_or(std::ptr::null(), |bias| bias[j..].as_ptr()),
                to: output.to.at(0, j, m, 1),
                row_stride: output.to.row_stride,
                add: output.write == Write::Add,
            };
            for (i, &sum) in sums.iter().take(m).enumerate() {
                // SAFETY: every column of C belongs to one task.
                unsafe { place.put(i, 0, sum) };
            }
        }
    });
}

/// The rows of A, one after another.
fn rows_of(arithmetic: Arithmetic, a: &Mat<'_>) -> Vec<f32> {
    let mut rows = Vec::with_capacity(a.rows * a.cols);
    for i in 0..a.rows {
        for p in 0..a.cols {
            let at = i * a.row_stride + p * a.col_stride;
            rows.push(match a.data {
                Elements::F32(data) if arithmetic == Arithmetic::BF16 => bf16_to_f32(f32_to_bf16(data[at])),
                Elements::F32(data) => data[at],
                Elements::BF16(data) => bf16_to_f32(data[at]),
                Elements::F16(data) => f16_to_f32(data[at]),
            });
        }
    }
    rows
}

/// Adds the dot product of each row with a column.
#[inline(always)]
fn dots<T: Copy>(rows: &[f32], column: &[T], sums: &mut [f32], widen: impl Fn(T) -> f32) {
    let k = column.len();
    for (row, sum) in rows.chunks_exact(k).zip(sums) {
        // Two vectors of sums hide the latency of additions.
        let mut lanes = [[0f32; LANES]; 2];
        let (row_parts, parts) = (row.chunks_exact(2 * LANES), column.chunks_exact(2 * LANES));
        let (row_rest, rest) = (row_parts.remainder(), parts.remainder());
        for (x, y) in row_parts.zip(parts) {
            for half in 0..2 {
                for i in 0..LANES {
                    lanes[half][i] += x[half * LANES + i] * widen(y[half * LANES + i]);
                }
            }
        }
        for (i, (&x, &y)) in row_rest.iter().zip(rest).enumerate() {
            lanes[i / LANES][i % LANES] += x * widen(y);
        }
        *sum += sum_lanes(lanes[0]) + sum_lanes(lanes[1]);
    }
}

multiversion! {
    fn dots_f32(rows: &[f32], column: &[f32], sums: &mut [f32]) {
        dots(rows, column, sums, |x| x);
    }
}

multiversion! {
    fn dots_bf16(rows: &[f32], column: &[u16], sums: &mut [f32]) {
        dots(rows, column, sums, bf16_to_f32);
    }
}

multiversion! {
    fn dots_f16(rows: &[f32], column: &[u16], sums: &mut [f32]) {
        dots(rows, column, sums, f16_to_f32);
    }
}
