//! Rotary position embedding, half-split pairing (`rotate_half`): element i of a head pairs with element i + half,
//! (u, v) -> (u cos - v sin, v cos + u sin) with the angle of the row and of i (Su et al. 2021).
//!
//! x `[t, n]` f32 or bf16, whose first heads * head_dim columns are heads that rotate; tables `[t, half]` f32, the same for
//! all heads; the first 2 * half elements of each such head rotate, everything else stays. Computed in f32. Backward rotates the gradient the other way. Nothing but the table is kept.

mod cpu;
mod learned;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use crate::element::{Element, with_element};
use crate::error::{Error, Result};
use crate::profile;
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;

pub use learned::LearnedAngles;

/// Cosines and sines of the rotation angles of each row, `[t, half]`.
#[derive(Debug, Clone)]
pub struct RopeTable {
    /// Cosines.
    pub cos: Tensor,
    /// Sines.
    pub sin: Tensor,
}

impl RopeTable {
    /// Cosines and sines of `angles` `[t, half]`, multiplied by `scale` (1 unless the model scales attention there).
    pub fn from_angles(angles: &Tensor, scale: f32) -> Result<RopeTable> {
        if angles.shape().len() != 2 {
            return Err(Error::shape("rope", "angles", "[t, half]", angles.shape()));
        }
        let table = |f: fn(f32) -> f32| {
            let values: Vec<f32> = angles.f32s()?.iter().map(|&angle| f(angle) * scale).collect();
            Tensor::from_f32(&values, angles.shape())
        };
        Ok(RopeTable { cos: table(f32::cos)?, sin: table(f32::sin)? })
    }
}

impl Tape {
    /// Rotates the first `2 * half` elements, paired half by half, of each of the first `num_heads` heads of x
    /// `[t, at least num_heads * head_dim]`; in place when nobody else refers to x.
    pub fn rope(&self, x: Var, num_heads: usize, head_dim: usize, table: &RopeTable) -> Result<Var> {
        let _span = profile::span("rope");
        let place = self.place("rope", "x", &x)?;
        let heads = Heads { num_heads, head_dim, half: check(&x, num_heads, head_dim, table)? };
        let mut y = x.into_value().into_unique()?;
        rotate(&mut y, &heads, table, 1.0)?;
        let Some(place) = place else { return Ok(self.constant(y)) };
        let table = table.clone();
        Ok(self.push_op(y, move |g, sweep| {
            let mut dx = g.into_unique()?;
            rotate(&mut dx, &heads, &table, -1.0)?;
            sweep.give(Some(place), dx)
        }))
    }
}

/// The heads that rotate.
struct Heads {
    num_heads: usize,
    head_dim: usize,
    half: usize,
}

fn rotate(x: &mut Tensor, heads: &Heads, table: &RopeTable, sign: f32) -> Result<()> {
    let width = x.shape()[1];
    let (cos, sin) = (table.cos.f32s()?, table.sin.f32s()?);
    with_element!("rope", "x", x.dtype(), E => cpu::rotate(E::of_mut(x)?, width, heads, cos, sin, sign));
    Ok(())
}

fn check(x: &Var, num_heads: usize, head_dim: usize, table: &RopeTable) -> Result<usize> {
    let t = match *x.shape() {
        [t, width] if num_heads * head_dim <= width => t,
        _ => return Err(Error::shape("rope", "x", format!("[t, at least {num_heads} * {head_dim}]"), x.shape())),
    };
    let [rows, half] = *table.cos.shape() else {
        return Err(Error::shape("rope", "cos", format!("[{t}, half]"), table.cos.shape()));
    };
    if rows != t || 2 * half > head_dim {
        return Err(Error::shape("rope", "cos", format!("[{t}, at most {}]", head_dim / 2), table.cos.shape()));
    }
    if table.sin.shape() != table.cos.shape() {
        return Err(Error::shape("rope", "sin", format!("{:?}, as cos", table.cos.shape()), table.sin.shape()));
    }
    Ok(half)
}
