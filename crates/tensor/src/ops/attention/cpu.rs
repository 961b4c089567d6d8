//! Attention on the CPU. A forward task is one head and one tile of queries; a backward task is one query head of one
//! sequence, whose key and value gradients are added over the heads of a group in order afterwards.

use std::ops::Range;

use super::{AttentionSpec, Mask};
use crate::dtype::DType;
use crate::error::Result;
use crate::gemm::{Mat, MatMut, Threads, gemm};
use crate::gradients::Write;
use crate::simd::{exp, max, multiversion, sum2};
use crate::tensor::Tensor;
use crate::threads::{self, Shared};

/// Queries of a tile.
pub(super) const QUERIES: usize = 64;
/// Keys of a tile.
pub(super) const KEYS: usize = 512;

/// A tile of queries of one sequence.
struct Tile {
    /// Query rows.
    queries: Range<usize>,
    /// Key rows of the whole sequence.
    keys: Range<usize>,
    /// Distance from a query row to the key row at the same distance from the end of the sequence, when causal.
    shift: Option<isize>,
}

impl Tile {
    /// End of the key rows that query row `query` sees.
    fn end(&self, query: usize) -> usize {
        match self.shift {
            None => self.keys.end,
            // Both stand in rows over all sequences, far below the limit of isize.
            Some(shift) => {
                (query as isize + 1 + shift).clamp(self.keys.start as isize, self.keys.end as isize) as usize
            }
        }
    }

    /// The key rows that any query of the tile sees, in pieces.
    fn key_tiles(&self) -> impl Iterator<Item = Range<usize>> {
        let end = self.end(self.queries.end - 1);
        (self.keys.start..end).step_by(KEYS).map(move |start| start..(start + KEYS).min(end))
    }

    /// How many of `keys`, from the first on, the i-th query sees.
    fn visible(&self, i: usize, keys: &Range<usize>) -> usize {
        self.end(self.queries.start + i).saturating_sub(keys.start).min(keys.len())
    }
}

/// The tiles of one sequence, from its first query on.
fn tiles(spec: &AttentionSpec, s: usize) -> impl Iterator<Item = Tile> {
    let (q, keys) = (spec.cu_q[s]..spec.cu_q[s + 1], spec.cu_k[s]..spec.cu_k[s + 1]);
    let shift = (spec.mask == Mask::Causal).then_some(keys.end as isize - q.end as isize);
    q.clone().step_by(QUERIES).map(move |start| {
        let queries = start..(start + QUERIES).min(q.end);
        Tile { queries, keys: keys.clone(), shift }
    })
}

/// Scores computed, as a measure of work.
fn work(spec: &AttentionSpec) -> usize {
    let pairs = spec.cu_q.windows(2).zip(spec.cu_k.windows(2)).map(|(q, k)| (q[1] - q[0]) * (k[1] - k[0]));
    pairs.sum::<usize>() * spec.num_heads * spec.head_dim
}

