//! Configuration of checkpoints in LLaVA's original layout: the decoder's fields stand flat, and encoders are named beside
//! them. One encoder for pictures (`mm_vision_tower`), or one for images and one for clips (`image_encoder`,
//! `video_encoder`), each with a projector of its own. Owns their keys; towers and decoders are read elsewhere.
//!
//! Source: the published `llava_arch.py` of LLaVA-1.5 and of its variant with separate encoders. There a tower's own
//! configuration stands in the folder that `mm_vision_tower` names; a checkpoint that this program saves holds it as
//! `vision_config`, and the tower's weights, so that it stands alone.

use super::fields::Fields;
use super::text::DecoderConfig;
use super::vision::{VisionConfig, VisionFamily};
use super::{CausalConfig, FamilyConfig, FeatureSelect, ModelConfig, VisionKind};
use crate::error::{ModelError, Result};
use crate::names::{EncoderPaths, IMAGE_ENCODER, ORIGINAL_ENCODER, VIDEO_ENCODER};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// Keys that hold an encoder each, image first.
pub const ENCODER_KEYS: [&str; 2] = ["image_encoder", "video_encoder"];

/// Names the folder that holds the decoder's weights where the checkpoint does not: parts that were joined by a plan.
pub const LANGUAGE_KEY: &str = "mm_language_model";

/// Names the conversation template that the checkpoint was trained with; the data side reads it.
pub const VERSION_KEY: &str = "conversation_version";

/// The id that stands for a row of an image, `-200` of the original; no row of a table belongs to it.
pub const IMAGE_PLACEHOLDER: u32 = (-200i32) as u32;

/// The id that stands for a row of a clip, `-300` of the original.
pub const VIDEO_PLACEHOLDER: u32 = (-300i32) as u32;

/// The `model_type`s of the layout, and the decoder of each. `llava` without `text_config` is the oldest spelling of the first.
const DECODERS: [(&str, &str); 7] = [
    ("llava_llama", "llama"),
    ("llava", "llama"),
    ("llava_mistral", "mistral"),
    ("llava_qwen", "qwen2"),
    ("llava_qwen2", "qwen2"),
    ("llava_qwen3", "qwen3"),
    ("llava_phi3", "phi3"),
];

/// What is read here of the outer object, or says how the original was trained and changes no value.
const OWN_KEYS: [&str; 24] = [
    "image_encoder",
    "video_encoder",
    LANGUAGE_KEY,
    VERSION_KEY,
    "mm_use_start_end",
    "mm_use_im_start_end",
    "mm_use_patch_token",
    "mm_use_im_patch_token",
    "image_aspect_ratio",
    "image_grid_pinpoints",
    "tune_mm_mlp_adapter",
    "freeze_mm_mlp_adapter",
    "tune_mm_vision_resampler",
    "freeze_mm_vision_resampler",
    "mm_resampler_type",
    "mm_projector_lr",
    "mm_vision_tower_lr",
    "tokenizer_padding_side",
    "tokenizer_model_max_length",
    "image_crop_resolution",
    "image_split_resolution",
    "model_type",
    "freeze_backbone",
    "mm_vision_resampler",
];

/// What is read of an encoder; in the layout with one encoder these stand in the outer object.
const ENCODER_FIELDS: [&str; 13] = [
    "mm_vision_tower",
    "vision_config",
    "use_mm_proj",
    "mm_projector_type",
    "mm_hidden_size",
    "mm_vision_select_layer",
    "mm_vision_select_feature",
    "mm_patch_merge_type",
    "unfreeze_mm_vision_tower",
    "num_segment",
    "s2",
    "s2_scales",
    "mm_vision_tower_name",
];

/// The maps between a tower and the decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProjectorKind {
    /// One linear map, `linear`.
    Linear,
    /// So many linear maps with an exact GELU between them, `mlpNx_gelu`.
    Mlp(usize),
}

impl std::str::FromStr for ProjectorKind {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<ProjectorKind, String> {
        let depth = text.strip_prefix("mlp").and_then(|rest| rest.strip_suffix("x_gelu")).map(str::parse::<usize>);
        match (text, depth) {
            ("linear", _) => Ok(ProjectorKind::Linear),
            (_, Some(Ok(depth @ 1..=16))) => Ok(ProjectorKind::Mlp(depth)),
            _ => Err(format!("expected `linear` or `mlpNx_gelu` with N from 1 to 16, found `{text}`")),
        }
    }
}

