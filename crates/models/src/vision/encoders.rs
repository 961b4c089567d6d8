//! The way from images and clips through encoders of their own to the decoder: a tower, one selected state, a projector,
//! for each kind of medium. The frames of a clip pass the tower one by one; their tokens follow one another in time (`flat`).
//!
//! Source: `encode_images`, `encode_video`, `prepare_inputs_labels_for_multimodal` of the published `llava_arch.py`. Shapes: `m`
//! pictures, `c` channels, `h` hidden.

use super::llava::selected;
use super::vit::VisionTower;
use crate::config::EncodersConfig;
use crate::config::encoders::Encoder;
use crate::error::{ModelError, Result};
use crate::linear::Linear;
use crate::model::Visual;
use crate::weights::{Builder, Part};
use tensor::{Activation, DType, Tape, Tensor, Var, profile};

/// A tower and what projects its states.
struct Path {
    config: Encoder,
    tower: VisionTower,
    /// The projector's linear maps, first to last.
    layers: Vec<Linear>,
    compute: DType,
}

impl Path {
    fn build(b: &mut Builder<'_>, config: &Encoder, hidden: usize) -> Result<Path> {
        let tower = VisionTower::build(b, config.paths.tower, &config.vision, config.feature_layer)?;
        let mut width = config.vision.hidden_size;
        let mut layers = Vec::new();
        for layer in config.projector.layers() {
            let path = format!("{}{layer}", config.paths.projector);
            layers.push(Linear::build(b, &path, width, hidden, true, Part::Projector)?);
            width = hidden;
        }
        Ok(Path { config: config.clone(), tower, layers, compute: b.compute() })
    }

    /// Values of one picture.
    fn picture_len(&self) -> usize {
        let c = &self.config.vision;
        c.num_channels * c.image_size * c.image_size
    }

    /// Values of pictures to rows for the decoder, `[(m tokens), h]` in f32.
    fn rows(&self, t: &Tape, values: &[f32], recompute: bool) -> Result<Var> {
        let c = &self.config.vision;
        let count = values.len() / self.picture_len();
        let pixels = Tensor::from_f32(values, &[count, c.num_channels, c.image_size, c.image_size])?;
        let span = profile::span("tower");
        let mut x = selected(t, &self.tower, &pixels, &[self.config.feature_layer], self.config.select, recompute)?;
        drop(span);
        x = t.cast(&x, self.compute)?;
        let last = self.layers.len() - 1;
        for layer in &self.layers[..last] {
            x = t.activation(&layer.forward(t, &x)?, Activation::Gelu)?;
        }
        Ok(self.layers[last].forward_wide(t, &x)?)
    }
}

/// The encoders that stand beside a decoder.
pub struct EncodersSide {
    image: Option<Path>,
    video: Option<Path>,
}

impl EncodersSide {
    /// Builds the encoders in front of a decoder of width `hidden`.
    pub(crate) fn build(b: &mut Builder<'_>, config: &EncodersConfig, hidden: usize) -> Result<EncodersSide> {
        let mut build = |encoder: &Option<Encoder>| encoder.as_ref().map(|e| Path::build(b, e, hidden)).transpose();
        Ok(EncodersSide { image: build(&config.image)?, video: build(&config.video)? })
    }

    /// Rows for the decoder, `[tokens, h]`, in the order of the text. `pixels` holds the values of all pictures, whatever its
    /// shape: as many for each visual as its frames have in its encoder.
    pub(crate) fn features(&self, t: &Tape, pixels: &Tensor, visuals: &[Visual], recompute: bool) -> Result<Var> {
        let values = pixels.f32s()?;
        let sides = [&self.image, &self.video];
        let mut parts: [Vec<f32>; 2] = Default::default();
        // For each visual its side, the first of its rows there, and their number.
        let mut order = Vec::with_capacity(visuals.len());
        let mut at = 0;
        for visual in visuals {
            let which = usize::from(visual.is_video);
            let Some(side) = sides[which] else {
                let kind = ["images", "clips"][which];
                return Err(ModelError::Input(format!("{kind} for a model without an encoder for them")));
            };
            let count = visual.grid[0] * side.picture_len();
            let Some(own) = values.get(at..at + count) else {
                return Err(ModelError::Input(format!(
                    "{} values of pictures, expected at least {} for those of the text",
                    values.len(),
                    at + count
                )));
            };
            let tokens = side.config.tokens_per_image();
            order.push((which, parts[which].len() / side.picture_len() * tokens, visual.grid[0] * tokens));
            parts[which].extend_from_slice(own);
            at += count;
        }
        if at != values.len() || visuals.is_empty() {
            return Err(ModelError::Input(format!("{} values of pictures, expected {at}", values.len())));
        }
        let mut rows = Vec::new();
        let mut firsts = [0; 2];
        for (which, side) in sides.iter().enumerate() {
            if let Some(side) = side.as_ref().filter(|_| !parts[which].is_empty()) {
                firsts[which] = rows.iter().map(|part: &Var| part.shape()[0]).sum();
                rows.push(side.rows(t, &parts[which], recompute)?);
            }
        }
        if rows.len() == 1 {
            return Ok(rows.remove(0));
        }
        let joined = t.concat_rows(&rows)?;
        let in_order: Vec<u32> = order
            .into_iter()
            .flat_map(|(which, first, count)| (0..count).map(move |row| (firsts[which] + first + row) as u32))
            .collect();
        Ok(t.gather_rows(&joined, &in_order)?)
    }

    /// Every projection, in checkpoint order.
    pub(crate) fn linears_mut(&mut self) -> Vec<&mut Linear> {
        let mut all = Vec::new();
        for path in self.image.iter_mut().chain(&mut self.video) {
            all.extend(path.tower.linears_mut());
            all.extend(&mut path.layers);
        }
        all
    }
}
