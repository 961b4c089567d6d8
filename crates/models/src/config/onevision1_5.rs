//! Configuration of LLaVA-OneVision-1.5 checkpoints: a RICE tower with a class token in each frame, in front of a Qwen3
//! decoder that counts the tokens of pictures like words.
//!
//! Source: the configuration published with the checkpoints (`Llavaonevision1_5Config`, `RiceConfig`,
//! `LLaVAOneVision1_5_TextConfig`), class defaults included; `transformers` 5.23 has no such class.

use super::ModelConfig;
use super::fields::Fields;
use super::native::{NativeFamily, NativeInput, NativeVisionConfig, activation, check_heads};
use super::qwen_vl::{QwenVlConfig, VisualPositions, outer, whole};
use super::text::DecoderConfig;
use crate::error::{ModelError, Result};
use serde_json::{Value, json};

/// Reads the configuration of a whole checkpoint.
pub(super) fn read(place: &str, raw: &Value) -> Result<ModelConfig> {
    let f = Fields::new(place, raw)?;
    let empty = json!({});
    let part = |name: &str| (format!("{place}/{name}"), f.raw(name).unwrap_or(&empty));
    let (at, value) = part("vision_config");
    let vision = read_vision(&at, value)?;
    let (at, value) = part("text_config");
    let mut text = DecoderConfig::read(&at, value, "LLaVAOneVision1_5_text")?;
    text.tie_word_embeddings |= f.bool_or("tie_word_embeddings", false)?;
    // The published files carry another number there; the decoder is built from its own.
    let _ = f.raw("vocab_size");
    let (image_token_id, video_token_id) = outer(&f, &vision, &text)?;
    let model_type = f.str_or("model_type", "")?;
    f.finish()?;
    let qwen = QwenVlConfig { vision, positions: VisualPositions::Words, image_token_id, video_token_id };
    Ok(whole(model_type, text, qwen, raw))
}

fn read_vision(place: &str, value: &Value) -> Result<NativeVisionConfig> {
    let f = Fields::new(place, value)?;
    let found = f.str_or("model_type", "rice_vit")?;
    if found != "rice_vit" && found != "llava_onevision1_5_vision" {
        let known = "rice_vit, llava_onevision1_5_vision".to_owned();
        return Err(ModelError::UnknownFamily { file: place.into(), found, known });
    }
    let (hidden_size, num_heads) = (f.size_or("hidden_size", 1024)?, f.size_or("num_heads", 16)?);
    check_heads(&f, "hidden_size", hidden_size, num_heads)?;
    for (name, used) in [("embed_dim", hidden_size), ("temporal_patch_size", 1)] {
        let found = f.usize_or(name, used)?;
        if found != used {
            return Err(f.error(name, format!("is not read by the reference, which uses {used}; found `{found}`")));
        }
    }
    let named = if f.raw("text_hidden_size").is_some() { "text_hidden_size" } else { "out_hidden_size" };
    let config = NativeVisionConfig {
        family: NativeFamily::OneVision15,
        hidden_size,
        intermediate_size: f.size_or("intermediate_size", 4096)?,
        out_hidden_size: f.size_or(named, 2560)?,
        num_layers: f.size_or("depth", 24)?,
        num_heads,
        num_channels: f.size_or("in_channels", 3)?,
        patch_size: f.size_or("patch_size", 14)?,
        temporal_patch_size: 1,
        merge_size: f.size_or("spatial_merge_size", 2)?,
        activation: activation(&f, "hidden_act", "gelu")?,
        norm_eps: f.f64_or("layer_norm_eps", 1e-5)? as f32,
        input: NativeInput::ClassToken,
        deepstack: Vec::new(),
        is_gated: false,
        rope_theta: 10_000.0,
        windows: None,
        tokens_per_second: None,
    };
    f.finish()?;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(change: impl FnOnce(&mut Value)) -> Result<ModelConfig> {
        let mut value = json!({"model_type": "llavaonevision1_5", "vocab_size": 152_064,
            "vision_config": {"model_type": "rice_vit", "text_hidden_size": 4096}});
        change(&mut value);
        ModelConfig::from_json("config.json", value)
    }

    #[test]
    fn defaults_are_those_published() {
        let config = read(|_| ()).unwrap();
        let Some(super::super::VisionKind::QwenVl(qwen)) = config.vision() else { panic!("no such tower") };
        let v = &qwen.vision;
        assert_eq!([v.num_layers, v.hidden_size, v.intermediate_size, v.num_heads], [24, 1024, 4096, 16]);
        assert_eq!([v.patch_size, v.temporal_patch_size, v.merge_size, v.out_hidden_size], [14, 1, 2, 4096]);
        assert_eq!((v.input, v.norm_eps, v.activation), (NativeInput::ClassToken, 1e-5, tensor::Activation::Gelu));
        assert_eq!(qwen.positions, VisualPositions::Words);
        let text = &config.causal().unwrap().text;
        assert_eq!([text.vocab_size, text.hidden_size, text.intermediate_size], [151_936, 4096, 12_288]);
        assert_eq!([text.num_layers, text.num_heads, text.num_kv_heads, text.head_dim], [36, 32, 8, 128]);
        assert!(text.qk_norm && !text.qkv_bias && !text.tie_word_embeddings);
        assert_eq!((text.rope.theta, text.rope.sections), (1e6, None));
    }

    #[test]
    fn what_the_reference_does_not_do_is_refused_by_name() {
        let check = |change: fn(&mut Value), expected: &str| {
            let error = read(change).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check(|v| v["vision_config"]["temporal_patch_size"] = json!(2), "field `temporal_patch_size`: is not read");
        check(|v| v["vision_config"]["embed_dim"] = json!(512), "field `embed_dim`: is not read by the reference");
        check(|v| v["vision_config"]["text_hidden_size"] = json!(2560), "expected the decoder's width of 4096");
        check(|v| v["vision_config"]["window_size"] = json!(112), "field `window_size`: is not supported");
        check(|v| v["text_config"] = json!({"use_sliding_window": true}), "field `use_sliding_window`");
        check(|v| v["vision_config"]["model_type"] = json!("qwen2_vl"), "known are rice_vit");
    }
}
