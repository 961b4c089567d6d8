//! Owns the configuration files of the Qwen-VL families: which classes they name, and their settings with the classes'
//! own defaults. It refuses other classes.
//!
//! Source: `transformers` 5.23 `Qwen2VLImageProcessor`, `Qwen2VLVideoProcessor`, `Qwen3VLVideoProcessor`,
//! `Qwen2VLProcessor`, `Qwen2_5_VLProcessor`, `Qwen3VLProcessor`, and the order in which `AutoVideoProcessor` looks for
//! files. LLaVA-OneVision-1.5 brings its own code, which hands frames to the image processor one by one.

use media::resize::Filter;
use media::{FrameCount, FrameRule};
use serde_json::Value;

use super::Placeholder;
use super::budget::{Budget, ClipBudget};
use super::fields::Fields;
use super::patches::{ClipStyle, Patches, Side, WholeClips};
use super::settings::{CLIP_MEAN, CLIP_STD, ImageBackend, read_filter};
use super::source::Files;
use super::values::{self, Values};
use crate::clips::VideoDefaults;
use crate::error::DataError;
use crate::tokenizer::read_optional;

/// Keys of pictures, beside those of [`values::KEYS`].
const IMAGE_KEYS: [&str; 8] =
    ["do_resize", "size", "min_pixels", "max_pixels", "resample", "patch_size", "temporal_patch_size", "merge_size"];

/// Keys of clips, beside those of pictures.
const CLIP_KEYS: [&str; 7] =
    ["do_sample_frames", "num_frames", "fps", "min_frames", "max_frames", "cap_pixels_per_frame", "max_video_tokens"];

/// Keys of the base classes that these classes never look at.
const INERT: [&str; 6] = ["do_center_crop", "crop_size", "do_pad", "pad_size", "size_divisor", "use_token_compression"];

/// Rate of a list of frames that nobody gives one: what the reference takes for metadata that it lacks.
const LIST_FPS: f64 = 24.0;

/// What a class says when its file says nothing.
struct ClassDefaults {
    budget: Budget,
    mean: [f64; 3],
    std: [f64; 3],
    patch: usize,
}

/// `Qwen2VLImageProcessor`.
const IMAGE: ClassDefaults = ClassDefaults {
    budget: Budget { min_pixels: 56 * 56, max_pixels: 28 * 28 * 1280 },
    mean: CLIP_MEAN,
    std: CLIP_STD,
    patch: 14,
};

/// The video processors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum VideoClass {
    Qwen2Vl,
    Qwen3Vl,
}

impl VideoClass {
    fn name(self) -> &'static str {
        match self {
            Self::Qwen2Vl => "Qwen2VLVideoProcessor",
            Self::Qwen3Vl => "Qwen3VLVideoProcessor",
        }
    }

    fn defaults(self) -> ClassDefaults {
        match self {
            Self::Qwen2Vl => {
                ClassDefaults { budget: Budget { min_pixels: 128 * 28 * 28, max_pixels: 28 * 28 * 768 }, ..IMAGE }
            }
            Self::Qwen3Vl => ClassDefaults {
                budget: Budget { min_pixels: 128 * 32 * 32, max_pixels: 32 * 32 * 768 },
                mean: [0.5; 3],
                std: [0.5; 3],
                patch: 16,
            },
        }
    }
}

/// Sides of a class's patches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sides {
    patch: usize,
    merge: usize,
    temporal: usize,
}

impl std::fmt::Display for Sides {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { patch, merge, temporal } = self;
        write!(f, "`patch_size: {patch}`, `merge_size: {merge}`, `temporal_patch_size: {temporal}`")
    }
}

/// The settings of a checkpoint of one of the families, and what it takes of clips about which nobody says anything.
///
/// # Errors
/// A class or setting that is not supported, by name; files that contradict each other.
pub(crate) fn read(files: &Files<'_>, image: &Fields<'_>) -> Result<(Patches, VideoDefaults), DataError> {
    // Keys of clips stand there for clips, where one file serves both.
    let inert = [&INERT[..], &CLIP_KEYS].concat();
    image.check_known("Qwen2VLImageProcessor", &[&IMAGE_KEYS[..], &values::KEYS].concat(), &inert)?;
    let (side, sides) = read_side(image, &IMAGE, true)?;
    check_model(files, image, sides)?;
    let token = Placeholder::find(files, "image", "<|image_pad|>")?;
    let around = ["vision_start_token", "vision_end_token"].map(|name| {
        let usual = format!("<|{}|>", name.trim_end_matches("_token"));
        let text = files.tokenizer.special(name).map_or(usual, str::to_owned);
        files.tokenizer.id_of(&text).map_or_else(String::new, |_| text)
    });
    let [start, end] = around;
    let (clips, defaults) = if takes_frames_one_by_one(files.config) {
        (ClipStyle::Frames, VideoDefaults::default())
    } else {
        let (clips, clip_sides, defaults) = read_clips(files)?;
        if clip_sides != sides {
            return Err(image.bad(
                format!("pictures are cut by {sides}, and clips by {clip_sides}"),
                "one tower takes both: `patch_size`, `merge_size` and `temporal_patch_size` must be the same in both files",
            ));
        }
        (ClipStyle::Whole(clips), defaults)
    };
    let Sides { patch, merge, temporal } = sides;
    Ok((Patches { image: side, clips, token, around: (start, end), patch, merge, temporal }, defaults))
}

