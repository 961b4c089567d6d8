//! LLaVA-1.5's and LLaVA-interleave's way from pictures to the decoder: a tower, selected states, two layers.
//!
//! Source: `LlavaModel.get_image_features`, `LlavaMultiModalProjector` of `transformers`.

use super::vit::VisionTower;
use crate::config::{FeatureSelect, LlavaConfig};
use crate::error::Result;
use crate::linear::Linear;
use crate::names::{PROJECTOR_PREFIX, VISION_PREFIX};
use crate::weights::{Builder, Part};
use tensor::{DType, Tape, Tensor, Var, profile};

/// The two layers between tower and decoder.
pub struct Projector {
    linear_1: Linear,
    linear_2: Linear,
}

/// The parts that LLaVA adds to a decoder.
pub struct LlavaSide {
    config: LlavaConfig,
    tower: VisionTower,
    projector: Projector,
    /// The dtype of activations; features go to the decoder's residual stream in f32.
    compute: DType,
}

impl LlavaSide {
    /// Builds tower and projector in front of a decoder of width `hidden`.
    pub(crate) fn build(b: &mut Builder<'_>, llava: &LlavaConfig, hidden: usize) -> Result<LlavaSide> {
        let depth = llava.feature_layers.iter().copied().max().unwrap_or(0);
        let tower = VisionTower::build(b, VISION_PREFIX, &llava.vision, depth)?;
        let (width, bias) = (llava.vision.hidden_size * llava.feature_layers.len(), llava.projector_bias);
        let projector = Projector {
            linear_1: Linear::build(b, &format!("{PROJECTOR_PREFIX}linear_1"), width, hidden, bias, Part::Projector)?,
            linear_2: Linear::build(b, &format!("{PROJECTOR_PREFIX}linear_2"), hidden, hidden, bias, Part::Projector)?,
        };
        Ok(LlavaSide { config: llava.clone(), tower, projector, compute: b.compute() })
    }

    pub(crate) fn linears_mut(&mut self) -> Vec<&mut Linear> {
        let mut all = self.tower.linears_mut();
        all.extend([&mut self.projector.linear_1, &mut self.projector.linear_2]);
        all
    }

    /// Pixels `[m, c, side, side]` to what the projector takes: the selected states side by side, `[(m tokens), width]`,
    /// in the dtype of activations.
    pub(crate) fn states(&self, t: &Tape, pixels: &Tensor, recompute: bool) -> Result<Var> {
        let _span = profile::span("tower");
        let c = &self.config;
        let mut states = self.tower.forward(t, pixels, &c.feature_layers, recompute)?;
        if c.select == FeatureSelect::DropFirst {
            let tokens = c.vision.num_positions();
            let rows: Vec<u32> =
                (0..pixels.shape()[0] * tokens).filter(|r| r % tokens != 0).map(|r| r as u32).collect();
            states = states.iter().map(|s| t.gather_rows(s, &rows)).collect::<tensor::Result<_>>()?;
        }
        let joined = match states.len() {
            1 => states.remove(0),
            _ => t.concat_cols(&states)?,
        };
        Ok(t.cast(&joined, self.compute)?)
    }

    /// What the tower gave, projected to `[(m tokens), hidden]`.
    pub(crate) fn project(&self, t: &Tape, joined: &Var) -> Result<Var> {
        let inner = t.activation(&self.projector.linear_1.forward(t, joined)?, self.config.projector_activation)?;
        Ok(self.projector.linear_2.forward_wide(t, &inner)?)
    }
}
