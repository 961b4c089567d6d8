//! Rotary position embedding where the angles of some rows are a weight (the class token of RICE has no place in the grid).
//! Owns the gradient of those angles; the rotation is that of every row.
//!
//! With y the rotated heads, dy/dangle is (-v, u) for each pair (u, v) of y, so
//! dangles[i] = sum over those rows and all heads of g_v[i] * u[i] - g_u[i] * v[i], in f32. Kept besides the table: y.

use super::{Heads, RopeTable, check, rotate};
use crate::element::{Element, with_element};
use crate::error::{Error, Result};
use crate::gradients::Write;
use crate::ops::embedding::check_rows;
use crate::param::Param;
use crate::profile;
use crate::tape::{Tape, Var};
use crate::threads;

/// Rows whose angles are a weight.
#[derive(Debug, Clone)]
pub struct LearnedAngles {
    /// The rows, each once.
    pub rows: Vec<u32>,
    /// The angles, `half` elements of whatever shape.
    pub angles: Param,
}

impl Tape {
    /// As [`Tape::rope`]; `table` holds cosines and sines of the learned angles in the rows that `learned` names.
    pub fn rope_learned(
        &self,
        x: Var,
        num_heads: usize,
        head_dim: usize,
        table: &RopeTable,
        learned: &LearnedAngles,
    ) -> Result<Var> {
        if !self.trains(&learned.angles) {
            return self.rope(x, num_heads, head_dim, table);
        }
        let _span = profile::span("rope");
        let place = self.place("rope_learned", "x", &x)?;
        let heads = Heads { num_heads, head_dim, half: check(&x, num_heads, head_dim, table)? };
        check_rows("rope_learned", "rows", &learned.rows, x.shape()[0])?;
        if learned.angles.shape().iter().product::<usize>() != heads.half {
            let shape = learned.angles.shape();
            return Err(Error::shape("rope_learned", "angles", format!("{} elements", heads.half), &shape));
        }
        let mut y = x.into_value().into_unique()?;
        rotate(&mut y, &heads, table, 1.0)?;
        let (table, learned, kept) = (table.clone(), learned.clone(), y.clone());
        Ok(self.push_op(y, move |g, sweep| {
            let width = g.shape()[1];
            let (to, write) = sweep.weight(&learned.angles)?;
            with_element!("rope_learned", "x", g.dtype(), E => {
                add_angles(E::of(&kept)?, E::of(&g)?, width, &heads, &learned.rows, to, write);
            });
            drop(kept);
            let Some(place) = place else { return Ok(()) };
            let mut dx = g.into_unique()?;
            rotate(&mut dx, &heads, &table, -1.0)?;
            sweep.give(Some(place), dx)
        }))
    }
}

/// to[i] (+)= the angles' gradient, in the order of rows and heads.
fn add_angles<E: Element>(y: &[E], g: &[E], width: usize, heads: &Heads, rows: &[u32], to: &mut [f32], write: Write) {
    threads::here(|| {
        if write == Write::Replace {
            to.fill(0.0);
        }
        for head in rows.iter().flat_map(|&row| (0..heads.num_heads).map(move |head| (row as usize, head))) {
            let first = head.0 * width + head.1 * heads.head_dim;
            for (i, to) in to.iter_mut().enumerate() {
                let (u, v) = (first + i, first + heads.half + i);
                *to += g[v].wide() * y[u].wide() - g[u].wide() * y[v].wide();
            }
        }
    });
}