/// Whether the model is LLaVA-OneVision-1.5.
fn takes_frames_one_by_one(config: &Value) -> bool {
    matches!(config["model_type"].as_str(), Some("llavaonevision1_5" | "llava_onevision1_5"))
}

/// Settings of pictures or of the frames of clips.
fn read_side(fields: &Fields<'_>, class: &ClassDefaults, reads_pixels: bool) -> Result<(Side, Sides), DataError> {
    let backend = ImageBackend::default();
    let filter: Option<Filter> = match fields.flag("do_resize", true)? {
        true => Some(read_filter(fields, backend, true)?),
        false => None,
    };
    let budget = read_budget(fields, class.budget, reads_pixels)?;
    let values = Values::read(fields, backend, class.mean, class.std)?;
    let sides = Sides {
        patch: fields.count("patch_size", class.patch)?,
        merge: fields.count("merge_size", 2)?,
        temporal: fields.count("temporal_patch_size", 2)?,
    };
    Ok((Side { backend, filter, budget, values }, sides))
}

/// `size`, whose ends are areas here, over which `min_pixels` and `max_pixels` win.
fn read_budget(fields: &Fields<'_>, class: Budget, reads_pixels: bool) -> Result<Budget, DataError> {
    let mut budget = class;
    let size = &fields.config["size"];
    if !size.is_null() {
        let inner = Fields { config: size, path: fields.path };
        let both = inner.count_if_any("shortest_edge")?.zip(inner.count_if_any("longest_edge")?);
        let known = size.as_object().is_some_and(|size| {
            size.iter().all(|(key, value)| value.is_null() || ["shortest_edge", "longest_edge"].contains(&key.as_str()))
        });
        let Some((min_pixels, max_pixels)) = both.filter(|_| known) else {
            return Err(fields.bad(
                format!("`size` {size} is not supported"),
                "write `shortest_edge` and `longest_edge`, the least and the most pixels",
            ));
        };
        budget = Budget { min_pixels, max_pixels };
    }
    let (min, max) = (fields.count_if_any("min_pixels")?, fields.count_if_any("max_pixels")?);
    if reads_pixels {
        budget.min_pixels = min.unwrap_or(budget.min_pixels);
        budget.max_pixels = max.unwrap_or(budget.max_pixels);
    }
    if budget.min_pixels > budget.max_pixels {
        return Err(fields.bad(
            format!("at least {} and at most {} pixels are wanted", budget.min_pixels, budget.max_pixels),
            "lower `shortest_edge` (`min_pixels`) or raise `longest_edge` (`max_pixels`)",
        ));
    }
    Ok(budget)
}

/// The settings of clips: nested in `processor_config.json`, else `video_preprocessor_config.json`, else those of
/// pictures, which checkpoints from before that file share.
fn read_clips(files: &Files<'_>) -> Result<(WholeClips, Sides, VideoDefaults), DataError> {
    let names = ["video_preprocessor_config.json", "preprocessor_config.json"];
    let nested = &files.processor["video_processor"];
    let (config, path) = if nested.is_null() {
        let Some(name) = names.into_iter().find(|name| files.dir.join(name).is_file()) else {
            return Err(DataError::checkpoint(
                &files.dir.join(names[0]),
                "no such file",
                "copy the processor files of the checkpoint into the folder",
            ));
        };
        (read_optional(&files.dir.join(name))?, files.dir.join(name))
    } else {
        (nested.clone(), files.dir.join("processor_config.json"))
    };
    let fields = Fields { config: &config, path: &path };
    let class = video_class(files, &fields)?;
    let known = [&IMAGE_KEYS[..], &CLIP_KEYS, &values::KEYS].concat();
    fields.check_known(class.name(), &known, &INERT)?;
    // Qwen3's class has no `min_pixels` and `max_pixels`.
    let (side, sides) = read_side(&fields, &class.defaults(), class == VideoClass::Qwen2Vl)?;
    let capped = fields.flag("cap_pixels_per_frame", false)?;
    let shared = match class {
        VideoClass::Qwen2Vl => {
            let tokens = fields.count("max_video_tokens", 128_000)?;
            ClipBudget::EachFrame { tokens: capped.then_some(tokens) }
        }
        VideoClass::Qwen3Vl => {
            let tokens = fields.count("max_video_tokens", 768)?;
            ClipBudget::WholeClip { tokens_a_frame: capped.then_some(tokens) }
        }
    };
    let token = Placeholder::find(files, "video", "<|video_pad|>")?;
    let has_times = has_times(files, &config, class)?;
    let defaults = read_defaults(&fields, class, sides.temporal)?;
    Ok((WholeClips { side, shared, token, has_times }, sides, defaults))
}