impl ProjectorKind {
    /// Paths below the projector of its linear maps, first to last.
    pub fn layers(self) -> Vec<String> {
        match self {
            ProjectorKind::Linear => vec![String::new()],
            // Activations are modules of the sequence as well.
            ProjectorKind::Mlp(depth) => (0..depth).map(|i| format!(".{}", 2 * i)).collect(),
        }
    }
}

/// A tower with its projector.
#[derive(Debug, Clone)]
pub struct Encoder {
    /// The tower.
    pub vision: VisionConfig,
    /// The hidden state that is projected, as an index into embeddings + layers.
    pub feature_layer: usize,
    /// Which tokens of a picture are kept.
    pub select: FeatureSelect,
    /// What lies between tower and decoder.
    pub projector: ProjectorKind,
    /// Paths in checkpoints.
    pub paths: EncoderPaths,
}

impl Encoder {
    /// Tokens that one picture becomes in the decoder.
    pub fn tokens_per_image(&self) -> usize {
        self.vision.num_positions() - usize::from(self.select == FeatureSelect::DropFirst)
    }

    fn read(f: &Fields<'_>, hidden: usize, paths: EncoderPaths) -> Result<Encoder> {
        let tower = f.raw("mm_vision_tower");
        let Some(vision) = f.raw("vision_config") else {
            let found = tower.map_or("nothing".to_owned(), |name| format!("`{name}`"));
            return Err(f.error(
                "mm_vision_tower",
                format!(
                    "expected a tower whose configuration is known; {found} is named, and there is no `vision_config`"
                ),
            ));
        };
        let vision = VisionConfig::read(&format!("{}/vision_config", f.place()), vision)?;
        let layers = vision.num_layers as i64;
        let layer = match f.raw("mm_vision_select_layer") {
            None => -2,
            Some(value) => value.as_i64().unwrap_or(i64::MIN),
        };
        let at = if layer < 0 { (layers + 1).saturating_add(layer) } else { layer };
        if !(0..=layers).contains(&at) {
            let found = f.raw("mm_vision_select_layer").unwrap_or(&Value::Null);
            return Err(f.error(
                "mm_vision_select_layer",
                format!("expected an index within {} hidden states, found `{found}`", layers + 1),
            ));
        }
        let has_class = vision.family == VisionFamily::Clip;
        let select = match f.str_or("mm_vision_select_feature", "patch")?.as_str() {
            "patch" if has_class => FeatureSelect::DropFirst,
            // SigLIP has patches alone.
            "patch" => FeatureSelect::Full,
            "cls_patch" if has_class => FeatureSelect::Full,
            "cls_patch" => {
                return Err(
                    f.error("mm_vision_select_feature", "`cls_patch` asks for a class token, and the tower has none")
                );
            }
            other => {
                return Err(
                    f.error("mm_vision_select_feature", format!("expected `patch` or `cls_patch`, found `{other}`"))
                );
            }
        };
        let projector = f
            .str_or("mm_projector_type", "linear")?
            .parse()
            .map_err(|reason: String| f.error("mm_projector_type", reason))?;
        let width = f.usize_or("mm_hidden_size", vision.hidden_size)?;
        if width != vision.hidden_size {
            return Err(f.error(
                "mm_hidden_size",
                format!("expected the {} of the tower, found `{width}`; the tower is another one", vision.hidden_size),
            ));
        }
        match f.str_or("mm_patch_merge_type", "flat")?.as_str() {
            "flat" => {}
            other => return Err(f.error("mm_patch_merge_type", format!("only `flat` is supported, found `{other}`"))),
        }
        if !f.bool_or("use_mm_proj", true)? {
            return Err(f.error("use_mm_proj", "expected true: without a projector nothing joins tower and decoder"));
        }
        if f.bool_or("s2", false)? {
            return Err(f.error("s2", "a tower at several scales is not supported"));
        }
        let _ = f.size_or("num_segment", 1)?;
        if hidden == 0 {
            return Err(f.error("hidden_size", "expected at least 1, found `0`"));
        }
        // How the tower was trained, and what only a tower at several scales reads.
        for inert in ["unfreeze_mm_vision_tower", "s2_scales", "mm_vision_tower_name"] {
            let _ = f.raw(inert);
        }
        Ok(Encoder { vision, feature_layer: at as usize, select, projector, paths })
    }
}

