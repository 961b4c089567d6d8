//! Owns [`Encoders`]: checkpoints in LLaVA's original layout, whose images and clips pass towers beside a language model of its
//! own, each with the settings of its tower. It refuses clips or images for which there is no tower, and merges of patches.
//!
//! Source: the published `mm_utils.py` and datasets of LLaVA-1.5 and of its variant with separate encoders. `<image>` and
//! `<video>` are texts there and no tokens: a dialogue is tokenised in the pieces between them, and ids that no table has
//! (-200 and -300) stand in their places.

use std::path::{Path, PathBuf};

use media::{FrameCount, FrameRule, RgbImage};
use serde_json::Value;

use super::fields::Fields;
use super::pictures::Pictures;
use super::settings::{ImageBackend, ImageSettings};
use super::source::Files;
use super::{Placeholder, Planned, Target};
use crate::batch::{Encoded, Visual, VisualKind};
use crate::clips::{Place, VideoDefaults};
use crate::encode::record_error;
use crate::error::{DataError, RecordError};
use crate::record::Sample;
use crate::tokenizer::read_optional;

/// Stands for a row of an image.
const IMAGE_ID: u32 = (-200i32) as u32;
/// Stands for a row of a clip.
const VIDEO_ID: u32 = (-300i32) as u32;

/// The encoders of a checkpoint.
#[derive(Debug, Clone)]
pub(crate) struct Encoders {
    image: Option<Pictures>,
    video: Option<Pictures>,
    /// Whether clips have an encoder of their own; otherwise their frames are images.
    is_separate: bool,
    /// Whether added tokens stand around media.
    has_start_end: bool,
    /// Class tokens of the image tower and of the video tower.
    num_class: [usize; 2],
    /// Settings that belong to the checkpoint: name within it, and where they were found.
    pub files: Vec<(String, PathBuf)>,
}

/// Whether a configuration has the layout.
pub(super) fn claims(config: &Value) -> bool {
    ["mm_vision_tower", "image_encoder", "video_encoder"].iter().any(|key| !config[*key].is_null())
}

/// Reads the encoders of a checkpoint and what it takes of clips.
///
/// # Errors
/// A tower or its picture settings cannot be found, or do not fit each other.
pub(super) fn read(files: &Files<'_>) -> Result<(Encoders, VideoDefaults), DataError> {
    let Files { dir, config, tokenizer, .. } = *files;
    let path = dir.join("config.json");
    let bad = |what: String, hint: &str| DataError::checkpoint(&path, what, hint);
    let flag = |names: [&str; 2]| names.iter().any(|name| config[*name].as_bool() == Some(true));
    let pad = match config["image_aspect_ratio"].as_str() {
        None | Some("square") => false,
        Some("pad") => true,
        Some(other) => {
            return Err(bad(
                format!("`image_aspect_ratio: {other}` is not supported"),
                "supported are `square` and `pad`",
            ));
        }
    };
    let is_separate = config["mm_vision_tower"].is_null();
    let mut own = Encoders {
        image: None,
        video: None,
        is_separate,
        has_start_end: flag(["mm_use_start_end", "mm_use_im_start_end"]),
        num_class: [0, 0],
        files: Vec::new(),
    };
    let image = if is_separate { &config["image_encoder"] } else { config };
    if !image.is_null() {
        let place = if is_separate { "image_encoder/preprocessor_config.json" } else { "preprocessor_config.json" };
        own.image = Some(own.pictures(dir, image, place, ("<image>", IMAGE_ID), pad)?);
    }
    let video = &config["video_encoder"];
    if !video.is_null() {
        let place = "video_encoder/preprocessor_config.json";
        own.video = Some(own.pictures(dir, video, place, ("<video>", VIDEO_ID), pad)?);
    }
    for kind in [VisualKind::Image, VisualKind::Video] {
        let (start, end) = own.around(kind);
        let is_used = own.side(kind).is_some() && !start.is_empty();
        let lacks = |text: &&str| !tokenizer.id_of(text).is_some_and(|id| tokenizer.is_added(id));
        if let Some(text) = [start, end].iter().find(|text| is_used && lacks(text)) {
            return Err(bad(
                format!("`mm_use_start_end` asks for the token `{text}`, which the tokenizer lacks"),
                "copy the tokenizer that was saved with the checkpoint",
            ));
        }
    }
    let segments = video["num_segment"].as_u64().and_then(|n| usize::try_from(n).ok()).filter(|&n| n > 0);
    let defaults = match is_separate {
        true => VideoDefaults {
            count: segments.map(FrameCount::Num),
            rule: FrameRule::Segments,
            ..VideoDefaults::default()
        },
        false => super::source::video_defaults(files)?,
    };
    Ok((own, defaults))
}

