//! Configuration of EgoGPT: a flat `config.json` of LLaVA-OneVision's original code (`mm_*`), with a speech side beside it.
//!
//! Source: Yang et al. 2025 (EgoLife) and the published checkpoints and code of EgoGPT. Those name the parts they were made from
//! (`mm_vision_tower`, `speech_encoder`) and leave their sizes to these; a checkpoint that is to stand for itself says them in
//! `vision_config` and `speech_config`, as `transformers` writes `SiglipVisionConfig` and `WhisperConfig`.

use super::fields::Fields;
use super::speech::SpeechConfig;
use super::text::DecoderConfig;
use super::vision::{VisionConfig, VisionFamily};
use super::{CausalConfig, FamilyConfig, ModelConfig, VisionKind};
use crate::error::Result;
use serde_json::{Map, Value, json};

/// Where the learned row `image_newline` stands behind what a clip gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Newline {
    /// Nowhere.
    None,
    /// After the last frame.
    End,
    /// After every row of every frame.
    Rows,
}

/// How pictures, clips and sound reach the decoder.
#[derive(Debug, Clone)]
pub struct EgoGptConfig {
    /// The tower as it was published; its last layer is left out.
    pub vision: VisionConfig,
    /// Linear maps of the projector, with gelu between them.
    pub projector_depth: usize,
    /// Whether the projector is one map by itself rather than a list of them, which shows in its names.
    pub is_projector_bare: bool,
    /// Whether the checkpoint has an `image_newline`, which then stands after every picture.
    pub has_newline: bool,
    /// Where it stands in clips.
    pub newline: Newline,
    /// The speech side, where there is one.
    pub speech: Option<SpeechSettings>,
    /// Token id whose rows are replaced by features of pictures, where the file names one.
    pub image_token_id: Option<u32>,
    /// Token id whose rows are replaced by features of sound, where the file names one.
    pub speech_token_id: Option<u32>,
}

/// Speech encoder and projector.
#[derive(Debug, Clone)]
pub struct SpeechSettings {
    /// The encoder.
    pub encoder: SpeechConfig,
    /// States that become one row.
    pub rate: usize,
    /// Width between the projector's two maps.
    pub inner: usize,
}

impl SpeechSettings {
    /// Rows of one window.
    pub fn rows_per_window(&self) -> usize {
        self.encoder.num_positions / self.rate
    }
}

/// Fields that say how a checkpoint was trained, or how its original code loads it.
const INERT: [&str; 31] = [
    "delay_load",
    "delay_load_audio",
    "faster_token_stride",
    "force_sample",
    "frames_upbound",
    "freeze_mm_mlp_adapter",
    "freeze_mm_vision_resampler",
    "image_aspect_ratio",
    "image_crop_resolution",
    "image_grid_pinpoints",
    "image_split_resolution",
    "mm_hidden_size",
    "mm_projector_lr",
    // The published code averages 2 x 2 whatever these say.
    "mm_spatial_pool_mode",
    "mm_spatial_pool_out_channels",
    "mm_spatial_pool_stride",
    "mm_speech_encoder_lr",
    "mm_tunable_parts",
    "mm_vision_tower_lr",
    // SigLIP's last layer is removed whatever this says.
    "mm_vision_select_layer",
    "pos_skipping_range",
    "speech_projector_lr",
    "tokenizer_model_max_length",
    "tokenizer_padding_side",
    "tune_mm_mlp_adapter",
    "tune_mm_vision_resampler",
    "unfreeze_mm_speech_encoder",
    "unfreeze_mm_vision_tower",
    "use_mm_proj",
    "vision_tower_pretrained",
    "tune_speech_projector",
];

/// Switches of the original code that change the model and are not built.
const REFUSED: [&str; 6] = [
    "add_faster_video",
    "add_time_instruction",
    "mm_use_im_start_end",
    "mm_use_im_patch_token",
    "s2",
    "use_pos_skipping",
];

/// Fields that are read here; everything else belongs to the decoder.
const OWN: [&str; 20] = [
    "model_type",
    "architectures",
    "vision_config",
    "speech_config",
    "mm_vision_tower",
    "mm_projector_type",
    "mm_patch_merge_type",
    "mm_newline_position",
    "mm_resampler_type",
    "mm_vision_select_feature",
    "speech_encoder",
    "speech_encoder_type",
    "speech_projector_type",
    "speech_encoder_ds_rate",
    "speech_encoder_hidden_size",
    "speech_projector_hidden_size",
    "image_token_index",
    "speech_token_index",
    "audio_config",
    "speech_encoder_config",
];

/// Where a checkpoint may say the sizes of its speech encoder.
const SPEECH_SIZES: [&str; 3] = ["speech_config", "audio_config", "speech_encoder_config"];

