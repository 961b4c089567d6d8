//! The parts that stand in front of a decoder and make rows of pictures. Owns what the families have in common: which of them
//! a model has, and what it can be asked for.

pub mod llava;
pub mod native;
pub mod vit;

use crate::config::{ModelConfig, VisionKind};
use crate::error::{ModelError, Result};
use crate::linear::Linear;
use crate::model::{ModelInput, Visual};
use crate::weights::Builder;
use llava::LlavaSide;
use native::NativeTower;
use tensor::{Tape, Tensor, Var, profile};

/// The vision side of a model.
pub enum VisionSide {
    /// Pictures of one size through SigLIP or CLIP, and a projector.
    Llava(LlavaSide),
    /// Patches of pictures of any size, and a merger.
    Native(NativeTower),
}

impl VisionSide {
    /// Builds what the configuration asks for; none for a decoder alone.
    pub(crate) fn build(b: &mut Builder<'_>, config: &ModelConfig) -> Result<Option<VisionSide>> {
        Ok(match &config.vision {
            None => None,
            Some(VisionKind::Llava(llava)) => {
                Some(VisionSide::Llava(LlavaSide::build(b, llava, config.text.hidden_size)?))
            }
            Some(VisionKind::QwenVl(qwen)) => Some(VisionSide::Native(NativeTower::build(b, &qwen.vision)?)),
        })
    }

    /// Rows for the decoder, `[tokens, hidden]` in f32, of all pictures of an input.
    pub(crate) fn features(&self, t: &Tape, pixels: &Tensor, visuals: &[Visual], recompute: bool) -> Result<Var> {
        match self {
            VisionSide::Llava(side) => side.project(t, &side.states(t, pixels, recompute)?),
            VisionSide::Native(tower) => {
                let span = profile::span("tower");
                let states = tower.states(t, pixels, visuals, recompute)?;
                drop(span);
                tower.merge(t, states)
            }
        }
    }

    /// The side whose pictures have one size, which alone can keep what the tower made of them.
    pub(crate) fn one_size(&self, config: &ModelConfig) -> Result<&LlavaSide> {
        match self {
            VisionSide::Llava(side) => Ok(side),
            VisionSide::Native(_) => Err(ModelError::Input(format!(
                "the states of a `{}` tower cannot be kept: its pictures have no common size",
                config.model_type
            ))),
        }
    }

    /// Every projection, in checkpoint order.
    pub(crate) fn linears_mut(&mut self) -> Vec<&mut Linear> {
        match self {
            VisionSide::Llava(side) => side.linears_mut(),
            VisionSide::Native(tower) => tower.linears_mut(),
        }
    }
}

/// The three position numbers of every token, where the family has three.
pub(crate) fn positions(config: &ModelConfig, input: &ModelInput) -> Result<Option<Vec<[u32; 3]>>> {
    match &config.vision {
        Some(VisionKind::QwenVl(qwen)) => crate::mrope::positions(input, qwen).map(Some),
        _ => Ok(None),
    }
}
