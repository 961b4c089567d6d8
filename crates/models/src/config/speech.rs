//! Configuration of speech encoders: Whisper's, as `transformers` writes it, as OpenAI's files write it, or by its name alone.
//!
//! Source: `WhisperConfig` of `transformers`, class defaults included; `ModelDimensions` of OpenAI's Whisper.

use super::fields::Fields;
use crate::error::Result;
use serde_json::Value;
use tensor::Activation;

/// Whisper's encoder.
#[derive(Debug, Clone, PartialEq)]
pub struct SpeechConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_layers: usize,
    /// Attention heads.
    pub num_heads: usize,
    /// Frequencies of the spectrogram.
    pub num_mels: usize,
    /// States of a window, half of its frames.
    pub num_positions: usize,
    /// Activation of the MLP; the convolutions have gelu.
    pub activation: Activation,
}

/// Fields of Whisper's decoder, of its training and of other heads, which the encoder does not look at.
const INERT: [&str; 24] = [
    "apply_spec_augment",
    "classifier_proj_size",
    "decoder_attention_heads",
    "decoder_ffn_dim",
    "decoder_layerdrop",
    "decoder_layers",
    "decoder_start_token_id",
    "init_std",
    "is_encoder_decoder",
    "lang_ids",
    "mask_feature_length",
    "mask_feature_min_masks",
    "mask_feature_prob",
    "mask_time_length",
    "mask_time_min_masks",
    "mask_time_prob",
    "max_target_positions",
    "median_filter_width",
    "num_hidden_layers",
    "scale_embedding",
    "use_weighted_layer_sum",
    "vocab_size",
    "tie_word_embeddings",
    "forced_decoder_ids",
];

impl SpeechConfig {
    /// Reads a configuration in either spelling.
    pub fn read(place: &str, value: &Value) -> Result<SpeechConfig> {
        let f = Fields::new(place, value)?;
        let config = match f.raw("n_audio_state") {
            Some(_) => {
                let hidden_size = f.size_or("n_audio_state", 0)?;
                let config = SpeechConfig {
                    hidden_size,
                    intermediate_size: 4 * hidden_size,
                    num_layers: f.size_or("n_audio_layer", 0)?,
                    num_heads: f.size_or("n_audio_head", 0)?,
                    num_mels: f.size_or("n_mels", 0)?,
                    num_positions: f.size_or("n_audio_ctx", 0)?,
                    activation: Activation::Gelu,
                };
                for name in ["n_vocab", "n_text_ctx", "n_text_state", "n_text_head", "n_text_layer"] {
                    let _ = f.raw(name);
                }
                config
            }
            None => {
                let act = f.str_or("activation_function", "gelu")?;
                let activation = act
                    .parse()
                    .map_err(|_| f.error("activation_function", format!("activation `{act}` is not known")))?;
                for name in ["attention_dropout", "activation_dropout", "encoder_layerdrop", "dropout"] {
                    f.refuse_dropout(name)?;
                }
                let model_type = f.str_or("model_type", "whisper")?;
                if model_type != "whisper" {
                    return Err(f.error("model_type", format!("expected `whisper`, found `{model_type}`")));
                }
                INERT.iter().for_each(|name| _ = f.raw(name));
                SpeechConfig {
                    hidden_size: f.size_or("d_model", 384)?,
                    intermediate_size: f.size_or("encoder_ffn_dim", 1536)?,
                    num_layers: f.size_or("encoder_layers", 4)?,
                    num_heads: f.size_or("encoder_attention_heads", 6)?,
                    num_mels: f.size_or("num_mel_bins", 80)?,
                    num_positions: f.size_or("max_source_positions", 1500)?,
                    activation,
                }
            }
        };
        if !config.hidden_size.is_multiple_of(config.num_heads) {
            let reason = format!("expected a multiple of {} heads, found `{}`", config.num_heads, config.hidden_size);
            return Err(f.error("d_model", reason));
        }
        f.finish()?;
        Ok(config)
    }

    /// The published encoder that a name speaks of, such as `large-v3.pt` or `openai/whisper-small`.
    pub fn by_name(name: &str) -> Option<SpeechConfig> {
        let published = [
            ("large", 1280, 32),
            ("turbo", 1280, 32),
            ("medium", 1024, 24),
            ("small", 768, 12),
            ("base", 512, 6),
            ("tiny", 384, 4),
        ];
        let file = name.rsplit(['/', '\\']).next().unwrap_or(name);
        let (_, hidden_size, num_layers) = published.into_iter().find(|(size, ..)| file.contains(size))?;
        Some(SpeechConfig {
            hidden_size,
            intermediate_size: 4 * hidden_size,
            num_layers,
            num_heads: hidden_size / 64,
            num_mels: if file.contains("v3") || file.contains("turbo") { 128 } else { 80 },
            num_positions: 1500,
            activation: Activation::Gelu,
        })
    }

    /// Frames of a window.
    pub fn num_frames(&self) -> usize {
        2 * self.num_positions
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn both_spellings_and_the_name_say_the_same() {
        let openai = json!({"n_mels": 128, "n_audio_ctx": 1500, "n_audio_state": 1280, "n_audio_head": 20, "n_audio_layer": 32,
            "n_vocab": 51866, "n_text_ctx": 448, "n_text_state": 1280, "n_text_head": 20, "n_text_layer": 32});
        let transformers = json!({"model_type": "whisper", "d_model": 1280, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120,
            "encoder_layers": 32, "num_mel_bins": 128, "max_source_positions": 1500, "decoder_layers": 32});
        let found = SpeechConfig::by_name("checkpoints/large-v3.pt").unwrap();
        assert_eq!(SpeechConfig::read("c", &openai).unwrap(), found);
        assert_eq!(SpeechConfig::read("c", &transformers).unwrap(), found);
        assert_eq!(SpeechConfig::by_name("openai/whisper-small.en").unwrap().num_heads, 12);
        assert_eq!(SpeechConfig::by_name("hubert"), None);
        let defaults = SpeechConfig::read("c", &json!({})).unwrap();
        assert_eq!((defaults.hidden_size, defaults.num_layers, defaults.num_mels), (384, 4, 80));
    }

    #[test]
    fn every_field_is_read_or_refused_by_name() {
        let check = |value: Value, expected: &str| {
            let error = SpeechConfig::read("c", &value).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check(json!({"encoder_layerdrop": 0.1}), "`encoder_layerdrop`");
        check(json!({"d_model": 10, "encoder_attention_heads": 3}), "a multiple of 3 heads");
        check(json!({"window": 5}), "`window`: is not supported");
        check(json!({"model_type": "hubert"}), "expected `whisper`");
    }
}
