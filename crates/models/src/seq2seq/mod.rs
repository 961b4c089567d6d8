//! Encoder-decoder models of text: M2M100 and NLLB. Owns their way from source and target tokens to hidden rows; generation
//! token by token is in `generate`, which owns no beams.
//!
//! Source: `M2M100ForConditionalGeneration` of `transformers`. Shapes: `s` packed source tokens, `t` packed target tokens,
//! `d` width. Dropout is that of the configuration, drawn from the tape's counters; it is off on an inference tape.

pub mod config;
pub(crate) mod generate;
mod layer;
mod positions;

use crate::error::{ModelError, Result};
use crate::linear::{INIT_STD, Linear, Norm};
use crate::model::ModelInput;
use crate::weights::{Builder, Init, Part};
use config::Seq2SeqConfig;
use layer::{DecoderLayer, EncoderLayer};
use positions::Positions;
use std::sync::Arc;
use tensor::{DType, Mask, Param, Tape, Var, memory};

/// The table that both sides and the head share where nothing says otherwise.
const SHARED: &str = "model.shared";
/// The head.
const HEAD: &str = "lm_head";
/// `nn.LayerNorm`'s own, which no field of the configuration changes.
const NORM_EPS: f32 = 1e-5;

/// An encoder, a decoder that reads its rows, and a head.
pub struct Seq2Seq {
    /// The configuration it was built from.
    pub config: Seq2SeqConfig,
    /// `[vocab, d]`, those of both sides; the same weight where they are tied.
    tables: [Param; 2],
    encoder: Vec<Arc<EncoderLayer>>,
    encoder_norm: Norm,
    decoder: Vec<Arc<DecoderLayer>>,
    decoder_norm: Norm,
    /// The head; shares the table where it is tied.
    pub lm_head: Linear,
    positions: Positions,
    /// The dtype of activations; the residual streams are f32.
    pub compute: DType,
}

/// Packed rows of tokens and where their sequences start and end.
#[derive(Clone, Copy)]
struct Rows<'a> {
    ids: &'a [u32],
    cu_seqlens: &'a Arc<[usize]>,
}

impl Seq2Seq {
    /// Builds the model under its names on disk.
    pub fn build(b: &mut Builder<'_>, config: &Seq2SeqConfig) -> Result<Seq2Seq> {
        let (c, part) = (config.clone(), Part::Llm);
        let (shared, tables, lm_head) = build_tables(b, &c)?;
        let norm = |b: &mut Builder<'_>, path: &str| Norm::layer(b, path, c.width, NORM_EPS, part);
        let encoder = (0..c.encoder.num_layers)
            .map(|i| Ok(Arc::new(EncoderLayer::build(b, &format!("model.encoder.layers.{i}"), &c)?)))
            .collect::<Result<Vec<_>>>()?;
        let encoder_norm = norm(b, "model.encoder.layer_norm")?;
        let decoder = (0..c.decoder.num_layers)
            .map(|i| Ok(Arc::new(DecoderLayer::build(b, &format!("model.decoder.layers.{i}"), &c)?)))
            .collect::<Result<Vec<_>>>()?;
        let decoder_norm = norm(b, "model.decoder.layer_norm")?;
        let lm_head = match (lm_head, shared) {
            (true, Some(table)) => Linear::tied(HEAD, table, part),
            _ => Linear::build(b, HEAD, c.width, c.vocab_size, false, part)?,
        };
        let positions = Positions::new(c.width, c.max_positions, c.pad_token_id)?;
        let compute = b.compute();
        Ok(Seq2Seq { config: c, tables, encoder, encoder_norm, decoder, decoder_norm, lm_head, positions, compute })
    }

    /// The table that others stand for, and the modules that share it; none where each has its own.
    pub fn tied(&self) -> Option<(Param, Vec<String>)> {
        let sides = [("model.encoder.embed_tokens", &self.tables[0]), ("model.decoder.embed_tokens", &self.tables[1])];
        let all = sides.into_iter().chain([(HEAD, &self.lm_head.weights.weight)]);
        let sharing: Vec<_> = all.filter(|(_, table)| table.name().strip_suffix(".weight") == Some(SHARED)).collect();
        let table = sharing.first()?.1.clone();
        Some((table, sharing.into_iter().map(|(module, _)| module.to_owned()).collect()))
    }

