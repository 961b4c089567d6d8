//! Owns the rows that something is read from behind the last block: the tokens whose logits count. What the last block computes
//! for other tokens, past their keys and values, nobody sees. Refuses to know why a row counts.

use std::sync::Arc;

use tensor::{AttentionSpec, Tape, Var};

use crate::error::{ModelError, Result};

/// Some rows of a packed batch.
#[derive(Debug, Clone)]
pub(crate) struct NeededRows {
    /// The rows, ascending.
    rows: Vec<u32>,
    /// Of every sequence the rows from its first needed one on.
    queries: Vec<u32>,
    /// Boundaries of the sequences in `queries`.
    cu_queries: Arc<[usize]>,
    /// The needed rows, counted in `queries`.
    within: Vec<u32>,
}

impl NeededRows {
    /// Of ascending rows of packed sequences. A sequence may have none.
    pub(crate) fn new(rows: Vec<u32>, cu_seqlens: &[usize]) -> Result<NeededRows> {
        let total = cu_seqlens.last().copied().unwrap_or(0);
        if !rows.is_sorted_by(|a, b| a < b) || rows.last().is_some_and(|&row| row as usize >= total) {
            return Err(ModelError::Input(format!("the needed rows of {total} tokens do not ascend within them")));
        }
        let (mut queries, mut cu_queries, mut within, mut next) = (vec![], vec![0], vec![], 0);
        for bounds in cu_seqlens.windows(2) {
            let end = bounds[1] as u32;
            let first = rows.get(next).copied().filter(|&row| row < end).unwrap_or(end);
            let start = queries.len() as u32;
            while let Some(&row) = rows.get(next).filter(|&&row| row < end) {
                within.push(start + row - first);
                next += 1;
            }
            queries.extend(first..end);
            cu_queries.push(queries.len());
        }
        Ok(NeededRows { rows, queries, cu_queries: cu_queries.into(), within })
    }

    /// The rows.
    pub(crate) fn rows(&self) -> &[u32] {
        &self.rows
    }

    /// Attention of the needed rows alone over all keys of their sequences, from `qkv [t, nd + 2kd]`: `[rows, nd]`.
    pub(crate) fn attend(&self, t: &Tape, qkv: &Var, spec: &AttentionSpec) -> tensor::Result<Var> {
        let [q, kv] = [spec.num_heads, spec.num_kv_heads].map(|heads| heads * spec.head_dim);
        let queries = t.slice_cols(&t.gather_rows(qkv, &self.queries)?, 0..q)?;
        let (keys, values) = (t.slice_cols(qkv, q..q + kv)?, t.slice_cols(qkv, q + kv..q + 2 * kv)?);
        let spec = AttentionSpec { cu_q: self.cu_queries.clone(), ..spec.clone() };
        let attended = t.attention(&queries, &keys, &values, &spec)?;
        if self.within.len() == self.queries.len() {
            return Ok(attended);
        }
        t.gather_rows(&attended, &self.within)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_start_at_the_first_needed_row_of_each_sequence() {
        let needed = NeededRows::new(vec![2, 4, 10, 11], &[0, 5, 8, 12]).unwrap();
        assert_eq!(needed.queries, [2, 3, 4, 10, 11]);
        assert_eq!(needed.cu_queries[..], [0, 3, 3, 5]);
        assert_eq!(needed.within, [0, 2, 3, 4]);
        assert!(NeededRows::new(vec![3, 3], &[0, 5]).is_err());
        assert!(NeededRows::new(vec![3, 5], &[0, 5]).is_err());
    }
}
