//! Attention over ragged packed sequences: o = softmax(scale * q.k^T).v for every head and sequence.
//!
//! q `[tq, nq * d]`, k and v `[tk, nkv * d]`, o `[tq, nq * d]`, all f32; query head h reads key/value head
//! h / (nq / nkv). `cu_q` and `cu_k` give where each sequence starts in the rows; a sequence may have different numbers
//! of queries and keys. Causal masks are aligned at the end (the last query sees the last key). A query that sees no
//! key gives 0. Softmax in f32 with the maximum subtracted.
//!
//! Kept: q, k, v, o and the log-sum-exp of each query and head; scores live in a tile of [`cpu::QUERIES`] by
//! [`cpu::KEYS`] and are computed again in backward (Dao et al. 2022): with p = exp(scale q.k - lse),
//! D = sum of do * o, ds = p * (do.v - D): dv = p^T.do, dq = scale ds.k, dk = scale ds^T.q.
//! Tiles that a causal mask hides wholly are skipped.

mod cpu;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;

/// Which keys a query sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mask {
    /// Aligned at the end of each sequence: the last query sees the last key.
    Causal,
    /// Every key of its sequence.
    Full,
}

/// The shape of an attention call.
#[derive(Debug, Clone)]
pub struct AttentionSpec {
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Factor of the scores.
    pub scale: f32,
    /// Which keys a query sees.
    pub mask: Mask,
    /// Start of each sequence in the query rows, and their number at the end.
    pub cu_q: Arc<[usize]>,
    /// Start of each sequence in the key rows, and their number at the end.
    pub cu_k: Arc<[usize]>,
}

impl AttentionSpec {
    fn check(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<()> {
        let op = "attention";
        let heads = format!("{} query heads and {} key/value heads", self.num_heads, self.num_kv_heads);
        if self.num_kv_heads == 0 || self.head_dim == 0 || !self.num_heads.is_multiple_of(self.num_kv_heads) {
            return Err(Error::argument(op, format!("{heads} of {} elements do not fit together", self.head_dim)));
        }
        for (what, x, heads) in [("q", q, self.num_heads), ("k", k, self.num_kv_heads), ("v", v, self.num_kv_heads)] {
            let width = heads * self.head_dim;
            if x.shape().len() != 2 || x.shape()[1] != width {
                return Err(Error::shape(op, what, format!("[t, {width}]"), x.shape()));
            }
            x.f32s()?;
        }
        if k.shape() != v.shape() {
            return Err(Error::shape(op, "v", format!("{:?}, as k", k.shape()), v.shape()));
        }
        for (what, cu, rows) in [("cu_q", &self.cu_q, q.shape()[0]), ("cu_k", &self.cu_k, k.shape()[0])] {
            let ordered = cu.first() == Some(&0) && cu.windows(2).all(|pair| pair[0] <= pair[1]);
            if !ordered || cu.last() != Some(&rows) {
                let reason = format!("`{what}` must rise from 0 to {rows}, found {cu:?}");
                return Err(Error::argument(op, reason));
            }
        }
        if self.cu_q.len() != self.cu_k.len() {
            let (q, k) = (self.cu_q.len() - 1, self.cu_k.len() - 1);
            return Err(Error::argument(op, format!("`cu_q` has {q} sequences, `cu_k` has {k}")));
        }
        Ok(())
    }
}

impl Tape {
    /// softmax(scale * q.k^T).v by head and sequence; q `[tq, nq * d]`, k and v `[tk, nkv * d]`.
    pub fn attention(&self, q: &Var, k: &Var, v: &Var, spec: &AttentionSpec) -> Result<Var> {
        let places =
            [self.place("attention", "q", q)?, self.place("attention", "k", k)?, self.place("attention", "v", v)?];
        spec.check(q.value(), k.value(), v.value())?;
        let inputs = [q.value().clone(), k.value().clone(), v.value().clone()];
        let (o, lse) = run(spec, &inputs)?;
        if places == [None; 3] {
            return Ok(self.constant(o));
        }
        let (spec, kept) = (spec.clone(), o.clone());
        Ok(self.push_op(o, move |g, sweep| {
            let mut grads = [
                Tensor::stale(inputs[0].shape(), DType::F32)?,
                Tensor::stale(inputs[1].shape(), DType::F32)?,
                Tensor::stale(inputs[2].shape(), DType::F32)?,
            ];
            let [dq, dk, dv] = &mut grads;
            let to = [dq.f32s_mut()?, dk.f32s_mut()?, dv.f32s_mut()?];
            cpu::backward(&spec, elements(&inputs)?, kept.f32s()?, lse.f32s()?, g.f32s()?, to)?;
            for (place, grad) in places.into_iter().zip(grads) {
                sweep.give(place, grad)?;
            }
            Ok(())
        }))
    }
}

/// Attention of plain tensors.
pub(crate) fn without_gradient(spec: &AttentionSpec, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
    spec.check(q, k, v)?;
    Ok(run(spec, &[q.clone(), k.clone(), v.clone()])?.0)
}

/// o and the log-sum-exp `[heads, tq]` of checked inputs.
fn run(spec: &AttentionSpec, inputs: &[Tensor; 3]) -> Result<(Tensor, Tensor)> {
    let mut o = Tensor::stale(inputs[0].shape(), DType::F32)?;
    let mut lse = Tensor::stale(&[spec.num_heads, inputs[0].shape()[0]], DType::F32)?;
    cpu::forward(spec, elements(inputs)?, o.f32s_mut()?, lse.f32s_mut()?)?;
    Ok((o, lse))
}

fn elements(inputs: &[Tensor; 3]) -> Result<[&[f32]; 3]> {
    Ok([inputs[0].f32s()?, inputs[1].f32s()?, inputs[2].f32s()?])
}