/// Reads the configuration of a whole checkpoint.
pub(super) fn read(place: &str, raw: &Value) -> Result<ModelConfig> {
    let f = Fields::new(place, raw)?;
    let is_own = |name: &str| OWN.contains(&name) || INERT.contains(&name) || REFUSED.contains(&name);
    let fields = raw.as_object().into_iter().flatten().filter(|(name, _)| !is_own(name));
    let mut flat: Map<String, Value> = fields.map(|(name, value)| (name.clone(), value.clone())).collect();
    flat.keys().for_each(|name| _ = f.raw(name));
    flat.insert("model_type".to_owned(), "qwen2".into());
    let text = DecoderConfig::read(place, &Value::Object(flat), "qwen2")?;

    INERT.iter().for_each(|name| _ = f.raw(name));
    for name in REFUSED {
        if f.bool_or(name, false)? {
            return Err(f.error(name, "expected false, found `true`: what it switches on is not built"));
        }
    }
    if let Some(other) = f.raw("mm_resampler_type") {
        return Err(f.error("mm_resampler_type", format!("expected none, found `{other}`")));
    }
    let one_of = |name: &str, known: &str| -> Result<()> {
        let found = f.str_or(name, known)?;
        if found == known { Ok(()) } else { Err(f.error(name, format!("expected `{known}`, found `{found}`"))) }
    };
    one_of("mm_vision_select_feature", "patch")?;
    let vision = vision(&f)?;
    let (projector_depth, is_projector_bare) = projector(&f)?;
    let (has_newline, newline) = newline(&f)?;
    let speech = match f.raw("speech_encoder") {
        None => {
            let stray = ["speech_config", "speech_encoder_type", "speech_projector_type"];
            if let Some(name) = stray.into_iter().find(|name| f.raw(name).is_some()) {
                return Err(f.error("speech_encoder", format!("is missing beside `{name}`; name the encoder")));
            }
            None
        }
        Some(_) => Some(speech(&f)?),
    };
    // The original code's own are negative: they stand in no vocabulary.
    let token = |name: &str| f.raw(name).and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok());
    let (image_token_id, speech_token_id) = (token("image_token_index"), token("speech_token_index"));
    OWN.iter().for_each(|name| _ = f.raw(name));
    f.finish()?;
    let ego = EgoGptConfig {
        vision,
        projector_depth,
        is_projector_bare,
        has_newline,
        newline,
        speech,
        image_token_id,
        speech_token_id,
    };
    let family = FamilyConfig::Causal(Box::new(CausalConfig { text, vision: Some(VisionKind::EgoGpt(Box::new(ego))) }));
    Ok(ModelConfig { model_type: "egogpt_qwen".into(), family, raw: raw.clone() })
}

fn vision(f: &Fields<'_>) -> Result<VisionConfig> {
    // SigLIP so400m with patches of 14 pixels at 384, as it was published.
    let so400m = json!({"model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27,
        "num_attention_heads": 16, "image_size": 384, "patch_size": 14});
    let name = f.str_or("mm_vision_tower", "google/siglip-so400m-patch14-384")?;
    let config = match f.raw("vision_config") {
        Some(own) => VisionConfig::read(&format!("{}/vision_config", f.place()), own)?,
        None if name.contains("siglip-so400m-patch14-384") => VisionConfig::read(f.place(), &so400m)?,
        None => {
            return Err(f.error(
                "mm_vision_tower",
                format!("the sizes of `{name}` are not known; write them into `vision_config`"),
            ));
        }
    };
    if config.family != VisionFamily::Siglip {
        return Err(f.error("vision_config", "expected a `siglip_vision_model`"));
    }
    if config.num_layers < 2 || config.grid() < 2 {
        return Err(f.error("vision_config", "expected two layers and two patches a side at least"));
    }
    Ok(config)
}

/// The number of maps, and whether there is but one by itself.
fn projector(f: &Fields<'_>) -> Result<(usize, bool)> {
    let name = f.str_or("mm_projector_type", "linear")?;
    if name == "linear" {
        return Ok((1, true));
    }
    let depth = name.strip_prefix("mlp").and_then(|rest| rest.strip_suffix("x_gelu")?.parse().ok());
    match depth {
        Some(depth @ 1..) => Ok((depth, false)),
        _ => Err(f.error("mm_projector_type", format!("expected `linear` or `mlpNx_gelu`, found `{name}`"))),
    }
}

fn newline(f: &Fields<'_>) -> Result<(bool, Newline)> {
    let merge = f.str_or("mm_patch_merge_type", "flat")?;
    let position = f.str_or("mm_newline_position", "one_token")?;
    let has_newline = match merge.as_str() {
        "flat" | "spatial" => false,
        "spatial_unpad" => true,
        other => {
            return Err(f.error(
                "mm_patch_merge_type",
                format!("expected `flat`, `spatial` or `spatial_unpad`, found `{other}`"),
            ));
        }
    };
    let newline = match position.as_str() {
        _ if merge == "flat" => Newline::None,
        "one_token" if has_newline => Newline::End,
        "one_token" | "no_token" => Newline::None,
        "grid" if has_newline => Newline::Rows,
        "grid" => {
            return Err(f.error("mm_newline_position", format!("`grid` has no newline to take with `{merge}`")));
        }
        other => {
            return Err(
                f.error("mm_newline_position", format!("expected `one_token`, `grid` or `no_token`, found `{other}`"))
            );
        }
    };
    Ok((has_newline, newline))
}

