//! Owns tiles of queries: which keys each of their queries sees, and which parts of the products between them are not zero
//! because of it. Refuses arithmetic.

use std::ops::Range;

use super::{AttentionSpec, Mask};
use crate::gemm::Unit;

/// A tile of queries of one sequence.
pub(super) struct Tile {
    pub(super) sequence: usize,
    /// Query rows.
    pub(super) queries: Range<usize>,
    /// Key rows of the whole sequence.
    pub(super) keys: Range<usize>,
    /// Distance from a query row to the key row at the same distance from the end of the sequence, when causal.
    shift: Option<isize>,
    /// Keys that a query sees at most.
    window: usize,
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

    /// The first key row that query row `query` sees.
    fn start(&self, query: usize) -> usize {
        self.end(query).saturating_sub(self.window).max(self.keys.start)
    }

    /// The key rows that any query of the tile sees, in pieces of `step` counted from the first key of the sequence.
    pub(super) fn key_tiles(&self, step: usize) -> impl Iterator<Item = Range<usize>> {
        let end = self.end(self.queries.end - 1);
        let hidden = (self.start(self.queries.start) - self.keys.start) / step * step;
        (self.keys.start + hidden..end).step_by(step).map(move |start| start..(start + step).min(end))
    }

    /// The first query, counted within the tile, that sees a key row of its sequence; their number when none does.
    fn first_query(&self, key: usize) -> usize {
        match self.shift {
            None => 0,
            Some(shift) => {
                (key as isize - shift - self.queries.start as isize).clamp(0, self.queries.len() as isize) as usize
            }
        }
    }

    /// Which of `keys`, counted from the first of them, the i-th query sees.
    pub(super) fn visible(&self, i: usize, keys: &Range<usize>) -> Range<usize> {
        let query = self.queries.start + i;
        let within = |row: usize| row.saturating_sub(keys.start).min(keys.len());
        within(self.start(query))..within(self.end(query))
    }

    /// The part of a head's units that a tile of scores, queries by keys, needs: none when no query sees a key. What no query
    /// sees is not read.
    pub(super) fn score_part(
        &self,
        queries: Range<usize>,
        columns: Range<usize>,
        keys: &Range<usize>,
        units: usize,
    ) -> Range<usize> {
        if columns.start < self.visible(queries.end - 1, keys).end { 0..units } else { 0..0 }
    }

    /// The part of the keys, in packed units, that products of scores with keys or values need for some queries: what they do
    /// not see is zero.
    pub(super) fn key_part<P: Unit>(&self, queries: Range<usize>, keys: &Range<usize>) -> Range<usize> {
        0..self.visible(queries.end - 1, keys).end.div_ceil(P::DEPTHS)
    }

    /// The part of the queries, in packed units, that products of transposed scores with queries or gradients need for some
    /// `rows` of `keys`.
    pub(super) fn query_part<P: Unit>(&self, rows: Range<usize>, keys: &Range<usize>) -> Range<usize> {
        self.first_query(keys.start + rows.start) / P::DEPTHS..self.queries.len().div_ceil(P::DEPTHS)
    }
}

/// The tiles of one sequence, from its first query on.
pub(super) fn tiles(spec: &AttentionSpec, sequence: usize, step: usize) -> impl Iterator<Item = Tile> {
    let q = spec.cu_q[sequence]..spec.cu_q[sequence + 1];
    let keys = spec.cu_k[sequence]..spec.cu_k[sequence + 1];
    let shift = (spec.mask != Mask::Full).then_some(keys.end as isize - q.end as isize);
    let window = if let Mask::Window(n) = spec.mask { n } else { usize::MAX };
    q.clone().step_by(step).map(move |start| {
        let queries = start..(start + step).min(q.end);
        Tile { sequence, queries, keys: keys.clone(), shift, window }
    })
}
