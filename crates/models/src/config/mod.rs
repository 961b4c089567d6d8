//! Model configurations read from Hugging Face `config.json` files. Every field is read, known to be inert, or refused
//! by name; absent fields take the defaults of the reference class.

pub mod anyres;
pub mod egogpt;
pub mod encoders;
pub mod fields;
pub mod native;
mod onevision1_5;
mod qwen3_vl;
pub mod qwen_vl;
pub mod rope;
pub mod speech;
pub mod text;
pub mod vision;

use crate::error::{ModelError, Result};
use crate::seq2seq::config::Seq2SeqConfig;
pub use anyres::AnyresConfig;
pub use egogpt::EgoGptConfig;
pub use encoders::EncodersConfig;
use fields::Fields;
use native::NativeFamily;
pub use qwen_vl::QwenVlConfig;
use serde_json::{Value, json};
use std::path::Path;
use tensor::Activation;
use text::DecoderConfig;
use vision::VisionConfig;

/// Which of a tower's tokens are projected (`vision_feature_select_strategy`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FeatureSelect {
    /// `default`: all but the first token of each image.
    DropFirst,
    /// `full`: every token.
    Full,
}

/// How images reach the decoder in LLaVA-1.5 and LLaVA-interleave (`LlavaConfig`).
#[derive(Debug, Clone)]
pub struct LlavaConfig {
    /// The tower.
    pub vision: VisionConfig,
    /// Hidden states that are concatenated along channels, as indices into embeddings + layers (0 = embeddings).
    pub feature_layers: Vec<usize>,
    /// Which tokens of each image are kept.
    pub select: FeatureSelect,
    /// Activation between the projector's two layers.
    pub projector_activation: Activation,
    /// Whether the projector's layers have biases.
    pub projector_bias: bool,
    /// Token id whose rows are replaced by image features.
    pub image_token_id: u32,
    /// Tiles of images of any shape, and clips; none for pictures of one size.
    pub anyres: Option<AnyresConfig>,
}

impl LlavaConfig {
    /// Tokens that one picture becomes in the decoder; of LLaVA-NeXT and its successors those of one tile.
    pub fn tokens_per_image(&self) -> usize {
        self.vision.num_positions() - usize::from(self.select == FeatureSelect::DropFirst)
    }
}

/// What stands in front of the decoder.
#[derive(Debug, Clone)]
pub enum VisionKind {
    /// Pictures of one size (`llava`), or tiles of one size (`llava_next`, `llava_next_video`, `llava_onevision`).
    Llava(LlavaConfig),
    /// Pictures of any size (`qwen2_vl`, `qwen2_5_vl`, `qwen3_vl`, `llavaonevision1_5`).
    QwenVl(QwenVlConfig),
    /// Encoders beside a flat decoder configuration (LLaVA's original layout), one or two.
    Encoders(EncodersConfig),
    /// Pictures of one size, averaged clips and sound (`egogpt_qwen`).
    EgoGpt(Box<EgoGptConfig>),
}

/// A whole model's configuration.
#[derive(Debug, Clone)]
pub struct ModelConfig {
    /// `model_type` of the file: the family's key in the registry.
    pub model_type: String,
    /// What the family is made of.
    pub family: FamilyConfig,
    /// The file as it was read, written back unchanged on saving.
    pub raw: Value,
}

/// The shapes that families have.
#[derive(Debug, Clone)]
pub enum FamilyConfig {
    /// A decoder, with a vision side where the family has one.
    Causal(Box<CausalConfig>),
    /// An encoder-decoder of text.
    Seq2Seq(Seq2SeqConfig),
}

/// A decoder and what stands before it.
#[derive(Debug, Clone)]
pub struct CausalConfig {
    /// The decoder.
    pub text: DecoderConfig,
    /// The vision side; none for text-only checkpoints.
    pub vision: Option<VisionKind>,
}

/// The families that can be loaded, by `model_type`.
pub const FAMILIES: &[&str] = &[
    "llava",
    "llava_next",
    "llava_next_video",
    "llava_onevision",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "llavaonevision1_5",
    "llava_onevision1_5",
    "llava_llama",
    "llava_mistral",
    "llava_qwen",
    "llava_qwen2",
    "llava_qwen3",
    "llava_phi3",
    "egogpt_qwen",
    "llama",
    "mistral",
    "phi3",
    "qwen2",
    "qwen3",
    "m2m_100",
];

