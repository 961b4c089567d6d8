//! Decoding token by token over an encoded source, whose keys and values are computed once.

use super::{Rows, Seq2Seq};
use crate::error::{ModelError, Result};
use crate::generate::{KeyValues, KvCache, Source};
use crate::model::ModelInput;
use crate::weights::NamedParam;
use std::ops::Range;
use std::sync::Arc;
use tensor::{CachedRows, Mask, RowBuffer, Tape, Tensor, Var, attention_cached};

/// Attention over the own rows, given the keys and values of every sequence in the present layer.
type AttendOwn<'a> = dyn Fn(&Tape, &Var, &[KeyValues]) -> tensor::Result<Var> + 'a;

impl Seq2Seq {
    /// An empty cache for `batch` sequences, each with a source of its own.
    pub(crate) fn new_cache(&self, batch: usize) -> KvCache {
        let rows = || RowBuffer::new(self.config.width, self.compute);
        let layer = || (0..batch).map(|_| (rows(), rows())).collect::<Vec<KeyValues>>();
        let mut cache = KvCache::empty(self.decoder.len(), batch, rows);
        let layers = self.decoder.iter().map(|_| layer()).collect();
        cache.source = Some(Source { layers, of: (0..batch).collect() });
        cache
    }

    /// Encodes the sources and reads the start token and the targets given so far, one for each source; returns the logits
    /// after each last token, `[batch, vocab]`.
    pub(crate) fn prefill(&self, input: &ModelInput, cache: &mut KvCache) -> Result<Tensor> {
        let t = Tape::inference();
        let source = self.source(input)?;
        let encoded = self.encode(&t, source, false)?;
        let KvCache { source: Some(sources), .. } = cache else {
            return Err(ModelError::Input("the cache is that of another model".to_owned()));
        };
        for (layer, caches) in self.decoder.iter().zip(&mut sources.layers) {
            let [k, v] = layer.source_keys(&t, &encoded)?;
            for ((keys, values), bounds) in caches.iter_mut().zip(source.cu_seqlens.windows(2)) {
                keys.append(&k.value().rows(bounds[0], bounds[1])?)?;
                values.append(&v.value().rows(bounds[0], bounds[1])?)?;
            }
        }
        let (ids, cu) = self.begun(input, source.cu_seqlens.len() - 1)?;
        let rows = Rows { ids: &ids, cu_seqlens: &cu };
        let ranges: Vec<(usize, Range<usize>)> = cu.windows(2).map(|bounds| bounds[0]..bounds[1]).enumerate().collect();
        let own = self.decoder.first().map(|layer| layer.self_attn.spec(Mask::Causal, &cu, &cu));
        let hidden = self.step(&t, &ids, &self.positions.of(rows), &ranges, cache, &|t, qkv, _| match &own {
            Some(spec) => t.self_attention(qkv, spec),
            None => Ok(qkv.clone()),
        })?;
        let last: Vec<u32> = cu[1..].iter().map(|&end| end as u32 - 1).collect();
        Ok(self.lm_head.forward_wide(&t, &t.gather_rows(&hidden, &last)?)?.into_value())
    }

    /// What the decoder reads before it writes: the start token, and the tokens that are given.
    fn begun(&self, input: &ModelInput, batch: usize) -> Result<(Vec<u32>, Arc<[usize]>)> {
        let given = input.target.as_ref().map(|target| (target.ids.as_slice(), target.cu_seqlens.as_ref()));
        let (given, cu) = given.unwrap_or((&[], &[]));
        if input.target.is_some() && (cu.len() != batch + 1 || cu.last() != Some(&given.len())) {
            return Err(ModelError::Input(format!("boundaries {cu:?} of targets do not fit {batch} sources")));
        }
        let (mut ids, mut starts) = (Vec::new(), vec![0]);
        for i in 0..batch {
            ids.push(self.config.decoder_start_token_id);
            if let Some(bounds) = cu.get(i..i + 2) {
                ids.extend(&given[bounds[0]..bounds[1]]);
            }
            starts.push(ids.len());
        }
        Ok((ids, starts.into()))
    }

