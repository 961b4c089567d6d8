//! Mergers: one token of a square of patches. Owns their weights and their names; where they stand in a tower is not theirs.
//!
//! Source: `PatchMerger` of Qwen2-VL, `Qwen3VLVisionPatchMerger` of `transformers`, which norms patches one by one or, in front
//! of the decoder's later layers, the square as a whole (`use_postshuffle_norm`).

use crate::config::native::{NativeFamily, NativeVisionConfig};
use crate::error::Result;
use crate::linear::{Linear, Norm};
use crate::weights::{Builder, Part};
use tensor::{Activation, Tape, Var};

/// Norm, two layers with a GELU between them.
pub(super) struct Merger {
    norm: Norm,
    fc1: Linear,
    fc2: Linear,
    /// Values of a square of patches.
    joined: usize,
    norms_squares: bool,
}

impl Merger {
    /// Builds the merger of a path; it belongs to the projector, wherever it stands.
    pub(super) fn build(
        b: &mut Builder<'_>,
        path: &str,
        c: &NativeVisionConfig,
        norms_squares: bool,
    ) -> Result<Merger> {
        let names = match c.family {
            NativeFamily::Qwen3Vl => ["norm", "linear_fc1", "linear_fc2"],
            _ => ["ln_q", "mlp.0", "mlp.2"],
        };
        let [norm, fc1, fc2] = names.map(|name| format!("{path}.{name}"));
        let joined = c.hidden_size * c.merge_size * c.merge_size;
        let width = if norms_squares { joined } else { c.hidden_size };
        let norm = match c.is_gated {
            true => Norm::rms(b, &norm, width, c.norm_eps, Part::Projector)?,
            false => Norm::layer(b, &norm, width, c.norm_eps, Part::Projector)?,
        };
        Ok(Merger {
            norm,
            fc1: Linear::build(b, &fc1, joined, joined, true, Part::Projector)?,
            fc2: Linear::build(b, &fc2, joined, c.out_hidden_size, true, Part::Projector)?,
            joined,
            norms_squares,
        })
    }

    /// Patches `[p, width]`, squares one after the other, to tokens `[p / squares, decoder's width]` in f32.
    pub(super) fn forward(&self, t: &Tape, x: &Var) -> Result<Var> {
        let shape = [x.shape().iter().product::<usize>() / self.joined, self.joined];
        let normed = match self.norms_squares {
            true => self.norm.forward(t, &t.reshape(x.clone(), &shape)?)?,
            false => t.reshape(self.norm.forward(t, x)?, &shape)?,
        };
        let inner = t.activation(&self.fc1.forward(t, &normed)?, Activation::Gelu)?;
        Ok(self.fc2.forward_wide(t, &inner)?)
    }

    /// Its projections, in checkpoint order.
    pub(super) fn linears_mut(&mut self) -> [&mut Linear; 2] {
        [&mut self.fc1, &mut self.fc2]
    }
}
