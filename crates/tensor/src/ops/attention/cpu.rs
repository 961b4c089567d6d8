//! Attention on the CPU. Keys and values are packed once for each sequence and head; a forward task is one head and one tile
//! of queries; a backward task is one query head of one sequence, whose key and value gradients are added over the heads of
//! a group in order afterwards.

use std::f32::consts::LOG2_E;
use std::ops::Range;

use super::AttentionSpec;
use super::soft::{Running, dot, score_gradient, soften};
use super::tile::{Tile, tiles};
use crate::element::Element;
use crate::error::Result;
use crate::gemm::{Left, Mat, Pooled, Right, Tiles, Unit};
use crate::gradients::Write;
use crate::memory;
use crate::ops::dropout::Dropout;
use crate::simd::multiversion;
use crate::threads::{self, Shared};

/// Panels of queries, and keys, of a forward tile: its scores stay in the first-level cache.
const QUERY_PANELS: usize = 2;
const KEYS: usize = 256;
/// The same of a backward tile: products over its queries are deep enough.
const BACKWARD_QUERY_PANELS: usize = 8;
const BACKWARD_KEYS: usize = 128;

/// A matrix of `[rows, heads * d]` inside of wider rows.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a, E> {
    /// From the first element on.
    pub(super) data: &'a [E],
    pub(super) stride: usize,
}

impl<'a, E: Element> Rows<'a, E> {
    fn row(&self, row: usize, columns: Range<usize>) -> &'a [E] {
        &self.data[row * self.stride..][columns]
    }
}

/// The same for writing by tasks that own rows and columns of it.
#[derive(Clone, Copy)]
pub(super) struct RowsMut<'a, E> {
    pub(super) data: Shared<'a, E>,
    /// Column of the first element.
    pub(super) start: usize,
    pub(super) stride: usize,
}

impl<'a, E: Element> RowsMut<'a, E> {
    /// # Safety
    /// No other task writes to these columns of this row.
    unsafe fn row(&self, row: usize, columns: Range<usize>) -> &'a mut [E] {
        let at = row * self.stride + self.start;
        // SAFETY: handed on to the caller.
        unsafe { self.data.slice(at + columns.start..at + columns.end) }
    }
}

/// Queries, keys and values: as matrices, `[rows, heads * d]`.
pub(super) type Inputs<'a> = [Mat<'a>; 3];

/// Scores computed, as a measure of work.
fn work(spec: &AttentionSpec) -> usize {
    let pairs = spec.cu_q.windows(2).zip(spec.cu_k.windows(2)).map(|(q, k)| (q[1] - q[0]) * (k[1] - k[0]));
    pairs.sum::<usize>() * spec.num_heads * spec.head_dim
}

/// Blocks of four random words that the probabilities of a query take.
fn row_blocks(spec: &AttentionSpec) -> u64 {
    spec.cu_k.windows(2).map(|pair| (pair[1] - pair[0]).div_ceil(4) as u64).max().unwrap_or(0)
}

/// Right sides of every sequence and key/value head, packed once.
struct PackedHeads<P> {
    panels: Pooled<P>,
    /// Where each sequence starts, for one head; the end of all at the end.
    starts: Vec<usize>,
    /// Units of the depth of each sequence's panels.
    units: Vec<usize>,
    num_heads: usize,
    /// Whether keys are the columns, and the elements of a head the depth; the other way round otherwise.
    by_key: bool,
}

impl<P: Unit> PackedHeads<P> {
    fn new(tools: &Tiles<P>, spec: &AttentionSpec, x: Mat<'_>, by_key: bool) -> Result<PackedHeads<P>> {
        let (d, num_heads) = (spec.head_dim, spec.num_kv_heads);
        let (mut starts, mut units) = (vec![0], vec![]);
        for keys in spec.cu_k.windows(2).map(|pair| pair[1] - pair[0]) {
            let (cols, depth) = if by_key { (keys, d) } else { (d, keys) };
            starts.push(starts[starts.len() - 1] + tools.right_size(cols, depth));
            units.push(depth.div_ceil(P::DEPTHS));
        }
        let all = starts[starts.len() - 1];
        let mut panels = Pooled::new(all * num_heads)?;
        let shared = Shared::new(panels.get_mut());
        threads::for_each_task((starts.len() - 1) * num_heads, x.num_rows() * x.num_cols(), |i| {
            let (s, head) = (i / num_heads, i % num_heads);
            let part = x.rows(spec.cu_k[s]..spec.cu_k[s + 1]).columns(head * d..(head + 1) * d);
            // SAFETY: each task packs its own sequence and head.
            let to = unsafe { shared.slice(head * all + starts[s]..head * all + starts[s + 1]) };
            tools.pack_right(if by_key { part.t() } else { part }, to);
        });
        Ok(PackedHeads { panels, starts, units, num_heads, by_key })
    }

