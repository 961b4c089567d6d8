//! Incremental decoding with a key/value cache: prefill of packed prompts, then one token a sequence. Owns no sampling.

use crate::error::{ModelError, Result};
use crate::model::{Model, ModelInput, Network};
use crate::weights::{NamedParam, Part};
use std::cell::RefCell;
use tensor::{CachedRows, RowBuffer, Tape, Tensor, Var, attention_cached};

/// Keys and values of one sequence in one layer.
pub(crate) type KeyValues = (RowBuffer, RowBuffer);

/// Keys and values of every layer and sequence.
pub struct KvCache {
    pub(crate) layers: Vec<RefCell<Vec<KeyValues>>>,
    pub(crate) lengths: Vec<usize>,
    /// Those of the sources that sequences are written from, where the model has them.
    pub(crate) source: Option<Source>,
}

/// Keys and values of encoded sources, which several sequences may read.
pub(crate) struct Source {
    pub(crate) layers: Vec<Vec<KeyValues>>,
    /// The source of each sequence.
    pub(crate) of: Vec<usize>,
}

impl KvCache {
    /// Tokens held for each sequence.
    pub fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// Goes on with other sequences: the i-th is from now on a copy of what number `parents[i]` was.
    pub fn reorder(&mut self, parents: &[usize]) -> Result<()> {
        if let Some(parent) = parents.iter().find(|parent| **parent >= self.lengths.len()) {
            let message = format!("sequence {parent} of {} is not in the cache", self.lengths.len());
            return Err(ModelError::Input(message));
        }
        let last_use = |i: usize| !parents[i + 1..].contains(&parents[i]);
        for layer in &self.layers {
            let mut layer = layer.borrow_mut();
            let mut old: Vec<Option<KeyValues>> = std::mem::take(&mut *layer).into_iter().map(Some).collect();
            for (i, &parent) in parents.iter().enumerate() {
                let rows = match &old[parent] {
                    Some((keys, values)) if !last_use(i) => Some((keys.copied()?, values.copied()?)),
                    _ => old[parent].take(),
                };
                layer.extend(rows);
            }
        }
        self.lengths = parents.iter().map(|&parent| self.lengths[parent]).collect();
        if let Some(source) = &mut self.source {
            source.of = parents.iter().map(|&parent| source.of[parent]).collect();
        }
        Ok(())
    }
}

impl Model {
    /// Bytes of the weights that a decoding step reads: every block, the final norm and the head. Of an embedding table
    /// that is not the head a step reads single rows, which do not count.
    pub fn bytes_per_step(&self) -> u64 {
        let counts = |p: &&NamedParam| match &self.network {
            Network::Causal(network) => {
                let decoder = &network.decoder;
                p.part == Part::Llm && (decoder.is_tied() || p.param.name() != decoder.embed_tokens.name())
            }
            Network::Seq2Seq(network) => network.is_read_by_step(p),
        };
        self.params().iter().filter(counts).map(|p| p.param.value().num_bytes() as u64).sum()
    }

    /// An empty cache for `batch` sequences.
    pub fn new_cache(&self, batch: usize) -> KvCache {
        let decoder = match &self.network {
            Network::Causal(network) => &network.decoder,
            Network::Seq2Seq(network) => return network.new_cache(batch),
        };
        let width = decoder.config.num_kv_heads * decoder.config.head_dim;
        let rows = || RowBuffer::new(width, decoder.compute);
        let layer = || RefCell::new((0..batch).map(|_| (rows(), rows())).collect());
        KvCache { layers: decoder.layers.iter().map(|_| layer()).collect(), lengths: vec![0; batch], source: None }
    }

    /// Runs packed prompts, one for each sequence of an empty cache; returns the logits after each prompt's last token,
    /// `[batch, vocab]`. A sequence-to-sequence model takes its sources as prompts, and the beginnings of their targets, which
    /// stand behind the start token.
    pub fn prefill(&self, input: &ModelInput, cache: &mut KvCache) -> Result<Tensor> {
        let batch = cache.lengths.len();
        if input.cu_seqlens.len() != batch + 1 || cache.lengths.iter().any(|&l| l != 0) {
            return Err(ModelError::Input(format!(
                "a prefill needs an empty cache of {} sequences, found {batch} of lengths {:?}",
                input.cu_seqlens.len().saturating_sub(1),
                cache.lengths
            )));
        }
        let network = match &self.network {
            Network::Causal(network) => network,
            Network::Seq2Seq(network) => return network.prefill(input, cache),
        };
        let decoder = &network.decoder;
        let t = Tape::inference();
        let x = network.embed(&t, input, false)?;
        let spec = decoder.attention_spec(input.cu_seqlens.clone());
        let [q_width, kv_width] = decoder.qkv_widths();
        let attend = |t: &Tape, layer: usize, qkv: &Var| {
            for ((keys, values), bounds) in cache.layers[layer].borrow_mut().iter_mut().zip(input.cu_seqlens.windows(2))
            {
                let rows = qkv.value().rows(bounds[0], bounds[1])?;
                keys.append_columns(&rows, q_width)?;
                values.append_columns(&rows, q_width + kv_width)?;
            }
            t.self_attention(qkv, &spec)
        };
        let hidden = decoder.forward_with(&t, x, &input.positions, &attend)?;
        for (length, bounds) in cache.lengths.iter_mut().zip(input.cu_seqlens.windows(2)) {
            if bounds[1] == bounds[0] {
                return Err(ModelError::Input("an empty prompt has no last token".into()));
            }
            *length = bounds[1] - bounds[0];
        }
        let last: Vec<u32> = input.cu_seqlens[1..].iter().map(|&end| end as u32 - 1).collect();
        let last = t.gather_rows(&hidden, &last)?;
        Ok(decoder.lm_head.forward_wide(&t, &last)?.into_value())
    }

    /// Appends one token to each of the named sequences; returns the logits that follow, `[tokens, vocab]`, in the
    /// order of `tokens` (pairs of sequence index and token id).
    pub fn decode_step(&self, tokens: &[(usize, u32)], cache: &mut KvCache) -> Result<Tensor> {
        if let Some((s, _)) = tokens.iter().find(|(s, _)| cache.lengths.get(*s).is_none_or(|&l| l == 0)) {
            return Err(ModelError::Input(format!("sequence {s} has no prompt in the cache")));
        }
        let decoder = match &self.network {
            Network::Causal(network) => &network.decoder,
            Network::Seq2Seq(network) => return network.decode_step(tokens, cache),
        };
        let t = Tape::decoding();
        let ids: Vec<u32> = tokens.iter().map(|&(_, id)| id).collect();
        let positions: Vec<u32> = tokens.iter().map(|&(s, _)| cache.lengths[s] as u32).collect();
        let x = t.embedding(&ids, &decoder.embed_tokens)?;
        let spec = decoder.attention_spec([0, tokens.len()].into());
        let [q_width, kv_width] = decoder.qkv_widths();
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
        let hidden = decoder.forward_with(&t, x, &positions, &attend)?;
        for &(s, _) in tokens {
            cache.lengths[s] += 1;
        }
        Ok(decoder.lm_head.forward_wide(&t, &hidden)?.into_value())
    }
}
