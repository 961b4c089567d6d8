//! Owns the list of operators: one folder each, with its contract, a plain reference, a kernel and tests.

pub(crate) mod activation;
pub(crate) mod adamw;
pub(crate) mod add;
pub(crate) mod attention;
pub(crate) mod blend;
pub(crate) mod branch;
pub(crate) mod cached_attention;
pub(crate) mod cast;
pub(crate) mod concat;
pub(crate) mod cross_entropy;
pub(crate) mod dropout;
pub(crate) mod embedding;
pub(crate) mod head_norm;
pub(crate) mod layer_norm;
pub(crate) mod linear;
pub(crate) mod mul;
pub(crate) mod pool;
pub(crate) mod reshape;
pub(crate) mod rms_norm;
pub(crate) mod rope;
pub(crate) mod rows;
pub(crate) mod scale;
#[cfg(test)]
pub(crate) mod testing;
pub(crate) mod unfold;

use std::ops::Range;

use crate::dtype::DType;
use crate::element::Element;
use crate::error::{Error, Result};
use crate::gradients::Write;
use crate::param::Param;
use crate::simd::multiversion;
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;
use crate::threads;

/// Rows whose sums one task takes; the order of a sum over rows follows from it.
const SUM_ROWS: usize = 64;

/// What a normalisation keeps of its input for backward, and its dtype: a bf16 copy when what it gives is bf16 (the gradient
/// is rounded to as many digits anyway), so that an f32 residual stream is not held.
fn kept_input(tape: &Tape, x: &Var, to: DType) -> Result<(Tensor, DType)> {
    let dtype = if to == DType::BF16 && tape.keeps() { DType::BF16 } else { x.value().dtype() };
    Ok((cast::converted(x.value(), dtype)?, dtype))
}

/// The weight of a normalisation over `n` elements.
fn norm_weight(op: &'static str, what: &'static str, weight: &Param, n: usize) -> Result<Tensor> {
    let value = weight.value();
    if value.shape() != [n] {
        return Err(Error::shape(op, what, format!("[{n}]"), value.shape()));
    }
    match value.dtype() {
        found if !found.is_float() => Err(Error::DType { op, what, expected: "a float", found }),
        _ => Ok(value),
    }
}

/// to (+)= a sum over rows: `add` adds some rows to a row of sums that starts at zero, and the sums of fixed pieces are
/// added in order.
fn sum_pieces(
    num_rows: usize,
    to: &mut [f32],
    write: Write,
    add: impl Fn(Range<usize>, &mut [f32]) + Sync + Send,
) -> Result<()> {
    let width = to.len();
    if write == Write::Replace {
        to.fill(0.0);
    }
    if width == 0 || num_rows == 0 {
        return Ok(());
    }
    let num_pieces = num_rows.div_ceil(SUM_ROWS);
    let mut partial = Tensor::stale(&[num_pieces, width], DType::F32)?;
    let partial = partial.f32s_mut()?;
    let shared = threads::Shared::new(partial);
    threads::for_each_task(num_pieces, num_rows * width, |i| {
        // SAFETY: each task has its own row.
        let sums = unsafe { shared.slice(i * width..(i + 1) * width) };
        sums.fill(0.0);
        add(i * SUM_ROWS..((i + 1) * SUM_ROWS).min(num_rows), sums);
    });
    threads::here(|| {
        for sums in partial.chunks_exact(width) {
            to.iter_mut().zip(sums).for_each(|(t, s)| *t += s);
        }
    });
    Ok(())
}

/// to (+)= the sum over the rows of `g`, each `width` wide, of as many columns as `to` has from column `start` on.
fn sum_rows<E: Element>(g: &[E], width: usize, start: usize, to: &mut [f32], write: Write) -> Result<()> {
    sum_pieces(g.len() / width.max(1), to, write, |rows, sums| {
        add_rows(&g[rows.start * width..rows.end * width], width, start, sums);
    })
}

multiversion! {
    fn add_rows<E: Element>(rows: &[E], width: usize, start: usize, sums: &mut [f32]) {
        for row in rows.chunks_exact(width) {
            sums.iter_mut().zip(&row[start..]).for_each(|(s, g)| *s += g.wide());
        }
    }
}
