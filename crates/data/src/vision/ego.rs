//! Owns [`Ego`]: what EgoGPT makes of pictures, of clips whose frames are averaged 2 x 2, and of sound. It refuses still pictures
//! that its published code would cut into tiles.
//!
//! Checkpoints of this family were published without a processor file and without placeholders in their tokenizer: what the
//! published code does instead stands here (SigLIP's processor at the tower's own size, `<image>` and `<speech>` as marks that no
//! text is parted by).

use serde_json::{Value, json};

use super::fields::Fields;
use super::pictures::Pictures;
use super::settings::{ImageBackend, ImageSettings};
use super::source::{Files, video_defaults};
use super::{Placeholder, Planned, Vision};
use crate::batch::{Visual, VisualKind};
use crate::clips::{Place, VideoDefaults, name_of};
use crate::error::{DataError, RecordError};
use crate::mel::MelSpectrogram;
use crate::options::EncodeOptions;
use crate::record::Sample;
use crate::tokenizer::{Tokenizer, read_optional};

/// `model_type` of these checkpoints.
const MODEL_TYPE: &str = "egogpt_qwen";
/// What stands for a picture or clip, and for sound, in their texts.
const MARKS: [&str; 2] = ["<image>", "<speech>"];

/// What the family makes of media.
#[derive(Debug, Clone)]
pub(crate) struct Ego {
    pub pictures: Pictures,
    /// Whether a row follows every picture.
    has_newline: bool,
    newline: Newline,
    /// Why still pictures are refused.
    pub no_stills: Option<String>,
    pub speech: Option<Speech>,
}

/// Where the learned row stands in what a clip gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Newline {
    None,
    End,
    Rows,
}

/// What becomes of sound.
#[derive(Debug, Clone)]
pub(crate) struct Speech {
    pub token: Placeholder,
    pub mel: MelSpectrogram,
    /// States that the encoder makes of a window.
    pub states: usize,
    /// Tokens of a window.
    pub tokens: usize,
}

/// Makes the marks tokens of their own where the checkpoint is of this family.
pub(crate) fn add_marks(tokenizer: &mut Tokenizer, config: &Value) -> Result<(), DataError> {
    if config["model_type"] == MODEL_TYPE { tokenizer.add_marks(&MARKS) } else { Ok(()) }
}

/// The settings of a checkpoint of this family; none for every other one.
pub(super) fn read(files: &Files<'_>) -> Result<Option<(Vision, VideoDefaults)>, DataError> {
    let config = files.config;
    if config["model_type"] != MODEL_TYPE {
        return Ok(None);
    }
    let path = files.dir.join("preprocessor_config.json");
    let own = match &files.processor["image_processor"] {
        Value::Null => read_optional(&path)?,
        nested => nested.clone(),
    };
    let size = |key: &str, usual: usize| config["vision_config"][key].as_u64().map_or(usual, |n| n as usize);
    let (side, patch) = (size("image_size", 384), size("patch_size", 14));
    let usual =
        json!({"image_processor_type": "SiglipImageProcessor", "size": {"height": side, "width": side}, "resample": 3});
    let fields = Fields { config: if own.is_null() { &usual } else { &own }, path: &path };
    let settings = ImageSettings::read(&fields, ImageBackend::default())?;
    let mark = |text: &str| match files.tokenizer.id_of(text) {
        Some(id) => Ok(Placeholder { text: text.to_owned(), id }),
        None => Err(DataError::checkpoint(files.dir, format!("the tokenizer does not take `{text}`"), "copy it again")),
    };
    let aspect = config["image_aspect_ratio"].as_str().unwrap_or("square");
    let merge = config["mm_patch_merge_type"].as_str().unwrap_or("flat");
    let has_newline = merge.contains("unpad");
    let newline = match config["mm_newline_position"].as_str().unwrap_or("one_token") {
        _ if !has_newline => Newline::None,
        "grid" => Newline::Rows,
        "one_token" => Newline::End,
        _ => Newline::None,
    };
    let speech = match &config["speech_encoder"] {
        Value::Null => None,
        _ => Some(speech(files, mark(MARKS[1])?)?),
    };
    let ego = Ego {
        pictures: Pictures { settings, token: mark(MARKS[0])?, patch: patch.max(1), extra: 0 },
        has_newline,
        newline,
        no_stills: (aspect != "square").then(|| aspect.to_owned()),
        speech,
    };
    Ok(Some((Vision::Ego(ego), video_defaults(files)?)))
}

