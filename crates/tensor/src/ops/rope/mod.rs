//! Rotary position embedding, half-split pairing (`rotate_half`): element i of a head pairs with element i + half,
//! (u, v) -> (u cos - v sin, v cos + u sin) with the angle of the row and of i (Su et al. 2021).
//!
//! x `[t, heads * head_dim]` f32; tables `[t, half]` f32, the same for all heads; the first 2 * half elements of each
//! head rotate, the others stay. Backward rotates the gradient the other way. Nothing but the table is kept.

mod cpu;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;

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
    /// Rotates the first `2 * half` elements of each head, paired half by half.
    pub fn rope(&self, x: &Var, num_heads: usize, table: &RopeTable) -> Result<Var> {
        let place = self.place("rope", "x", x)?;
        let half = check(x, num_heads, table)?;
        let mut y = Tensor::stale(x.shape(), DType::F32)?;
        y.f32s_mut()?.copy_from_slice(x.value().f32s()?);
        let width = x.shape()[1];
        cpu::rotate(y.f32s_mut()?, width, num_heads, half, table.cos.f32s()?, table.sin.f32s()?, 1.0);
        let Some(place) = place else { return Ok(self.constant(y)) };
        let table = table.clone();
        Ok(self.push_op(y, move |g, sweep| {
            let mut dx = g.into_unique()?;
            cpu::rotate(dx.f32s_mut()?, width, num_heads, half, table.cos.f32s()?, table.sin.f32s()?, -1.0);
            sweep.give(Some(place), dx)
        }))
    }
}

fn check(x: &Var, num_heads: usize, table: &RopeTable) -> Result<usize> {
    let [t, width] = *x.shape() else {
        return Err(Error::shape("rope", "x", "[t, heads * head_dim]", x.shape()));
    };
    if num_heads == 0 || !width.is_multiple_of(num_heads) {
        return Err(Error::shape("rope", "x", format!("[t, {num_heads} * head_dim]"), x.shape()));
    }
    let [rows, half] = *table.cos.shape() else {
        return Err(Error::shape("rope", "cos", format!("[{t}, half]"), table.cos.shape()));
    };
    if rows != t || 2 * half > width / num_heads {
        let expected = format!("[{t}, at most {}]", width / num_heads / 2);
        return Err(Error::shape("rope", "cos", expected, table.cos.shape()));
    }
    if table.sin.shape() != table.cos.shape() {
        return Err(Error::shape("rope", "sin", format!("{:?}, as cos", table.cos.shape()), table.sin.shape()));
    }
    Ok(half)
}
