//! Configuration of vision towers: one struct for SigLIP and CLIP, whose differences are explicit fields.
//!
//! Source: `SiglipVisionConfig`, `CLIPVisionConfig` of `transformers`, class defaults included.

use super::fields::Fields;
use crate::error::{ModelError, Result};
use serde_json::Value;
use tensor::Activation;

/// Vision families, told apart by `model_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VisionFamily {
    /// `siglip_vision_model`.
    Siglip,
    /// `clip_vision_model`.
    Clip,
}

/// A pre-norm ViT with learned positions and LayerNorm.
#[derive(Debug, Clone)]
pub struct VisionConfig {
    /// Family the configuration was read as.
    pub family: VisionFamily,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_layers: usize,
    /// Attention heads.
    pub num_heads: usize,
    /// Colour channels.
    pub num_channels: usize,
    /// Side of the square input in pixels.
    pub image_size: usize,
    /// Side of a square patch in pixels.
    pub patch_size: usize,
    /// Activation of the MLP.
    pub activation: Activation,
    /// Epsilon of every LayerNorm.
    pub layer_norm_eps: f32,
    /// CLIP: a class token stands before the patches.
    pub class_token: bool,
    /// CLIP: a LayerNorm between the embeddings and the first block (`pre_layrnorm`).
    pub pre_norm: bool,
    /// SigLIP: the patch convolution has a bias.
    pub patch_bias: bool,
    /// SigLIP: the checkpoint holds an attention-pooling head, which LLaVA never runs.
    pub pooling_head: bool,
}

impl VisionConfig {
    /// Reads a vision configuration. `defaults` are the outer class's own (LLaVA's CLIP-L/14-336), used only when the
    /// configuration is absent altogether.
    pub fn read(place: &str, value: &Value) -> Result<VisionConfig> {
        let f = Fields::new(place, value)?;
        let family = match f.str_or("model_type", "clip_vision_model")?.as_str() {
            "siglip_vision_model" => VisionFamily::Siglip,
            "clip_vision_model" => VisionFamily::Clip,
            other => {
                return Err(ModelError::UnknownFamily {
                    file: place.into(),
                    found: other.into(),
                    known: "clip_vision_model, siglip_vision_model".into(),
                });
            }
        };
        let clip = family == VisionFamily::Clip;
        let act = f.str_or("hidden_act", if clip { "quick_gelu" } else { "gelu_pytorch_tanh" })?;
        let activation = act.parse().map_err(|_| f.error("hidden_act", format!("activation `{act}` is not known")))?;
        f.refuse_dropout("attention_dropout")?;
        let config = VisionConfig {
            family,
            hidden_size: f.size_or("hidden_size", 768)?,
            intermediate_size: f.size_or("intermediate_size", 3072)?,
            num_layers: f.size_or("num_hidden_layers", 12)?,
            num_heads: f.size_or("num_attention_heads", 12)?,
            num_channels: f.size_or("num_channels", 3)?,
            image_size: f.size_or("image_size", 224)?,
            patch_size: f.size_or("patch_size", if clip { 32 } else { 16 })?,
            activation,
            layer_norm_eps: f.f64_or("layer_norm_eps", if clip { 1e-5 } else { 1e-6 })? as f32,
            class_token: clip,
            pre_norm: clip,
            patch_bias: !clip,
            pooling_head: !clip && f.bool_or("vision_use_head", true)?,
        };
        // CLIP checkpoints carry the vocabulary of the text tower they were trained with.
        let _ = f.raw("vocab_size");
        if !config.hidden_size.is_multiple_of(config.num_heads) {
            return Err(f.error(
                "hidden_size",
                format!("expected a multiple of {} heads, found `{}`", config.num_heads, config.hidden_size),
            ));
        }
        if config.image_size < config.patch_size {
            return Err(f.error(
                "image_size",
                format!("expected at least one patch of {} pixels, found `{}`", config.patch_size, config.image_size),
            ));
        }
        f.finish()?;
        Ok(config)
    }

    /// Patches along one side of the image; a remainder smaller than a patch is not seen, as in the reference.
    pub fn grid(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// Tokens of one image inside the tower, class token included.
    pub fn num_positions(&self) -> usize {
        self.grid() * self.grid() + usize::from(self.class_token)
    }
}