    /// Final rows of the decoder, `[t, d]`, for targets that are predicted from their sources: the decoder reads each target
    /// shifted by one behind the start token.
    pub fn hidden(&self, t: &Tape, input: &ModelInput, recompute: bool) -> Result<Var> {
        let (source, target) = self.sides(input)?;
        let inputs = self.shifted(target);
        let encoded = self.encode(t, source, recompute)?;
        self.decode(t, Rows { ids: &inputs, ..target }, &encoded, source.cu_seqlens, recompute)
    }

    /// Both sides of an input, checked.
    fn sides<'a>(&self, input: &'a ModelInput) -> Result<(Rows<'a>, Rows<'a>)> {
        let Some(target) = &input.target else {
            return Err(ModelError::Input("a sequence-to-sequence model needs targets beside the sources".to_owned()));
        };
        let source = self.source(input)?;
        let target = Rows { ids: &target.ids, cu_seqlens: &target.cu_seqlens };
        target.check("target")?;
        if source.cu_seqlens.len() != target.cu_seqlens.len() {
            let (sources, targets) = (source.cu_seqlens.len() - 1, target.cu_seqlens.len() - 1);
            return Err(ModelError::Input(format!("{targets} targets for {sources} sources")));
        }
        Ok((source, target))
    }

    fn source<'a>(&self, input: &'a ModelInput) -> Result<Rows<'a>> {
        if input.pixels.is_some() || input.tower_states.is_some() || !input.image_rows.is_empty() {
            return Err(ModelError::Input("a sequence-to-sequence model of text takes no images".to_owned()));
        }
        let source = Rows { ids: &input.ids, cu_seqlens: &input.cu_seqlens };
        source.check("source")?;
        Ok(source)
    }

    /// What the decoder reads to predict a target: the start token, then all of it but its last token.
    ///
    /// Source: `shift_tokens_right`.
    fn shifted(&self, target: Rows<'_>) -> Vec<u32> {
        let mut inputs = Vec::with_capacity(target.ids.len());
        for bounds in target.cu_seqlens.windows(2).filter(|bounds| bounds[1] > bounds[0]) {
            inputs.push(self.config.decoder_start_token_id);
            inputs.extend(&target.ids[bounds[0]..bounds[1] - 1]);
        }
        inputs
    }

    /// Embedded tokens with their positions, `[rows, d]`.
    fn embed(&self, t: &Tape, table: &Param, ids: &[u32], positions: &[u32]) -> Result<Var> {
        let x = t.scale(&t.embedding(ids, table)?, self.config.embed_scale)?;
        let x = self.positions.add(t, &x, positions)?;
        Ok(t.dropout(&x, self.config.dropout.residual)?)
    }

    /// Source rows through the encoder, `[s, d]` in the dtype of activations.
    fn encode(&self, t: &Tape, source: Rows<'_>, recompute: bool) -> Result<Var> {
        let positions = self.positions.of(source);
        let mut x = self.embed(t, &self.tables[0], source.ids, &positions)?;
        for (i, layer) in self.encoder.iter().enumerate() {
            memory::mark("encoder.layers", i);
            if t.leaves_out(self.config.encoder.layerdrop)? {
                continue;
            }
            let spec = layer.self_attn.spec(Mask::Full, source.cu_seqlens, source.cu_seqlens);
            x = match recompute {
                true => {
                    let layer = layer.clone();
                    t.checkpoint(&[x], move |t, inputs| layer.forward(t, inputs[0].clone(), &spec))?
                }
                false => layer.forward(t, x, &spec)?,
            };
        }
        memory::mark("encoder.layers", self.encoder.len());
        Ok(self.encoder_norm.forward(t, &x)?)
    }

    /// Decoder inputs through the decoder over encoded sources, `[t, d]` in the dtype of activations.
    fn decode(
        &self,
        t: &Tape,
        inputs: Rows<'_>,
        encoded: &Var,
        cu_source: &Arc<[usize]>,
        recompute: bool,
    ) -> Result<Var> {
        let positions = self.positions.of(inputs);
        let mut x = self.embed(t, &self.tables[1], inputs.ids, &positions)?;
        for (i, layer) in self.decoder.iter().enumerate() {
            memory::mark("decoder.layers", i);
            if t.leaves_out(self.config.decoder.layerdrop)? {
                continue;
            }
            let own = layer.self_attn.spec(Mask::Causal, inputs.cu_seqlens, inputs.cu_seqlens);
            let cross = layer.encoder_attn.spec(Mask::Full, inputs.cu_seqlens, cu_source);
            x = match recompute {
                true => {
                    let layer = layer.clone();
                    t.checkpoint(&[x, encoded.clone()], move |t, inputs| {
                        layer.forward(t, inputs[0].clone(), &inputs[1], &own, &cross)
                    })?
                }
                false => layer.forward(t, x, &t.branch(encoded)?, &own, &cross)?,
            };
        }
        memory::mark("decoder.layers", self.decoder.len());
        Ok(self.decoder_norm.forward(t, &x)?)
    }

    /// Every projection, for adapters.
    pub fn linears_mut(&mut self) -> Vec<&mut Linear> {
        let mut all = Vec::new();
        for layer in &mut self.encoder {
            all.extend(Arc::make_mut(layer).linears_mut());
        }
        for layer in &mut self.decoder {
            all.extend(Arc::make_mut(layer).linears_mut());
        }
        all.push(&mut self.lm_head);
        all
    }
}