/// The encoders of a checkpoint.
#[derive(Debug, Clone)]
pub struct EncodersConfig {
    /// For images, and in the layout with one encoder for every frame of a clip.
    pub image: Option<Encoder>,
    /// For clips.
    pub video: Option<Encoder>,
    /// Whether tokens that the original adds stand around media (`mm_use_start_end`); their rows train with the projectors.
    pub has_start_end: bool,
}

impl EncodersConfig {
    /// The encoders that there are, image first.
    pub fn all(&self) -> impl Iterator<Item = &Encoder> {
        self.image.iter().chain(&self.video)
    }
}

/// Whether a configuration has the layout.
pub(super) fn claims(raw: &Value) -> bool {
    let model_type = raw["model_type"].as_str().unwrap_or_default();
    // EgoGPT has a layout of its own.
    if model_type == "egogpt_qwen" {
        return false;
    }
    let names_one = !raw["mm_vision_tower"].is_null() || ENCODER_KEYS.iter().any(|key| !raw[*key].is_null());
    names_one || (model_type != "llava" && DECODERS.iter().any(|(known, _)| *known == model_type))
}

/// Reads the configuration of a decoder with encoders beside it.
pub(super) fn read(place: &str, raw: &Value) -> Result<ModelConfig> {
    let f = Fields::new(place, raw)?;
    let model_type = f.str_or("model_type", "")?;
    let Some((_, family)) = DECODERS.iter().find(|(known, _)| *known == model_type) else {
        let known = DECODERS.map(|(known, _)| known).join(", ");
        return Err(ModelError::UnknownFamily { file: place.into(), found: model_type, known });
    };
    let is_separate = ENCODER_KEYS.iter().any(|key| f.raw(key).is_some());
    if is_separate && f.raw("mm_vision_tower").is_some() {
        return Err(f.error(
            "mm_vision_tower",
            "stands beside `image_encoder` or `video_encoder`; keep one of the two layouts",
        ));
    }
    let decoder: Map<String, Value> = (raw.as_object().into_iter().flatten())
        .filter(|(key, _)| {
            !OWN_KEYS.contains(&key.as_str()) && (is_separate || !ENCODER_FIELDS.contains(&key.as_str()))
        })
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    let decoder = Value::Object(decoder);
    let text = DecoderConfig::read(place, &decoder, family)?;
    let hidden = text.hidden_size;
    let (image, video) = if is_separate {
        let read = |key: &str, paths: EncoderPaths| -> Result<Option<Encoder>> {
            let Some(value) = f.raw(key) else { return Ok(None) };
            let inner = Fields::new(format!("{place}/{key}"), value)?;
            let width = inner.usize_or("hidden_size", hidden)?;
            if width != hidden {
                return Err(
                    inner.error("hidden_size", format!("expected the {hidden} of the decoder, found `{width}`"))
                );
            }
            let encoder = Encoder::read(&inner, hidden, paths)?;
            inner.finish()?;
            Ok(Some(encoder))
        };
        (read(ENCODER_KEYS[0], IMAGE_ENCODER)?, read(ENCODER_KEYS[1], VIDEO_ENCODER)?)
    } else {
        (Some(Encoder::read(&f, hidden, ORIGINAL_ENCODER)?), None)
    };
    match f.str_or("image_aspect_ratio", "square")?.as_str() {
        "square" | "pad" => {}
        other => {
            return Err(f.error("image_aspect_ratio", format!("expected `square` or `pad`, found `{other}`")));
        }
    }
    if let Some(resampler) = f.raw("mm_resampler_type") {
        return Err(f.error("mm_resampler_type", format!("is not supported (found `{resampler}`)")));
    }
    let flag = |names: [&str; 2]| -> Result<bool> { Ok(f.bool_or(names[0], false)? | f.bool_or(names[1], false)?) };
    let has_start_end = flag(["mm_use_start_end", "mm_use_im_start_end"])?;
    flag(["mm_use_patch_token", "mm_use_im_patch_token"])?;
    let vision = VisionKind::Encoders(EncodersConfig { image, video, has_start_end });
    let family = FamilyConfig::Causal(Box::new(CausalConfig { text, vision: Some(vision) }));
    Ok(ModelConfig { model_type, family, raw: raw.clone() })
}