fn speech(f: &Fields<'_>) -> Result<SpeechSettings> {
    let name = f.str_or("speech_encoder", "")?;
    let kind = f.str_or("speech_encoder_type", "whisper")?;
    if !kind.to_lowercase().contains("whisper") {
        return Err(f.error("speech_encoder_type", format!("expected `whisper`, found `{kind}`")));
    }
    let projector = f.str_or("speech_projector_type", "linear")?;
    if projector != "linear" {
        return Err(f.error("speech_projector_type", format!("expected `linear`, found `{projector}`")));
    }
    let own = SPEECH_SIZES.into_iter().find_map(|key| Some((key, f.raw(key).filter(|value| value.is_object())?)));
    let encoder = match own {
        Some((key, own)) => SpeechConfig::read(&format!("{}/{key}", f.place()), own)?,
        None => SpeechConfig::by_name(&name).ok_or_else(|| {
            f.error("speech_encoder", format!("the sizes of `{name}` are not known; write them into `speech_config`"))
        })?,
    };
    let width = f.size_or("speech_encoder_hidden_size", 1280)?;
    if width != encoder.hidden_size {
        return Err(f.error(
            "speech_encoder_hidden_size",
            format!("expected the encoder's width of {}, found `{width}`", encoder.hidden_size),
        ));
    }
    let rate = f.size_or("speech_encoder_ds_rate", 5)?;
    if rate > encoder.num_positions {
        return Err(f.error(
            "speech_encoder_ds_rate",
            format!("expected at most the {} states of a window, found `{rate}`", encoder.num_positions),
        ));
    }
    Ok(SpeechSettings { encoder, rate, inner: f.size_or("speech_projector_hidden_size", 2048)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn published() -> Value {
        json!({
            "architectures": ["EgoGPTQwenForCausalLM"], "model_type": "egogpt_qwen", "hidden_size": 3584, "intermediate_size": 18944,
            "num_attention_heads": 28, "num_hidden_layers": 28, "num_key_value_heads": 4, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
            "vocab_size": 152064, "hidden_act": "silu", "tie_word_embeddings": false, "use_sliding_window": false, "rope_scaling": null,
            "mm_hidden_size": 1152, "mm_patch_merge_type": "spatial_unpad", "mm_projector_type": "mlp2x_gelu", "mm_resampler_type": null,
            "mm_vision_select_feature": "patch", "mm_vision_select_layer": -2, "mm_vision_tower": "google/siglip-so400m-patch14-384",
            "mm_spatial_pool_mode": "bilinear", "image_aspect_ratio": "anyres_max_9", "image_grid_pinpoints": [[384, 384]], "image_token_index": 151646,
            "speech_encoder": "./pretrained/large-v3.pt", "speech_encoder_type": "whisper", "speech_projector_type": "linear",
            "speech_encoder_ds_rate": 5, "speech_encoder_hidden_size": 1280, "delay_load_audio": true, "use_mm_proj": true
        })
    }

    #[test]
    fn a_published_file_is_read_without_sizes_of_its_parts() {
        let config = ModelConfig::from_json("config.json", published()).unwrap();
        let ego = config.egogpt().unwrap();
        let speech = ego.speech.as_ref().unwrap();
        assert_eq!((ego.vision.hidden_size, ego.vision.num_layers, ego.vision.grid()), (1152, 27, 27));
        assert_eq!((speech.encoder.num_layers, speech.rows_per_window(), speech.inner), (32, 300, 2048));
        assert_eq!((ego.has_newline, ego.newline, ego.projector_depth), (true, Newline::End, 2));
        assert!(config.names_decoder_alone());
    }

    #[test]
    fn every_field_is_read_or_refused_by_name() {
        let check = |field: &str, value: Value, expected: &str| {
            let mut raw = published();
            raw[field] = value;
            let error = ModelConfig::from_json("config.json", raw).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(&format!("field `{field}`: {expected}")), "{error}");
        };
        check("add_faster_video", json!(true), "expected false");
        check("mm_resampler_type", json!("qformer"), "expected none");
        check("mm_projector_type", json!("pooler"), "expected `linear` or `mlpNx_gelu`, found `pooler`");
        check("mm_newline_position", json!("frame"), "expected `one_token`, `grid` or `no_token`, found `frame`");
        check("mm_patch_merge_type", json!("spatial_maxpool2x2"), "expected `flat`");
        check("mm_vision_tower", json!("openai/clip"), "the sizes of `openai/clip` are not known");
        check("speech_encoder", json!("hubert.pt"), "the sizes of `hubert.pt` are not known");
        check("speech_projector_type", json!("cnn"), "expected `linear`, found `cnn`");
        check("speech_encoder_hidden_size", json!(1024), "expected the encoder's width of 1280, found `1024`");
        check("something_new", json!(1), "is not supported");
    }
}
