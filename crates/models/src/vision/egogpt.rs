//! EgoGPT's way from pictures and clips to the decoder: SigLIP without its last layer, a projector, frames of clips averaged
//! 2 x 2, and a learned row behind them. The speech side stands here beside it and is owned by `speech`.
//!
//! Source: Yang et al. 2025 (EgoLife), on top of LLaVA-OneVision; `SiglipVisionModel` of `transformers`. A last odd row and column of a
//! clip's frames are dropped, as `avg_pool2d` with stride 2 does.

use super::vit::VisionTower;
use crate::config::egogpt::{EgoGptConfig, Newline};
use crate::error::{ModelError, Result};
use crate::linear::{INIT_STD, Linear};
use crate::model::Visual;
use crate::names::EGO_VISION_PREFIX;
use crate::speech::SpeechSide;
use crate::weights::{Builder, Init, Part};
use tensor::{Activation, DType, Param, Tape, Tensor, Var, profile};

/// The parts that EgoGPT adds to a decoder.
pub struct EgoGptSide {
    config: EgoGptConfig,
    tower: VisionTower,
    projector: Vec<Linear>,
    newline: Option<Param>,
    pub(super) speech: Option<SpeechSide>,
    /// The dtype of activations; features go to the decoder's residual stream in f32.
    compute: DType,
}

impl EgoGptSide {
    /// Builds everything in front of a decoder of width `hidden`.
    pub(crate) fn build(b: &mut Builder<'_>, config: &EgoGptConfig, hidden: usize) -> Result<EgoGptSide> {
        let tower = VisionTower::build(b, EGO_VISION_PREFIX, &config.vision, config.vision.num_layers - 1)?;
        let path = "model.mm_projector";
        let projector = (0..config.projector_depth)
            .map(|i| {
                let path = if config.is_projector_bare { path.to_owned() } else { format!("{path}.{}", 2 * i) };
                let from = if i == 0 { config.vision.hidden_size } else { hidden };
                Linear::build(b, &path, from, hidden, true, Part::Projector)
            })
            .collect::<Result<_>>()?;
        let newline = match config.has_newline {
            true => {
                let init = Init::Normal(INIT_STD);
                Some(b.weight_as("model.image_newline", &[hidden], &[1, hidden], init, Part::Projector)?)
            }
            false => None,
        };
        let speech = match &config.speech {
            Some(settings) => Some(SpeechSide::build(b, settings, hidden)?),
            None => None,
        };
        Ok(EgoGptSide { config: config.clone(), tower, projector, newline, speech, compute: b.compute() })
    }

    pub(crate) fn linears_mut(&mut self) -> Vec<&mut Linear> {
        let mut all = self.tower.linears_mut();
        all.extend(&mut self.projector);
        all.extend(self.speech.iter_mut().flat_map(SpeechSide::linears_mut));
        all
    }

    /// Pixels `[m, c, side, side]` of all pictures and frames to rows for the decoder, `[tokens, hidden]` in f32.
    pub(crate) fn features(&self, t: &Tape, pixels: &Tensor, visuals: &[Visual], recompute: bool) -> Result<Var> {
        let span = profile::span("tower");
        let depth = self.config.vision.num_layers - 1;
        let states = self.tower.forward(t, pixels, &[depth], recompute)?;
        drop(span);
        let mut x = t.cast(&states[0], self.compute)?;
        drop(states);
        let (last, first) = match self.projector.split_last() {
            Some(parts) => parts,
            None => unreachable!("the configuration asks for one map at least"),
        };
        for layer in first {
            x = t.activation(&layer.forward(t, &x)?, Activation::Gelu)?;
        }
        let projected = last.forward_wide(t, &x)?;
        drop(x);
        self.arrange(t, projected, pixels.shape()[0], visuals)
    }

    /// Projected rows of every picture and frame, averaged where they belong to clips, each visual with its newlines.
    fn arrange(&self, t: &Tape, projected: Var, num_pictures: usize, visuals: &[Visual]) -> Result<Var> {
        let side = self.config.vision.grid();
        let (per_picture, half) = (side * side, side / 2);
        let counted: usize = visuals.iter().map(|visual| visual.grid[0]).sum();
        if counted != num_pictures {
            return Err(ModelError::Input(format!(
                "{num_pictures} pictures, and images and clips of {counted} pictures together"
            )));
        }
        let starts = visuals.iter().scan(0, |next, visual| {
            let start = *next;
            *next += visual.grid[0];
            Some((visual, start))
        });
        // The even part of every frame of a clip.
        let frames: Vec<usize> =
            starts.clone().filter(|(v, _)| v.is_video).flat_map(|(v, start)| start..start + v.grid[0]).collect();
        let even = frames.iter().flat_map(|frame| {
            (0..2 * half).flat_map(move |y| (0..2 * half).map(move |x| (frame * per_picture + y * side + x) as u32))
        });
        let mut sources = vec![projected];
        if !frames.is_empty() {
            let cut = t.gather_rows(&sources[0], &even.collect::<Vec<u32>>())?;
            sources.push(t.avg_pool_grid(&cut, frames.len(), [2 * half, 2 * half], [half, half])?);
        }
        let newline = (num_pictures * per_picture + frames.len() * half * half) as u32;
        if let Some(param) = &self.newline {
            sources.push(t.embedding(&[0], param)?);
        }
        let mut order = Vec::new();
        let mut pooled = (num_pictures * per_picture) as u32;
        for (visual, start) in starts {
            if !visual.is_video {
                let rows = start * per_picture..(start + visual.grid[0]) * per_picture;
                order.extend(rows.map(|row| row as u32));
                order.extend(self.config.has_newline.then_some(newline));
                continue;
            }
            for _ in 0..visual.grid[0] * half {
                order.extend(pooled..pooled + half as u32);
                pooled += half as u32;
                order.extend((self.config.newline == Newline::Rows).then_some(newline));
            }
            order.extend((self.config.newline == Newline::End).then_some(newline));
        }
        let joined = if sources.len() == 1 { sources.remove(0) } else { t.concat_rows(&sources)? };
        drop(sources);
        Ok(t.gather_rows(&joined, &order)?)
    }
}