    /// Appends one token to each of the named sequences; returns the logits that follow, `[tokens, vocab]`.
    pub(crate) fn decode_step(&self, tokens: &[(usize, u32)], cache: &mut KvCache) -> Result<Tensor> {
        let t = Tape::decoding();
        let ids: Vec<u32> = tokens.iter().map(|&(_, id)| id).collect();
        let positions: Vec<u32> = tokens.iter().map(|&(s, id)| self.positions.next(id, cache.lengths[s])).collect();
        let ranges: Vec<(usize, Range<usize>)> = tokens.iter().enumerate().map(|(i, &(s, _))| (s, i..i + 1)).collect();
        let Some(layer) = self.decoder.first() else {
            return Err(ModelError::Input("the model has no decoder".to_owned()));
        };
        let spec = layer.self_attn.spec(Mask::Causal, &[0].into(), &[0].into());
        let hidden = self.step(&t, &ids, &positions, &ranges, cache, &|t, qkv, caches| {
            let rows = ranges.iter().map(|(s, rows)| cached(rows.clone(), &caches[*s])).collect::<Vec<_>>();
            Ok(t.constant(attention_cached(qkv.value(), &rows, &spec)?))
        })?;
        Ok(self.lm_head.forward_wide(&t, &hidden)?.into_value())
    }

    /// New rows of some sequences through the decoder, their keys and values appended; `attend` is the attention over the
    /// own rows, given those of every sequence in the present layer.
    fn step(
        &self,
        t: &Tape,
        ids: &[u32],
        positions: &[u32],
        ranges: &[(usize, Range<usize>)],
        cache: &mut KvCache,
        attend: &AttendOwn<'_>,
    ) -> Result<Var> {
        let width = self.config.width;
        let KvCache { layers, lengths, source: Some(source), .. } = cache else {
            return Err(ModelError::Input("the cache is that of another model".to_owned()));
        };
        let mut x = self.embed(t, &self.tables[1], ids, positions)?;
        for ((layer, own), sources) in self.decoder.iter().zip(layers).zip(&source.layers) {
            let attend_own = |t: &Tape, qkv: &Var| {
                let mut own = own.borrow_mut();
                for (s, rows) in ranges {
                    let rows = qkv.value().rows(rows.start, rows.end)?;
                    own[*s].0.append_columns(&rows, width)?;
                    own[*s].1.append_columns(&rows, 2 * width)?;
                }
                attend(t, qkv, &own)
            };
            let spec = layer.encoder_attn.spec(Mask::Full, &[0].into(), &[0].into());
            let attend_source = |t: &Tape, q: &Var| {
                // Row by row: each sees all of its source.
                let each = |(s, rows): &(usize, Range<usize>)| {
                    let caches = &sources[source.of[*s]];
                    rows.clone().map(move |row| cached(row..row + 1, caches)).collect::<Vec<_>>()
                };
                let rows: Vec<CachedRows<'_>> = ranges.iter().flat_map(each).collect();
                Ok(t.constant(attention_cached(q.value(), &rows, &spec)?))
            };
            x = layer.forward_with(t, x, &attend_own, &attend_source)?;
        }
        for (s, rows) in ranges {
            lengths[*s] += rows.len();
        }
        Ok(self.decoder_norm.forward(t, &x)?)
    }

    /// Whether a decoding step reads a weight whole: those of the decoder and the head, without what the source went through.
    pub(crate) fn is_read_by_step(&self, p: &NamedParam) -> bool {
        let of_source = p.name.contains(".encoder_attn.k_proj.") || p.name.contains(".encoder_attn.v_proj.");
        let is_table = p.name.ends_with("embed_tokens.weight");
        p.param.id() == self.lm_head.weights.weight.id()
            || (p.name.contains("model.decoder.") && !of_source && !is_table)
    }
}

fn cached(rows: Range<usize>, (keys, values): &KeyValues) -> CachedRows<'_> {
    CachedRows { rows, keys, values }
}
