//! Attention of the newest rows of sequences over their key/value caches, as in generating token by token: the last query of
//! a sequence sees its last key, earlier queries see one key less each; under a window, of those the last ones.
//!
//! qkv `[t, (nq + 2 nkv) * d]`, of which the queries are read, or these alone, `[t, nq * d]`; caches `[tk, nkv * d]`; o `[t, nq * d]`; all f32 or all bf16,
//! with f32 sums. Nothing is packed: the heads of a group are rows of one thin product with the keys, and every value is read
//! once for each query and some heads of a group. A query's result does not depend on the queries beside it. No gradient.

#[cfg(test)]
mod tests;

use std::ops::Range;

use crate::dtype::DType;
use crate::element::{Element, with_element};
use crate::error::{Error, Result};
use crate::gemm::{Arithmetic, Mat, MatMut, Output, multiply_few_rows};
use crate::gradients::Write;
use crate::ops::attention::{AttentionSpec, Mask};
use crate::profile;
use crate::row_buffer::RowBuffer;
use crate::simd::{LANES, exp, max, multiversion, sum2};
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

/// Attention of every sequence's newest rows; `spec` gives heads, scale and window, its sequences are not looked at.
pub fn attention_cached(qkv: &Tensor, sequences: &[CachedRows<'_>], spec: &AttentionSpec) -> Result<Tensor> {
    let op = "attention_cached";
    let (d, group) = (spec.head_dim, spec.num_heads / spec.num_kv_heads.max(1));
    let (nq, nkv) = (spec.num_heads * d, spec.num_kv_heads * d);
    let wrong = || Error::shape(op, "qkv", format!("[t, {nq}] or [t, {}]", nq + 2 * nkv), qkv.shape());
    let [t, width] = *qkv.shape() else { return Err(wrong()) };
    if width != nq && width != nq + 2 * nkv {
        return Err(wrong());
    }
    let row_heads = width / d.max(1);
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
        queries.extend(rows.clone().enumerate().map(|(i, row)| {
            let end = seen + i + 1;
            let start = if let Mask::Window(n) = spec.mask { end.saturating_sub(n) } else { 0 };
            (row, sequence, start..end)
        }));
    }
    if queries.len() != t {
        return Err(Error::argument(op, format!("{} rows belong to a sequence, `qkv` has {t}", queries.len())));
    }
    let (mut o, longest) =
        (Tensor::stale(&[t, nq], qkv.dtype())?, queries.iter().map(|query| query.2.len()).max().unwrap_or(0));
    let work: usize = queries.iter().map(|(_, _, range)| range.len() * nq).sum();
    // The products with the keys count themselves.
    profile::add_flops(2 * work as u64);
    let mut scores = Tensor::stale(&[t * spec.num_heads, longest], DType::F32)?;
    let scores = Shared::new(scores.f32s_mut()?);
    let heads = qkv.reshape(&[t * row_heads, d])?;
    with_element!(op, "qkv", qkv.dtype(), E => {
        let to = Shared::new(E::of_mut(&mut o)?);
        threads::try_for_each_task(t * spec.num_kv_heads, work, |task| {
            let (row, sequence, range) = &queries[task / spec.num_kv_heads];
            let seen = range.len();
            let kv = task % spec.num_kv_heads;
            let columns = kv * group * d..(kv + 1) * group * d;
            let (keys, values) = (sequence.keys.tensor()?, sequence.values.tensor()?);
            let start = task * group * longest;
            // SAFETY: the scores and the heads of a group in a row belong to one task.
            let (scores, to) = unsafe {
                (scores.slice(start..start + group * seen), to.slice(row * nq + columns.start..row * nq + columns.end))
            };
            let keys = Mat::of(&keys)?.rows(range.clone()).columns(kv * d..(kv + 1) * d);
            let first = row * row_heads + kv * group;
            let q = Mat::of(&heads)?.rows(first..first + group);
            let product = Output::new(MatMut::new(scores, group, seen), Write::Replace, q, keys.t());
            multiply_few_rows(Arithmetic::of(qkv.dtype()), vec![product.scaled(spec.scale)])?;
            let values = Values { data: &E::of(&values)?[range.start * nkv..], stride: nkv, start: kv * d, d };
            for (scores, to) in scores.chunks_mut(HEADS * seen).zip(to.chunks_mut(HEADS * d)) {
                attend(scores, seen, &values, to);
            }
            Ok(())
        })?;
    });
    Ok(o)
}

/// Heads that share the reading of the values.
const HEADS: usize = 8;

/// The values of one head.
struct Values<'a, E> {
    data: &'a [E],
    stride: usize,
    start: usize,
    d: usize,
}

multiversion! {
    /// o of up to [`HEADS`] query heads that share values, from their scores, which it overwrites.
    fn attend<E: Element>(scores: &mut [f32], seen: usize, values: &Values<'_, E>, o: &mut [E]) {
        let mut factors = [0f32; HEADS];
        for (scores, factor) in scores.chunks_exact_mut(seen).zip(&mut factors) {
            let largest = max(scores);
            scores.iter_mut().for_each(|s| *s = exp(*s - largest));
            *factor = 1.0 / sum2(scores, scores, |s, _| s);
        }
        // Heads that are not there read the first one's.
        let num_heads = scores.len() / seen;
        let scores: [&[f32]; HEADS] = std::array::from_fn(|h| {
            let h = if h < num_heads { h } else { 0 };
            &scores[h * seen..(h + 1) * seen]
        });
        let Values { data, stride, start, d } = *values;
        for from in (0..d).step_by(LANES) {
            let width = LANES.min(d - from);
            let mut sums = [[0f32; LANES]; HEADS];
            for j in 0..seen {
                let at = j * stride + start + from;
                let mut value = [0f32; LANES];
                if width == LANES {
                    value.iter_mut().zip(&data[at..at + LANES]).for_each(|(x, v)| *x = v.wide());
                } else {
                    value.iter_mut().zip(&data[at..at + width]).for_each(|(x, v)| *x = v.wide());
                }
                for (sums, scores) in sums.iter_mut().zip(&scores) {
                    let p = scores[j];
                    for i in 0..LANES {
                        sums[i] += p * value[i];
                    }
                }
            }
            for ((o, sums), factor) in o.chunks_exact_mut(d).zip(&sums).zip(factors) {
                o[from..from + width].iter_mut().zip(sums).for_each(|(o, sum)| *o = E::narrow(sum * factor));
            }
        }
    }
}
