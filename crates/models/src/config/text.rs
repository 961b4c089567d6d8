//! Configuration of decoders: one struct for all families, whose differences are explicit fields.
//!
//! Source: `LlamaConfig`, `Qwen2Config` of `transformers`, class defaults included.

use super::fields::Fields;
use super::rope::{RopeClass, RopeConfig};
use crate::error::{ModelError, Result};
use serde_json::Value;
use tensor::Activation;

/// Decoder families, told apart by `model_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecoderFamily {
    /// `llama` (Llama 2 and 3, Vicuna).
    Llama,
    /// `qwen2` (Qwen2, Qwen2.5).
    Qwen2,
}

/// A pre-norm causal decoder: RMSNorm, rotary attention with grouped heads, gated MLP.
#[derive(Debug, Clone)]
pub struct DecoderConfig {
    /// Family the configuration was read as.
    pub family: DecoderFamily,
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the gated MLP.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_layers: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Dimensions of a head.
    pub head_dim: usize,
    /// Activation of the gate.
    pub activation: Activation,
    /// Epsilon of every RMSNorm.
    pub rms_norm_eps: f32,
    /// Bias on the query, key and value projections.
    pub qkv_bias: bool,
    /// Bias on the attention output projection.
    pub o_bias: bool,
    /// Bias on the three MLP projections.
    pub mlp_bias: bool,
    /// Whether the head is the embedding table.
    pub tie_word_embeddings: bool,
    /// Rotary parameters.
    pub rope: RopeConfig,
    /// Longest sequence the model was made for (stated, not enforced by the reference).
    pub max_positions: usize,
}

impl DecoderConfig {
    /// Reads a text configuration; `place` names it in errors, `default_type` is used when `model_type` is absent.
    pub fn read(place: &str, value: &Value, default_type: &str) -> Result<DecoderConfig> {
        let f = Fields::new(place, value)?;
        let family = match f.str_or("model_type", default_type)?.as_str() {
            "llama" => DecoderFamily::Llama,
            "qwen2" | "qwen2_vl_text" | "qwen2_5_vl_text" => DecoderFamily::Qwen2,
            other => {
                return Err(ModelError::UnknownFamily {
                    file: place.into(),
                    found: other.into(),
                    known: "llama, qwen2".into(),
                });
            }
        };
        let llama = family == DecoderFamily::Llama;
        // The decoder of Qwen2-VL has the 72B model's sizes as its defaults.
        let is_vl = f.str_or("model_type", default_type)?.ends_with("vl_text");
        let default = |plain: usize, vl: usize| if is_vl { vl } else { plain };
        let hidden_size = f.size_or("hidden_size", default(4096, 8192))?;
        let num_heads = f.size_or("num_attention_heads", default(32, 64))?;
        let num_kv_heads = match f.raw("num_key_value_heads") {
            Some(_) => f.size_or("num_key_value_heads", 0)?,
            // The class default of Qwen2 is 32 whatever the number of heads; an explicit null means all heads.
            None if llama || value.get("num_key_value_heads").is_some() => num_heads,
            None => default(32, 8),
        };
        if !num_heads.is_multiple_of(num_kv_heads) {
            return Err(f.error(
                "num_key_value_heads",
                format!("expected a divisor of {num_heads} heads, found `{num_kv_heads}`"),
            ));
        }
        let head_dim = match f.usize_opt("head_dim")? {
            Some(0) => return Err(f.error("head_dim", "expected at least 1, found `0`")),
            Some(d) => d,
            None if !hidden_size.is_multiple_of(num_heads) => {
                return Err(
                    f.error("hidden_size", format!("expected a multiple of {num_heads} heads, found `{hidden_size}`"))
                );
            }
            None => hidden_size / num_heads,
        };
        let max_positions = f.size_or("max_position_embeddings", if llama { 2048 } else { 32768 })?;
        let act = f.str_or("hidden_act", "silu")?;
        let activation = act.parse().map_err(|_| f.error("hidden_act", format!("activation `{act}` is not known")))?;
        let attention_bias = if llama { f.bool_or("attention_bias", false)? } else { false };
        if f.bool_or("use_sliding_window", false)? {
            return Err(f.error("use_sliding_window", "sliding-window attention is not supported, expected false"));
        }
        if let Some(types) = f.raw("layer_types")
            && !types.as_array().is_some_and(|a| a.iter().all(|t| t == "full_attention"))
        {
            return Err(f.error("layer_types", format!("expected `full_attention` in every layer, found `{types}`")));
        }
        f.refuse_dropout("attention_dropout")?;
        let rope_class = if is_vl { RopeClass { theta: 1e6, is_mrope: true } } else { RopeClass::PLAIN };
        let config = DecoderConfig {
            family,
            vocab_size: f.size_or("vocab_size", if llama { 32000 } else { default(151_936, 152_064) })?,
            hidden_size,
            intermediate_size: f.size_or("intermediate_size", if llama { 11008 } else { default(22016, 29568) })?,
            num_layers: f.size_or("num_hidden_layers", default(32, 80))?,
            num_heads,
            num_kv_heads,
            head_dim,
            activation,
            rms_norm_eps: f.f64_or("rms_norm_eps", if is_vl { 1e-5 } else { 1e-6 })? as f32,
            qkv_bias: !llama || attention_bias,
            o_bias: llama && attention_bias,
            mlp_bias: llama && f.bool_or("mlp_bias", false)?,
            tie_word_embeddings: f.bool_or("tie_word_embeddings", false)?,
            rope: RopeConfig::read(&f, head_dim, max_positions, rope_class)?,
            max_positions,
        };
        f.finish()?;
        Ok(config)
    }
}
