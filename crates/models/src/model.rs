//! A whole model: an optional vision tower and projector in front of a decoder, or an encoder-decoder, built from a
//! checkpoint or at random. Owns the way from token ids and pixels to logits or loss. Adapters and saving have files of their
//! own, and so has the encoder-decoder.
//!
//! Source: `LlavaForConditionalGeneration`, `LlamaForCausalLM`, `Qwen2ForCausalLM` of `transformers`.

use crate::config::{CausalConfig, FamilyConfig, ModelConfig};
use crate::decoder::{Decoder, Embedded, OwnedPositions};
use crate::error::{ModelError, Result};
use crate::linear::Linear;
use crate::lora::ActiveAdapter;
use crate::names::TEXT_PREFIX;
use crate::needed::NeededRows;
use crate::parts::Parts;
use crate::seq2seq::Seq2Seq;
use crate::vision::{Features, VisionSide};
use crate::weights::{Builder, LoadReport, NamedParam};
use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;
use tensor::{DType, LinearWeights, LossOutput, Param, Tape, Tensor, Var};

/// Target of a token that is not supervised.
pub const IGNORE: i32 = -100;

/// One image or clip of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Visual {
    /// Whether its frames are taken together.
    pub is_video: bool,
    /// Patches along time (or pictures, where each passes the tower by itself: frames, or an image with its tiles), height and
    /// width.
    pub grid: [usize; 3],
    /// Height and width before anything was done to it, where the family needs them.
    pub source_size: [usize; 2],
    /// Seconds from one temporal patch to the next; 0 for an image.
    pub seconds_per_grid: f64,
}

/// One packed batch on its way into a model.
#[derive(Debug, Clone, Default)]
pub struct ModelInput {
    /// Token ids of all samples, one after the other; for sequence-to-sequence models those of the sources.
    pub ids: Vec<u32>,
    /// Position of each token within its sample.
    pub positions: Vec<u32>,
    /// Boundaries of the samples: first 0, last the number of tokens.
    pub cu_seqlens: Arc<[usize]>,
    /// Pixels, f32, normalised: `[images, channels, side, side]`, or rows of patches where the family takes these.
    pub pixels: Option<Tensor>,
    /// What [`Model::tower_states`] gave for the pictures before, in place of their pixels.
    pub tower_states: Option<Tensor>,
    /// Rows of `ids` that take image features, image after image.
    pub image_rows: Vec<u32>,
    /// Log-mel spectrograms of sound, f32 `[windows, mels, frames]`.
    pub mel: Option<Tensor>,
    /// Rows of `ids` that take features of sound, window after window.
    pub speech_rows: Vec<u32>,
    /// The images and clips, in the order of the text; families of one picture size do not look at them.
    pub visuals: Vec<Visual>,
    /// What a sequence-to-sequence model writes; none for decoders.
    pub target: Option<TargetInput>,
}

/// The targets of a sequence-to-sequence batch, or their beginnings where the model is to go on with them.
#[derive(Debug, Clone)]
pub struct TargetInput {
    /// Token ids of all targets, one after the other, without the start token.
    pub ids: Vec<u32>,
    /// Boundaries of the targets, one for each source.
    pub cu_seqlens: Arc<[usize]>,
}

/// The weight of each token's negative log-likelihood in the loss.
#[derive(Debug, Clone)]
pub enum LossWeights {
    /// The same for all: one over the supervised tokens of the global batch.
    Uniform(f32),
    /// One for each token, indexed like the labels: the weight of predicting that token.
    PerToken(Vec<f32>),
}

/// Options of [`load`].
#[derive(Debug, Clone, Copy, Default)]
pub struct LoadOptions {
    /// Storage of the weights; none keeps the checkpoint's. Where the processor multiplies bf16 numbers, a model of
    /// 16-bit weights also computes with bf16 activations; every other model computes in f32.
    pub dtype: Option<DType>,
}

/// A decoder, with a vision side where the family has one.
pub struct Causal {
    pub(crate) vision: Option<VisionSide>,
    pub(crate) decoder: Decoder,
}

/// The two shapes that models have.
pub(crate) enum Network {
    Causal(Box<Causal>),
    Seq2Seq(Box<Seq2Seq>),
}

/// A model ready to run.
pub struct Model {
    pub(crate) config: ModelConfig,
    pub(crate) network: Network,
    pub(crate) params: Vec<NamedParam>,
    /// Modules that the checkpoint lawfully lacks.
    pub(crate) absent: Vec<String>,
    pub(crate) adapter: Option<ActiveAdapter>,
}