/// Puts what only other folders hold into the configuration of the checkpoint in `dir`: the configurations of towers.
///
/// # Errors
/// A tower that is not to be found, or whose folder holds no configuration.
pub(super) fn with_towers(dir: &Path, mut raw: Value) -> Result<Value> {
    let place = dir.join("config.json").display().to_string();
    for (object, tower) in tower_folders(dir, &place, &raw)? {
        let config = tower_config(&tower)?;
        let target = if object.is_empty() { Some(&mut raw) } else { raw.get_mut(object) };
        if let Some(map) = target.and_then(Value::as_object_mut) {
            map.insert("vision_config".to_owned(), config);
        }
    }
    // What is loaded is whole; it names no other folder when it is saved.
    if let Some(map) = raw.as_object_mut() {
        map.remove(LANGUAGE_KEY);
    }
    Ok(raw)
}

/// The folders of towers whose configuration is not in the checkpoint: the key of the encoder (empty for the outer object)
/// and the folder.
fn tower_folders(dir: &Path, place: &str, raw: &Value) -> Result<Vec<(&'static str, PathBuf)>> {
    let mut found = Vec::new();
    for key in ["", ENCODER_KEYS[0], ENCODER_KEYS[1]] {
        let encoder = if key.is_empty() { raw } else { &raw[key] };
        if let Some(name) = encoder["mm_vision_tower"].as_str().filter(|_| encoder["vision_config"].is_null()) {
            found.push((key, tower_folder(dir, place, name)?));
        }
    }
    Ok(found)
}

/// The folder of a tower by the name that a checkpoint in `dir` gives it.
///
/// # Errors
/// There is none.
pub(crate) fn tower_folder(dir: &Path, place: &str, name: &str) -> Result<PathBuf> {
    hub::resolve_beside(dir, name).map_err(|error| ModelError::Config {
        file: place.to_owned(),
        field: "mm_vision_tower".to_owned(),
        reason: format!("the tower `{name}` is not to be had ({error}); put its folder there, or name another place"),
    })
}

/// The configuration of the tower in a folder: of a tower alone, or of the pair of towers that CLIP and SigLIP are.
///
/// # Errors
/// There is no `config.json`, or it is of another family.
pub fn tower_config(dir: &Path) -> Result<Value> {
    let path = dir.join("config.json");
    let config: Value = hub::json::read_json(&path)?;
    let model_type = config["model_type"].as_str().unwrap_or_default();
    let alone = match model_type {
        "clip" | "siglip" => {
            let mut inner = match &config["vision_config"] {
                Value::Null => json!({}),
                inner => inner.clone(),
            };
            inner["model_type"] = format!("{model_type}_vision_model").into();
            inner
        }
        _ => config,
    };
    VisionConfig::read(&path.display().to_string(), &alone)?;
    Ok(alone)
}

/// The decoder's family as `transformers` names it, for a `model_type` of the layout.
pub fn decoder_type(model_type: &str) -> Option<&'static str> {
    DECODERS.iter().find(|(known, _)| *known == model_type).map(|(_, family)| *family)
}

/// The `model_type` of the layout for a decoder of `transformers`.
pub fn joined_type(decoder: &str) -> Option<&'static str> {
    let spelled = if decoder == "qwen2" { "llava_qwen2" } else { "" };
    let fits = |(known, family): &&(&str, &str)| *known == spelled || (spelled.is_empty() && *family == decoder);
    DECODERS.iter().find(fits).map(|(known, _)| *known)
}

/// The decoder's fields alone, as a configuration of its own class, without the keys of encoders.
pub fn decoder_fields(raw: &Value) -> Map<String, Value> {
    let known = |key: &str| OWN_KEYS.contains(&key) || ENCODER_FIELDS.contains(&key);
    let fields = raw.as_object().into_iter().flatten().filter(|(key, _)| !known(key));
    fields.map(|(key, value)| (key.clone(), value.clone())).collect()
}