impl Encoders {
    /// The picture settings of an encoder, and the tokens that its tower makes.
    fn pictures(
        &mut self,
        dir: &Path,
        encoder: &Value,
        place: &str,
        (text, id): (&str, u32),
        pad: bool,
    ) -> Result<Pictures, DataError> {
        let config = dir.join("config.json");
        let name = encoder["mm_vision_tower"].as_str();
        let tower = || match name {
            Some(name) => hub::resolve_beside(dir, name).map_err(|error| {
                DataError::checkpoint(
                    &config,
                    format!("the tower `{name}` is not to be had: {error}"),
                    "put its folder there, or name another place as `mm_vision_tower`",
                )
            }),
            None => Err(DataError::checkpoint(&config, "an encoder names no tower", "name it as `mm_vision_tower`")),
        };
        let beside = dir.join(place);
        let path = if beside.is_file() { beside } else { tower()?.join("preprocessor_config.json") };
        let settings = read_optional(&path)?;
        if settings.is_null() {
            let hint = format!("copy the tower's `preprocessor_config.json` to `{}`", dir.join(place).display());
            return Err(DataError::checkpoint(&path, "no such file: the tower's picture settings are missing", hint));
        }
        let mut settings = ImageSettings::read(&Fields { config: &settings, path: &path }, ImageBackend::default())?;
        settings.pad_square |= pad;
        let vision = match &encoder["vision_config"] {
            Value::Null => {
                let config = read_optional(&tower()?.join("config.json"))?;
                let pair = config["model_type"].as_str().map(str::to_owned).filter(|t| t == "clip" || t == "siglip");
                match pair {
                    Some(pair) => {
                        let mut inner = config["vision_config"].clone();
                        inner["model_type"] = pair.into();
                        inner
                    }
                    None => config,
                }
            }
            inner => inner.clone(),
        };
        let is_clip = vision["model_type"].as_str().unwrap_or("clip").starts_with("clip");
        let size = |key: &str, default: u64| vision[key].as_u64().unwrap_or(default).max(1) as usize;
        let (side, patch) = (size("image_size", 224), size("patch_size", if is_clip { 32 } else { 16 }));
        if settings.fixed_size() != Some((side, side)) {
            let found = settings.fixed_size().map_or("pictures of any size".to_owned(), |(h, w)| format!("{w}x{h}"));
            return Err(DataError::checkpoint(
                &path,
                format!("the picture settings make {found}, the tower takes {side}x{side}"),
                "correct `size` and `crop_size`, or name the tower that belongs to them",
            ));
        }
        self.files.push((place.to_owned(), path));
        self.num_class[usize::from(id == VIDEO_ID)] = usize::from(is_clip);
        let keeps_class = encoder["mm_vision_select_feature"].as_str() == Some("cls_patch");
        let token = Placeholder { text: text.to_owned(), id };
        Ok(Pictures { settings, token, patch, extra: i64::from(is_clip && keeps_class) })
    }

    fn side(&self, kind: VisualKind) -> Option<&Pictures> {
        match kind {
            VisualKind::Image => self.image.as_ref(),
            VisualKind::Video => self.video.as_ref(),
            VisualKind::Audio => None,
        }
    }

    /// The same with another resize.
    pub fn with_backend(mut self, backend: ImageBackend) -> Self {
        for side in self.image.iter_mut().chain(&mut self.video) {
            side.settings = side.settings.clone().with_backend(backend);
        }
        self
    }

    /// What stands for a medium of this kind.
    pub fn placeholder(&self, kind: VisualKind) -> Option<&Placeholder> {
        self.side(kind).map(|side| &side.token)
    }

    /// Side of a patch and number of class tokens of a picture.
    pub fn class_tokens(&self, kind: VisualKind) -> Option<(usize, usize)> {
        self.side(kind).map(|side| (side.patch, self.num_class[usize::from(kind == VisualKind::Video)]))
    }

