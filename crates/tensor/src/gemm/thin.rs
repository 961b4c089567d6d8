//! Owns products of a few rows with a large matrix, as in generating one token at a time: the matrix is read once,
//! nothing is packed. Refuses many rows.

use super::{Elements, Mat, MatMut, Threads};
use crate::dtype::{bf16_to_f32, f16_to_f32};
use crate::gradients::Write;
use crate::simd::{LANES, multiversion, sum_lanes};
use crate::threads::{self, Shared};

/// Rows up to which reading B once beats packing it.
const MAX_ROWS: usize = 8;
/// Columns of C that one task computes.
const TASK_COLS: usize = 64;

/// Whether this module is the right one for `m` rows: the columns of B must be contiguous.
pub(super) fn fits(m: usize, b: &Mat<'_>) -> bool {
    m <= MAX_ROWS && b.row_stride == 1
}

/// to (+)= alpha a.b where the columns of B are contiguous.
pub(super) fn multiply(to: MatMut<'_>, write: Write, alpha: f32, a: Mat<'_>, b: Mat<'_>, threads: Threads) {
    let (m, n, k) = (to.rows, to.cols, a.cols);
    let Elements::F32(left) = a.data else { unreachable!("`gemm` sends f32 rows here") };
    // Rows of A are read again for every column: contiguous ones are.
    let mut rows = vec![0f32; m * k];
    for i in 0..m {
        for p in 0..k {
            rows[i * k + p] = left[i * a.row_stride + p * a.col_stride];
        }
    }
    let stride = to.row_stride;
    let c = Shared::new(to.data);
    let parallel = threads == Threads::All && n * k > 128 * 1024;
    threads::for_each(n.div_ceil(TASK_COLS), parallel, |task| {
        for j in super::span(task, TASK_COLS, n) {
            let column = j * b.col_stride..j * b.col_stride + k;
            let mut sums = [0f32; MAX_ROWS];
            match b.data {
                Elements::F32(b) => dots_f32(&rows, &b[column], &mut sums[..m]),
                Elements::BF16(b) => dots_bf16(&rows, &b[column], &mut sums[..m]),
                Elements::F16(b) => dots_f16(&rows, &b[column], &mut sums[..m]),
            }
            for (i, sum) in sums.iter().take(m).enumerate() {
                // SAFETY: every element of C belongs to one task.
                let c = unsafe { c.slice(i * stride + j..i * stride + j + 1) };
                c[0] = if write == Write::Add { c[0] + alpha * sum } else { alpha * sum };
            }
        }
    });
}

/// The dot product of each row with a column.
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
        *sum = sum_lanes(lanes[0]) + sum_lanes(lanes[1]);
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
