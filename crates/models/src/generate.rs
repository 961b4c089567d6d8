//! Incremental decoding with a key/value cache: prefill of packed prompts, then one token a sequence. Owns no sampling.

use crate::decoder::Positions;
use crate::error::{ModelError, Result};
use crate::model::{Model, ModelInput};
use crate::weights::{NamedParam, Part};
use std::cell::RefCell;
use tensor::{CachedRows, RowBuffer, Tape, Tensor, Var, attention_cached};

/// Keys and values of every layer and sequence.
pub struct KvCache {
    layers: Vec<RefCell<Vec<(RowBuffer, RowBuffer)>>>,
    lengths: Vec<usize>,
    /// Position of each sequence's next token, which is not its length where pictures have positions of their own.
    next: Vec<u32>,
}

impl KvCache {
    /// Tokens held for each sequence.
    pub fn lengths(&self) -> &[usize] {
        &self.lengths
    }
}

impl Model {
    /// Bytes of the weights that a decoding step reads: every block, the final norm and the head. Of an embedding table
    /// that is not the head a step reads single rows, which do not count.
    pub fn bytes_per_step(&self) -> u64 {
        let table = self.decoder.embed_tokens.name();
        let counts = |p: &&NamedParam| p.part == Part::Llm && (self.decoder.is_tied() || p.param.name() != table);
        self.params().iter().filter(counts).map(|p| p.param.value().num_bytes() as u64).sum()
    }

    /// An empty cache for `batch` sequences.
    pub fn new_cache(&self, batch: usize) -> KvCache {
        let width = self.decoder.config.num_kv_heads * self.decoder.config.head_dim;
        let rows = || RowBuffer::new(width, self.decoder.compute);
        let layer = || RefCell::new((0..batch).map(|_| (rows(), rows())).collect());
        KvCache {
            layers: self.decoder.layers.iter().map(|_| layer()).collect(),
            lengths: vec![0; batch],
            next: vec![0; batch],
        }
    }

    /// Runs packed prompts, one for each sequence of an empty cache; returns the logits after each prompt's last token,
    /// `[batch, vocab]`.
    pub fn prefill(&self, input: &ModelInput, cache: &mut KvCache) -> Result<Tensor> {
        let batch = cache.lengths.len();
        if input.cu_seqlens.len() != batch + 1 || cache.lengths.iter().any(|&l| l != 0) {
            return Err(ModelError::Input(format!(
                "a prefill needs an empty cache of {} sequences, found {batch} of lengths {:?}",
                input.cu_seqlens.len().saturating_sub(1),
                cache.lengths
            )));
        }
        let t = Tape::inference();
        let x = self.embed(&t, input, false)?;
        let spec = self.decoder.attention_spec(input.cu_seqlens.clone());
        let [q_width, kv_width] = self.decoder.qkv_widths();
        let attend = |t: &Tape, layer: usize, qkv: &Var| {
            for ((keys, values), bounds) in cache.layers[layer].borrow_mut().iter_mut().zip(input.cu_seqlens.windows(2))
            {
                let rows = qkv.value().rows(bounds[0], bounds[1])?;
                keys.append_columns(&rows, q_width)?;
                values.append_columns(&rows, q_width + kv_width)?;
            }
            t.self_attention(qkv, &spec)
        };
        let positions = self.positions(input)?;
        let hidden = self.decoder.forward_with(&t, x, &positions.view(), &attend)?;
        cache.next = positions.next(&input.cu_seqlens);
        for (length, bounds) in cache.lengths.iter_mut().zip(input.cu_seqlens.windows(2)) {
            if bounds[1] == bounds[0] {
                return Err(ModelError::Input("an empty prompt has no last token".into()));
            }
            *length = bounds[1] - bounds[0];
        }
        let last: Vec<u32> = input.cu_seqlens[1..].iter().map(|&end| end as u32 - 1).collect();
        let last = t.gather_rows(&hidden, &last)?;
        Ok(self.decoder.lm_head.forward_wide(&t, &last)?.into_value())
    }

    /// Appends one token to each of the named sequences; returns the logits that follow, `[tokens, vocab]`, in the
    /// order of `tokens` (pairs of sequence index and token id).
    pub fn decode_step(&self, tokens: &[(usize, u32)], cache: &mut KvCache) -> Result<Tensor> {
        if let Some((s, _)) = tokens.iter().find(|(s, _)| cache.lengths.get(*s).is_none_or(|&l| l == 0)) {
            return Err(ModelError::Input(format!("sequence {s} has no prompt in the cache")));
        }
        let t = Tape::decoding();
        let ids: Vec<u32> = tokens.iter().map(|&(_, id)| id).collect();
        let positions: Vec<u32> = tokens.iter().map(|&(s, _)| cache.next[s]).collect();
        let x = t.embedding(&ids, &self.decoder.embed_tokens)?;
        let spec = self.decoder.attention_spec([0, tokens.len()].into());
        let [q_width, kv_width] = self.decoder.qkv_widths();
        let attend = |t: &Tape, layer: usize, qkv: &Var| {
            let mut sequences = cache.layers[layer].borrow_mut();
            for (i, &(s, _)) in tokens.iter().enumerate() {
                let (keys, values) = &mut sequences[s];
                let row = qkv.value().rows(i, i + 1)?;
                keys.append_columns(&row, q_width)?;
                values.append_columns(&row, q_width + kv_width)?;
            }
            let rows: Vec<CachedRows<'_>> = tokens
                .iter()
                .enumerate()
                .map(|(i, &(s, _))| CachedRows { rows: i..i + 1, keys: &sequences[s].0, values: &sequences[s].1 })
                .collect();
            Ok(t.constant(attention_cached(qkv.value(), &rows, &spec)?))
        };
        let hidden = self.decoder.forward_with(&t, x, &Positions::One(&positions), &attend)?;
        for &(s, _) in tokens {
            cache.lengths[s] += 1;
            cache.next[s] += 1;
        }
        Ok(self.decoder.lm_head.forward_wide(&t, &hidden)?.into_value())
    }
}
