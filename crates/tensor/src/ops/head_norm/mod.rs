//! RMSNorm of each head by itself, heads side by side in the columns (the query and key norms of Qwen3): for every head h of
//! d elements y = x * r * w, r = 1 / sqrt(mean(x^2) + eps).
//!
//! x and y `[t, n]` f32 or bf16, whose first columns are groups of heads, each group with a weight `[d]` of its own (f32, bf16
//! or f16); the columns after them stay. Sums in f32. Backward as that of RMSNorm, head by head; the gradient of a weight is
//! the sum over rows and the heads of its group. Kept: x, and r by row and head.

mod cpu;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use std::ops::Range;

use crate::dtype::DType;
use crate::element::{Element, with_element};
use crate::error::{Error, Result};
use crate::ops::norm_weight;
use crate::param::Param;
use crate::profile;
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;
use crate::wide::Wide;

/// Heads that share a weight.
struct Group {
    weight: Param,
    value: Tensor,
    /// Heads, counted from the first one of the row.
    heads: Range<usize>,
}

impl Tape {
    /// Normalises the heads at the start of the rows of x `[t, n]`: groups of so many heads of `head_dim` elements, each
    /// group by its weight `[head_dim]`; in place when nobody else refers to x and no gradient is wanted.
    pub fn head_norm(&self, x: Var, groups: &[(usize, &Param)], head_dim: usize, eps: f32) -> Result<Var> {
        let op = "head_norm";
        let _span = profile::span("rms_norm");
        let place = self.place(op, "x", &x)?;
        let mut found = Vec::with_capacity(groups.len());
        let mut num_heads = 0;
        for &(count, weight) in groups {
            let value = norm_weight(op, "weight", weight, head_dim)?;
            found.push(Group { weight: weight.clone(), value, heads: num_heads..num_heads + count });
            num_heads += count;
        }
        let rows = match *x.shape() {
            [t, n] if num_heads * head_dim <= n && head_dim > 0 => t,
            _ => return Err(Error::shape(op, "x", format!("[t, at least {num_heads} * {head_dim}]"), x.shape())),
        };
        let wanted = place.is_some() || found.iter().any(|group| self.trains(&group.weight));
        let kept = wanted.then(|| x.value().clone());
        let mut y = x.into_value().into_unique()?;
        let (width, dtype) = (y.shape()[1], y.dtype());
        let mut inverse = Tensor::stale(&[rows, num_heads], DType::F32)?;
        for group in &found {
            let heads = cpu::Heads { width, all: num_heads, range: group.heads.clone(), head_dim };
            let (w, inverse) = (Wide::of(&group.value)?, inverse.f32s_mut()?);
            with_element!(op, "x", dtype, E => cpu::forward(E::of_mut(&mut y)?, w.f32s()?, eps, &heads, inverse));
        }
        let Some(kept) = kept else { return Ok(self.constant(y)) };
        let trained: Vec<bool> = found.iter().map(|group| self.trains(&group.weight)).collect();
        Ok(self.push_op(y, move |g, sweep| {
            let inverse = inverse.f32s()?;
            let heads = |group: &Group| cpu::Heads { width, all: num_heads, range: group.heads.clone(), head_dim };
            with_element!("head_norm", "x", dtype, E => {
                for (group, _) in found.iter().zip(&trained).filter(|(_, trained)| **trained) {
                    let (dw, write) = sweep.weight(&group.weight)?;
                    cpu::weight_gradient(E::of(&g)?, E::of(&kept)?, inverse, &heads(group), dw, write)?;
                }
                let Some(place) = place else { return Ok(()) };
                let mut dx = g.into_unique()?;
                for group in &found {
                    let w = Wide::of(&group.value)?;
                    cpu::input_gradient(E::of_mut(&mut dx)?, E::of(&kept)?, w.f32s()?, inverse, &heads(group));
                }
                sweep.give(Some(place), dx)
            })
        }))
    }
}
