//! Incremental decoding with a key/value cache: prefill of packed prompts, then one token a sequence. Owns no sampling.

use crate::decoder::{OwnedPositions, Positions};
use crate::error::{ModelError, Result};
use crate::model::{Model, ModelInput};
use crate::weights::{NamedParam, Part};
use std::cell::RefCell;
use std::sync::Arc;
use tensor::{CachedRows, DType, RowBuffer, Tape, Tensor, Var, attention_cached};

/// Keys and values of every layer and sequence.
pub struct KvCache {
    layers: Vec<RefCell<Vec<(RowBuffer, RowBuffer)>>>,
    lengths: Vec<usize>,
    /// Position of each sequence's next token, which is not its length where pictures have positions of their own.
    next: Vec<u32>,
    /// Embedded tokens of each sequence that may still outgrow the switch of LongRoPE: all of its keys and values change there.
    embedded: Vec<Option<RowBuffer>>,
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
        let config = &self.decoder.config;
        let width = config.num_kv_heads * config.head_dim;
        let rows = || RowBuffer::new(width, self.decoder.compute);
        let layer = || RefCell::new((0..batch).map(|_| (rows(), rows())).collect());
        let embedded = || config.rope.switch().map(|_| RowBuffer::new(config.hidden_size, DType::F32));
        KvCache {
            layers: self.decoder.layers.iter().map(|_| layer()).collect(),
            lengths: vec![0; batch],
            next: vec![0; batch],
            embedded: (0..batch).map(|_| embedded()).collect(),
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
        let sequences: Vec<usize> = (0..batch).collect();
        self.fill(&t, x, &self.positions(input)?, &input.cu_seqlens, &sequences, cache)
    }

    /// Runs whole embedded sequences into their empty caches; returns the logits after the last token of each.
    fn fill(
        &self,
        t: &Tape,
        x: Var,
        positions: &OwnedPositions,
        cu_seqlens: &Arc<[usize]>,
        sequences: &[usize],
        cache: &mut KvCache,
    ) -> Result<Tensor> {
        if cu_seqlens.windows(2).any(|bounds| bounds[0] == bounds[1]) {
            return Err(ModelError::Input("an empty prompt has no last token".into()));
        }
        let bounds_of = || sequences.iter().copied().zip(cu_seqlens.windows(2));
        for (s, bounds) in bounds_of() {
            self.remember(cache, s, &x, bounds[0]..bounds[1])?;
        }
        let [q_width, kv_width] = self.decoder.qkv_widths();
        let attend = |t: &Tape, layer: usize, qkv: &Var| {
            let mut held = cache.layers[layer].borrow_mut();
            for (s, bounds) in bounds_of() {
                let (keys, values) = &mut held[s];
                let rows = qkv.value().rows(bounds[0], bounds[1])?;
                keys.append_columns(&rows, q_width)?;
                values.append_columns(&rows, q_width + kv_width)?;
            }
            t.self_attention(qkv, &self.decoder.attention_spec(layer, cu_seqlens.clone()))
        };
        let hidden = self.decoder.forward_with(t, x, &positions.view(), cu_seqlens, &attend)?;
        for ((s, bounds), next) in bounds_of().zip(positions.next(cu_seqlens)) {
            cache.lengths[s] = bounds[1] - bounds[0];
            cache.next[s] = next;
        }
        let last: Vec<u32> = cu_seqlens[1..].iter().map(|&end| end as u32 - 1).collect();
        let last = t.gather_rows(&hidden, &last)?;
        Ok(self.decoder.lm_head.forward_wide(t, &last)?.into_value())
    }

    /// Keeps rows of embedded tokens while their sequence may outgrow the switch.
    fn remember(&self, cache: &mut KvCache, s: usize, x: &Var, rows: std::ops::Range<usize>) -> Result<()> {
        let Some(embedded) = &mut cache.embedded[s] else { return Ok(()) };
        if self.decoder.config.rope.switch().is_some_and(|switch| embedded.len() + rows.len() > switch) {
            cache.embedded[s] = None;
            return Ok(());
        }
        embedded.append(&x.value().rows(rows.start, rows.end)?)?;
        Ok(())
    }