impl Rows<'_> {
    fn check(&self, what: &str) -> Result<()> {
        let (ids, cu) = (self.ids, self.cu_seqlens);
        let ordered = cu.first() == Some(&0) && cu.last() == Some(&ids.len()) && cu.windows(2).all(|b| b[0] < b[1]);
        match ordered {
            true => Ok(()),
            false => Err(ModelError::Input(format!(
                "{what} boundaries {cu:?} do not divide {} tokens into sequences of at least one",
                ids.len()
            ))),
        }
    }
}

/// The shared table where anything reads it, the tables of both sides, and whether the head shares it too.
///
/// Tied by the configuration, a checkpoint may hold the table under any of its names, or under several with the same values;
/// one with values of its own is kept apart, as the reference does. Untied, each has its own, and nothing reads the shared
/// one; files of earlier versions of the reference, which shared it between both sides regardless, are read as they meant.
fn build_tables(b: &mut Builder<'_>, c: &Seq2SeqConfig) -> Result<(Option<Param>, [Param; 2], bool)> {
    let (shared, part) = (format!("{SHARED}.weight"), Part::Llm);
    let sides = ["encoder", "decoder"].map(|side| format!("model.{side}.embed_tokens.weight"));
    let head = format!("{HEAD}.weight");
    let own = |b: &mut Builder<'_>, name: &str| b.weight(name, &[c.vocab_size, c.width], Init::Normal(INIT_STD), part);
    if c.tie_word_embeddings {
        for name in sides.iter().chain([&head]) {
            b.swap_tied(&shared, name);
        }
        let table = own(b, &shared)?;
        let mut side = |name: &str| match b.ties(name, &table)? {
            true => Ok(table.clone()),
            false => own(b, name),
        };
        let tables = [side(&sides[0])?, side(&sides[1])?];
        let head = b.ties(&head, &table)?;
        return Ok((Some(table), tables, head));
    }
    if !sides.iter().any(|name| b.holds(name)) {
        let table = own(b, &shared)?;
        return Ok((Some(table.clone()), [table.clone(), table], false));
    }
    let unread = b.unreached(SHARED, "weight", |b| own(b, &shared))?;
    Ok((unread, [own(b, &sides[0])?, own(b, &sides[1])?], false))
}