    /// The side of some keys, counted within the sequence; they start at a whole panel and an even number.
    fn keys(&self, tools: &Tiles<P>, sequence: usize, head: usize, keys: Range<usize>, d: usize) -> Right<'_, P> {
        debug_assert!(head < self.num_heads);
        let all = self.starts[self.starts.len() - 1];
        let at = head * all + self.starts[sequence];
        let panel_units = self.units[sequence];
        let panels = &self.panels.get()[at..head * all + self.starts[sequence + 1]];
        match self.by_key {
            true => {
                debug_assert!(keys.start == tools.padded(keys.start));
                let panels = &panels[keys.start * panel_units..];
                Right { panels, cols: keys.len(), panel_units, first_unit: 0 }
            }
            false => Right { panels, cols: d, panel_units, first_unit: keys.start / P::DEPTHS },
        }
    }
}

/// Writes o and the log-sum-exp `[heads, queries]`, to the base 2.
pub(super) fn forward<P: Unit, E: Element>(
    spec: &AttentionSpec,
    dropout: Option<&Dropout>,
    [q, k, v]: Inputs<'_>,
    o: RowsMut<'_, E>,
    lse: &mut [f32],
) -> Result<()> {
    let tools = Tiles::<P>::best();
    let (d, group) = (spec.head_dim, spec.num_heads / spec.num_kv_heads);
    let num_queries = q.num_rows();
    let (keys_packed, values_packed) =
        (PackedHeads::new(&tools, spec, k, true)?, PackedHeads::new(&tools, spec, v, false)?);
    let step = QUERY_PANELS * tools.rows();
    let all: Vec<Tile> = (0..spec.cu_q.len() - 1).flat_map(|s| tiles(spec, s, step)).collect();
    let lse = Shared::new(lse);
    let scale = spec.scale * LOG2_E;
    let blocks = row_blocks(spec);
    let width = tools.padded(d);
    let panel_units = tools.left_size(step, d) + tools.left_size(step, KEYS);
    let _scratch = memory::scratch(
        all.len() * spec.num_heads,
        &[panel_units * size_of::<P>(), step * (KEYS + width) * size_of::<f32>()],
    )?;
    threads::try_for_each_task(all.len() * spec.num_heads, work(spec), |i| {
        // Heads of a group follow each other, so that they find the keys in the cache.
        let (tile, head) = (&all[i / spec.num_heads], i % spec.num_heads);
        let rows = tile.queries.len();
        let at = head * num_queries + tile.queries.start;
        // SAFETY: the log-sum-exps of this head and tile belong to this task.
        let lse = unsafe { lse.slice(at..at + rows) };
        let mut panels = Pooled::<P>::new(panel_units)?;
        let (q_panels, p_panels) = panels.get_mut().split_at_mut(tools.left_size(step, d));
        let mut scratch = Pooled::<f32>::new(step * (KEYS + width))?;
        let (scores, sums) = scratch.get_mut().split_at_mut(step * KEYS);
        sums.fill(0.0);
        let q = tools.pack_left(q.rows(tile.queries.clone()).columns(head * d..(head + 1) * d), q_panels);
        let mut soft = vec![Running::NONE; rows];
        for keys in tile.key_tiles(KEYS) {
            let local = keys.start - tile.keys.start..keys.end - tile.keys.start;
            let right = keys_packed.keys(&tools, tile.sequence, head / group, local.clone(), d);
            let part = |rows, columns| tile.score_part(rows, columns, &keys, q.units);
            tools.run(q, right, part, scores, KEYS, Write::Replace, scale);
            for (row, (soft, (scores, sums))) in
                soft.iter_mut().zip(scores.chunks_exact_mut(KEYS).zip(sums.chunks_exact_mut(width))).enumerate()
            {
                soften(&mut scores[..keys.len()], tile.visible(row, &keys), soft, sums);
                if let Some(dropout) = dropout {
                    dropout.apply_in_row((at + row) as u64, blocks, local.start, &mut scores[..keys.len()]);
                }
            }
            let p = tools.pack_left(Mat::strided(scores, rows, keys.len(), KEYS), p_panels);
            let right = values_packed.keys(&tools, tile.sequence, head / group, local, d);
            tools.run(p, right, |rows, _| tile.key_part::<P>(rows, &keys), sums, width, Write::Add, 1.0);
        }
        for (row, (sums, soft)) in sums.chunks_exact(width).zip(&soft).enumerate() {
            // SAFETY: the columns of this head in the rows of this tile belong to this task.
            let o = unsafe { o.row(tile.queries.start + row, head * d..(head + 1) * d) };
            let factor = if soft.sum > 0.0 { 1.0 / soft.sum } else { 0.0 };
            scale_into(sums, factor, o);
            lse[row] = soft.log_sum();
        }
        Ok(())
    })
}

