//! Configuration of decoders: one struct for all families, whose differences are explicit fields.
//!
//! Source: `LlamaConfig`, `MistralConfig`, `Phi3Config`, `Qwen2Config`, `Qwen3Config` and those of the Qwen-VL decoders of
//! `transformers`, class defaults included.

use super::fields::Fields;
use super::rope::RopeConfig;
use crate::error::{ModelError, Result};
use serde_json::Value;
use tensor::Activation;

/// Decoder families, told apart by `model_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecoderFamily {
    /// `llama` (Llama 2 and 3, Vicuna).
    Llama,
    /// `mistral`.
    Mistral,
    /// `phi3` (Phi-3, Phi-4-mini).
    Phi3,
    /// `qwen2` (Qwen2, Qwen2.5).
    Qwen2,
    /// `qwen2_vl_text`, `qwen2_5_vl_text`: Qwen2 with positions of three numbers.
    Qwen2Vl,
    /// `qwen3`.
    Qwen3,
    /// `qwen3_vl_text`: Qwen3 with positions of three numbers.
    Qwen3Vl,
    /// `LLaVAOneVision1_5_text`: Qwen3 in the sizes of another class.
    OneVision15,
}

impl DecoderFamily {
    /// Every family by its `model_type`.
    pub const ALL: [(&'static str, DecoderFamily); 10] = [
        ("llama", DecoderFamily::Llama),
        ("mistral", DecoderFamily::Mistral),
        ("phi3", DecoderFamily::Phi3),
        ("qwen2", DecoderFamily::Qwen2),
        ("qwen2_vl_text", DecoderFamily::Qwen2Vl),
        ("qwen2_5_vl_text", DecoderFamily::Qwen2Vl),
        ("qwen3", DecoderFamily::Qwen3),
        ("qwen3_vl_text", DecoderFamily::Qwen3Vl),
        ("LLaVAOneVision1_5_text", DecoderFamily::OneVision15),
        ("llava_onevision1_5_text", DecoderFamily::OneVision15),
    ];

    /// The family of a `model_type`.
    pub fn find(model_type: &str) -> Option<DecoderFamily> {
        DecoderFamily::ALL.iter().find(|(name, _)| *name == model_type).map(|(_, family)| *family)
    }
}

/// What a family's class says where a configuration says nothing.
struct Defaults {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_layers: usize,
    num_heads: usize,
    max_positions: usize,
    rms_norm_eps: f64,
    /// Layers before the first one with a window, where a window is asked for.
    max_window_layers: usize,
    /// Key and value heads; none stands for as many as query heads.
    num_kv_heads: Option<usize>,
    /// Dimensions of a head; none stands for the hidden size over the heads.
    head_dim: Option<usize>,
}

impl DecoderFamily {
    fn defaults(self) -> Defaults {
        let llama = Defaults {
            vocab_size: 32000,
            hidden_size: 4096,
            intermediate_size: 11008,
            num_layers: 32,
            num_heads: 32,
            max_positions: 2048,
            rms_norm_eps: 1e-6,
            max_window_layers: 28,
            num_kv_heads: None,
            head_dim: None,
        };
        let qwen2 = Defaults {
            vocab_size: 151936,
            intermediate_size: 22016,
            max_positions: 32768,
            num_kv_heads: Some(32),
            ..llama
        };
        match self {
            DecoderFamily::Llama => llama,
            DecoderFamily::Mistral => {
                Defaults { intermediate_size: 14336, max_positions: 131072, num_kv_heads: Some(8), ..llama }
            }
            DecoderFamily::Phi3 => Defaults {
                vocab_size: 32064,
                hidden_size: 3072,
                intermediate_size: 8192,
                max_positions: 4096,
                rms_norm_eps: 1e-5,
                ..llama
            },
            DecoderFamily::Qwen2 => qwen2,
            // The sizes of the 72B model.
            DecoderFamily::Qwen2Vl => Defaults {
                vocab_size: 152_064,
                hidden_size: 8192,
                intermediate_size: 29568,
                num_layers: 80,
                num_heads: 64,
                rms_norm_eps: 1e-5,
                max_window_layers: 80,
                num_kv_heads: Some(8),
                ..qwen2
            },
            DecoderFamily::Qwen3 => Defaults { head_dim: Some(128), ..qwen2 },
            DecoderFamily::Qwen3Vl => Defaults { head_dim: Some(128), max_positions: 128_000, ..qwen2 },
            DecoderFamily::OneVision15 => Defaults {
                intermediate_size: 12_288,
                num_layers: 36,
                num_kv_heads: Some(8),
                head_dim: Some(128),
                ..qwen2
            },
        }
    }
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
    /// RMSNorm of each query and key head before rotation, with one weight for all query and one for all key heads.
    pub qk_norm: bool,
    /// Queries, keys and values are one projection, and gate and up another one, each with one weight.
    pub fused_projections: bool,
    /// Bias on the attention output projection.
    pub o_bias: bool,
    /// Bias on the three MLP projections.
    pub mlp_bias: bool,
    /// Whether the head is the embedding table.
    pub tie_word_embeddings: bool,
    /// For each layer how many keys a query sees at most, its own included; none for all before it.
    pub windows: Vec<Option<usize>>,
    /// Rotary parameters.
    pub rope: RopeConfig,
    /// Longest sequence the model was made for (stated, not enforced by the reference).
    pub max_positions: usize,
}

impl DecoderConfig {
    /// Reads a text configuration; `place` names it in errors, `default_type` is used when `model_type` is absent.
    pub fn read(place: &str, value: &Value, default_type: &str) -> Result<DecoderConfig> {
        let f = Fields::new(place, value)?;
        let model_type = f.str_or("model_type", default_type)?;
        let Some(family) = DecoderFamily::find(&model_type) else {
            return Err(ModelError::UnknownFamily {
                file: place.into(),
                found: model_type,
                // The decoders of these models stand in their own configurations alone.
                known: DecoderFamily::ALL
                    .map(|(name, _)| name)
                    .into_iter()
                    .filter(|name| !name.ends_with("_text"))
                    .collect::<Vec<_>>()
                    .join(", "),
            });
        };
        use DecoderFamily::{Llama, OneVision15, Phi3, Qwen2, Qwen2Vl, Qwen3, Qwen3Vl};
        let is_qwen3 = matches!(family, Qwen3 | Qwen3Vl | OneVision15);
        let defaults = family.defaults();
        let hidden_size = f.size_or("hidden_size", defaults.hidden_size)?;
        let num_layers = f.size_or("num_hidden_layers", defaults.num_layers)?;
        let num_heads = f.size_or("num_attention_heads", defaults.num_heads)?;
        let num_kv_heads = match f.raw("num_key_value_heads") {
            Some(_) => f.size_or("num_key_value_heads", 0)?,
            // An explicit null means all heads, whatever the class default.
            None if value.get("num_key_value_heads").is_some() => num_heads,
            None => defaults.num_kv_heads.unwrap_or(num_heads),
        };
        if !num_heads.is_multiple_of(num_kv_heads) {
            return Err(f.error(
                "num_key_value_heads",
                format!("expected a divisor of {num_heads} heads, found `{num_kv_heads}`"),
            ));
        }
        let head_dim = match f.usize_opt("head_dim")?.or(defaults.head_dim) {
            Some(0) => return Err(f.error("head_dim", "expected at least 1, found `0`")),
            Some(d) => d,
            None if !hidden_size.is_multiple_of(num_heads) => {
                return Err(
                    f.error("hidden_size", format!("expected a multiple of {num_heads} heads, found `{hidden_size}`"))
                );
            }
            None => hidden_size / num_heads,
        };
        let max_positions = f.size_or("max_position_embeddings", defaults.max_positions)?;
        let act = f.str_or("hidden_act", "silu")?;
        let activation = act.parse().map_err(|_| f.error("hidden_act", format!("activation `{act}` is not known")))?;
        // Files name biases that their class does not have.
        let bias = |name: &str, has: bool| match f.bool_or(name, false)? {
            true if !has => Err(f.error(name, format!("is not supported by `{model_type}`, expected false"))),
            found => Ok(found),
        };
        let attention_bias = bias("attention_bias", family == Llama || is_qwen3)?;
        let mlp_bias = bias("mlp_bias", family == Llama)?;
        bias("lm_head_bias", false)?;
        for dropout in ["attention_dropout", "resid_pdrop", "embd_pdrop"] {
            f.refuse_dropout(dropout)?;
        }
        if family == Phi3 {
            // Of the class that Phi's checkpoints bring along; that of `transformers` has neither.
            for name in ["full_attn_mod", "interpolate_factor"] {
                if f.usize_or(name, 1)? != 1 {
                    return Err(f.error(name, "is not supported, expected 1"));
                }
            }
        }
        if family == OneVision15 {
            // Repeated there, and read by nobody.
            let _ = (f.raw("image_token_id"), f.raw("video_token_id"));
        }
        let config = DecoderConfig {
            family,
            vocab_size: f.size_or("vocab_size", defaults.vocab_size)?,
            hidden_size,
            intermediate_size: f.size_or("intermediate_size", defaults.intermediate_size)?,
            num_layers,
            num_heads,
            num_kv_heads,
            head_dim,
            activation,
            rms_norm_eps: f.f64_or("rms_norm_eps", defaults.rms_norm_eps)? as f32,
            qkv_bias: matches!(family, Qwen2 | Qwen2Vl) || attention_bias,
            qk_norm: is_qwen3,
            fused_projections: family == Phi3,
            o_bias: attention_bias,
            mlp_bias,
            tie_word_embeddings: f.bool_or("tie_word_embeddings", false)?,
            windows: windows(&f, family, num_layers)?,
            rope: RopeConfig::read(&f, family, head_dim, max_positions)?,
            max_positions,
        };
        f.finish()?;
        Ok(config)
    }
}

/// The window of each layer.
fn windows(f: &Fields<'_>, family: DecoderFamily, num_layers: usize) -> Result<Vec<Option<usize>>> {
    use DecoderFamily::{Mistral, Phi3, Qwen2, Qwen2Vl, Qwen3};
    let window_or = |default: Option<usize>| match (f.usize_opt("sliding_window")?, f.is_null("sliding_window")) {
        (Some(0), _) => Err(f.error("sliding_window", "expected at least 1 or null, found `0`")),
        (None, false) => Ok(default),
        (found, _) => Ok(found),
    };
    let by_layer = matches!(family, Qwen2 | Qwen2Vl | Qwen3);
    let window = match family {
        Mistral => window_or(Some(4096))?,
        Phi3 => window_or(None)?,
        Qwen2 | Qwen2Vl | Qwen3 if f.bool_or("use_sliding_window", false)? => window_or(Some(4096))?,
        _ => None,
    };
    if !by_layer && f.bool_or("use_sliding_window", false)? {
        return Err(f.error("use_sliding_window", "is not supported by this model_type, expected false"));
    }
    let Some(types) = f.raw("layer_types") else {
        // The first layers see everything.
        let full = if by_layer { f.usize_or("max_window_layers", family.defaults().max_window_layers)? } else { 0 };
        return Ok((0..num_layers).map(|i| window.filter(|_| i >= full)).collect());
    };
    let wrong = |expected: String| f.error("layer_types", format!("expected {expected}, found `{types}`"));
    let types_of = types.as_array().ok_or_else(|| wrong("a list".into()))?;
    if types_of.len() != num_layers {
        return Err(wrong(format!("one entry for each of {num_layers} layers")));
    }
    let of_layer = |layer: &Value| match layer.as_str() {
        Some("full_attention") if by_layer => Ok(None),
        // A class without layer types has one window for all layers, which the list must not contradict.
        Some("full_attention") if window.is_none() => Ok(None),
        Some("sliding_attention") if window.is_some() => Ok(window),
        Some("sliding_attention") => {
            Err(wrong("`full_attention` in every layer where no sliding window is used".into()))
        }
        Some("full_attention") => Err(wrong("`sliding_attention` in every layer".into())),
        _ => Err(wrong("`full_attention` or `sliding_attention` in every layer".into())),
    };
    types_of.iter().map(of_layer).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(value: Value) -> Result<DecoderConfig> {
        DecoderConfig::read("config.json", &value, "llama")
    }

    /// `cls()` of each configuration class of transformers 5.23.
    #[test]
    fn defaults_are_those_of_the_reference_classes() {
        let check = |model_type: &str, sizes: [usize; 6], eps: f32, flags: [bool; 3], windows: Option<usize>| {
            let c = read(json!({"model_type": model_type})).unwrap();
            let found = [c.vocab_size, c.hidden_size, c.intermediate_size, c.num_kv_heads, c.head_dim, c.max_positions];
            assert_eq!((found, c.rms_norm_eps), (sizes, eps), "{model_type}");
            assert_eq!([c.qkv_bias, c.qk_norm, c.fused_projections], flags, "{model_type}");
            assert_eq!((c.windows, c.rope.theta, c.rope.dim), (vec![windows; 32], 1e4, c.head_dim), "{model_type}");
            assert!(!c.tie_word_embeddings && !c.o_bias && !c.mlp_bias);
        };
        check("llama", [32000, 4096, 11008, 32, 128, 2048], 1e-6, [false; 3], None);
        check("mistral", [32000, 4096, 14336, 8, 128, 131072], 1e-6, [false; 3], Some(4096));
        check("phi3", [32064, 3072, 8192, 32, 96, 4096], 1e-5, [false, false, true], None);
        check("qwen2", [151936, 4096, 22016, 32, 128, 32768], 1e-6, [true, false, false], None);
        check("qwen3", [151936, 4096, 22016, 32, 128, 32768], 1e-6, [false, true, false], None);
    }

    #[test]
    fn windows_are_read_as_the_reference_reads_them() {
        let check = |value: Value, expected: &[Option<usize>]| {
            assert_eq!(read(value.clone()).unwrap().windows, expected, "{value}");
        };
        let qwen = |change: Value| {
            let mut value =
                json!({"model_type": "qwen3", "num_hidden_layers": 3, "sliding_window": 7, "max_window_layers": 1});
            value.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
            value
        };
        let (all, full) = (Some(7), None);
        check(qwen(json!({})), &[full; 3]);
        check(qwen(json!({"use_sliding_window": true})), &[full, all, all]);
        check(qwen(json!({"use_sliding_window": true, "max_window_layers": 28})), &[full; 3]);
        check(qwen(json!({"use_sliding_window": true, "sliding_window": null})), &[full; 3]);
        let types = json!(["sliding_attention", "full_attention", "sliding_attention"]);
        check(qwen(json!({"use_sliding_window": true, "layer_types": types})), &[all, full, all]);
        let mistral =
            |window: Value| json!({"model_type": "mistral", "num_hidden_layers": 2, "sliding_window": window});
        check(mistral(json!(5)), &[Some(5); 2]);
        check(mistral(Value::Null), &[full; 2]);
        check(json!({"model_type": "llama", "num_hidden_layers": 2, "sliding_window": 5}), &[full; 2]);
        let refused = |value: Value, expected: &str| {
            let error = read(value).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        refused(
            qwen(json!({"layer_types": types})),
            "expected `full_attention` in every layer where no sliding window",
        );
        refused(qwen(json!({"layer_types": ["full_attention"]})), "expected one entry for each of 3 layers");
        refused(qwen(json!({"layer_types": ["chunked_attention", 1, 2]})), "expected `full_attention` or `sliding_att");
        refused(mistral(json!(0)), "expected at least 1 or null, found `0`");
        refused(json!({"model_type": "llama", "use_sliding_window": true}), "field `use_sliding_window`");
        refused(
            json!({"model_type": "mistral", "attention_bias": true}),
            "is not supported by `mistral`, expected false",
        );
        refused(json!({"model_type": "phi3", "resid_pdrop": 0.1}), "field `resid_pdrop`: a dropout inside the model");
        refused(json!({"model_type": "phi3", "interpolate_factor": 2}), "field `interpolate_factor`");
        refused(json!({"model_type": "gemma"}), "known are llama, mistral, phi3, qwen2, qwen3");
    }
}
