//! The two-way table of tensor and module names. Canonical are the names hub files use
//! (`language_model.model.layers…`, `vision_tower.vision_model.encoder…`); transformers 5 has other names in memory
//! (`model.language_model.layers…`), which PEFT adapters speak of.

use crate::config::VisionKind;
use crate::config::native::NativeFamily;
use std::borrow::Cow;

/// Prefix of the decoder in a LLaVA checkpoint; text-only checkpoints have none.
pub const TEXT_PREFIX: &str = "language_model.";
/// Prefix of the tower.
pub const VISION_PREFIX: &str = "vision_tower.vision_model.";
/// Prefix of a tower for pictures of any size.
pub const NATIVE_PREFIX: &str = "visual.";
/// Prefix of the projector.
pub const PROJECTOR_PREFIX: &str = "multi_modal_projector.";
/// The row behind every line of an image's tokens.
pub const NEWLINE: &str = "image_newline";
/// Prefix of the learned pooling of a clip's frames.
pub const RESAMPLER_PREFIX: &str = "vision_resampler.";

/// Where checkpoints in LLaVA's original layout keep an encoder. Their names are the same on disk and in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EncoderPaths {
    /// Prefix of the tower's tensors.
    pub tower: &'static str,
    /// Path of the projector.
    pub projector: &'static str,
}

/// The only encoder of the original layout.
pub const ORIGINAL_ENCODER: EncoderPaths =
    EncoderPaths { tower: "model.vision_tower.vision_tower.vision_model.", projector: "model.mm_projector" };
/// The encoder of images where clips have one of their own.
pub const IMAGE_ENCODER: EncoderPaths =
    EncoderPaths { tower: "model.image_tower.vision_tower.vision_model.", projector: "model.image_mm_projector" };
/// The encoder of clips.
pub const VIDEO_ENCODER: EncoderPaths =
    EncoderPaths { tower: "model.video_tower.vision_tower.vision_model.", projector: "model.video_mm_projector" };

/// Name below a tower's prefix of a tensor in the tower's own checkpoint; none for tensors of a text tower beside it and of
/// what joins the two.
pub fn tower_tensor(name: &str) -> Option<&str> {
    let others = ["text_model.", "text_projection.", "visual_projection."];
    if others.iter().any(|other| name.starts_with(other)) || name == "logit_scale" || name == "logit_bias" {
        return None;
    }
    Some(name.strip_prefix("vision_model.").unwrap_or(name))
}

/// The module of a projector's sequence that a tensor belongs to, and the tensor's name in it.
pub fn projector_layer(name: &str, paths: EncoderPaths) -> Option<(usize, &str)> {
    let (layer, rest) = name.strip_prefix(paths.projector)?.strip_prefix('.')?.split_once('.')?;
    Some((layer.parse().ok()?, rest))
}

/// Prefix of the speech encoder of EgoGPT, whose other names are those of a decoder alone.
pub const SPEECH_PREFIX: &str = "model.speech_encoder.encoder.";
/// Prefix of the projector of speech.
pub const SPEECH_PROJECTOR_PREFIX: &str = "model.speech_projector.";
/// Prefix of EgoGPT's tower.
pub const EGO_VISION_PREFIX: &str = "model.vision_tower.vision_tower.vision_model.";

/// Modules of a block of `WhisperEncoder` of `transformers`, and what OpenAI's files call them.
const WHISPER_BLOCK: [(&str, &str); 8] = [
    ("self_attn.q_proj", "attn.query"),
    ("self_attn.k_proj", "attn.key"),
    ("self_attn.v_proj", "attn.value"),
    ("self_attn.out_proj", "attn.out"),
    ("self_attn_layer_norm", "attn_ln"),
    ("final_layer_norm", "mlp_ln"),
    ("fc1", "mlp.0"),
    ("fc2", "mlp.2"),
];

/// OpenAI's name of a tensor or module of a speech encoder, with either spelling inside of it and any of the prefixes that
/// checkpoints have; none for everything else.
fn speech_tensor(name: &str) -> Option<String> {
    let inner = name.strip_prefix("model.speech_encoder.")?;
    let inner = inner.strip_prefix("model.").unwrap_or(inner);
    let inner = inner.strip_prefix("encoder.").unwrap_or(inner);
    let block = inner.strip_prefix("layers.").and_then(|rest| rest.split_once('.'));
    let spelled = match block {
        Some((number, rest)) => {
            let (theirs, ours) = WHISPER_BLOCK.into_iter().find(|(theirs, _)| {
                rest.strip_prefix(theirs).is_some_and(|end| end.is_empty() || end.starts_with('.'))
            })?;
            format!("blocks.{number}.{ours}{}", &rest[theirs.len()..])
        }
        None if inner == "embed_positions.weight" => "positional_embedding".to_owned(),
        None => match inner.strip_prefix("layer_norm") {
            Some(rest) => format!("ln_post{rest}"),
            None => inner.to_owned(),
        },
    };
    Some(format!("{SPEECH_PREFIX}{spelled}"))
}

