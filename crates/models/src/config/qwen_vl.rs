//! Configuration of Qwen2-VL and Qwen2.5-VL checkpoints: a tower for pictures of any size in front of a Qwen2 decoder with
//! positions of three numbers.
//!
//! Source: `Qwen2VLConfig`, `Qwen2_5_VLConfig` of `transformers`, class defaults included. Files on the hub have the decoder's fields at
//! the top level, `transformers` 5 writes them into `text_config`: both are read.

use super::fields::Fields;
use super::native::{MropeResume, NativeFamily, NativeVisionConfig};
use super::text::DecoderConfig;
use super::{CausalConfig, FamilyConfig, ModelConfig, VisionKind};
use crate::error::Result;
use serde_json::{Map, Value, json};

/// The key of `config.json` that says where text goes on after a clip, written by this program where a plan asks for it.
pub const RESUME_KEY: &str = "mrope_resume";

/// Fields of the outer configuration; everything else of a flat file belongs to the decoder.
const OUTER: [&str; 10] = [
    "model_type",
    "architectures",
    "vision_config",
    "text_config",
    "image_token_id",
    "video_token_id",
    "vision_start_token_id",
    "vision_end_token_id",
    "vision_token_id",
    RESUME_KEY,
];

/// How the decoder counts the tokens of images and clips.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VisualPositions {
    /// Like words: one number a token.
    Words,
    /// By time, height and width; a clip is one block of them.
    Clips(MropeResume),
    /// By height and width; each temporal patch of a clip stands by itself, behind its time in the text.
    Steps,
}

/// How pictures reach the decoder.
#[derive(Debug, Clone)]
pub struct QwenVlConfig {
    /// The tower and its merger.
    pub vision: NativeVisionConfig,
    /// How the decoder counts positions.
    pub positions: VisualPositions,
    /// Token id whose rows are replaced by features of images.
    pub image_token_id: u32,
    /// Token id whose rows are replaced by features of clips.
    pub video_token_id: u32,
}

/// Reads the configuration of a whole checkpoint.
pub(super) fn read(place: &str, raw: &Value, family: NativeFamily) -> Result<ModelConfig> {
    let f = Fields::new(place, raw)?;
    let model_type = f.str_or("model_type", "")?;
    let empty = json!({});
    let vision =
        NativeVisionConfig::read(&format!("{place}/vision_config"), f.raw("vision_config").unwrap_or(&empty), family)?;
    let text_type = format!("{model_type}_text");
    let mut text = match f.raw("text_config") {
        Some(text) => DecoderConfig::read(&format!("{place}/text_config"), text, &text_type)?,
        None => {
            let is_outer = |name: &str| OUTER.contains(&name);
            let fields = raw.as_object().into_iter().flatten().filter(|(name, _)| !is_outer(name));
            let mut flat: Map<String, Value> = fields.map(|(name, value)| (name.clone(), value.clone())).collect();
            flat.keys().for_each(|name| _ = f.raw(name));
            flat.insert("model_type".to_owned(), text_type.clone().into());
            DecoderConfig::read(place, &Value::Object(flat), &text_type)?
        }
    };
    text.tie_word_embeddings |= f.bool_or("tie_word_embeddings", false)?;
    let (image_token_id, video_token_id) = outer(&f, &vision, &text)?;
    let resume = match f.str_or(RESUME_KEY, "after_max")?.as_str() {
        "after_max" => MropeResume::AfterMax,
        "after_extent" => MropeResume::AfterExtent,
        other => {
            return Err(f.error(RESUME_KEY, format!("expected `after_max` or `after_extent`, found `{other}`")));
        }
    };
    f.finish()?;
    let qwen = QwenVlConfig { vision, positions: VisualPositions::Clips(resume), image_token_id, video_token_id };
    Ok(whole(model_type, text, qwen, raw))
}

/// The placeholders' ids, and whether tower and decoder fit together.
pub(super) fn outer(f: &Fields<'_>, vision: &NativeVisionConfig, text: &DecoderConfig) -> Result<(u32, u32)> {
    if vision.out_hidden_size != text.hidden_size {
        return Err(f.error(
            "vision_config",
            format!("expected the decoder's width of {}, found `{}`", text.hidden_size, vision.out_hidden_size),
        ));
    }
    let token = |name: &str, default: usize| -> Result<u32> {
        let id = f.usize_or(name, default)?;
        if id >= text.vocab_size {
            return Err(
                f.error(name, format!("expected an id below the vocabulary of {}, found `{id}`", text.vocab_size))
            );
        }
        Ok(id as u32)
    };
    // They stand around the placeholders, where the chat template writes them.
    let _ = (f.raw("vision_start_token_id"), f.raw("vision_end_token_id"), f.raw("vision_token_id"));
    Ok((token("image_token_id", 151_655)?, token("video_token_id", 151_656)?))
}

/// A checkpoint of these parts.
pub(super) fn whole(model_type: String, text: DecoderConfig, qwen: QwenVlConfig, raw: &Value) -> ModelConfig {
    let family = FamilyConfig::Causal(Box::new(CausalConfig { text, vision: Some(VisionKind::QwenVl(qwen)) }));
    ModelConfig { model_type, family, raw: raw.clone() }
}
