//! A whole model: an optional vision tower and projector in front of a decoder, built from a checkpoint or at random.
//! Owns the way from token ids and pixels to logits or loss. Adapters and saving have files of their own.
//!
//! Source: `LlavaForConditionalGeneration`, `Qwen2VLForConditionalGeneration`, `Qwen2_5_VLForConditionalGeneration` and the
//! `ForCausalLM` classes of the decoders of `transformers`.

use crate::config::ModelConfig;
use crate::decoder::{Decoder, OwnedPositions};
use crate::error::{ModelError, Result};
use crate::linear::Linear;
use crate::lora::ActiveAdapter;
use crate::names::TEXT_PREFIX;
use crate::vision::{self, VisionSide};
use crate::weights::{Builder, LoadReport, NamedParam};
use std::path::Path;
use std::sync::Arc;
use tensor::{DType, LossOutput, Tape, Tensor, Var};

/// Target of a token that is not supervised.
pub const IGNORE: i32 = -100;

/// One image or clip of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Visual {
    /// Whether its frames are taken together.
    pub is_video: bool,
    /// Patches along time (or pictures, where each passes the tower by itself), height and width.
    pub grid: [usize; 3],
    /// Height and width before anything was done to it, where the family needs them.
    pub source_size: [usize; 2],
    /// Seconds from one temporal patch to the next; 0 for an image.
    pub seconds_per_grid: f64,
}

/// One packed batch on its way into a model.
#[derive(Debug, Clone, Default)]
pub struct ModelInput {
    /// Token ids of all samples, one after the other.
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
    /// The images and clips, in the order of the text; families of one picture size do not look at them.
    pub visuals: Vec<Visual>,
}

/// The weight of each token's negative log-likelihood in the loss.
#[derive(Debug, Clone)]
pub enum LossWeights {
    /// The same for all: one over the supervised tokens of the global batch.
    Uniform(f32),
    /// One for each token, indexed like the ids: the weight of predicting that token.
    PerToken(Vec<f32>),
}

/// Options of [`load`].
#[derive(Debug, Clone, Copy, Default)]
pub struct LoadOptions {
    /// Storage of the weights; none keeps the checkpoint's. Where the processor multiplies bf16 numbers, a model of bf16
    /// weights also computes with bf16 activations; every other model computes in f32.
    pub dtype: Option<DType>,
}

/// A model ready to run.
pub struct Model {
    pub(crate) config: ModelConfig,
    pub(crate) vision: Option<VisionSide>,
    pub(crate) decoder: Decoder,
    pub(crate) params: Vec<NamedParam>,
    /// Modules that the checkpoint lawfully lacks.
    pub(crate) absent: Vec<String>,
    pub(crate) adapter: Option<ActiveAdapter>,
}

/// Loads a checkpoint folder. A tensor that is missing or that the model has no place for is an error.
pub fn load(dir: &Path, options: &LoadOptions) -> Result<(Model, LoadReport)> {
    let config = ModelConfig::load(dir)?;
    let checkpoint = hub::Checkpoint::open(dir)?;
    let mut builder = Builder::from_checkpoint(&checkpoint, options.dtype, config.vision.is_none())?;
    let (vision, decoder) = build(&mut builder, &config)?;
    let (params, report) = builder.finish()?;
    let absent = report.absent_unreached.clone();
    Ok((Model { config, vision, decoder, params, absent, adapter: None }, report))
}

/// Builds a model with random weights stored in `dtype`: normal with deviation 0.02, norms one, biases zero.
pub fn random(config: ModelConfig, seed: u64, dtype: DType) -> Result<Model> {
    let mut builder = Builder::random(seed, dtype);
    let (vision, decoder) = build(&mut builder, &config)?;
    let (params, _) = builder.finish()?;
    Ok(Model { config, vision, decoder, params, absent: Vec::new(), adapter: None })
}

fn build(b: &mut Builder<'_>, config: &ModelConfig) -> Result<(Option<VisionSide>, Decoder)> {
    let vision = VisionSide::build(b, config)?;
    let prefix = if vision.is_some() { TEXT_PREFIX } else { "" };
    Ok((vision, Decoder::build(b, prefix, &config.text)?))
}

impl Model {
    /// The configuration the model was built from.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The dtype of activations: bf16 for bf16 weights on a processor that multiplies them, else f32.
    pub fn compute(&self) -> DType {
        self.decoder.compute
    }

    /// Every parameter: the checkpoint's in building order, then the adapter's.
    pub fn params(&self) -> Vec<NamedParam> {
        let adapter = self.adapter.iter().flat_map(|a| a.params.iter());
        self.params.iter().chain(adapter).cloned().collect()
    }