/// Canonical name of a tensor or module found under any accepted spelling. `text_only` checkpoints, and those that name
/// their decoder as if it were alone, keep their names.
pub fn canonical_tensor(name: &str, text_only: bool) -> String {
    if let Some(speech) = speech_tensor(name) {
        return speech;
    }
    if text_only {
        return name.to_owned();
    }
    let inner = name.strip_prefix("model.").unwrap_or(name);
    if let Some(rest) = inner.strip_prefix("language_model.") {
        if rest.starts_with("model.") || rest.starts_with("lm_head") {
            return format!("{TEXT_PREFIX}{rest}");
        }
        return format!("{TEXT_PREFIX}model.{rest}");
    }
    if let Some(rest) = inner.strip_prefix("vision_tower.") {
        return format!("{VISION_PREFIX}{}", rest.strip_prefix("vision_model.").unwrap_or(rest));
    }
    if inner.starts_with(PROJECTOR_PREFIX) || inner.starts_with(RESAMPLER_PREFIX) || inner == NEWLINE {
        return inner.to_owned();
    }
    if inner.starts_with("lm_head") {
        return format!("{TEXT_PREFIX}{inner}");
    }
    if inner.starts_with(NATIVE_PREFIX) {
        return inner.to_owned();
    }
    // Qwen2-VL's files name the decoder as if it were alone.
    if inner != name && ["layers.", "embed_tokens", "norm"].iter().any(|part| inner.starts_with(part)) {
        return format!("{TEXT_PREFIX}{name}");
    }
    name.to_owned()
}

/// Name inside transformers 5 of a canonical module or tensor; this is what PEFT keys and target patterns speak of.
pub fn in_memory(canonical: &str) -> String {
    if let Some(rest) = canonical.strip_prefix("language_model.model.") {
        return format!("model.language_model.{rest}");
    }
    if let Some(rest) = canonical.strip_prefix("language_model.lm_head") {
        return format!("lm_head{rest}");
    }
    if let Some(rest) = canonical.strip_prefix(VISION_PREFIX) {
        return format!("model.vision_tower.{rest}");
    }
    let is_beside = [PROJECTOR_PREFIX, NATIVE_PREFIX, RESAMPLER_PREFIX].iter().any(|part| canonical.starts_with(part));
    if is_beside || canonical == NEWLINE {
        return format!("model.{canonical}");
    }
    canonical.to_owned()
}

/// How a family's files on the hub name a canonical tensor.
pub fn on_disk<'a>(canonical: &'a str, vision: Option<&VisionKind>) -> Cow<'a, str> {
    match vision {
        // Published when `transformers` had its names of today.
        Some(VisionKind::QwenVl(qwen)) if qwen.vision.family == NativeFamily::Qwen3Vl => in_memory(canonical).into(),
        Some(VisionKind::QwenVl(_)) => canonical.strip_prefix(TEXT_PREFIX).unwrap_or(canonical).into(),
        _ => canonical.into(),
    }
}

/// Buffers that older exporters stored and that the model recomputes.
pub fn is_recomputed(name: &str) -> bool {
    ["rotary_emb.inv_freq", "embeddings.position_ids", "embed_positions.weights"].iter().any(|end| name.ends_with(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_has_one_canonical_name() {
        let check = |found: &str, canonical: &str| assert_eq!(canonical_tensor(found, false), canonical, "{found}");
        let layer = "language_model.model.layers.3.mlp.up_proj.weight";
        check(layer, layer);
        check("model.language_model.layers.3.mlp.up_proj.weight", layer);
        check("language_model.layers.3.mlp.up_proj.weight", layer);
        check("lm_head.weight", "language_model.lm_head.weight");
        check("language_model.lm_head.weight", "language_model.lm_head.weight");
        let tower = "vision_tower.vision_model.encoder.layers.0.mlp.fc1.bias";
        check(tower, tower);
        check("vision_tower.encoder.layers.0.mlp.fc1.bias", tower);
        check("model.vision_tower.encoder.layers.0.mlp.fc1.bias", tower);
        check("model.vision_tower.vision_model.encoder.layers.0.mlp.fc1.bias", tower);
        check("model.multi_modal_projector.linear_1.bias", "multi_modal_projector.linear_1.bias");
        check("model.image_newline", "image_newline");
        check("model.vision_resampler.pool.weight", "vision_resampler.pool.weight");
        check("model.layers.3.mlp.up_proj.weight", layer);
        check("model.norm.weight", "language_model.model.norm.weight");
        check("visual.blocks.0.norm1.weight", "visual.blocks.0.norm1.weight");
        check("model.visual.merger.mlp.0.bias", "visual.merger.mlp.0.bias");
        let block = "model.speech_encoder.encoder.blocks.3.attn.query.weight";
        check(block, block);
        check("model.speech_encoder.encoder.layers.3.self_attn.q_proj.weight", block);
        check("model.speech_encoder.model.encoder.layers.3.self_attn.q_proj.weight", block);
        check(
            "model.speech_encoder.layers.3.final_layer_norm.bias",
            "model.speech_encoder.encoder.blocks.3.mlp_ln.bias",
        );
        check("model.speech_encoder.encoder.layer_norm.bias", "model.speech_encoder.encoder.ln_post.bias");
        check("model.speech_encoder.embed_positions.weight", "model.speech_encoder.encoder.positional_embedding");
        check("model.speech_encoder.encoder.conv1.bias", "model.speech_encoder.encoder.conv1.bias");
        assert_eq!(
            canonical_tensor("model.speech_encoder.layers.0.fc2", true),
            "model.speech_encoder.encoder.blocks.0.mlp.2"
        );
        assert_eq!(canonical_tensor("model.layers.0.mlp.up_proj.weight", true), "model.layers.0.mlp.up_proj.weight");
    }

    #[test]
    fn canonical_names_survive_the_way_through_memory() {
        for name in [
            "language_model.model.layers.3.mlp.up_proj.weight",
            "language_model.model.norm.weight",
            "language_model.lm_head.weight",
            "vision_tower.vision_model.pre_layrnorm.weight",
            "multi_modal_projector.linear_2.weight",
            "visual.merger.ln_q.weight",
            "visual.deepstack_merger_list.0.linear_fc1.bias",
            "visual.class_embedding",
            "image_newline",
            "vision_resampler.pool.bias",
        ] {
            assert_eq!(canonical_tensor(&in_memory(name), false), name);
        }
    }
}
