//! The parts that stand in front of a decoder and make rows of pictures. Owns what the families have in common: which of them
//! a model has, and what it can be asked for.

mod anyres;
pub mod egogpt;
pub mod encoders;
pub mod llava;
pub mod native;
pub mod vit;

use crate::config::qwen_vl::VisualPositions;
use crate::config::{CausalConfig, QwenVlConfig, VisionKind};
use crate::decoder::OwnedPositions;
use crate::error::{ModelError, Result};
use crate::linear::Linear;
use crate::model::{ModelInput, Visual};
use crate::speech::SpeechSide;
use crate::weights::Builder;
use egogpt::EgoGptSide;
use encoders::EncodersSide;
use llava::LlavaSide;
use native::NativeTower;
use tensor::{Tape, Tensor, Var, profile};

/// The vision side of a model.
pub enum VisionSide {
    /// Pictures or tiles of one size through SigLIP or CLIP, and a projector.
    Llava(LlavaSide),
    /// Patches of pictures of any size and mergers.
    Native(NativeTower, Box<QwenVlConfig>),
    /// Encoders of their own for images and clips.
    Encoders(Box<EncodersSide>),
    /// Pictures of one size through SigLIP, clips averaged, and sound.
    EgoGpt(Box<EgoGptSide>),
}

/// What pictures are to a decoder, one row a token.
pub struct Features {
    /// In place of the embedded placeholders, `[tokens, hidden]` in f32.
    pub rows: Var,
    /// Added to these rows behind the decoder's first layers, one `[tokens, hidden]` for each (Qwen3-VL).
    pub deep: Vec<Var>,
}

impl From<Var> for Features {
    fn from(rows: Var) -> Features {
        Features { rows, deep: Vec::new() }
    }
}

impl VisionSide {
    /// Builds what the configuration asks for; none for a decoder alone.
    pub(crate) fn build(b: &mut Builder<'_>, config: &CausalConfig) -> Result<Option<VisionSide>> {
        Ok(match &config.vision {
            None => None,
            Some(VisionKind::Llava(llava)) => {
                Some(VisionSide::Llava(LlavaSide::build(b, llava, config.text.hidden_size)?))
            }
            Some(VisionKind::QwenVl(qwen)) => {
                let tower = NativeTower::build(b, &qwen.vision, config.text.num_layers)?;
                Some(VisionSide::Native(tower, Box::new(qwen.clone())))
            }
            Some(VisionKind::Encoders(encoders)) => {
                Some(VisionSide::Encoders(Box::new(EncodersSide::build(b, encoders, config.text.hidden_size)?)))
            }
            Some(VisionKind::EgoGpt(ego)) => {
                Some(VisionSide::EgoGpt(Box::new(EgoGptSide::build(b, ego, config.text.hidden_size)?)))
            }
        })
    }

    /// What all pictures of an input are to the decoder.
    pub(crate) fn features(&self, t: &Tape, pixels: &Tensor, visuals: &[Visual], recompute: bool) -> Result<Features> {
        match self {
            VisionSide::Llava(side) => Ok(side.project(t, &side.states(t, pixels, recompute)?, visuals)?.into()),
            VisionSide::Native(tower, _) => {
                let span = profile::span("tower");
                let states = tower.states(t, pixels, visuals, recompute)?;
                drop(span);
                Ok(Features { rows: tower.merge(t, &states)?, deep: states.deep })
            }
            VisionSide::Encoders(side) => Ok(side.features(t, pixels, visuals, recompute)?.into()),
            VisionSide::EgoGpt(side) => Ok(side.features(t, pixels, visuals, recompute)?.into()),
        }
    }

    /// The side whose pictures have one size, which alone can keep what the tower made of them.
    pub(crate) fn one_size(&self) -> Result<&LlavaSide> {
        match self {
            VisionSide::Llava(side) => Ok(side),
            VisionSide::Native(..) => Err(ModelError::Input(
                "the states of this tower cannot be kept: its pictures have no common size".to_owned(),
            )),
            VisionSide::Encoders(_) => Err(ModelError::Input(
                "the states of encoders of their own for images and clips cannot be kept".to_owned(),
            )),
            VisionSide::EgoGpt(_) => Err(ModelError::Input(
                "the states of this tower cannot be kept: clips are averaged behind the projector".to_owned(),
            )),
        }
    }

    /// The side that hears, where the model has one.
    pub(crate) fn speech(&self) -> Option<&SpeechSide> {
        match self {
            VisionSide::EgoGpt(side) => side.speech.as_ref(),
            VisionSide::Llava(_) | VisionSide::Native(..) | VisionSide::Encoders(_) => None,
        }
    }

    /// Whether placeholders stand in the vocabulary. Where they do not, any number may stand in their rows.
    pub(crate) fn has_placeholder_words(&self) -> bool {
        !matches!(self, VisionSide::EgoGpt(_) | VisionSide::Encoders(_))
    }

    /// The positions of all tokens.
    pub(crate) fn positions(&self, input: &ModelInput) -> Result<OwnedPositions> {
        match self {
            VisionSide::Llava(_) | VisionSide::Encoders(_) | VisionSide::EgoGpt(_) => {
                Ok(OwnedPositions::One(input.positions.clone()))
            }
            VisionSide::Native(_, config) if config.positions == VisualPositions::Words => {
                Ok(OwnedPositions::One(input.positions.clone()))
            }
            VisionSide::Native(_, config) => crate::mrope::positions(input, config).map(OwnedPositions::Three),
        }
    }

    /// Every projection, in checkpoint order.
    pub(crate) fn linears_mut(&mut self) -> Vec<&mut Linear> {
        match self {
            VisionSide::Llava(side) => side.linears_mut(),
            VisionSide::Native(tower, _) => tower.linears_mut(),
            VisionSide::Encoders(side) => side.linears_mut(),
            VisionSide::EgoGpt(side) => side.linears_mut(),
        }
    }
}