multiversion! {
    fn scale_into<E: Element>(from: &[f32], factor: f32, to: &mut [E]) {
        to.iter_mut().zip(from).for_each(|(to, x)| *to = E::narrow(x * factor));
    }
}

/// What forward left for backward, and the gradient of o.
pub(super) struct Kept<'a, E> {
    pub(super) o: Rows<'a, E>,
    pub(super) lse: &'a [f32],
    pub(super) g: Rows<'a, E>,
    /// The same gradient as a matrix.
    pub(super) g_mat: Mat<'a>,
}

/// Writes the gradients of queries, keys and values.
pub(super) fn backward<P: Unit, E: Element>(
    spec: &AttentionSpec,
    dropout: Option<&Dropout>,
    [q, k, v]: Inputs<'_>,
    kept: &Kept<'_, E>,
    [dq, dk, dv]: [RowsMut<'_, E>; 3],
) -> Result<()> {
    let tools = Tiles::<P>::best();
    let (num_queries, num_keys) = (q.num_rows(), k.num_rows());
    let sides = BackwardSides {
        keys_by_key: PackedHeads::new(&tools, spec, k, true)?,
        values_by_key: PackedHeads::new(&tools, spec, v, true)?,
        keys: PackedHeads::new(&tools, spec, k, false)?,
    };
    let width = tools.padded(spec.head_dim);
    // Key and value gradients of each query head, contiguous: [head, key, width].
    let size = spec.num_heads * num_keys * width;
    let (mut dk_heads, mut dv_heads) = (Pooled::<f32>::new(size)?, Pooled::<f32>::new(size)?);
    let (dk_shared, dv_shared) = (Shared::new(dk_heads.get_mut()), Shared::new(dv_heads.get_mut()));
    let num_sequences = spec.cu_q.len() - 1;
    let _scratch = memory::scratch(num_sequences * spec.num_heads, &Scratch::<P>::sizes(&tools, spec.head_dim))?;
    threads::try_for_each_task(num_sequences * spec.num_heads, work(spec), |i| {
        let (sequence, head) = (i / spec.num_heads, i % spec.num_heads);
        let keys = spec.cu_k[sequence]..spec.cu_k[sequence + 1];
        let at = (head * num_keys + keys.start) * width..(head * num_keys + keys.end) * width;
        // SAFETY: the keys of this sequence and head belong to this task.
        let (dk, dv) = unsafe { (dk_shared.slice(at.clone()), dv_shared.slice(at)) };
        BackwardTask { tools: &tools, spec, dropout, q, kept, sides: &sides, sequence, head, num_queries }
            .run(dq, dk, dv)
    })?;
    for (from, to) in [(dk_heads, dk), (dv_heads, dv)] {
        add_heads(spec, from.get(), num_keys, width, to);
    }
    Ok(())
}

/// The buffers of a backward task.
struct Scratch<P> {
    /// Scores, their gradients, and the gradients of a tile of queries.
    sums: Pooled<f32>,
    q_left: Pooled<P>,
    g_left: Pooled<P>,
    q_right: Pooled<P>,
    g_right: Pooled<P>,
    by_key: Pooled<P>,
    by_query: Pooled<P>,
}

impl<P: Unit> Scratch<P> {
    /// Elements of each.
    fn lengths(tools: &Tiles<P>, d: usize) -> [usize; 7] {
        let step = BACKWARD_QUERY_PANELS * tools.rows();
        let (left, right) = (tools.left_size(step, d), tools.right_size(d, step));
        let sums = 2 * step * BACKWARD_KEYS + step * tools.padded(d);
        let (by_key, by_query) = (tools.left_size(BACKWARD_KEYS, step), tools.left_size(step, BACKWARD_KEYS));
        [sums, left, left, right, right, by_key, by_query]
    }

    /// Bytes of each.
    fn sizes(tools: &Tiles<P>, d: usize) -> [usize; 7] {
        let mut sizes = Scratch::<P>::lengths(tools, d).map(|len| len * size_of::<P>());
        sizes[0] = sizes[0] / size_of::<P>() * size_of::<f32>();
        sizes
    }

    fn new(tools: &Tiles<P>, d: usize) -> Result<Scratch<P>> {
        let [sums, q_left, g_left, q_right, g_right, by_key, by_query] = Scratch::<P>::lengths(tools, d);
        Ok(Scratch {
            sums: Pooled::new(sums)?,
            q_left: Pooled::new(q_left)?,
            g_left: Pooled::new(g_left)?,
            q_right: Pooled::new(q_right)?,
            g_right: Pooled::new(g_right)?,
            by_key: Pooled::new(by_key)?,
            by_query: Pooled::new(by_query)?,
        })
    }
}

struct BackwardSides<P> {
    keys_by_key: PackedHeads<P>,
    values_by_key: PackedHeads<P>,
    keys: PackedHeads<P>,
}

/// One query head of one sequence.
struct BackwardTask<'a, P, E> {
    tools: &'a Tiles<P>,
    spec: &'a AttentionSpec,
    dropout: Option<&'a Dropout>,
    q: Mat<'a>,
    kept: &'a Kept<'a, E>,
    sides: &'a BackwardSides<P>,
    sequence: usize,
    head: usize,
    num_queries: usize,
}