/// Loads a checkpoint folder. A tensor that is missing or that the model has no place for is an error.
pub fn load(dir: &Path, options: &LoadOptions) -> Result<(Model, LoadReport)> {
    let config = ModelConfig::load(dir)?;
    let parts = Parts::open(dir, &config)?;
    let mut builder = Builder::from_tensors(dir, parts.tensors(&config)?, options.dtype);
    let network = build(&mut builder, &config)?;
    let (params, report) = builder.finish()?;
    let absent = report.absent_unreached.clone();
    Ok((Model { config, network, params, absent, adapter: None }, report))
}

/// Builds a model with random weights stored in `dtype`: normal with deviation 0.02, norms one, biases zero.
pub fn random(config: ModelConfig, seed: u64, dtype: DType) -> Result<Model> {
    let mut builder = Builder::random(seed, dtype);
    let network = build(&mut builder, &config)?;
    let (params, _) = builder.finish()?;
    Ok(Model { config, network, params, absent: Vec::new(), adapter: None })
}

fn build(b: &mut Builder<'_>, config: &ModelConfig) -> Result<Network> {
    match &config.family {
        FamilyConfig::Causal(config) => Ok(Network::Causal(Box::new(build_causal(b, config)?))),
        FamilyConfig::Seq2Seq(config) => Ok(Network::Seq2Seq(Box::new(Seq2Seq::build(b, config)?))),
    }
}

fn build_causal(b: &mut Builder<'_>, config: &CausalConfig) -> Result<Causal> {
    let vision = VisionSide::build(b, config)?;
    let prefix = match vision {
        None | Some(VisionSide::Encoders(_) | VisionSide::EgoGpt(_)) => "",
        Some(VisionSide::Llava(_) | VisionSide::Native(..)) => TEXT_PREFIX,
    };
    Ok(Causal { vision, decoder: Decoder::build(b, prefix, &config.text)? })
}

impl Model {
    /// The configuration the model was built from.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The dtype of activations: bf16 for 16-bit weights on a processor that multiplies them, else f32.
    pub fn compute(&self) -> DType {
        match &self.network {
            Network::Causal(network) => network.decoder.compute,
            Network::Seq2Seq(network) => network.compute,
        }
    }

    /// Every parameter: the checkpoint's in building order, then the adapter's.
    pub fn params(&self) -> Vec<NamedParam> {
        let adapter = self.adapter.iter().flat_map(|a| a.params.iter());
        self.params.iter().chain(adapter).cloned().collect()
    }

    /// What stands in the rows of the images and clips of an input, `[tokens, hidden]`.
    pub fn image_features(&self, t: &Tape, input: &ModelInput) -> Result<Var> {
        match &input.pixels {
            Some(pixels) => Ok(self.vision()?.features(t, pixels, &input.visuals, false)?.rows),
            None => Err(ModelError::Input("no pixels".to_owned())),
        }
    }

    /// What stands in the rows of sound of an input, `[tokens, hidden]`.
    pub fn speech_features(&self, t: &Tape, input: &ModelInput) -> Result<Var> {
        match (&input.mel, self.vision()?.speech()) {
            (Some(mel), Some(side)) => side.features(t, mel, false),
            (None, _) => Err(ModelError::Input("no sound".to_owned())),
            (Some(_), None) => Err(ModelError::Input(format!("a `{}` model takes no sound", self.config.model_type))),
        }
    }

    /// What the tower makes of pixels `[images, channels, side, side]` and the projector takes,
    /// `[(images tokens), width]` in the dtype of activations. A picture's rows do not depend on its neighbours. Families whose
    /// pictures have no common size refuse.
    pub fn tower_states(&self, t: &Tape, pixels: &Tensor) -> Result<Var> {
        self.vision()?.one_size()?.states(t, pixels, false)
    }

    fn vision(&self) -> Result<&VisionSide> {
        let side = match &self.network {
            Network::Causal(network) => network.vision.as_ref(),
            Network::Seq2Seq(_) => None,
        };
        let error = || ModelError::Input(format!("a `{}` model takes no images", self.config.model_type));
        side.ok_or_else(error)
    }

    /// Rows that the head reads, `[rows, hidden]`: those of all tokens or the needed ones, or of all targets.
    fn hidden(&self, t: &Tape, input: &ModelInput, needed: Option<NeededRows>, recompute: bool) -> Result<Var> {
        match &self.network {
            Network::Causal(network) => network.hidden(t, input, needed, recompute),
            Network::Seq2Seq(network) => network.hidden(t, input, recompute),
        }
    }