pub(super) fn forward(spec: &AttentionSpec, [q, k, v]: [&[f32]; 3], o: &mut [f32], lse: &mut [f32]) -> Result<()> {
    let (d, group) = (spec.head_dim, spec.num_heads / spec.num_kv_heads);
    let (nq, nkv) = (spec.num_heads * d, spec.num_kv_heads * d);
    let num_queries = o.len() / nq.max(1);
    let all: Vec<Tile> = (0..spec.cu_q.len() - 1).flat_map(|s| tiles(spec, s)).collect();
    let (o, lse) = (Shared::new(o), Shared::new(lse));
    threads::try_for_each_task(all.len() * spec.num_heads, work(spec), |i| {
        // Heads of a group follow each other, so that they find the keys in the cache.
        let (tile, head) = (&all[i / spec.num_heads], i % spec.num_heads);
        let column = head / group * d;
        let rows = tile.queries.len();
        let q_id = Mat::strided(&q[tile.queries.start * nq + head * d..], rows, d, nq);
        let at = head * num_queries + tile.queries.start;
        // SAFETY: the log-sum-exps of this head and tile belong to this task.
        let lse = unsafe { lse.slice(at..at + rows) };
        let mut scores = Tensor::stale(&[QUERIES * KEYS], DType::F32)?;
        let mut sums = Tensor::zeros(&[rows * d], DType::F32)?;
        let (scores, sums) = (scores.f32s_mut()?, sums.f32s_mut()?);
        let mut soft = [Running { max: f32::NEG_INFINITY, sum: 0.0 }; QUERIES];
        for keys in tile.key_tiles() {
            let n = keys.len();
            let k_jd = Mat::strided(&k[keys.start * nkv + column..], n, d, nkv);
            let v_jd = Mat::strided(&v[keys.start * nkv + column..], n, d, nkv);
            let scores = &mut scores[..rows * n];
            gemm(MatMut::new(scores, rows, n), Write::Replace, spec.scale, q_id, k_jd.t(), Threads::One)?;
            for (row, (soft, (scores, sums))) in
                soft.iter_mut().zip(scores.chunks_exact_mut(n).zip(sums.chunks_exact_mut(d))).enumerate()
            {
                soften(scores, tile.visible(row, &keys), soft, sums);
            }
            gemm(MatMut::new(sums, rows, d), Write::Add, 1.0, Mat::new(scores, rows, n), v_jd, Threads::One)?;
        }
        for (row, (sums, soft)) in sums.chunks_exact(d).zip(&soft).enumerate() {
            let start = (tile.queries.start + row) * nq + head * d;
            // SAFETY: the columns of this head in the rows of this tile belong to this task.
            let o = unsafe { o.slice(start..start + d) };
            let factor = if soft.sum > 0.0 { 1.0 / soft.sum } else { 0.0 };
            o.iter_mut().zip(sums).for_each(|(o, s)| *o = s * factor);
            lse[row] = soft.max + soft.sum.ln();
        }
        Ok(())
    })
}

/// The softmax of one query so far: the largest score, and the sum of exponentials relative to it.
#[derive(Clone, Copy)]
struct Running {
    max: f32,
    sum: f32,
}

multiversion! {
    /// Replaces the visible scores by exponentials, the others by 0, and rescales what was summed before.
    fn soften(scores: &mut [f32], visible: usize, soft: &mut Running, sums: &mut [f32]) {
        let (seen, hidden) = scores.split_at_mut(visible);
        hidden.fill(0.0);
        let largest = max(seen);
        let new_max = if largest > soft.max { largest } else { soft.max };
        if new_max == f32::NEG_INFINITY {
            seen.fill(0.0);
            return;
        }
        if new_max > soft.max {
            let factor = exp(soft.max - new_max);
            soft.sum *= factor;
            sums.iter_mut().for_each(|s| *s *= factor);
            soft.max = new_max;
        }
        seen.iter_mut().for_each(|s| *s = exp(*s - new_max));
        soft.sum += sum2(seen, seen, |s, _| s);
    }
}

