//! Incremental decoding with a key/value cache: prefill of packed prompts, then one token a sequence. Owns no sampling.

use crate::decoder::{Embedded, OwnedPositions, Positions};
use crate::error::{ModelError, Result};
use crate::model::{Causal, Model, ModelInput, Network};
use crate::needed::NeededRows;
use crate::weights::{NamedParam, Part};
use std::cell::RefCell;
use std::sync::Arc;
use tensor::{CachedRows, DType, RowBuffer, Tape, Tensor, Var, attention_cached};

/// Keys and values of one sequence in one layer.
pub(crate) type KeyValues = (RowBuffer, RowBuffer);

/// Keys and values of every layer and sequence.
pub struct KvCache {
    pub(crate) layers: Vec<RefCell<Vec<KeyValues>>>,
    pub(crate) lengths: Vec<usize>,
    /// Position of each sequence's next token, which is not its length where pictures have positions of their own.
    next: Vec<u32>,
    /// Embedded tokens of each sequence that may still outgrow the switch of LongRoPE: all of its keys and values change there.
    embedded: Vec<Option<RowBuffer>>,
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
    /// An empty cache of `layers` layers, whose sequences hold nothing.
    pub(crate) fn empty(layers: usize, batch: usize, rows: impl Fn() -> RowBuffer) -> KvCache {
        let layer = || RefCell::new((0..batch).map(|_| (rows(), rows())).collect());
        KvCache {
            layers: (0..layers).map(|_| layer()).collect(),
            lengths: vec![0; batch],
            next: vec![0; batch],
            embedded: (0..batch).map(|_| None).collect(),
            source: None,
        }
    }

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
        self.next = parents.iter().map(|&parent| self.next[parent]).collect();
        let copies = parents.iter().map(|&parent| self.embedded[parent].as_ref().map(RowBuffer::copied).transpose());
        self.embedded = copies.collect::<tensor::Result<_>>()?;
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
        let config = &decoder.config;
        let width = config.num_kv_heads * config.head_dim;
        let mut cache = KvCache::empty(decoder.layers.len(), batch, || RowBuffer::new(width, decoder.compute));
        let embedded = || config.rope.switch().map(|_| RowBuffer::new(config.hidden_size, DType::F32));
        cache.embedded = (0..batch).map(|_| embedded()).collect();
        cache
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
        let t = Tape::inference();
        let x = network.embed(&t, input, false)?;
        let sequences: Vec<usize> = (0..batch).collect();
        network.fill(&t, x, &network.positions(input)?, &input.cu_seqlens, &sequences, cache)
    }

    /// Appends one token to each of the named sequences; returns the logits that follow, `[tokens, vocab]`, in the
    /// order of `tokens` (pairs of sequence index and token id).
    pub fn decode_step(&self, tokens: &[(usize, u32)], cache: &mut KvCache) -> Result<Tensor> {
        if let Some((s, _)) = tokens.iter().find(|(s, _)| cache.lengths.get(*s).is_none_or(|&l| l == 0)) {
            return Err(ModelError::Input(format!("sequence {s} has no prompt in the cache")));
        }
        let network = match &self.network {
            Network::Causal(network) => network,
            Network::Seq2Seq(network) => return network.decode_step(tokens, cache),
        };
        let grows = |s: usize| network.decoder.config.rope.switch() == Some(cache.lengths[s]);
        if !tokens.iter().any(|&(s, _)| grows(s)) {
            return network.append(tokens, cache);
        }
        // Those that outgrow the switch with this token start again, each by itself; the others go on as ever.
        let (outgrown, others): (Vec<usize>, Vec<usize>) = (0..tokens.len()).partition(|&i| grows(tokens[i].0));
        let vocab = network.decoder.config.vocab_size;
        let mut logits = vec![0.0; tokens.len() * vocab];
        let mut put = |i: usize, row: &[f32]| logits[i * vocab..(i + 1) * vocab].copy_from_slice(row);
        if !others.is_empty() {
            let tokens: Vec<(usize, u32)> = others.iter().map(|&i| tokens[i]).collect();
            let rows = network.append(&tokens, cache)?.to_vec_f32()?;
            others.iter().zip(rows.chunks_exact(vocab)).for_each(|(&i, row)| put(i, row));
        }
        for i in outgrown {
            put(i, &network.start_again(tokens[i].0, tokens[i].1, cache)?.to_vec_f32()?);
        }
        Ok(Tensor::from_f32(&logits, &[tokens.len(), vocab])?)
    }
}

impl Causal {
    /// Runs whole embedded sequences into their empty caches; returns the logits after the last token of each.
    fn fill(
        &self,
        t: &Tape,
        x: Embedded,
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
            self.remember(cache, s, &x.tokens, bounds[0]..bounds[1])?;
        }
        let [q_width, kv_width] = self.decoder.qkv_widths();
        let needed = NeededRows::new(cu_seqlens[1..].iter().map(|&end| end as u32 - 1).collect(), cu_seqlens)?;
        let num_layers = self.decoder.layers.len();
        let narrowed = x.narrows_last_block(num_layers).then_some(num_layers - 1);
        let attend = |t: &Tape, layer: usize, qkv: &Var| {
            let mut held = cache.layers[layer].borrow_mut();
            for (s, bounds) in bounds_of() {
                let (keys, values) = &mut held[s];
                let rows = qkv.value().rows(bounds[0], bounds[1])?;
                keys.append_columns(&rows, q_width)?;
                values.append_columns(&rows, q_width + kv_width)?;
            }
            let spec = self.decoder.attention_spec(layer, cu_seqlens.clone());
            if Some(layer) == narrowed { needed.attend(t, qkv, &spec) } else { t.self_attention(qkv, &spec) }
        };
        let last = self.decoder.forward_with(t, x, &positions.view(), cu_seqlens, &attend, Some(&needed))?;
        for ((s, bounds), next) in bounds_of().zip(positions.next(cu_seqlens)) {
            cache.lengths[s] = bounds[1] - bounds[0];
            cache.next[s] = next;
        }
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
        self.fill(&t, x.into(), &positions, &[0, length + 1].into(), &[s], cache)
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
        let hidden =
            self.decoder.forward_with(&t, x.into(), &Positions::One(&positions), &cu_seqlens, &attend, None)?;
        for &(s, _) in tokens {
            cache.lengths[s] += 1;
            cache.next[s] += 1;
        }
        Ok(self.decoder.lm_head.forward_wide(&t, &hidden)?.into_value())
    }
}
