//! Configuration of towers that take pictures at their own size: one struct for all families, whose differences are
//! explicit fields, and its reading for Qwen2-VL and Qwen2.5-VL. Qwen3-VL and LLaVA-OneVision-1.5 are read elsewhere.
//!
//! Source: `Qwen2VLVisionConfig`, `Qwen2_5_VLVisionConfig` of `transformers`, class defaults included.

use super::fields::Fields;
use crate::error::{ModelError, Result};
use serde_json::Value;
use tensor::Activation;

/// Families with such a tower, told apart by the `model_type` of the whole checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NativeFamily {
    /// `qwen2_vl`.
    Qwen2Vl,
    /// `qwen2_5_vl`.
    Qwen25Vl,
    /// `qwen3_vl`.
    Qwen3Vl,
    /// `llavaonevision1_5`.
    OneVision15,
}

/// Attention within square windows of an image, in all blocks but a few.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Windows {
    /// Side of a window, in groups of `merge_size x merge_size` patches.
    pub side: usize,
    /// Blocks that attend within a whole frame.
    pub full_blocks: Vec<usize>,
}

/// What a row of patches is before the first block, beside its own pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NativeInput {
    /// Nothing else.
    Patches,
    /// A learned table of this many positions, the largest square of it resampled to each grid (`num_position_embeddings`).
    Positions(usize),
    /// A class token in front of each frame, whose rotary angles are learned, and a norm of everything.
    ClassToken,
}

/// Where text goes on after an image or clip whose positions end at `p` and whose grid is `h x w` groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MropeResume {
    /// At the largest position of the clip plus one: the published code, and what the checkpoints were trained with.
    #[default]
    AfterMax,
    /// At its first position plus the larger of `h` and `w`, whatever its duration (`transformers` 5.23).
    AfterExtent,
}

/// A pre-norm ViT over patches with two-dimensional rotary positions, and the merger behind it.
#[derive(Debug, Clone)]
pub struct NativeVisionConfig {
    /// Family the configuration was read as.
    pub family: NativeFamily,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Width of what the merger gives: the decoder's.
    pub out_hidden_size: usize,
    /// Number of blocks.
    pub num_layers: usize,
    /// Attention heads.
    pub num_heads: usize,
    /// Colour channels.
    pub num_channels: usize,
    /// Side of a square patch in pixels.
    pub patch_size: usize,
    /// Frames of a patch.
    pub temporal_patch_size: usize,
    /// Side of the square of patches that becomes one token.
    pub merge_size: usize,
    /// Activation of the MLP.
    pub activation: Activation,
    /// Epsilon of every norm.
    pub norm_eps: f32,
    /// What is added to the patches, or put beside them.
    pub input: NativeInput,
    /// Qwen3-VL: blocks whose output is merged for the decoder's first layers as well, one merger each.
    pub deepstack: Vec<usize>,
    /// Qwen2.5-VL: RMSNorm and a gated MLP in place of LayerNorm and two layers.
    pub is_gated: bool,
    /// Base wavelength of the rotary positions.
    pub rope_theta: f64,
    /// Qwen2.5-VL: windows.
    pub windows: Option<Windows>,
    /// Qwen2.5-VL: temporal positions a second; none counts temporal patches.
    pub tokens_per_second: Option<f64>,
}