    fn lm_head(&self) -> &Linear {
        match &self.network {
            Network::Causal(network) => &network.decoder.lm_head,
            Network::Seq2Seq(network) => &network.lm_head,
        }
    }

    /// The table that other modules share, and the paths of these on disk; none where nothing is tied.
    pub(crate) fn tied(&self) -> Option<(Param, Vec<String>)> {
        match &self.network {
            Network::Causal(network) => {
                let decoder = &network.decoder;
                decoder.is_tied().then(|| (decoder.embed_tokens.clone(), vec![decoder.lm_head.path.clone()]))
            }
            Network::Seq2Seq(network) => network.tied(),
        }
    }

    /// Logits of every token, or of every target, `[rows, vocab]`.
    pub fn logits(&self, t: &Tape, input: &ModelInput) -> Result<Var> {
        Ok(self.lm_head().forward_wide(t, &self.hidden(t, input, None, false)?)?)
    }

    /// Weighted sum of the negative log-likelihoods of the supervised tokens.
    ///
    /// `labels[i]` belongs to `ids[i]` (the convention of `transformers`) and is shifted here, within each sample; the
    /// result's `nll[i]` is that of predicting `ids[i + 1]` from position `i`. Labels of a sequence-to-sequence model belong
    /// to the targets, and `nll[i]` is that of predicting target token `i`.
    pub fn loss(
        &self,
        t: &Tape,
        input: &ModelInput,
        labels: &[i32],
        weights: &LossWeights,
        recompute: bool,
    ) -> Result<LossOutput> {
        let total = input.target.as_ref().map_or(input.ids.len(), |target| target.ids.len());
        if labels.len() != total {
            return Err(ModelError::Input(format!("{} labels for {total} tokens", labels.len())));
        }
        let is_shifted = matches!(self.network, Network::Causal(_));
        let targets = if is_shifted { shift_targets(labels, &input.cu_seqlens) } else { labels.to_vec() };
        let weights = match weights {
            LossWeights::Uniform(w) => vec![*w; total],
            LossWeights::PerToken(w) if w.len() != total => {
                return Err(ModelError::Input(format!("{} loss weights for {total} tokens", w.len())));
            }
            LossWeights::PerToken(w) if is_shifted => w.iter().skip(1).copied().chain([0.0]).collect(),
            LossWeights::PerToken(w) => w.clone(),
        };
        let head: &LinearWeights = &self.lm_head().weights;
        let rows: Vec<u32> = (0..total as u32).filter(|&row| targets[row as usize] != IGNORE).collect();
        if !is_shifted || rows.is_empty() {
            let hidden = self.hidden(t, input, None, recompute)?;
            return Ok(t.linear_cross_entropy(&hidden, head, &targets, &weights)?);
        }
        let needed = NeededRows::new(rows.clone(), &input.cu_seqlens)?;
        let hidden = self.hidden(t, input, Some(needed), recompute)?;
        let targets: Vec<i32> = rows.iter().map(|&row| targets[row as usize]).collect();
        let weights: Vec<f32> = rows.iter().map(|&row| weights[row as usize]).collect();
        let LossOutput { loss, nll: of_rows } = t.linear_cross_entropy(&hidden, head, &targets, &weights)?;
        let mut nll = vec![0.0; total];
        rows.iter().zip(of_rows).for_each(|(&row, x)| nll[row as usize] = x);
        Ok(LossOutput { loss, nll })
    }

    /// Every projection of the model, for adapters.
    pub(crate) fn linears_mut(&mut self) -> Vec<&mut Linear> {
        match &mut self.network {
            Network::Causal(network) => network.linears_mut(),
            Network::Seq2Seq(network) => network.linears_mut(),
        }
    }
}

impl Causal {
    /// Token embeddings with image features in their rows, `[t, hidden]`, and what is added to these later.
    pub(crate) fn embed(&self, t: &Tape, input: &ModelInput, recompute: bool) -> Result<Embedded> {
        if input.target.is_some() {
            return Err(ModelError::Input("a decoder takes no targets beside its tokens".to_owned()));
        }
        let total = input.ids.len();
        if input.positions.len() != total
            || input.cu_seqlens.first() != Some(&0)
            || input.cu_seqlens.last() != Some(&total)
        {
            return Err(ModelError::Input(format!(
                "{} positions and boundaries {:?} do not fit {total} tokens",
                input.positions.len(),
                input.cu_seqlens
            )));
        }
        // No row of the table belongs to placeholders of some families, and features take the place of whatever is looked up.
        let has_words = self.vision.as_ref().is_none_or(VisionSide::has_placeholder_words);
        let mut words = Cow::Borrowed(&input.ids);
        if !has_words {
            let rows = input.image_rows.iter().chain(&input.speech_rows);
            let words = words.to_mut();
            rows.for_each(|&row| words.get_mut(row as usize).into_iter().for_each(|word| *word = 0));
        }
        let x = t.embedding(&words, &self.decoder.embed_tokens)?;
        let x = self.with_sound(t, input, x, recompute)?;
        self.with_pictures(t, input, x, recompute)
    }