impl<P: Unit, E: Element> BackwardTask<'_, P, E> {
    fn run(&self, dq: RowsMut<'_, E>, dk: &mut [f32], dv: &mut [f32]) -> Result<()> {
        let (tools, spec, kept, d) = (self.tools, self.spec, self.kept, self.spec.head_dim);
        let (step, width) = (BACKWARD_QUERY_PANELS * tools.rows(), tools.padded(d));
        let (head, kv_head) = (self.head, self.head / (spec.num_heads / spec.num_kv_heads));
        let columns = head * d..(head + 1) * d;
        let blocks = row_blocks(spec);
        dk.fill(0.0);
        dv.fill(0.0);
        let mut scratch = Scratch::<P>::new(tools, d)?;
        let (p, rest) = scratch.sums.get_mut().split_at_mut(step * BACKWARD_KEYS);
        let (ds, dq_tile) = rest.split_at_mut(step * BACKWARD_KEYS);
        for tile in tiles(spec, self.sequence, step) {
            let rows = tile.queries.len();
            let q = self.q.rows(tile.queries.clone()).columns(columns.clone());
            let g = kept.g_mat.rows(tile.queries.clone()).columns(columns.clone());
            let (q_side, g_side) =
                (tools.pack_left(q, scratch.q_left.get_mut()), tools.pack_left(g, scratch.g_left.get_mut()));
            tools.pack_right(q, scratch.q_right.get_mut());
            tools.pack_right(g, scratch.g_right.get_mut());
            let side = |panels| Right { panels, cols: d, panel_units: rows.div_ceil(P::DEPTHS), first_unit: 0 };
            let (q_right, g_right): (Right<'_, P>, Right<'_, P>) =
                (side(scratch.q_right.get()), side(scratch.g_right.get()));
            let dots: Vec<f32> = tile
                .queries
                .clone()
                .map(|row| dot(kept.g.row(row, columns.clone()), kept.o.row(row, columns.clone())))
                .collect();
            let lse = &kept.lse[head * self.num_queries + tile.queries.start..][..rows];
            dq_tile.fill(0.0);
            for keys in tile.key_tiles(BACKWARD_KEYS) {
                let (n, first) = (keys.len(), keys.start - tile.keys.start);
                let local = first..first + n;
                let keys_side = self.sides.keys_by_key.keys(tools, tile.sequence, kv_head, local.clone(), d);
                let part = |rows, columns| tile.score_part(rows, columns, &keys, q_side.units);
                tools.run(q_side, keys_side, part, p, BACKWARD_KEYS, Write::Replace, spec.scale * LOG2_E);
                let values_side = self.sides.values_by_key.keys(tools, tile.sequence, kv_head, local.clone(), d);
                tools.run(g_side, values_side, part, ds, BACKWARD_KEYS, Write::Replace, 1.0);
                let scores = p.chunks_exact_mut(BACKWARD_KEYS).zip(ds.chunks_exact_mut(BACKWARD_KEYS)).take(rows);
                for (row, (p, ds)) in scores.enumerate() {
                    // The probabilities that the values were multiplied with, and those that the softmax gave.
                    let mask = |x: &mut [f32]| {
                        if let Some(dropout) = self.dropout {
                            let query = head * self.num_queries + tile.queries.start + row;
                            dropout.apply_in_row(query as u64, blocks, first, &mut x[..n]);
                        }
                    };
                    mask(ds);
                    score_gradient(&mut p[..n], &mut ds[..n], tile.visible(row, &keys), lse[row], dots[row]);
                    mask(p);
                }
                let (p, ds) = (Mat::strided(p, rows, n, BACKWARD_KEYS), Mat::strided(ds, rows, n, BACKWARD_KEYS));
                let at = first * width..(first + n) * width;
                let part = |rows, _| tile.query_part::<P>(rows, &keys);
                let left: Left<'_, P> = tools.pack_left(p.t(), scratch.by_key.get_mut());
                tools.run(left, g_right, part, &mut dv[at.clone()], width, Write::Add, 1.0);
                let left = tools.pack_left(ds.t(), scratch.by_key.get_mut());
                tools.run(left, q_right, part, &mut dk[at], width, Write::Add, spec.scale);
                let left = tools.pack_left(ds, scratch.by_query.get_mut());
                let keys_side = self.sides.keys.keys(tools, tile.sequence, kv_head, local, d);
                let part = |rows, _| tile.key_part::<P>(rows, &keys);
                tools.run(left, keys_side, part, dq_tile, width, Write::Add, spec.scale);
            }
            for (row, from) in tile.queries.zip(dq_tile.chunks_exact(width)) {
                // SAFETY: the columns of this head in the rows of this sequence belong to this task.
                scale_into(from, 1.0, unsafe { dq.row(row, columns.clone()) });
            }
        }
        Ok(())
    }
}

/// The gradient of each key row `[nkv * d]` as the sum over the query heads of its group, in order.
fn add_heads<E: Element>(spec: &AttentionSpec, from: &[f32], num_keys: usize, width: usize, to: RowsMut<'_, E>) {
    let (d, group) = (spec.head_dim, spec.num_heads / spec.num_kv_heads);
    let (num_pieces, piece) = threads::row_pieces(num_keys, spec.num_heads * d);
    threads::for_each_task(num_pieces, num_keys * spec.num_heads * d, |i| {
        let mut sums = vec![0f32; d];
        for row in piece(i) {
            for kv in 0..spec.num_kv_heads {
                sums.fill(0.0);
                for head in kv * group..(kv + 1) * group {
                    let part = &from[(head * num_keys + row) * width..][..d];
                    sums.iter_mut().zip(part).for_each(|(sum, x)| *sum += x);
                }
                // SAFETY: the rows of a piece belong to its task.
                scale_into(&sums, 1.0, unsafe { to.row(row, kv * d..(kv + 1) * d) });
            }
        }
    });
}
