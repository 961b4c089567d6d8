//! Embedding: y[i] = table[ids[i]]. table `[vocabulary, n]` f32, bf16 or f16; y `[t, n]` f32.
//!
//! Backward adds g[i] to row ids[i] of the table's gradient, in the order of i for every row. Kept: the ids.

use crate::dtype::DType;
use crate::element::Element;
use crate::error::{Error, Result};
use crate::gradients::Write;
use crate::param::Param;
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;
use crate::threads;
use crate::wide::widen_slice;

impl Tape {
    /// `table[ids[i]]` as `[t, n]`; an id outside of the table is an error.
    pub fn embedding(&self, ids: &[u32], table: &Param) -> Result<Var> {
        let value = table.value();
        let [rows, n] = *value.shape() else {
            return Err(Error::shape("embedding", "table", "[vocabulary, n]", value.shape()));
        };
        check_rows("embedding", "ids", ids, rows)?;
        let mut y = Tensor::stale(&[ids.len(), n], DType::F32)?;
        look_up(&value, ids, y.f32s_mut()?, Write::Replace)?;
        if !self.trains(table) {
            return Ok(self.constant(y));
        }
        let (ids, table) = (ids.to_vec(), table.clone());
        Ok(self.push_op(y, move |g, sweep| {
            let (to, write) = sweep.weight(&table)?;
            scatter_add(g.f32s()?, &ids, n, to, write);
            Ok(())
        }))
    }
}

/// Refuses an index outside of 0..limit.
pub(crate) fn check_rows(op: &'static str, what: &'static str, rows: &[u32], limit: usize) -> Result<()> {
    match rows.iter().position(|&row| row as usize >= limit) {
        Some(position) => Err(Error::Index { op, what, index: i64::from(rows[position]), position, limit }),
        None => Ok(()),
    }
}

/// y[i] (+)= table[rows[i]].
pub(crate) fn look_up(table: &Tensor, rows: &[u32], y: &mut [f32], write: Write) -> Result<()> {
    let n = table.shape()[1];
    let wide = widen_slice(table)?;
    threads::for_each_rows(y, n, |range, y| {
        for (y, &row) in y.chunks_exact_mut(n).zip(&rows[range]) {
            wide(row as usize * n, y, write);
        }
    });
    Ok(())
}

/// to[rows[i]] (+)= g[i]; a fresh destination is zeroed first. Tasks own columns, so every row adds up in order.
pub(crate) fn scatter_add<E: Element>(g: &[E], rows: &[u32], n: usize, to: &mut [E], write: Write) {
    const COLUMNS: usize = 256;
    if write == Write::Replace {
        threads::for_each_chunk(to, |to| to.fill(E::narrow(0.0)));
    }
    let to = threads::Shared::new(to);
    threads::for_each_task(n.div_ceil(COLUMNS), g.len(), |i| {
        let columns = i * COLUMNS..((i + 1) * COLUMNS).min(n);
        for (g, &row) in g.chunks_exact(n).zip(rows) {
            let start = row as usize * n;
            // SAFETY: tasks own disjoint columns.
            let to = unsafe { to.slice(start + columns.start..start + columns.end) };
            let g = &g[columns.clone()];
            to.iter_mut().zip(g).for_each(|(to, g)| *to = E::narrow(to.wide() + g.wide()));
        }
    });
}