    /// Embeddings with the features of sound in their rows.
    fn with_sound(&self, t: &Tape, input: &ModelInput, x: Var, recompute: bool) -> Result<Var> {
        let num_rows = input.speech_rows.len();
        let Some(mel) = &input.mel else {
            return match num_rows {
                0 => Ok(x),
                _ => Err(ModelError::Input(format!("{num_rows} tokens of sound but no spectrogram"))),
            };
        };
        let Some(side) = self.vision.as_ref().and_then(VisionSide::speech) else {
            return Err(ModelError::Input("the model takes no sound".to_owned()));
        };
        let features = side.features(t, mel, recompute)?;
        if features.shape()[0] != num_rows {
            return Err(ModelError::Input(format!(
                "features and tokens of sound do not match: {} features, {num_rows} tokens",
                features.shape()[0]
            )));
        }
        Ok(t.scatter_rows(&x, &input.speech_rows, &features)?)
    }

    /// Embeddings with the features of pictures in their rows.
    fn with_pictures(&self, t: &Tape, input: &ModelInput, x: Var, recompute: bool) -> Result<Embedded> {
        let num_rows = input.image_rows.len();
        let features: Features = match (&input.pixels, &input.tower_states, &self.vision) {
            (None, None, _) if num_rows == 0 => return Ok(x.into()),
            (None, None, _) => return Err(ModelError::Input(format!("{num_rows} image tokens but no pixels"))),
            (_, _, None) => return Err(ModelError::Input("a language model alone takes no images".to_owned())),
            (Some(pixels), None, Some(side)) => side.features(t, pixels, &input.visuals, recompute)?,
            (None, Some(states), Some(side)) => {
                side.one_size()?.project(t, &t.constant(states.clone()), &input.visuals)?.into()
            }
            (Some(_), Some(_), Some(_)) => {
                return Err(ModelError::Input("pixels beside the tower's states of the same pictures".to_owned()));
            }
        };
        let num_features = features.rows.shape()[0];
        if num_features != num_rows {
            return Err(ModelError::Input(format!(
                "image features and image tokens do not match: {num_features} features, {num_rows} tokens"
            )));
        }
        let rows = input.image_rows.clone();
        Ok(Embedded { tokens: t.scatter_rows(&x, &rows, &features.rows)?, rows, deep: features.deep })
    }

    fn hidden(&self, t: &Tape, input: &ModelInput, needed: Option<NeededRows>, recompute: bool) -> Result<Var> {
        let x = self.embed(t, input, recompute)?;
        self.decoder.forward(t, x, &self.positions(input)?.view(), input.cu_seqlens.clone(), needed, recompute)
    }

    /// The positions that the decoder sees.
    pub(crate) fn positions(&self, input: &ModelInput) -> Result<OwnedPositions> {
        match &self.vision {
            Some(side) => side.positions(input),
            None => Ok(OwnedPositions::One(input.positions.clone())),
        }
    }

    fn linears_mut(&mut self) -> Vec<&mut Linear> {
        let mut all = Vec::new();
        if let Some(side) = &mut self.vision {
            all.extend(side.linears_mut());
        }
        for layer in &mut self.decoder.layers {
            all.extend(Arc::make_mut(layer).linears_mut());
        }
        all.push(&mut self.decoder.lm_head);
        all
    }
}

/// Targets of next-token prediction within each sample: `targets[i] = labels[i + 1]`, nothing across a boundary.
pub fn shift_targets(labels: &[i32], cu_seqlens: &[usize]) -> Vec<i32> {
    let mut targets = vec![IGNORE; labels.len()];
    for bounds in cu_seqlens.windows(2) {
        let (start, end) = (bounds[0], bounds[1]);
        if end > start {
            targets[start..end - 1].copy_from_slice(&labels[start + 1..end]);
        }
    }
    targets
}
