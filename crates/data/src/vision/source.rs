//! Owns the finding of a checkpoint's vision settings: which file holds them, which family they belong to, which tokens
//! stand for media. It refuses to read the settings themselves.

use std::path::Path;

use serde_json::Value;

use super::fields::Fields;
use super::pictures::Pictures;
use super::settings::{ImageBackend, ImageSettings, image_class};
use super::{Placeholder, Vision, ego, encoders, llava_next, qwen};
use crate::clips::VideoDefaults;
use crate::error::DataError;
use crate::tokenizer::{Tokenizer, read_optional};

/// The files of a checkpoint that say something about media.
#[derive(Clone, Copy)]
pub(crate) struct Files<'a> {
    pub dir: &'a Path,
    /// `processor_config.json`.
    pub processor: &'a Value,
    /// `config.json`.
    pub config: &'a Value,
    pub tokenizer: &'a Tokenizer,
}

impl Vision {
    /// Reads the vision settings of a checkpoint with what it takes of clips; none for a text model.
    ///
    /// # Errors
    /// A class or setting that is not supported, by name.
    pub fn read(files: &Files<'_>) -> Result<(Option<Self>, VideoDefaults), DataError> {
        if let Some((vision, defaults)) = ego::read(files)? {
            return Ok((Some(vision), defaults));
        }
        if encoders::claims(files.config) {
            let (own, defaults) = encoders::read(files)?;
            return Ok((Some(Self::Encoders(own)), defaults));
        }
        let path = files.dir.join("preprocessor_config.json");
        // Nested in `processor_config.json`, else `preprocessor_config.json`.
        let (config, path) = match &files.processor["image_processor"] {
            Value::Null => (read_optional(&path)?, path),
            nested => (nested.clone(), files.dir.join("processor_config.json")),
        };
        if config.is_null() {
            return Ok((None, video_defaults(files)?));
        }
        let fields = Fields { config: &config, path: &path };
        if image_class(&config).as_deref() == Some("Qwen2VLImageProcessor") {
            let (patches, defaults) = qwen::read(files, &fields)?;
            return Ok((Some(Self::Patches(patches)), defaults));
        }
        if llava_next::is_tiled(files, image_class(&config).as_deref()) {
            let (tiles, defaults) = llava_next::read(files, &fields)?;
            let defaults = defaults.map_or_else(|| video_defaults(files), Ok)?;
            return Ok((Some(Self::Tiles(tiles)), defaults));
        }
        let settings = ImageSettings::read(&fields, ImageBackend::default())?;
        Ok((Some(Self::Pictures(pictures(files, settings)?)), video_defaults(files)?))
    }
}

impl Placeholder {
    /// The token that stands for an `image` or a `video`: as the tokenizer or the processor names it, else `usual`.
    ///
    /// # Errors
    /// It is not a token of its own, or the model has another id.
    pub fn find(files: &Files<'_>, medium: &str, usual: &str) -> Result<Self, DataError> {
        let path = files.dir.join("processor_config.json");
        let bad = |what: String, hint: &str| DataError::checkpoint(&path, what, hint);
        let name = format!("{medium}_token");
        let named = files.tokenizer.special(&name).or_else(|| files.processor[&name].as_str());
        let text = named.unwrap_or(usual).to_owned();
        let Some(id) = files.tokenizer.id_of(&text).filter(|&id| files.tokenizer.is_added(id)) else {
            return Err(bad(
                format!("the placeholder `{text}` is not a token of its own"),
                "add it to the tokenizer, as the checkpoint's own `added_tokens_decoder` does",
            ));
        };
        let declared = [format!("{medium}_token_id"), format!("{medium}_token_index")];
        let declared = declared.iter().find_map(|key| files.config[key].as_u64());
        if let Some(declared) = declared.filter(|&d| d != u64::from(id)) {
            return Err(bad(
                format!("the placeholder `{text}` has id {id}, and `config.json` says {declared}"),
                "tokenizer and model belong to different checkpoints; copy both again",
            ));
        }
        Ok(Self { text, id })
    }
}

/// Placeholder and tokens of a picture: from `processor_config.json`, else from the model's own configuration.
fn pictures(files: &Files<'_>, settings: ImageSettings) -> Result<Pictures, DataError> {
    let Files { processor, config, .. } = *files;
    let path = files.dir.join("processor_config.json");
    let bad = |what: String, hint: &str| DataError::checkpoint(&path, what, hint);
    let token = Placeholder::find(files, "image", "<image>")?;
    let patch = [&processor["patch_size"], &config["vision_config"]["patch_size"]]
        .into_iter()
        .find_map(Value::as_u64)
        .filter(|&p| p > 0)
        .ok_or_else(|| bad("`patch_size` is missing".into(), "add it to `processor_config.json`"))?;
    let is_clip = config["vision_config"]["model_type"].as_str().unwrap_or("clip_vision_model").starts_with("clip");
    let additional = match processor["num_additional_image_tokens"].as_i64() {
        Some(n) => n,
        // Files from before that setting: a CLIP tower has one class token, a SigLIP tower none.
        None if processor["patch_size"].is_null() => i64::from(is_clip),
        None => 0,
    };
    let strategy = [&processor["vision_feature_select_strategy"], &config["vision_feature_select_strategy"]]
        .into_iter()
        .find_map(Value::as_str)
        .unwrap_or("default");
    let dropped = match strategy {
        "default" => 1,
        "full" => 0,
        other => {
            return Err(bad(
                format!("`vision_feature_select_strategy: {other}` is not supported"),
                "supported are `default` and `full`",
            ));
        }
    };
    Ok(Pictures { settings, token, patch: patch as usize, extra: additional - dropped })
}

/// Frame settings of a checkpoint's video processor file.
pub(super) fn video_defaults(files: &Files<'_>) -> Result<VideoDefaults, DataError> {
    let config = match &files.processor["video_processor"] {
        Value::Null => read_optional(&files.dir.join("video_preprocessor_config.json"))?,
        nested => nested.clone(),
    };
    let positive = |v: &Value| v.as_f64().filter(|&n| n > 0.0);
    let num_frames = positive(&config["num_frames"]).map(|n| media::FrameCount::Num(n as usize));
    let fps = || positive(&config["fps"]).map(media::FrameCount::Fps);
    Ok(VideoDefaults { count: num_frames.or_else(fps), ..VideoDefaults::default() })
}