pub(super) fn backward(
    spec: &AttentionSpec,
    [q, k, v]: [&[f32]; 3],
    o: &[f32],
    lse: &[f32],
    g: &[f32],
    [dq, dk, dv]: [&mut [f32]; 3],
) -> Result<()> {
    let (d, group) = (spec.head_dim, spec.num_heads / spec.num_kv_heads);
    let (nq, nkv) = (spec.num_heads * d, spec.num_kv_heads * d);
    let (num_queries, num_keys) = (dq.len() / nq.max(1), dk.len() / nkv.max(1));
    let num_sequences = spec.cu_q.len() - 1;
    // Key and value gradients of each query head, contiguous: [head, key, d].
    let mut dk_heads = Tensor::stale(&[spec.num_heads, num_keys, d], DType::F32)?;
    let mut dv_heads = Tensor::stale(&[spec.num_heads, num_keys, d], DType::F32)?;
    let (dk_shared, dv_shared) = (Shared::new(dk_heads.f32s_mut()?), Shared::new(dv_heads.f32s_mut()?));
    let dq = Shared::new(dq);
    threads::try_for_each_task(num_sequences * spec.num_heads, work(spec), |i| {
        let (s, head) = (i / spec.num_heads, i % spec.num_heads);
        let column = head / group * d;
        let at = (head * num_keys + spec.cu_k[s]) * d..(head * num_keys + spec.cu_k[s + 1]) * d;
        // SAFETY: the keys of this sequence and head belong to this task.
        let (dk, dv) = unsafe { (dk_shared.slice(at.clone()), dv_shared.slice(at)) };
        dk.fill(0.0);
        dv.fill(0.0);
        let mut tile_scratch = Tensor::stale(&[2 * QUERIES * KEYS + QUERIES * d], DType::F32)?;
        let (p, rest) = tile_scratch.f32s_mut()?.split_at_mut(QUERIES * KEYS);
        let (ds, dq_tile) = rest.split_at_mut(QUERIES * KEYS);
        for tile in tiles(spec, s) {
            let rows = tile.queries.len();
            let first = tile.queries.start * nq + head * d;
            let q_id = Mat::strided(&q[first..], rows, d, nq);
            let g_id = Mat::strided(&g[first..], rows, d, nq);
            let mut dots = [0f32; QUERIES];
            for (row, dot) in dots.iter_mut().take(rows).enumerate() {
                let range = first + row * nq..first + row * nq + d;
                *dot = sum2(&g[range.clone()], &o[range], |g, o| g * o);
            }
            let lse = &lse[head * num_queries + tile.queries.start..][..rows];
            let dq_tile = &mut dq_tile[..rows * d];
            dq_tile.fill(0.0);
            for keys in tile.key_tiles() {
                let n = keys.len();
                let k_jd = Mat::strided(&k[keys.start * nkv + column..], n, d, nkv);
                let v_jd = Mat::strided(&v[keys.start * nkv + column..], n, d, nkv);
                let (p, ds) = (&mut p[..rows * n], &mut ds[..rows * n]);
                gemm(MatMut::new(p, rows, n), Write::Replace, spec.scale, q_id, k_jd.t(), Threads::One)?;
                gemm(MatMut::new(ds, rows, n), Write::Replace, 1.0, g_id, v_jd.t(), Threads::One)?;
                for (row, (p, ds)) in p.chunks_exact_mut(n).zip(ds.chunks_exact_mut(n)).enumerate() {
                    score_gradient(p, ds, tile.visible(row, &keys), lse[row], dots[row]);
                }
                let (p, ds) = (Mat::new(p, rows, n), Mat::new(ds, rows, n));
                let local = (keys.start - tile.keys.start) * d..(keys.end - tile.keys.start) * d;
                gemm(MatMut::new(&mut dv[local.clone()], n, d), Write::Add, 1.0, p.t(), g_id, Threads::One)?;
                gemm(MatMut::new(&mut dk[local], n, d), Write::Add, spec.scale, ds.t(), q_id, Threads::One)?;
                gemm(MatMut::new(dq_tile, rows, d), Write::Add, spec.scale, ds, k_jd, Threads::One)?;
            }
            for (row, dq_row) in dq_tile.chunks_exact(d).enumerate() {
                let start = first + row * nq;
                // SAFETY: the columns of this head in the rows of this sequence belong to this task.
                unsafe { dq.slice(start..start + d) }.copy_from_slice(dq_row);
            }
        }
        Ok(())
    })?;
    for (from, to) in [(dk_heads, dk), (dv_heads, dv)] {
        let from = from.f32s()?;
        threads::for_each_rows(to, nkv, |rows, to| add_heads(from, num_keys, d, group, rows, to));
    }
    Ok(())
}

multiversion! {
    /// p = exp(p - lse) where visible, 0 elsewhere; ds = p * (ds - dot).
    fn score_gradient(p: &mut [f32], ds: &mut [f32], visible: usize, lse: f32, dot: f32) {
        let (p_seen, p_hidden) = p.split_at_mut(visible);
        let (ds_seen, ds_hidden) = ds.split_at_mut(visible);
        p_hidden.fill(0.0);
        ds_hidden.fill(0.0);
        for (p, ds) in p_seen.iter_mut().zip(ds_seen) {
            *p = exp(*p - lse);
            *ds = *p * (*ds - dot);
        }
    }
}

/// The gradient of each key row `[nkv * d]` as the sum over the query heads of its group, in order.
fn add_heads(from: &[f32], num_keys: usize, d: usize, group: usize, rows: Range<usize>, to: &mut [f32]) {
    let nkv = to.len() / rows.len().max(1);
    for (row, to) in rows.zip(to.chunks_exact_mut(nkv)) {
        for (kv, to) in to.chunks_exact_mut(d).enumerate() {
            let part = |head: usize| &from[(head * num_keys + row) * d..][..d];
            to.copy_from_slice(part(kv * group));
            for head in kv * group + 1..(kv + 1) * group {
                to.iter_mut().zip(part(head)).for_each(|(to, x)| *to += x);
            }
        }
    }
}
