//! Incremental decoding with a key/value cache: prefill of packed prompts, then one token a sequence. Owns no sampling.

use crate::error::{ModelError, Result};
use crate::model::{Model, ModelInput};
use std::cell::RefCell;
use tensor::{RowBuffer, Tape, Tensor, Var, attention_cached};

/// Keys and values of every layer and sequence.
pub struct KvCache {
    layers: Vec<RefCell<Vec<(RowBuffer, RowBuffer)>>>,
    lengths: Vec<usize>,
}

impl KvCache {
    /// Tokens held for each sequence.
    pub fn lengths(&self) -> &[usize] {
        &self.lengths
    }
}

impl Model {
    /// An empty cache for `batch` sequences.
    pub fn new_cache(&self, batch: usize) -> KvCache {
        let width = self.decoder.config.num_kv_heads * self.decoder.config.head_dim;
        let layer = || RefCell::new((0..batch).map(|_| (RowBuffer::new(width), RowBuffer::new(width))).collect());
        KvCache { layers: self.decoder.layers.iter().map(|_| layer()).collect(), lengths: vec![0; batch] }
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
        let attend = |t: &Tape, layer: usize, q: &Var, k: &Var, v: &Var| {
            for ((keys, values), bounds) in cache.layers[layer].borrow_mut().iter_mut().zip(input.cu_seqlens.windows(2))
            {
                keys.append(&k.value().rows(bounds[0], bounds[1])?)?;
                values.append(&v.value().rows(bounds[0], bounds[1])?)?;
            }
            t.attention(q, k, v, &spec)
        };
        let hidden = self.decoder.forward_with(&t, x, &input.positions, &attend)?;
        for (length, bounds) in cache.lengths.iter_mut().zip(input.cu_seqlens.windows(2)) {
            if bounds[1] == bounds[0] {
                return Err(ModelError::Input("an empty prompt has no last token".into()));
            }
            *length = bounds[1] - bounds[0];
        }
        let last: Vec<u32> = input.cu_seqlens[1..].iter().map(|&end| end as u32 - 1).collect();
        let last = t.gather_rows(&hidden, &last)?;
        Ok(self.decoder.lm_head.forward(&t, &last)?.into_value())
    }

    /// Appends one token to each of the named sequences; returns the logits that follow, `[tokens, vocab]`, in the
    /// order of `tokens` (pairs of sequence index and token id).
    pub fn decode_step(&self, tokens: &[(usize, u32)], cache: &mut KvCache) -> Result<Tensor> {
        if let Some((s, _)) = tokens.iter().find(|(s, _)| cache.lengths.get(*s).is_none_or(|&l| l == 0)) {
            return Err(ModelError::Input(format!("sequence {s} has no prompt in the cache")));
        }
        let t = Tape::inference();
        let ids: Vec<u32> = tokens.iter().map(|&(_, id)| id).collect();
        let positions: Vec<u32> = tokens.iter().map(|&(s, _)| cache.lengths[s] as u32).collect();
        let x = t.embedding(&ids, &self.decoder.embed_tokens)?;
        let c = &self.decoder.config;
        let scale = (c.head_dim as f32).powf(-0.5);
        let attend = |t: &Tape, layer: usize, q: &Var, k: &Var, v: &Var| {
            let mut sequences = cache.layers[layer].borrow_mut();
            let mut rows = Vec::with_capacity(tokens.len());
            for (i, &(s, _)) in tokens.iter().enumerate() {
                let (keys, values) = &mut sequences[s];
                keys.append(&k.value().rows(i, i + 1)?)?;
                values.append(&v.value().rows(i, i + 1)?)?;
                let query = q.value().rows(i, i + 1)?;
                rows.push(t.constant(attention_cached(
                    &query,
                    keys,
                    values,
                    c.num_heads,
                    c.num_kv_heads,
                    c.head_dim,
                    scale,
                )?));
            }
            t.concat_rows(&rows)
        };
        let hidden = self.decoder.forward_with(&t, x, &positions, &attend)?;
        for &(s, _) in tokens {
            cache.lengths[s] += 1;
        }
        Ok(self.decoder.lm_head.forward(&t, &hidden)?.into_value())
    }
}