impl ModelConfig {
    /// Reads `config.json` of a checkpoint folder.
    pub fn load(dir: &Path) -> Result<ModelConfig> {
        let path = dir.join("config.json");
        let mut value = hub::json::read_json(&path)?;
        if encoders::claims(&value) {
            value = encoders::with_towers(dir, value)?;
        }
        ModelConfig::from_json(&path.display().to_string(), value)
    }

    /// Reads a configuration object; `place` names it in errors.
    pub fn from_json(place: &str, raw: Value) -> Result<ModelConfig> {
        let root = Fields::new(place, &raw)?;
        let model_type = root.str_or("model_type", "")?;
        match model_type.as_str() {
            _ if encoders::claims(&raw) => encoders::read(place, &raw),
            "llava" => ModelConfig::read_llava(place, &raw),
            "llava_next" | "llava_next_video" | "llava_onevision" => anyres::read(place, &raw),
            "qwen2_vl" => qwen_vl::read(place, &raw, NativeFamily::Qwen2Vl),
            "qwen2_5_vl" => qwen_vl::read(place, &raw, NativeFamily::Qwen25Vl),
            "qwen3_vl" => qwen3_vl::read(place, &raw),
            "llavaonevision1_5" | "llava_onevision1_5" => onevision1_5::read(place, &raw),
            "egogpt_qwen" => egogpt::read(place, &raw),
            "m2m_100" => {
                let config = Seq2SeqConfig::read(place, &raw)?;
                Ok(ModelConfig { model_type, family: FamilyConfig::Seq2Seq(config), raw })
            }
            decoder if FAMILIES.contains(&decoder) => {
                let text = DecoderConfig::read(place, &raw, &model_type)?;
                Ok(ModelConfig {
                    model_type,
                    family: FamilyConfig::Causal(Box::new(CausalConfig { text, vision: None })),
                    raw,
                })
            }
            moe if moe.ends_with("_moe") => Err(root.error(
                "model_type",
                format!("`{moe}` is a mixture of experts, which is not supported; of this family take a dense model"),
            )),
            other => {
                Err(ModelError::UnknownFamily { file: place.into(), found: other.into(), known: FAMILIES.join(", ") })
            }
        }
    }

    /// The decoder and what stands before it; none for an encoder-decoder.
    pub fn causal(&self) -> Option<&CausalConfig> {
        match &self.family {
            FamilyConfig::Causal(config) => Some(config),
            FamilyConfig::Seq2Seq(_) => None,
        }
    }

    /// The encoder-decoder; none for a decoder.
    pub fn seq2seq(&self) -> Option<&Seq2SeqConfig> {
        match &self.family {
            FamilyConfig::Causal(_) => None,
            FamilyConfig::Seq2Seq(config) => Some(config),
        }
    }

    /// What stands in front of the decoder, where there is something.
    pub fn vision(&self) -> Option<&VisionKind> {
        self.causal().and_then(|config| config.vision.as_ref())
    }

    /// EgoGPT's sides.
    pub fn egogpt(&self) -> Option<&EgoGptConfig> {
        match self.vision() {
            Some(VisionKind::EgoGpt(ego)) => Some(ego),
            _ => None,
        }
    }

    /// The vision side of a LLaVA, whose pictures or tiles have one size.
    pub fn llava(&self) -> Option<&LlavaConfig> {
        match self.vision() {
            Some(VisionKind::Llava(llava)) => Some(llava),
            _ => None,
        }
    }

    /// The encoders of a checkpoint in the original layout.
    pub fn encoders(&self) -> Option<&EncodersConfig> {
        match self.vision() {
            Some(VisionKind::Encoders(encoders)) => Some(encoders),
            _ => None,
        }
    }

    /// Whether the decoder's tensors have the names of a decoder alone.
    pub fn names_decoder_alone(&self) -> bool {
        matches!(self.vision(), None | Some(VisionKind::Encoders(_) | VisionKind::EgoGpt(_)))
    }