impl NativeVisionConfig {
    /// Reads the vision configuration of Qwen2-VL or Qwen2.5-VL.
    pub fn read(place: &str, value: &Value, family: NativeFamily) -> Result<NativeVisionConfig> {
        let f = Fields::new(place, value)?;
        let is_25 = family == NativeFamily::Qwen25Vl;
        let activation = activation(&f, "hidden_act", if is_25 { "silu" } else { "quick_gelu" })?;
        let outer = if is_25 { "qwen2_5_vl" } else { "qwen2_vl" };
        let found = f.str_or("model_type", outer)?;
        if found != outer && found != format!("{outer}_vision") {
            return Err(ModelError::UnknownFamily {
                file: place.into(),
                found,
                known: format!("{outer}_vision, {outer}"),
            });
        }
        let (hidden_size, out_hidden_size, intermediate_size) = if is_25 {
            (
                f.size_or("hidden_size", 3584)?,
                f.size_or("out_hidden_size", 3584)?,
                f.size_or("intermediate_size", 3420)?,
            )
        } else {
            let width = f.size_or("embed_dim", 1280)?;
            let ratio = f.size_or("mlp_ratio", 4)?;
            (width, f.size_or("hidden_size", 3584)?, width * ratio)
        };
        let (patch_size, merge_size) = (f.size_or("patch_size", 14)?, f.size_or("spatial_merge_size", 2)?);
        let num_channels = f.size_or("in_channels", 3)?;
        // Other spellings that the reference does not look at, and that hub files carry with the class's own values.
        for (name, used) in [("in_chans", num_channels), ("spatial_patch_size", patch_size)] {
            let found = f.usize_or(name, used)?;
            if found != used {
                return Err(f.error(name, format!("is not read by the reference, which uses {used}; found `{found}`")));
            }
        }
        let num_layers = f.size_or("depth", 32)?;
        let windows = if is_25 {
            let window = f.size_or("window_size", 112)?;
            let side = window / merge_size / patch_size;
            if side == 0 {
                return Err(f.error(
                    "window_size",
                    format!("expected at least {} pixels (one token), found `{window}`", merge_size * patch_size),
                ));
            }
            let full_blocks = match f.raw("fullatt_block_indexes") {
                None => vec![7, 15, 23, 31],
                Some(list) => indices(list).ok_or_else(|| {
                    f.error("fullatt_block_indexes", format!("expected a list of block numbers, found `{list}`"))
                })?,
            };
            Some(Windows { side, full_blocks })
        } else {
            None
        };
        let num_heads = f.size_or("num_heads", 16)?;
        check_heads(&f, if is_25 { "hidden_size" } else { "embed_dim" }, hidden_size, num_heads)?;
        let config = NativeVisionConfig {
            family,
            hidden_size,
            intermediate_size,
            out_hidden_size,
            num_layers,
            num_heads,
            num_channels,
            patch_size,
            temporal_patch_size: f.size_or("temporal_patch_size", 2)?,
            merge_size,
            activation,
            // Both classes write it down in their code.
            norm_eps: 1e-6,
            input: NativeInput::Patches,
            deepstack: Vec::new(),
            is_gated: is_25,
            rope_theta: rope_theta(&f)?,
            windows,
            tokens_per_second: if is_25 { Some(f.f64_or("tokens_per_second", 4.0)?) } else { None },
        };
        f.finish()?;
        Ok(config)
    }

    /// Values of one patch.
    pub fn patch_values(&self) -> usize {
        self.num_channels * self.temporal_patch_size * self.patch_size * self.patch_size
    }

    /// For each merger of [`NativeVisionConfig::deepstack`] the block whose output it takes. The reference looks a block up in
    /// the list, where the first entry counts, and gives what the mergers make to the decoder's first layers in the order of
    /// the blocks: an entry that stands twice, names no block or finds no layer is never used.
    pub fn deepstack_blocks(&self, decoder_layers: usize) -> Vec<Option<usize>> {
        let is_used = |i: usize, block: usize| {
            let before = (0..block).filter(|other| self.deepstack.contains(other)).count();
            block < self.num_layers && before < decoder_layers && !self.deepstack[..i].contains(&block)
        };
        self.deepstack.iter().enumerate().map(|(i, &block)| is_used(i, block).then_some(block)).collect()
    }

    /// Dimensions of a head.
    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.num_heads
    }
}

/// Heads turn by two axes, in pairs.
pub(super) fn check_heads(f: &Fields<'_>, field: &str, hidden_size: usize, num_heads: usize) -> Result<()> {
    if hidden_size.is_multiple_of(4 * num_heads) {
        return Ok(());
    }
    Err(f.error(
        field,
        format!("expected a multiple of 4 times {num_heads} heads (two axes, pairs), found `{hidden_size}`"),
    ))
}

/// The activation that a field names.
pub(super) fn activation(f: &Fields<'_>, field: &str, default: &str) -> Result<Activation> {
    let name = f.str_or(field, default)?;
    name.parse().map_err(|_| f.error(field, format!("activation `{name}` is not known")))
}

/// A list of block numbers.
pub(super) fn indices(list: &Value) -> Option<Vec<usize>> {
    list.as_array()?.iter().map(|v| v.as_u64().map(|v| v as usize)).collect()
}

/// The base of the axial rotary positions; `transformers` 5 writes it down, older files leave it to the class.
pub(super) fn rope_theta(f: &Fields<'_>) -> Result<f64> {
    let Some(value) = f.raw("rope_parameters") else { return Ok(10_000.0) };
    let sub = Fields::new(format!("{}/rope_parameters", f.place()), value)?;
    let kind = sub.str_or("rope_type", "axial")?;
    // The classes read the name that other towers use as their own.
    if kind != "axial" && kind != "default" {
        return Err(sub.error("rope_type", format!("expected axial, found `{kind}`")));
    }
    let theta = sub.f64_or("rope_theta", 10_000.0)?;
    sub.finish()?;
    Ok(theta)
}
