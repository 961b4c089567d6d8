//! Gathering y[i] = x[rows[i]] and scattering: `base` with row rows[i] replaced by src[i]. `[t, n]`, f32 or bf16.
//! Adding: row i of `src` added to row rows[i] of `base`, f32.
//!
//! Backward of gathering adds g[i] to row rows[i] in the order of i, in the dtype of x. Backward of scattering: dsrc[i] =
//! g[rows[i]], dbase = g with those rows zero; a row given twice is an error. Backward of adding: dsrc[i] = g[rows[i]],
//! dbase = g. Kept: the row numbers.

use crate::element::{Element, with_element};
use crate::error::{Error, Result};
use crate::gradients::Write;
use crate::ops::embedding::{check_rows, scatter_add};
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;
use crate::threads;

impl Tape {
    /// `x[rows[i]]` as `[rows, n]`; rows may repeat.
    pub fn gather_rows(&self, x: &Var, rows: &[u32]) -> Result<Var> {
        let place = self.place("gather_rows", "x", x)?;
        let [t, n] = *x.shape() else {
            return Err(Error::shape("gather_rows", "x", "[t, n]", x.shape()));
        };
        check_rows("gather_rows", "rows", rows, t)?;
        let y = gather(x.value(), rows)?;
        let Some(place) = place else { return Ok(self.constant(y)) };
        let rows = rows.to_vec();
        Ok(self.push_op(y, move |g, sweep| {
            sweep.write_as(place, &[t, n], g.dtype(), |dx, write| {
                with_element!("gather_rows", "x", g.dtype(), E => scatter_add(E::of(&g)?, &rows, n, E::of_mut(dx)?, write));
                Ok(())
            })
        }))
    }

    /// `base` `[t, n]` with row `rows[i]` replaced by row i of `src`; gradients flow to both.
    pub fn scatter_rows(&self, base: &Var, rows: &[u32], src: &Var) -> Result<Var> {
        let (base_place, src_place) =
            (self.place("scatter_rows", "base", base)?, self.place("scatter_rows", "src", src)?);
        let [t, n] = *base.shape() else {
            return Err(Error::shape("scatter_rows", "base", "[t, n]", base.shape()));
        };
        if src.shape() != [rows.len(), n] {
            return Err(Error::shape("scatter_rows", "src", format!("[{}, {n}]", rows.len()), src.shape()));
        }
        check_rows("scatter_rows", "rows", rows, t)?;
        let mut taken = vec![false; t];
        for (position, &row) in rows.iter().enumerate() {
            if std::mem::replace(&mut taken[row as usize], true) {
                let reason = format!("row {row} at position {position} of `rows` is given twice");
                return Err(Error::argument("scatter_rows", reason));
            }
        }
        let mut y = base.value().clone().into_unique()?;
        with_element!("scatter_rows", "base", y.dtype(), E => {
            put_rows(E::of_mut(&mut y)?, rows, n, Some(E::of(src.value())?));
        });
        if base_place.is_none() && src_place.is_none() {
            return Ok(self.constant(y));
        }
        let rows = rows.to_vec();
        Ok(self.push_op(y, move |g, sweep| {
            if let Some(place) = src_place {
                sweep.give(Some(place), gather(&g, &rows)?)?;
            }
            if base_place.is_some() {
                let mut dbase = g.into_unique()?;
                with_element!("scatter_rows", "base", dbase.dtype(), E => {
                    put_rows(E::of_mut(&mut dbase)?, &rows, n, None);
                });
                sweep.give(base_place, dbase)?;
            }
            Ok(())
        }))
    }

    /// `base` `[t, n]` with row i of `src` added to row `rows[i]`, f32; a row given twice takes both. In place when nobody
    /// else refers to `base`.
    pub fn add_rows(&self, base: Var, rows: &[u32], src: &Var) -> Result<Var> {
        let (base_place, src_place) = (self.place("add_rows", "base", &base)?, self.place("add_rows", "src", src)?);
        let [t, n] = *base.shape() else {
            return Err(Error::shape("add_rows", "base", "[t, n]", base.shape()));
        };
        if src.shape() != [rows.len(), n] {
            return Err(Error::shape("add_rows", "src", format!("[{}, {n}]", rows.len()), src.shape()));
        }
        check_rows("add_rows", "rows", rows, t)?;
        let mut y = base.into_value().into_unique()?;
        scatter_add(src.value().f32s()?, rows, n, y.f32s_mut()?, Write::Add);
        if base_place.is_none() && src_place.is_none() {
            return Ok(self.constant(y));
        }
        let rows = rows.to_vec();
        Ok(self.push_op(y, move |g, sweep| {
            if let Some(place) = src_place {
                sweep.give(Some(place), gather(&g, &rows)?)?;
            }
            sweep.give(base_place, g)
        }))
    }
}

/// x[rows[i]] for rows that exist.
pub(crate) fn gather(x: &Tensor, rows: &[u32]) -> Result<Tensor> {
    let n = x.shape()[1];
    let mut y = Tensor::stale(&[rows.len(), n], x.dtype())?;
    with_element!("gather_rows", "x", x.dtype(), E => {
        let x = E::of(x)?;
        threads::for_each_rows(E::of_mut(&mut y)?, n, |range, y| {
            for (y, &row) in y.chunks_exact_mut(n).zip(&rows[range]) {
                y.copy_from_slice(&x[row as usize * n..][..n]);
            }
        });
    });
    Ok(y)
}

/// y[rows[i]] = src[i], or zero without `src`.
fn put_rows<E: Element>(y: &mut [E], rows: &[u32], n: usize, src: Option<&[E]>) {
    threads::here(|| {
        for (i, &row) in rows.iter().enumerate() {
            let to = &mut y[row as usize * n..][..n];
            match src {
                Some(src) => to.copy_from_slice(&src[i * n..][..n]),
                None => to.fill(E::narrow(0.0)),
            }
        }
    });
}
