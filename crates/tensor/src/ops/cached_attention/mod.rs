//! Attention of the newest rows of sequences over their key/value caches, as in generating token by token: the last query of
//! a sequence sees its last key, earlier queries see one key less each.
//!
//! qkv `[t, (nq + 2 nkv) * d]`, of which the queries are read; caches `[tk, nkv * d]`; o `[t, nq * d]`; all f32 or all bf16,
//! computed in f32. Nothing is packed: every key and value is read once for each query and group of heads. No gradient.

use std::ops::Range;

use crate::dtype::DType;
use crate::element::{Element, with_element};
use crate::error::{Error, Result};
use crate::ops::attention::AttentionSpec;
use crate::profile;
use crate::row_buffer::RowBuffer;
use crate::simd::{exp, max, multiversion, sum_zip, sum2};
use crate::tensor::Tensor;
use crate::threads::{self, Shared};

/// The newest rows of one sequence and its cache, which holds their keys and values already.
#[derive(Clone, Debug)]
pub struct CachedRows<'a> {
    /// Rows of `qkv`.
    pub rows: Range<usize>,
    /// Keys so far.
    pub keys: &'a RowBuffer,
    /// Values so far.
    pub values: &'a RowBuffer,
}

/// Attention of every sequence's newest rows; `spec` gives heads and scale, its sequences and mask are not looked at.
pub fn attention_cached(qkv: &Tensor, sequences: &[CachedRows<'_>], spec: &AttentionSpec) -> Result<Tensor> {
    let op = "attention_cached";
    let (d, group) = (spec.head_dim, spec.num_heads / spec.num_kv_heads.max(1));
    let (nq, nkv) = (spec.num_heads * d, spec.num_kv_heads * d);
    let [t, width] = *qkv.shape() else {
        return Err(Error::shape(op, "qkv", format!("[t, {}]", nq + 2 * nkv), qkv.shape()));
    };
    if width != nq + 2 * nkv {
        return Err(Error::shape(op, "qkv", format!("[t, {}]", nq + 2 * nkv), qkv.shape()));
    }
    let mut queries = vec![];
    for sequence in sequences {
        let (rows, keys, values) = (&sequence.rows, sequence.keys, sequence.values);
        if rows.end > t
            || rows.len() > keys.len()
            || keys.len() != values.len()
            || [keys.cols(), values.cols()] != [nkv; 2]
        {
            let reason = format!(
                "rows {rows:?} of {t} over caches [{}, {}] and [{}, {}]; each row needs a key and a value of {nkv}",
                keys.len(),
                keys.cols(),
                values.len(),
                values.cols()
            );
            return Err(Error::argument(op, reason));
        }
        let seen = keys.len() - rows.len();
        queries.extend(rows.clone().enumerate().map(|(i, row)| (row, sequence, seen + i + 1)));
    }
    if queries.len() != t {
        return Err(Error::argument(op, format!("{} rows belong to a sequence, `qkv` has {t}", queries.len())));
    }
    let mut o = Tensor::stale(&[t, nq], qkv.dtype())?;
    let work: usize = queries.iter().map(|(_, _, seen)| seen * nq).sum();
    profile::add_flops(4 * work as u64);
    with_element!(op, "qkv", qkv.dtype(), E => {
        let q = E::of(qkv)?;
        let to = Shared::new(E::of_mut(&mut o)?);
        threads::try_for_each_task(t * spec.num_kv_heads, work, |task| {
            let (row, sequence, seen) = &queries[task / spec.num_kv_heads];
            let kv = task % spec.num_kv_heads;
            let columns = kv * group * d..(kv + 1) * group * d;
            let q = &q[row * width..][columns.clone()];
            let (keys, values) = (sequence.keys.tensor()?, sequence.values.tensor()?);
            // SAFETY: the heads of a group in a row belong to one task.
            let to = unsafe { to.slice(row * nq + columns.start..row * nq + columns.end) };
            let part = Heads { d, stride: nkv, start: kv * d, seen: *seen, scale: spec.scale };
            let mut scores = Tensor::stale(&[*seen + d], DType::F32)?;
            attend(&part, q, E::of(&keys)?, E::of(&values)?, scores.f32s_mut()?, to);
            Ok(())
        })?;
    });
    Ok(o)
}

/// The keys and values of one head.
struct Heads {
    d: usize,
    stride: usize,
    start: usize,
    seen: usize,
    scale: f32,
}

multiversion! {
    /// o of the query heads that share one key/value head; `scratch` holds `seen + d` numbers.
    fn attend<E: Element>(part: &Heads, q: &[E], k: &[E], v: &[E], scratch: &mut [f32], o: &mut [E]) {
        let Heads { d, stride, start, seen, scale } = *part;
        let (scores, sums) = scratch.split_at_mut(seen);
        for (q, o) in q.chunks_exact(d).zip(o.chunks_exact_mut(d)) {
            for (score, k) in scores.iter_mut().zip(k.chunks_exact(stride)) {
                *score = scale * sum_zip(q, &k[start..start + d], |q, k| q.wide() * k.wide());
            }
            let largest = max(scores);
            scores.iter_mut().for_each(|s| *s = exp(*s - largest));
            let factor = 1.0 / sum2(scores, scores, |s, _| s);
            sums.fill(0.0);
            for (&p, v) in scores.iter().zip(v.chunks_exact(stride)) {
                sums.iter_mut().zip(&v[start..start + d]).for_each(|(sum, v)| *sum += p * v.wide());
            }
            o.iter_mut().zip(&*sums).for_each(|(o, sum)| *o = E::narrow(sum * factor));
        }
    }
}