    /// Ids whose rows take features of images and clips.
    pub fn placeholder_ids(&self) -> Vec<u32> {
        match self.vision() {
            None => Vec::new(),
            Some(VisionKind::Llava(llava)) => {
                let clips = llava.anyres.as_ref().and_then(|anyres| anyres.clips.as_ref());
                std::iter::once(llava.image_token_id).chain(clips.map(|clips| clips.token_id)).collect()
            }
            Some(VisionKind::QwenVl(qwen)) => vec![qwen.image_token_id, qwen.video_token_id],
            Some(VisionKind::Encoders(_)) => vec![encoders::IMAGE_PLACEHOLDER, encoders::VIDEO_PLACEHOLDER],
            Some(VisionKind::EgoGpt(ego)) => ego.image_token_id.into_iter().chain(ego.speech_token_id).collect(),
        }
    }

    /// Rows of the embedding table.
    pub fn vocab_size(&self) -> usize {
        match &self.family {
            FamilyConfig::Causal(config) => config.text.vocab_size,
            FamilyConfig::Seq2Seq(config) => config.vocab_size,
        }
    }

    fn read_llava(place: &str, raw: &Value) -> Result<ModelConfig> {
        let f = Fields::new(place, raw)?;
        let empty = json!({});
        // Without a vision configuration the class builds CLIP-L/14-336.
        let clip_large = json!({"model_type": "clip_vision_model", "intermediate_size": 4096, "hidden_size": 1024, "patch_size": 14,
            "image_size": 336, "num_hidden_layers": 24, "num_attention_heads": 16});
        let vision =
            VisionConfig::read(&format!("{place}/vision_config"), f.raw("vision_config").unwrap_or(&clip_large))?;
        let mut text =
            DecoderConfig::read(&format!("{place}/text_config"), f.raw("text_config").unwrap_or(&empty), "llama")?;
        // The reference ties when either the outer or the text configuration says so.
        text.tie_word_embeddings |= f.bool_or("tie_word_embeddings", false)?;
        let layers = vision.num_layers as i64;
        let index = |v: &Value| -> Result<usize> {
            let bad = || {
                f.error(
                    "vision_feature_layer",
                    format!("expected an index within {} hidden states, found `{v}`", layers + 1),
                )
            };
            let i = v.as_i64().ok_or_else(bad)?;
            let at = if i < 0 { layers + 1 + i } else { i };
            if (0..=layers).contains(&at) { Ok(at as usize) } else { Err(bad()) }
        };
        let feature_layers = match f.raw("vision_feature_layer") {
            None => vec![index(&json!(-2))?],
            Some(Value::Array(list)) if !list.is_empty() => list.iter().map(index).collect::<Result<Vec<_>>>()?,
            Some(v) => vec![index(v)?],
        };
        let select = match f.str_or("vision_feature_select_strategy", "default")?.as_str() {
            "default" => FeatureSelect::DropFirst,
            "full" => FeatureSelect::Full,
            other => {
                return Err(f.error(
                    "vision_feature_select_strategy",
                    format!("expected `default` or `full`, found `{other}`"),
                ));
            }
        };
        let act = f.str_or("projector_hidden_act", "gelu")?;
        let projector_activation =
            act.parse().map_err(|_| f.error("projector_hidden_act", format!("activation `{act}` is not known")))?;
        let image_token = match f.raw("image_token_id") {
            Some(_) => f.usize_or("image_token_id", 0)?,
            None => f.usize_or("image_token_index", 32000)?,
        };
        let _ = f.raw("image_token_index");
        if image_token >= text.vocab_size {
            return Err(f.error(
                "image_token_index",
                format!("expected an id below the vocabulary of {}, found `{image_token}`", text.vocab_size),
            ));
        }
        // Old converters repeated the text side's vocabulary at the top level.
        let _ = f.raw("vocab_size");
        let llava = LlavaConfig {
            vision,
            feature_layers,
            select,
            projector_activation,
            projector_bias: f.bool_or("multimodal_projector_bias", true)?,
            image_token_id: image_token as u32,
            anyres: None,
        };
        f.finish()?;
        let family = FamilyConfig::Causal(Box::new(CausalConfig { text, vision: Some(VisionKind::Llava(llava)) }));
        Ok(ModelConfig { model_type: "llava".into(), family, raw: raw.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> Value {
        json!({
            "model_type": "llava", "image_token_index": 5, "vision_feature_layer": -1, "vision_feature_select_strategy": "full",
            "vision_config": {"model_type": "siglip_vision_model", "hidden_size": 8, "intermediate_size": 16,
                "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 9, "patch_size": 4, "vision_use_head": false},
            "text_config": {"model_type": "qwen2", "hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 1,
                "num_attention_heads": 3, "num_key_value_heads": 1, "vocab_size": 10}
        })
    }

    fn error_of(change: impl FnOnce(&mut Value)) -> String {
        let mut value = small();
        change(&mut value);
        ModelConfig::from_json("config.json", value).map(|_| ()).unwrap_err().to_string()
    }

    #[test]
    fn defaults_are_those_of_the_reference_classes() {
        let config =
            ModelConfig::from_json("config.json", json!({"model_type": "llava", "text_config": {"vocab_size": 32064}}))
                .unwrap();
        let text = &config.causal().unwrap().text;
        let llava = config.llava().unwrap();
        assert_eq!((llava.vision.hidden_size, llava.vision.image_size, llava.vision.num_layers), (1024, 336, 24));
        assert_eq!((llava.feature_layers.as_slice(), llava.image_token_id), ([23].as_slice(), 32000));
        assert_eq!((text.hidden_size, text.num_kv_heads, text.vocab_size), (4096, 32, 32064));
    }

    #[test]
    fn hidden_states_are_counted_from_the_embeddings() {
        let read = |value: Value| ModelConfig::from_json("config.json", value).unwrap().llava().unwrap().clone();
        let config = read(small());
        assert_eq!((config.feature_layers.as_slice(), config.tokens_per_image()), ([2].as_slice(), 4));
        let mut value = small();
        value["vision_feature_layer"] = json!([-3, 1]);
        assert_eq!(read(value).feature_layers, [0, 1]);
    }

    #[test]
    fn every_field_is_read_or_refused_by_name() {
        let check = |change: fn(&mut Value), expected: &str| assert_eq!(error_of(change), expected);
        check(
            |v| v["text_config"]["layer_types"] = json!(["sliding_attention"]),
            "`config.json/text_config`: field `layer_types`: expected `full_attention` in every layer where no sliding window is used, found `[\"sliding_attention\"]`",
        );
        check(
            |v| v["text_config"]["qk_norm"] = json!(true),
            "`config.json/text_config`: field `qk_norm`: is not supported (found `true`); remove it only if it does not change the model",
        );
        check(
            |v| v["text_config"]["rope_scaling"] = json!({"type": "dynamic", "factor": 2.0}),
            "`config.json/text_config/rope_scaling`: field `rope_type`: expected default, linear, llama3, yarn or longrope, found `dynamic`",
        );
        check(
            |v| v["text_config"]["num_key_value_heads"] = json!(2),
            "`config.json/text_config`: field `num_key_value_heads`: expected a divisor of 3 heads, found `2`",
        );
        check(
            |v| v["vision_config"]["attention_dropout"] = json!(0.1),
            "`config.json/vision_config`: field `attention_dropout`: a dropout inside the model is not supported, found `0.1`; set it to 0.0",
        );
        check(
            |v| v["vision_feature_layer"] = json!(3),
            "`config.json`: field `vision_feature_layer`: expected an index within 3 hidden states, found `3`",
        );
        check(
            |v| v["image_token_index"] = json!(10),
            "`config.json`: field `image_token_index`: expected an id below the vocabulary of 10, found `10`",
        );
        check(
            |v| v["model_type"] = json!("blip"),
            "`config.json`: model_type `blip` is not known; known are llava, llava_next, llava_next_video, llava_onevision, qwen2_vl, qwen2_5_vl, qwen3_vl, llavaonevision1_5, llava_onevision1_5, llava_llama, llava_mistral, llava_qwen, llava_qwen2, llava_qwen3, llava_phi3, egogpt_qwen, llama, mistral, phi3, qwen2, qwen3, m2m_100",
        );
    }
}
