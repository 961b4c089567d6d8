//! Rows of a table, mixed and added: y[i] = x[i] + sum over k of weights[i, k] * table[rows[i, k]]. x and y `[t, n]` f32; table
//! `[limit, n]` f32, bf16 or f16, widened inside; as many taps k for every row. A learned table of positions resampled to
//! another grid (`torch.nn.functional.embedding_bag` with weights, added).
//!
//! Backward: dx = g; dtable[rows[i, k]] += weights[i, k] * g[i], in the order of i and k for every row. Kept: the taps.

use crate::error::{Error, Result};
use crate::gradients::Write;
use crate::ops::embedding::check_rows;
use crate::param::Param;
use crate::tape::{Tape, Var};
use crate::threads;
use crate::wide::Wide;

/// Which rows of a table each row of a sum takes, and how much of them.
#[derive(Debug, Clone)]
pub struct Taps {
    /// Rows of the table, all taps of a row beside each other.
    pub rows: Vec<u32>,
    /// What each is multiplied by.
    pub weights: Vec<f32>,
}

impl Tape {
    /// `x[i] + sum of weights[i, k] * table[rows[i, k]]`; in place when nobody else refers to x.
    pub fn blend_table(&self, x: Var, taps: &Taps, table: &Param) -> Result<Var> {
        let place = self.place("blend_table", "x", &x)?;
        let value = table.value();
        let [limit, n] = *value.shape() else {
            return Err(Error::shape("blend_table", "table", "[rows, n]", value.shape()));
        };
        let each = match *x.shape() {
            [t, width] if width == n && taps.rows.len().is_multiple_of(t.max(1)) => taps.rows.len() / t.max(1),
            _ => {
                let expected = format!("[t, {n}] with t a divisor of {} taps", taps.rows.len());
                return Err(Error::shape("blend_table", "x", expected, x.shape()));
            }
        };
        if taps.weights.len() != taps.rows.len() || (x.shape()[0] == 0 && !taps.rows.is_empty()) {
            let (rows, weights, t) = (taps.rows.len(), taps.weights.len(), x.shape()[0]);
            return Err(Error::argument("blend_table", format!("{weights} weights and {rows} rows for {t} sums")));
        }
        check_rows("blend_table", "rows", &taps.rows, limit)?;
        let mut y = x.into_value().into_unique()?;
        add_blend(Wide::of(&value)?.f32s()?, taps, each, n, y.f32s_mut()?);
        let trained = self.trains(table).then(|| (table.clone(), taps.clone()));
        if place.is_none() && trained.is_none() {
            return Ok(self.constant(y));
        }
        Ok(self.push_op(y, move |g, sweep| {
            if let Some((table, taps)) = trained {
                let (to, write) = sweep.weight(&table)?;
                add_transposed(g.f32s()?, &taps, each, n, to, write);
            }
            sweep.give(place, g)
        }))
    }
}

/// y[i] += sum of weights[i, k] * table[rows[i, k]].
fn add_blend(table: &[f32], taps: &Taps, each: usize, n: usize, y: &mut [f32]) {
    threads::for_each_rows(y, n, |rows, y| {
        for (i, y) in rows.zip(y.chunks_exact_mut(n)) {
            for k in i * each..(i + 1) * each {
                let (from, weight) = (&table[taps.rows[k] as usize * n..][..n], taps.weights[k]);
                y.iter_mut().zip(from).for_each(|(y, x)| *y += weight * x);
            }
        }
    });
}

/// to[rows[i, k]] (+)= weights[i, k] * g[i]; tasks own columns, so every row adds up in order.
fn add_transposed(g: &[f32], taps: &Taps, each: usize, n: usize, to: &mut [f32], write: Write) {
    const COLUMNS: usize = 256;
    if write == Write::Replace {
        threads::for_each_chunk(to, |to| to.fill(0.0));
    }
    let to = threads::Shared::new(to);
    threads::for_each_task(n.div_ceil(COLUMNS), g.len() * each, |task| {
        let columns = task * COLUMNS..((task + 1) * COLUMNS).min(n);
        for (i, g) in g.chunks_exact(n).enumerate() {
            for k in i * each..(i + 1) * each {
                let start = taps.rows[k] as usize * n;
                // SAFETY: tasks own disjoint columns.
                let to = unsafe { to.slice(start + columns.start..start + columns.end) };
                to.iter_mut().zip(&g[columns.clone()]).for_each(|(to, g)| *to += taps.weights[k] * g);
            }
        }
    });
}