    /// Whether pictures are made square with the mean colour first.
    pub fn pads_square(&self, kind: VisualKind) -> bool {
        self.side(kind).is_some_and(|side| side.settings.pad_square)
    }

    /// The texts that no tokenizer sees, and the ids in their places.
    pub fn marks(&self) -> Vec<(&str, u32)> {
        self.image.iter().chain(&self.video).map(|side| (side.token.text.as_str(), side.token.id)).collect()
    }

    fn around(&self, kind: VisualKind) -> (&'static str, &'static str) {
        match (self.has_start_end, kind) {
            (false, _) | (_, VisualKind::Audio) => ("", ""),
            (true, VisualKind::Image) => ("<im_start>", "<im_end>"),
            (true, VisualKind::Video) => ("<vi_start>", "<vi_end>"),
        }
    }

    /// A medium in a text, with what stands around it.
    pub fn in_text(&self, kind: VisualKind) -> String {
        let (start, end) = self.around(kind);
        format!("{start}{}{end}", self.placeholder(kind).map_or("", |token| token.text.as_str()))
    }

    /// Plans what a media reference puts into the text, and what is done to its frames.
    ///
    /// # Errors
    /// There is no encoder for it.
    pub fn plan(&self, place: &Place<'_>, sample: &Sample) -> Result<(Vec<Planned>, Target), RecordError> {
        let is_clip = place.is_clip && self.is_separate;
        let kind = if is_clip { VisualKind::Video } else { VisualKind::Image };
        let Some(side) = self.side(kind) else {
            let (medium, tower) = if is_clip { ("a clip", "video_tower") } else { ("an image", "image_tower") };
            let what = format!("the record has {medium}, and the checkpoint has no encoder for it");
            return Err(record_error(sample, "no_encoder", what)
                .hint(format!("join one with `model.{tower}`, or remove the record")));
        };
        let size = side.settings.fixed_size().unwrap_or_default();
        let [_, rows, columns] = side.grid(size.0, size.1);
        let planned = |frames: std::ops::Range<usize>| {
            let num_tokens = frames.len() * side.count(size.0, size.1);
            let visual = Visual {
                kind,
                grid: [frames.len(), rows, columns],
                num_tokens,
                seconds: frames.map(|frame| place.clip.seconds(frame)).collect(),
                ..Visual::default()
            };
            Planned { visual, size, text: None, slots: vec![num_tokens] }
        };
        Ok(match is_clip {
            true => (vec![planned(place.frames.clone())], Target::Clip),
            false => (place.frames.clone().map(|frame| planned(frame..frame + 1)).collect(), Target::Own),
        })
    }

    fn of_target(&self, target: Target) -> Option<&Pictures> {
        self.side(if target == Target::Clip { VisualKind::Video } else { VisualKind::Image })
    }

    /// A picture or frame as its tower takes it, still in bytes.
    pub fn shape(&self, image: RgbImage, target: Target) -> RgbImage {
        match self.of_target(target) {
            Some(side) => side.settings.shape(image),
            // A medium without an encoder was refused when it was planned.
            None => image,
        }
    }

    /// Everything that [`Encoders::shape`] depends on, as a text.
    pub fn shape_key(&self, target: Target) -> String {
        self.of_target(target).map_or_else(|| "as it is".to_owned(), |side| side.settings.shape_key())
    }

    /// Writes the values of media at the end of `values`, each picture by the settings of its encoder.
    pub fn write(&self, visuals: &[Visual], pictures: &[RgbImage], values: &mut Vec<f32>) {
        let mut rest = pictures;
        for visual in visuals {
            let (own, others) = rest.split_at(visual.seconds.len().min(rest.len()));
            if let Some(side) = self.side(visual.kind) {
                side.write(own, values);
            }
            rest = others;
        }
    }

    /// The pictures of an encoded record with the normalisation undone.
    pub fn undo(&self, encoded: &Encoded) -> Vec<RgbImage> {
        let mut pictures = Vec::new();
        let mut rest = encoded.pixels.as_slice();
        for visual in &encoded.visuals {
            let Some(side) = self.side(visual.kind) else { continue };
            let (height, width) = side.settings.fixed_size().unwrap_or_default();
            let (own, others) = rest.split_at((visual.seconds.len() * 3 * height * width).min(rest.len()));
            pictures.extend(side.undo(own, height, width));
            rest = others;
        }
        pictures
    }
}
