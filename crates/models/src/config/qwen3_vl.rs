//! Configuration of Qwen3-VL checkpoints: a tower with a resampled table of positions and several mergers in front of a
//! Qwen3 decoder. The mixture of experts of the same name is refused.
//!
//! Source: `Qwen3VLConfig`, `Qwen3VLVisionConfig`, `Qwen3VLTextConfig` of `transformers`, class defaults included.

use super::ModelConfig;
use super::fields::Fields;
use super::native::{NativeFamily, NativeInput, NativeVisionConfig, activation, check_heads, indices, rope_theta};
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
    let mut text = DecoderConfig::read(&at, value, "qwen3_vl_text")?;
    // The reference asks the outer configuration alone.
    text.tie_word_embeddings = f.bool_or("tie_word_embeddings", false)?;
    let (image_token_id, video_token_id) = outer(&f, &vision, &text)?;
    let model_type = f.str_or("model_type", "")?;
    f.finish()?;
    let qwen = QwenVlConfig { vision, positions: VisualPositions::Steps, image_token_id, video_token_id };
    Ok(whole(model_type, text, qwen, raw))
}

fn read_vision(place: &str, value: &Value) -> Result<NativeVisionConfig> {
    let f = Fields::new(place, value)?;
    // Files of the first days have the outer name.
    let found = f.str_or("model_type", "qwen3_vl_vision")?;
    if found != "qwen3_vl" && found != "qwen3_vl_vision" {
        let known = "qwen3_vl_vision, qwen3_vl".to_owned();
        return Err(ModelError::UnknownFamily { file: place.into(), found, known });
    }
    let (hidden_size, num_heads) = (f.size_or("hidden_size", 1152)?, f.size_or("num_heads", 16)?);
    check_heads(&f, "hidden_size", hidden_size, num_heads)?;
    let deepstack = match f.raw("deepstack_visual_indexes") {
        None => vec![8, 16, 24],
        Some(list) => indices(list).ok_or_else(|| {
            f.error("deepstack_visual_indexes", format!("expected a list of block numbers, found `{list}`"))
        })?,
    };
    let config = NativeVisionConfig {
        family: NativeFamily::Qwen3Vl,
        hidden_size,
        intermediate_size: f.size_or("intermediate_size", 4304)?,
        out_hidden_size: f.size_or("out_hidden_size", 3584)?,
        num_layers: f.size_or("depth", 27)?,
        num_heads,
        num_channels: f.size_or("in_channels", 3)?,
        patch_size: f.size_or("patch_size", 16)?,
        temporal_patch_size: f.size_or("temporal_patch_size", 2)?,
        merge_size: f.size_or("spatial_merge_size", 2)?,
        activation: activation(&f, "hidden_act", "gelu_pytorch_tanh")?,
        // Written down in the class's code.
        norm_eps: 1e-6,
        input: NativeInput::Positions(f.size_or("num_position_embeddings", 2304)?),
        deepstack,
        is_gated: false,
        rope_theta: rope_theta(&f)?,
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
        let mut value = json!({"model_type": "qwen3_vl", "text_config": {"hidden_size": 3584}});
        change(&mut value);
        ModelConfig::from_json("config.json", value)
    }

    fn vision(config: &ModelConfig) -> &NativeVisionConfig {
        match config.vision() {
            Some(super::super::VisionKind::QwenVl(qwen)) => &qwen.vision,
            _ => panic!("no such tower"),
        }
    }

    /// `Qwen3VLConfig()` of transformers 5.23.
    #[test]
    fn defaults_are_those_of_the_reference_classes() {
        let config = read(|_| ()).unwrap();
        let v = vision(&config);
        assert_eq!([v.num_layers, v.hidden_size, v.intermediate_size, v.num_heads], [27, 1152, 4304, 16]);
        assert_eq!([v.patch_size, v.temporal_patch_size, v.merge_size, v.out_hidden_size], [16, 2, 2, 3584]);
        assert_eq!((v.input, v.deepstack.as_slice()), (NativeInput::Positions(2304), [8, 16, 24].as_slice()));
        assert_eq!((v.rope_theta, v.activation), (1e4, tensor::Activation::GeluTanh));
        let text = &config.causal().unwrap().text;
        assert_eq!(
            [text.vocab_size, text.intermediate_size, text.num_layers, text.num_heads],
            [151_936, 22_016, 32, 32]
        );
        assert_eq!([text.num_kv_heads, text.head_dim, text.max_positions], [32, 128, 128_000]);
        assert!(text.qk_norm && !text.qkv_bias && !text.tie_word_embeddings);
        assert_eq!((text.rope.theta, text.rope.sections, text.rms_norm_eps), (5e5, Some([24, 20, 20]), 1e-6));
    }

    /// `Qwen3VLTextRotaryEmbedding.recomposition_frequencies`: every third one from 1 on turns by height, from 2 on by
    /// width, up to three times the section.
    #[test]
    fn axes_take_turns() {
        let axes = |sections: Value, head_dim: usize| {
            let rope = json!({"rope_type": "default", "mrope_section": sections, "mrope_interleaved": true});
            let text = json!({"hidden_size": 3584, "head_dim": head_dim, "rope_scaling": rope});
            read(|v| v["text_config"] = text).unwrap().causal().unwrap().text.rope.axes()
        };
        assert_eq!(axes(json!([3, 1, 2]), 12), [0, 1, 2, 0, 0, 2]);
        assert_eq!(axes(json!([24, 20, 20]), 10), [0, 1, 2, 0, 1]);
        let whole = axes(json!([24, 20, 20]), 128);
        assert_eq!([0, 1, 2].map(|axis| whole.iter().filter(|&&a| a == axis).count()), [24, 20, 20]);
        assert_eq!(whole[57..], [0, 1, 2, 0, 0, 0, 0]);
    }

    #[test]
    fn what_the_class_does_not_know_is_refused_by_name() {
        let check = |change: fn(&mut Value), expected: &str| {
            let error = read(change).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check(
            |v| v["model_type"] = json!("qwen3_vl_moe"),
            "`config.json`: field `model_type`: `qwen3_vl_moe` is a mixture of experts, which is not supported",
        );
        check(|v| v["hidden_size"] = json!(3584), "`config.json`: field `hidden_size`: is not supported");
        check(
            |v| v["vision_config"] = json!({"num_position_embeddings": 0}),
            "field `num_position_embeddings`: expected at least 1",
        );
        check(
            |v| v["vision_config"] = json!({"deepstack_visual_indexes": [-1]}),
            "field `deepstack_visual_indexes`: expected a list of block numbers, found `[-1]`",
        );
        check(|v| v["vision_config"] = json!({"window_size": 112}), "field `window_size`: is not supported");
        check(|v| v["vision_config"] = json!({"model_type": "qwen2_vl"}), "known are qwen3_vl_vision, qwen3_vl");
        check(|v| v["text_config"]["hidden_size"] = json!(512), "expected the decoder's width of 512, found `3584`");
        let rope = |value: Value| move |v: &mut Value| v["text_config"]["rope_scaling"] = value;
        for (value, expected) in [
            (json!({"mrope_section": [1, 2]}), "field `mrope_section`: expected three numbers"),
            (json!({"mrope_interleaved": false}), "field `mrope_interleaved`: expected true"),
            (json!({"type": "mrope"}), "found `mrope`"),
            (json!({"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}), "found `longrope`"),
        ] {
            let error = read(rope(value)).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