/// The class that `AutoVideoProcessor` takes: by name, else by the image processor's name, else by the model.
fn video_class(files: &Files<'_>, fields: &Fields<'_>) -> Result<VideoClass, DataError> {
    let named = fields.name("video_processor_type")?.map(str::to_owned);
    let by_image = || Some(fields.config["image_processor_type"].as_str()?.replace("ImageProcessor", "VideoProcessor"));
    let by_model = || match files.config["model_type"].as_str() {
        Some("qwen3_vl") => "Qwen3VLVideoProcessor",
        _ => "Qwen2VLVideoProcessor",
    };
    let name = named.or_else(by_image).unwrap_or_else(|| by_model().to_owned());
    let name = name.trim_end_matches("Fast");
    let class = [VideoClass::Qwen2Vl, VideoClass::Qwen3Vl].into_iter().find(|class| class.name() == name);
    class.ok_or_else(|| {
        fields.bad(
            format!("video processor `{name}` is not supported"),
            "supported are Qwen2VLVideoProcessor and Qwen3VLVideoProcessor",
        )
    })
}

/// Whether the processor writes times before the steps of a clip.
fn has_times(files: &Files<'_>, clips: &Value, class: VideoClass) -> Result<bool, DataError> {
    let pictures = read_optional(&files.dir.join("preprocessor_config.json"))?;
    let tokenizer = read_optional(&files.dir.join("tokenizer_config.json"))?;
    let places = [files.processor, &pictures, clips, &tokenizer];
    Ok(match places.into_iter().find_map(|config| config["processor_class"].as_str()) {
        Some("Qwen2VLProcessor" | "Qwen2_5_VLProcessor") => false,
        Some("Qwen3VLProcessor") => true,
        Some(other) => {
            return Err(DataError::checkpoint(
                files.dir,
                format!("processor `{other}` is not supported beside `Qwen2VLImageProcessor`"),
                "supported are Qwen2VLProcessor, Qwen2_5_VLProcessor and Qwen3VLProcessor",
            ));
        }
        None => match files.config["model_type"].as_str() {
            Some(model) => model.starts_with("qwen3_vl"),
            None => class == VideoClass::Qwen3Vl,
        },
    })
}

/// Which frames are taken. Qwen2-VL's class takes all of them unless its file asks for samples; Qwen3-VL's takes two a
/// second unless its file says otherwise.
fn read_defaults(fields: &Fields<'_>, class: VideoClass, temporal: usize) -> Result<VideoDefaults, DataError> {
    let is_sampled = fields.flag("do_sample_frames", class == VideoClass::Qwen3Vl)?;
    let num_frames = fields.count_if_any("num_frames")?;
    let named_fps = fields.positive_if_any("fps")?;
    if let (Some(num_frames), Some(fps)) = (num_frames, named_fps) {
        return Err(fields.bad(format!("`num_frames: {num_frames}` stands beside `fps: {fps}`"), "keep one of them"));
    }
    let says_fps = fields.config.get("fps").is_some();
    let fps = named_fps.or((class == VideoClass::Qwen3Vl && !says_fps).then_some(2.0));
    let count = match (is_sampled, num_frames, fps) {
        (true, Some(count), _) => FrameCount::Num(count),
        (true, None, Some(fps)) => FrameCount::Fps(fps),
        _ => FrameCount::All,
    };
    let (min_frames, max_frames) = (fields.count("min_frames", 4)?, fields.count("max_frames", 768)?);
    Ok(VideoDefaults {
        count: Some(count),
        takes_all: !is_sampled,
        rule: match class {
            VideoClass::Qwen2Vl => FrameRule::Qwen2Vl,
            VideoClass::Qwen3Vl => FrameRule::Qwen3Vl,
        },
        min_frames: Some(min_frames),
        max_frames: Some(max_frames),
        temporal,
        list_fps: Some(LIST_FPS),
    })
}

/// Compares the sides with those of the model, where its configuration says them.
fn check_model(files: &Files<'_>, fields: &Fields<'_>, sides: Sides) -> Result<(), DataError> {
    let vision = &files.config["vision_config"];
    for (key, own, value) in [
        ("patch_size", sides.patch, &vision["patch_size"]),
        ("merge_size", sides.merge, &vision["spatial_merge_size"]),
        ("temporal_patch_size", sides.temporal, &vision["temporal_patch_size"]),
    ] {
        if let Some(model) = value.as_u64().filter(|&model| model != own as u64) {
            return Err(fields.bad(
                format!("`{key}` is {own}, and `config.json` says {model}"),
                "processor and model belong to different checkpoints; copy both again",
            ));
        }
    }
    Ok(())
}
