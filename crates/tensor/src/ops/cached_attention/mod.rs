//! Attention of the newest rows of one sequence over its key/value cache: the last query sees the last key, earlier
//! queries see one key less each. q `[tq, nq * d]`, cache `[tk, nkv * d]`, o `[tq, nq * d]`, f32. No gradient.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::ops::attention::{AttentionSpec, Mask, without_gradient};
use crate::row_buffer::RowBuffer;
use crate::tensor::Tensor;

/// Attention of one sequence: the last row of `q` sees the last row of `k`.
pub fn attention_cached(
    q: &Tensor,
    k: &RowBuffer,
    v: &RowBuffer,
    num_heads: usize,
    num_kv_heads: usize,
    head_dim: usize,
    scale: f32,
) -> Result<Tensor> {
    let num_queries = q.shape().first().copied().unwrap_or(0);
    if num_queries > k.len() {
        let reason = format!("{num_queries} queries but only {} keys are in the cache", k.len());
        return Err(Error::argument("attention_cached", reason));
    }
    let (cu_q, cu_k) = (Arc::from([0, num_queries]), Arc::from([0, k.len()]));
    let spec = AttentionSpec { num_heads, num_kv_heads, head_dim, scale, mask: Mask::Causal, cu_q, cu_k };
    without_gradient(&spec, q, &k.tensor()?, &v.tensor()?)
}