    /// Appends one token to each of the named sequences; returns the logits that follow, `[tokens, vocab]`, in the
    /// order of `tokens` (pairs of sequence index and token id).
    pub fn decode_step(&self, tokens: &[(usize, u32)], cache: &mut KvCache) -> Result<Tensor> {
        if let Some((s, _)) = tokens.iter().find(|(s, _)| cache.lengths.get(*s).is_none_or(|&l| l == 0)) {
            return Err(ModelError::Input(format!("sequence {s} has no prompt in the cache")));
        }
        let grows = |s: usize| self.decoder.config.rope.switch() == Some(cache.lengths[s]);
        if !tokens.iter().any(|&(s, _)| grows(s)) {
            return self.append(tokens, cache);
        }
        // Those that outgrow the switch with this token start again, each by itself; the others go on as ever.
        let (outgrown, others): (Vec<usize>, Vec<usize>) = (0..tokens.len()).partition(|&i| grows(tokens[i].0));
        let vocab = self.decoder.config.vocab_size;
        let mut logits = vec![0.0; tokens.len() * vocab];
        let mut put = |i: usize, row: &[f32]| logits[i * vocab..(i + 1) * vocab].copy_from_slice(row);
        if !others.is_empty() {
            let tokens: Vec<(usize, u32)> = others.iter().map(|&i| tokens[i]).collect();
            let rows = self.append(&tokens, cache)?.to_vec_f32()?;
            others.iter().zip(rows.chunks_exact(vocab)).for_each(|(&i, row)| put(i, row));
        }
        for i in outgrown {
            put(i, &self.start_again(tokens[i].0, tokens[i].1, cache)?.to_vec_f32()?);
        }
        Ok(Tensor::from_f32(&logits, &[tokens.len(), vocab])?)
    }

    /// Appends a token and runs the whole sequence again.
    fn start_again(&self, s: usize, id: u32, cache: &mut KvCache) -> Result<Tensor> {
        let t = Tape::inference();
        let Some(before) = cache.embedded[s].take() else {
            return Err(ModelError::Input(format!("sequence {s} was not kept from its first token on")));
        };
        let new = t.embedding(&[id], &self.decoder.embed_tokens)?;
        let (length, hidden) = (before.len(), self.decoder.config.hidden_size);
        let before = t.constant(Tensor::from_f32(before.f32s()?, &[length, hidden])?);
        let x = t.concat_rows(&[before, new])?;
        for layer in &cache.layers {
            let (keys, values) = &mut layer.borrow_mut()[s];
            keys.truncate(0);
            values.truncate(0);
        }
        let positions = OwnedPositions::One((0..=length as u32).collect());
        self.fill(&t, x, &positions, &[0, length + 1].into(), &[s], cache)
    }

    fn append(&self, tokens: &[(usize, u32)], cache: &mut KvCache) -> Result<Tensor> {
        let t = Tape::decoding();
        let ids: Vec<u32> = tokens.iter().map(|&(_, id)| id).collect();
        let positions: Vec<u32> = tokens.iter().map(|&(s, _)| cache.next[s]).collect();
        let x = t.embedding(&ids, &self.decoder.embed_tokens)?;
        for (i, &(s, _)) in tokens.iter().enumerate() {
            self.remember(cache, s, &x, i..i + 1)?;
        }
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
            let spec = self.decoder.attention_spec(layer, [0, tokens.len()].into());
            Ok(t.constant(attention_cached(qkv.value(), &rows, &spec)?))
        };
        // Every row is a sequence of its own.
        let cu_seqlens: Vec<usize> = (0..=tokens.len()).collect();
        let hidden = self.decoder.forward_with(&t, x, &Positions::One(&positions), &cu_seqlens, &attend)?;
        for &(s, _) in tokens {
            cache.lengths[s] += 1;
            cache.next[s] += 1;
        }
        Ok(self.decoder.lm_head.forward_wide(&t, &hidden)?.into_value())
    }
}