    /// What stands in the rows of the images and clips of an input, `[tokens, hidden]`.
    pub fn image_features(&self, t: &Tape, input: &ModelInput) -> Result<Var> {
        match (&self.vision, &input.pixels) {
            (Some(side), Some(pixels)) => side.features(t, pixels, &input.visuals, false),
            (Some(_), None) => Err(ModelError::Input("no pixels".to_owned())),
            (None, _) => Err(self.takes_no_images()),
        }
    }

    /// What the tower makes of pixels `[images, channels, side, side]` and the projector takes,
    /// `[(images tokens), width]` in the dtype of activations. A picture's rows do not depend on its neighbours. Families whose
    /// pictures have no common size refuse.
    pub fn tower_states(&self, t: &Tape, pixels: &Tensor) -> Result<Var> {
        match &self.vision {
            Some(side) => side.one_size(&self.config)?.states(t, pixels, false),
            None => Err(self.takes_no_images()),
        }
    }

    fn takes_no_images(&self) -> ModelError {
        ModelError::Input(format!("a `{}` model takes no images", self.config.model_type))
    }

    /// Token embeddings with image features in their rows, `[t, hidden]`.
    pub(crate) fn embed(&self, t: &Tape, input: &ModelInput, recompute: bool) -> Result<Var> {
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
        let x = t.embedding(&input.ids, &self.decoder.embed_tokens)?;
        let num_rows = input.image_rows.len();
        let features = match (&input.pixels, &input.tower_states, &self.vision) {
            (None, None, _) if num_rows == 0 => return Ok(x),
            (None, None, _) => return Err(ModelError::Input(format!("{num_rows} image tokens but no pixels"))),
            (_, _, None) => return Err(self.takes_no_images()),
            (Some(pixels), None, Some(side)) => side.features(t, pixels, &input.visuals, recompute)?,
            (None, Some(states), Some(side)) => side.one_size(&self.config)?.project(t, &t.constant(states.clone()))?,
            (Some(_), Some(_), Some(_)) => {
                return Err(ModelError::Input("pixels beside the tower's states of the same pictures".to_owned()));
            }
        };
        if features.shape()[0] != num_rows {
            return Err(ModelError::Input(format!(
                "image features and image tokens do not match: {} features, {num_rows} tokens",
                features.shape()[0]
            )));
        }
        Ok(t.scatter_rows(&x, &input.image_rows, &features)?)
    }

    fn hidden(&self, t: &Tape, input: &ModelInput, recompute: bool) -> Result<Var> {
        let x = self.embed(t, input, recompute)?;
        let positions = self.positions(input)?;
        self.decoder.forward(t, x, &positions.view(), input.cu_seqlens.clone(), recompute)
    }

    /// The positions that the decoder sees.
    pub(crate) fn positions(&self, input: &ModelInput) -> Result<OwnedPositions> {
        Ok(match vision::positions(&self.config, input)? {
            Some(three) => OwnedPositions::Three(three),
            None => OwnedPositions::One(input.positions.clone()),
        })
    }

    /// Logits of every token, `[t, vocab]`.
    pub fn logits(&self, t: &Tape, input: &ModelInput) -> Result<Var> {
        Ok(self.decoder.lm_head.forward_wide(t, &self.hidden(t, input, false)?)?)
    }

    /// Weighted sum of the negative log-likelihoods of the supervised tokens.
    ///
    /// `labels[i]` belongs to `ids[i]` (the convention of `transformers`) and is shifted here, within each sample; the
    /// result's `nll[i]` is that of predicting `ids[i + 1]` from position `i`.
    pub fn loss(
        &self,
        t: &Tape,
        input: &ModelInput,
        labels: &[i32],
        weights: &LossWeights,
        recompute: bool,
    ) -> Result<LossOutput> {
        let total = input.ids.len();
        if labels.len() != total {
            return Err(ModelError::Input(format!("{} labels for {total} tokens", labels.len())));
        }
        let targets = shift_targets(labels, &input.cu_seqlens);
        let weights = match weights {
            LossWeights::Uniform(w) => vec![*w; total],
            LossWeights::PerToken(w) if w.len() == total => w.iter().skip(1).copied().chain([0.0]).collect(),
            LossWeights::PerToken(w) => {
                return Err(ModelError::Input(format!("{} loss weights for {total} tokens", w.len())));
            }
        };
        let hidden = self.hidden(t, input, recompute)?;
        Ok(t.linear_cross_entropy(&hidden, &self.decoder.lm_head.weights, &targets, &weights)?)
    }

    /// Every projection of the model, for adapters.
    pub(crate) fn linears_mut(&mut self) -> Vec<&mut Linear> {
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