/// Sizes of the speech side: those of `speech_config`, in either spelling, else those of the encoder that is named.
fn speech(files: &Files<'_>, token: Placeholder) -> Result<Speech, DataError> {
    let places = ["speech_config", "audio_config", "speech_encoder_config"];
    let own = places.iter().map(|key| &files.config[*key]).find(|own| own.is_object()).unwrap_or(&Value::Null);
    let number = |keys: [&str; 2]| keys.iter().find_map(|key| own[*key].as_u64()).map(|n| n as usize);
    let name = files.config["speech_encoder"].as_str().unwrap_or_default();
    let file = name.rsplit(['/', '\\']).next().unwrap_or(name);
    let usual_mels = if own.is_null() && (file.contains("v3") || file.contains("turbo")) { 128 } else { 80 };
    let num_mels = number(["num_mel_bins", "n_mels"]).unwrap_or(usual_mels);
    let states = number(["max_source_positions", "n_audio_ctx"]).unwrap_or(1500);
    let rate = files.config["speech_encoder_ds_rate"].as_u64().unwrap_or(5) as usize;
    // Windows longer than a day or of a thousand frequencies are no spectrogram.
    if num_mels == 0 || num_mels > 1024 || states == 0 || states > 1_000_000 || rate == 0 || rate > states {
        let path = files.dir.join("config.json");
        let what =
            format!("{num_mels} frequencies, {states} states a window and {rate} of them a token make no speech side");
        return Err(DataError::checkpoint(&path, what, "check `speech_config` and `speech_encoder_ds_rate`"));
    }
    let mel = MelSpectrogram::new(num_mels, 2 * states);
    Ok(Speech { token, mel, states, tokens: states / rate })
}

impl Ego {
    /// Tokens of a still picture of this size.
    pub fn count_still(&self, height: usize, width: usize) -> usize {
        self.pictures.count(height, width) + usize::from(self.has_newline)
    }

    /// Tokens of a clip.
    pub fn count_clip(&self, [frames, rows, columns]: [usize; 3]) -> usize {
        let (rows, columns) = (rows / 2, columns / 2);
        match self.newline {
            Newline::None => frames * rows * columns,
            Newline::End => frames * rows * columns + 1,
            Newline::Rows => frames * rows * (columns + 1),
        }
    }
}

impl Ego {
    /// Height and width of a picture or frame after scaling.
    pub fn size_of(
        &self,
        place: &Place<'_>,
        frame: usize,
        sample: &Sample,
        options: &EncodeOptions,
    ) -> Result<(usize, usize), DataError> {
        match self.pictures.settings.fixed_size() {
            Some(size) => Ok(size),
            None => {
                let (height, width) = place.clip.source_size(frame, sample, options)?;
                Ok(self.pictures.settings.output_size(height, width))
            }
        }
    }

    /// Refuses a still picture where the published code does something else with it.
    pub fn check_still(&self, place: &Place<'_>, sample: &Sample) -> Result<(), DataError> {
        let Some(aspect) = &self.no_stills else { return Ok(()) };
        let name = name_of(place.clip.reference());
        let what =
            format!("`{name}` is a still picture, and `image_aspect_ratio: {aspect}` of this family is not built");
        Err(RecordError::new("not_built", &sample.origin, Some(&sample.id), what)
            .hint("give it as a clip (a list of one frame), or a checkpoint with `image_aspect_ratio: square`")
            .into())
    }

    /// Plans a clip, whose frames are taken together.
    pub fn plan_clip(&self, place: &Place<'_>, sample: &Sample, options: &EncodeOptions) -> Result<Planned, DataError> {
        let size = self.size_of(place, place.frames.start, sample, options)?;
        let [_, rows, columns] = self.pictures.grid(size.0, size.1);
        let grid = [place.frames.len(), rows, columns];
        let num_tokens = self.count_clip(grid);
        let visual = Visual {
            kind: VisualKind::Video,
            grid,
            num_tokens,
            seconds: place.frames.clone().map(|frame| place.clip.seconds(frame)).collect(),
            ..Visual::default()
        };
        Ok(Planned { visual, size, text: None, slots: vec![num_tokens] })
    }
}

impl Speech {
    /// A medium of so many windows, as layouts hold it: states for patches.
    pub fn visual(&self, num_windows: usize) -> Visual {
        Visual {
            kind: VisualKind::Audio,
            grid: [num_windows, self.states, 1],
            num_tokens: num_windows * self.tokens,
            ..Visual::default()
        }
    }
}
