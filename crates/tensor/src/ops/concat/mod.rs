//! Joining and cutting of `[t, n]` f32 matrices by rows and by columns.
//!
//! Backward cuts the gradient where parts were joined, and pads it with zeros where a part was cut out. A slice of rows
//! shares its buffer; everything else copies. Nothing is kept.

use std::ops::Range;

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::gradients::Write;
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;

fn matrix(op: &'static str, what: &'static str, x: &Var) -> Result<[usize; 2]> {
    x.value().f32s()?;
    match *x.shape() {
        [t, n] => Ok([t, n]),
        _ => Err(Error::shape(op, what, "[t, n]", x.shape())),
    }
}

impl Tape {
    /// The rows of all parts, one after another; at least one part, equal widths.
    pub fn concat_rows(&self, parts: &[Var]) -> Result<Var> {
        let Some(first) = parts.first() else { return Err(Error::argument("concat_rows", "no parts are given")) };
        let [_, n] = matrix("concat_rows", "parts", first)?;
        let (mut places, mut total) = (vec![], 0);
        for part in parts {
            let [t, width] = matrix("concat_rows", "parts", part)?;
            if width != n {
                return Err(Error::shape("concat_rows", "parts", format!("[t, {n}]"), part.shape()));
            }
            places.push((self.place("concat_rows", "parts", part)?, total..total + t));
            total += t;
        }
        let mut y = Tensor::stale(&[total, n], DType::F32)?;
        for (part, (_, rows)) in parts.iter().zip(&places) {
            y.f32s_mut()?[rows.start * n..rows.end * n].copy_from_slice(part.value().f32s()?);
        }
        if places.iter().all(|(place, _)| place.is_none()) {
            return Ok(self.constant(y));
        }
        Ok(self.push_op(y, move |g, sweep| {
            for (place, rows) in places {
                sweep.give(place, g.rows(rows.start, rows.end)?)?;
            }
            Ok(())
        }))
    }

    /// Rows `range` of x; shares the buffer.
    pub fn slice_rows(&self, x: &Var, range: Range<usize>) -> Result<Var> {
        let place = self.place("slice_rows", "x", x)?;
        let [t, n] = matrix("slice_rows", "x", x)?;
        if range.start > range.end || range.end > t {
            return Err(Error::argument("slice_rows", format!("{range:?} is not inside of 0..{t}")));
        }
        let y = x.value().rows(range.start, range.end)?;
        let Some(place) = place else { return Ok(self.constant(y)) };
        Ok(self.push_op(y, move |g, sweep| {
            sweep.write(place, &[t, n], |dx, write| {
                if write == Write::Replace {
                    dx.fill(0.0);
                }
                let to = &mut dx[range.start * n..range.end * n];
                to.iter_mut().zip(g.f32s()?).for_each(|(to, g)| *to += g);
                Ok(())
            })
        }))
    }

    /// The columns of all parts, side by side; at least one part, equal numbers of rows.
    pub fn concat_cols(&self, parts: &[Var]) -> Result<Var> {
        let Some(first) = parts.first() else { return Err(Error::argument("concat_cols", "no parts are given")) };
        let [t, _] = matrix("concat_cols", "parts", first)?;
        let (mut places, mut total) = (vec![], 0);
        for part in parts {
            let [rows, n] = matrix("concat_cols", "parts", part)?;
            if rows != t {
                return Err(Error::shape("concat_cols", "parts", format!("[{t}, n]"), part.shape()));
            }
            places.push((self.place("concat_cols", "parts", part)?, total..total + n));
            total += n;
        }
        let mut y = Tensor::stale(&[t, total], DType::F32)?;
        for (part, (_, columns)) in parts.iter().zip(&places) {
            let n = columns.len();
            let to = y.f32s_mut()?;
            copy_columns(part.value().f32s()?, n, 0, to, total, columns.start, n, Write::Replace);
        }
        if places.iter().all(|(place, _)| place.is_none()) {
            return Ok(self.constant(y));
        }
        Ok(self.push_op(y, move |g, sweep| {
            for (place, columns) in places {
                let Some(place) = place else { continue };
                let n = columns.len();
                sweep.write(place, &[t, n], |dx, write| {
                    copy_columns(g.f32s()?, total, columns.start, dx, n, 0, n, write);
                    Ok(())
                })?;
            }
            Ok(())
        }))
    }

    /// Columns `range` of x.
    pub fn slice_cols(&self, x: &Var, range: Range<usize>) -> Result<Var> {
        let place = self.place("slice_cols", "x", x)?;
        let [t, total] = matrix("slice_cols", "x", x)?;
        if range.start > range.end || range.end > total {
            return Err(Error::argument("slice_cols", format!("{range:?} is not inside of 0..{total}")));
        }
        let n = range.len();
        let mut y = Tensor::stale(&[t, n], DType::F32)?;
        copy_columns(x.value().f32s()?, total, range.start, y.f32s_mut()?, n, 0, n, Write::Replace);
        let Some(place) = place else { return Ok(self.constant(y)) };
        Ok(self.push_op(y, move |g, sweep| {
            sweep.write(place, &[t, total], |dx, write| {
                if write == Write::Replace {
                    dx.fill(0.0);
                }
                copy_columns(g.f32s()?, n, 0, dx, total, range.start, n, Write::Add);
                Ok(())
            })
        }))
    }
}

/// Copies or adds `n` columns of each row, from column `from_start` of rows of `from_width` to another such place.
fn copy_columns(
    from: &[f32],
    from_width: usize,
    from_start: usize,
    to: &mut [f32],
    to_width: usize,
    to_start: usize,
    n: usize,
    write: Write,
) {
    if n == 0 {
        return;
    }
    for (from, to) in from.chunks_exact(from_width).zip(to.chunks_exact_mut(to_width)) {
        let (from, to) = (&from[from_start..][..n], &mut to[to_start..][..n]);
        match write {
            Write::Replace => to.copy_from_slice(from),
            Write::Add => to.iter_mut().zip(from).for_each(|(to, from)| *to += from),
        }
    }
}
