//! Joining and cutting of `[t, n]` matrices of f32 or bf16 by rows and by columns.
//!
//! Backward cuts the gradient where parts were joined, and pads it with zeros where a part was cut out. A slice of rows
//! shares its buffer; everything else copies. Nothing is kept.

use std::ops::Range;

use crate::element::{Element, with_element};
use crate::error::{Error, Result};
use crate::gradients::Write;
use crate::memory::is_planning;
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;
use crate::threads;

fn matrix(op: &'static str, what: &'static str, x: &Var) -> Result<[usize; 2]> {
    with_element!(op, what, x.value().dtype(), E => { E::of(x.value())?; });
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
        let mut y = Tensor::stale(&[total, n], first.value().dtype())?;
        with_element!("concat_rows", "parts", y.dtype(), E => {
            for (part, (_, rows)) in parts.iter().zip(&places) {
                let (to, from) = (E::of_mut(&mut y)?, E::of(part.value())?);
                threads::here(|| to[rows.start * n..rows.end * n].copy_from_slice(from));
            }
        });
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
            sweep.write_as(place, &[t, n], g.dtype(), |dx, write| {
                with_element!("slice_rows", "x", g.dtype(), E => {
                    let dx = E::of_mut(dx)?;
                    if write == Write::Replace {
                        dx.fill(E::narrow(0.0));
                    }
                    let to = &mut dx[range.start * n..range.end * n];
                    to.iter_mut().zip(E::of(&g)?).for_each(|(to, g)| *to = E::narrow(to.wide() + g.wide()));
                });
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
        let mut y = Tensor::stale(&[t, total], first.value().dtype())?;
        with_element!("concat_cols", "parts", y.dtype(), E => {
            for (part, (_, columns)) in parts.iter().zip(&places) {
                let n = columns.len();
                let to = E::of_mut(&mut y)?;
                copy_columns(E::of(part.value())?, n, 0, to, total, columns.start, n, Write::Replace);
            }
        });
        if places.iter().all(|(place, _)| place.is_none()) {
            return Ok(self.constant(y));
        }
        Ok(self.push_op(y, move |g, sweep| {
            for (place, columns) in places {
                let Some(place) = place else { continue };
                let n = columns.len();
                sweep.write_as(place, &[t, n], g.dtype(), |dx, write| {
                    with_element!("concat_cols", "parts", g.dtype(), E => {
                        copy_columns(E::of(&g)?, total, columns.start, E::of_mut(dx)?, n, 0, n, write);
                    });
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
        let mut y = Tensor::stale(&[t, n], x.value().dtype())?;
        with_element!("slice_cols", "x", y.dtype(), E => {
            copy_columns(E::of(x.value())?, total, range.start, E::of_mut(&mut y)?, n, 0, n, Write::Replace);
        });
        let Some(place) = place else { return Ok(self.constant(y)) };
        Ok(self.push_op(y, move |g, sweep| {
            sweep.write_as(place, &[t, total], g.dtype(), |dx, write| {
                with_element!("slice_cols", "x", g.dtype(), E => {
                    let dx = E::of_mut(dx)?;
                    if write == Write::Replace {
                        dx.fill(E::narrow(0.0));
                    }
                    copy_columns(E::of(&g)?, n, 0, dx, total, range.start, n, Write::Add);
                });
                Ok(())
            })
        }))
    }
}

/// Copies or adds `n` columns of each row, from column `from_start` of rows of `from_width` to another such place.
fn copy_columns<E: Element>(
    from: &[E],
    from_width: usize,
    from_start: usize,
    to: &mut [E],
    to_width: usize,
    to_start: usize,
    n: usize,
    write: Write,
) {
    if n == 0 || is_planning() {
        return;
    }
    for (from, to) in from.chunks_exact(from_width).zip(to.chunks_exact_mut(to_width)) {
        let (from, to) = (&from[from_start..][..n], &mut to[to_start..][..n]);
        match write {
            Write::Replace => to.copy_from_slice(from),
            Write::Add => to.iter_mut().zip(from).for_each(|(to, from)| *to = E::narrow(to.wide() + from.wide())),
        }
    }
}
