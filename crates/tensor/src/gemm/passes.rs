//! Owns the cut of long sums: a result whose depth is beyond what packed blocks hold is computed in several passes over
//! parts of the depth, so that neither side is packed twice. Refuses loops over tiles.

use super::blocked;
use super::pack::Unit;
use super::panels::Pooled;
use super::{ElementsMut, MatMut, Output, Term};
use crate::error::Result;
use crate::gradients::Write;

/// Bytes of a packed left side that a pass is meant for.
const LEFT: usize = 8 << 20;
/// Rows that a pass is meant for; beyond them the left side is cut by rows. Fewer rows make no longer passes: the order of a
/// sum, and with it a row's bits, would depend on how many rows stand beside it.
const ROWS: usize = 1024;
/// Passes begin at multiples of this many depths.
const STEP: usize = 128;

/// Computes all outputs, which are not empty and have equally many rows and at least one term each.
pub(super) fn multiply<P: Unit>(outputs: Vec<Output<'_>>) -> Result<()> {
    let limit = (LEFT / size_of::<P>() * P::DEPTHS / ROWS).max(STEP);
    let (long, short): (Vec<_>, Vec<_>) = outputs.into_iter().partition(|output| depth(output) > limit);
    if !short.is_empty() {
        blocked::multiply(P::kernel(), short)?;
    }
    long.into_iter().try_for_each(|output| in_passes::<P>(output, limit))
}

fn depth(output: &Output<'_>) -> usize {
    output.terms.iter().map(|term| term.a.cols).sum()
}

fn in_passes<P: Unit>(output: Output<'_>, limit: usize) -> Result<()> {
    let num_passes = depth(&output).div_ceil(limit);
    let size = depth(&output).div_ceil(num_passes).next_multiple_of(STEP);
    let passes = cut(&output.terms, size);
    let MatMut { rows, cols, row_stride, start, .. } = output.to;
    let Some((last, first)) = passes.split_last() else { return Ok(()) };
    // 16-bit results wait in f32 until their sums are complete.
    let is_wide = matches!(output.to.data, ElementsMut::F32(_)) && output.from.is_none();
    let mut sums = Pooled::<f32>::new(if is_wide { 0 } else { rows * cols })?;
    for (i, terms) in first.iter().enumerate() {
        let part = match is_wide {
            true => Output {
                to: MatMut { data: output.to.data, start, rows, cols, row_stride },
                write: if i == 0 { output.write } else { Write::Add },
                alpha: output.alpha,
                from: None,
                bias: output.bias.filter(|_| i == 0),
                terms: terms.clone(),
            },
            false => Output {
                from: output.from.filter(|_| i == 0),
                terms: terms.clone(),
                ..Output::empty(
                    MatMut::new(sums.get_mut(), rows, cols),
                    if i == 0 { Write::Replace } else { Write::Add },
                )
            },
        };
        blocked::multiply(P::kernel(), vec![part])?;
    }
    let terms = last.clone();
    let is_first = first.is_empty();
    let end = match is_wide && !is_first {
        true => Output { write: Write::Add, bias: None, terms, ..output },
        false if is_first => Output { terms, ..output },
        false => Output { from: Some(sums.get()), terms, ..output },
    };
    blocked::multiply(P::kernel(), vec![end])
}

/// Terms of each pass, about `size` depths each, in order.
fn cut<'a>(terms: &[Term<'a>], size: usize) -> Vec<Vec<Term<'a>>> {
    let (mut passes, mut pass, mut room) = (vec![], vec![], size);
    for term in terms {
        let mut start = 0;
        while start < term.a.cols {
            let end = (start + room).min(term.a.cols);
            pass.push(Term { a: term.a.depths(start..end), b: term.b.t().depths(start..end).t() });
            room -= end - start;
            start = end;
            if room == 0 {
                passes.push(std::mem::take(&mut pass));
                room = size;
            }
        }
    }
    if !pass.is_empty() {
        passes.push(pass);
    }
    passes
}
