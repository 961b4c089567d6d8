//! Addition: a + b of equal shapes and dtypes (f32 or bf16, added in f32), and x[i] + table[rows[i]] of f32; the table
//! `[rows, n]` f32, bf16 or f16.
//!
//! Backward passes g on to both sides; the table's gradient adds up by row. Nothing is kept but the row numbers.

use crate::element::{Element, with_element};
use crate::error::{Error, Result};
use crate::gradients::Write;
use crate::ops::embedding::{check_rows, look_up, scatter_add};
use crate::param::Param;
use crate::simd::multiversion;
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;
use crate::threads;

impl Tape {
    /// a + b; equal shapes.
    pub fn add(&self, a: &Var, b: &Var) -> Result<Var> {
        let places = [self.place("add", "a", a)?, self.place("add", "b", b)?];
        if a.shape() != b.shape() {
            return Err(Error::shape("add", "b", format!("{:?}, as a", a.shape()), b.shape()));
        }
        let y = accumulate(a.value().clone(), b.value().clone())?;
        if places == [None, None] {
            return Ok(self.constant(y));
        }
        Ok(self.push_op(y, move |g, sweep| {
            sweep.give(places[0], g.clone())?;
            sweep.give(places[1], g)
        }))
    }

    /// `x[i] + table[rows[i]]`; x `[t, n]`, table `[rows, n]` (position embeddings).
    pub fn add_table(&self, x: &Var, rows: &[u32], table: &Param) -> Result<Var> {
        let place = self.place("add_table", "x", x)?;
        let value = table.value();
        let [limit, n] = *value.shape() else {
            return Err(Error::shape("add_table", "table", "[rows, n]", value.shape()));
        };
        if x.shape() != [rows.len(), n] {
            return Err(Error::shape("add_table", "x", format!("[{}, {n}]", rows.len()), x.shape()));
        }
        check_rows("add_table", "rows", rows, limit)?;
        let mut y = x.value().clone().into_unique()?;
        look_up(&value, rows, y.f32s_mut()?, Write::Add)?;
        let trained = self.trains(table).then(|| (table.clone(), rows.to_vec()));
        if place.is_none() && trained.is_none() {
            return Ok(self.constant(y));
        }
        Ok(self.push_op(y, move |g, sweep| {
            if let Some((table, rows)) = trained {
                let (to, write) = sweep.weight(&table)?;
                scatter_add(g.f32s()?, &rows, n, to, write);
            }
            sweep.give(place, g)
        }))
    }
}

/// a + b, written over `a` when nobody else refers to it.
pub(crate) fn accumulate(a: Tensor, b: Tensor) -> Result<Tensor> {
    let mut sum = a.into_unique()?;
    with_element!("add", "a", sum.dtype(), E => add_into(E::of_mut(&mut sum)?, E::of(&b)?));
    Ok(sum)
}

/// to += x.
pub(crate) fn add_into<E: Element>(to: &mut [E], x: &[E]) {
    threads::for_each_rows(to, 1, |range, to| add_piece(to, &x[range]));
}

multiversion! {
    fn add_piece<E: Element>(to: &mut [E], x: &[E]) {
        to.iter_mut().zip(x).for_each(|(to, x)| *to = E::narrow(to.wide() + x.wide()));
    }
}
