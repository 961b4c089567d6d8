//! Owns the processor files of LLaVA-NeXT, LLaVA-NeXT-Video and LLaVA-OneVision: which classes they name, and their settings
//! with the classes' own defaults. It refuses other classes.
//!
//! Source: `transformers` 5.23 `LlavaNextImageProcessor`, `LlavaOnevisionImageProcessor`, `LlavaNextVideoVideoProcessor`,
//! `LlavaOnevisionVideoProcessor`, `LlavaNextProcessor`, `LlavaNextVideoProcessor`, `LlavaOnevisionProcessor`, and the order in
//! which `AutoVideoProcessor` looks for files.

use media::{FrameCount, FrameRule};
use serde_json::Value;

use super::Placeholder;
use super::fields::Fields;
use super::settings::{ImageBackend, ImageSettings, image_class, read_filter, square_of};
use super::source::Files;
use super::tiles::{Cutting, Size, TileClips, Tiles};
use crate::clips::VideoDefaults;
use crate::error::DataError;
use crate::tokenizer::read_optional;

/// The families, by `model_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    Next,
    NextVideo,
    OneVision,
}

impl Family {
    fn of(config: &Value) -> Option<Self> {
        match config["model_type"].as_str()? {
            "llava_next" => Some(Self::Next),
            "llava_next_video" => Some(Self::NextVideo),
            "llava_onevision" => Some(Self::OneVision),
            _ => None,
        }
    }

    fn image_class(self) -> &'static str {
        match self {
            Self::OneVision => "LlavaOnevisionImageProcessor",
            _ => "LlavaNextImageProcessor",
        }
    }

    fn video_class(self) -> &'static str {
        match self {
            Self::OneVision => "LlavaOnevisionVideoProcessor",
            _ => "LlavaNextVideoVideoProcessor",
        }
    }

    /// Side of the tower's pictures and of its patches where the model's file does not say them.
    fn tower(self) -> (u64, u64) {
        match self {
            Self::OneVision => (384, 14),
            _ => (336, 14),
        }
    }
}

/// Keys of images beside those that every processor has.
const IMAGE_KEYS: [&str; 1] = ["image_grid_pinpoints"];

/// Keys of clips.
const CLIP_KEYS: [&str; 3] = ["do_sample_frames", "num_frames", "fps"];

/// Keys without effect on values: tiles are padded to one number only where images are stacked.
const INERT: [&str; 3] = ["do_pad", "pad_size", "aspect_ratio_setting"];

/// Whether a checkpoint's images are cut into tiles: by its model, or by the class of its processor.
pub(crate) fn is_tiled(files: &Files<'_>, class: Option<&str>) -> bool {
    Family::of(files.config).is_some()
        || matches!(class, Some("LlavaNextImageProcessor" | "LlavaOnevisionImageProcessor"))
}

/// The settings of a checkpoint, and what it takes of clips about which nobody says anything; `None` for that where frames are
/// images.
///
/// # Errors
/// A class or setting that is not supported, by name; files that contradict each other.
pub(crate) fn read(files: &Files<'_>, image: &Fields<'_>) -> Result<(Tiles, Option<VideoDefaults>), DataError> {
    let named = image_class(image.config);
    let Some(family) = Family::of(files.config) else {
        let model = files.config["model_type"].as_str().unwrap_or("unknown");
        let class = named.unwrap_or_default();
        return Err(image.bad(
            format!("image processor `{class}` is not supported beside a `{model}` model"),
            "it belongs to `llava_next`, `llava_next_video` and `llava_onevision`; copy the processor files of the checkpoint",
        ));
    };
    let class = named.unwrap_or_else(|| family.image_class().to_owned());
    if class != family.image_class() {
        return Err(image.bad(
            format!("image processor `{class}` is not supported beside this model"),
            format!("supported is {}", family.image_class()),
        ));
    }
    let backend = ImageBackend::default();
    let others = [&IMAGE_KEYS[..], &CLIP_KEYS, &INERT].concat();
    let settings = ImageSettings::read_as(image, backend, &class, &others)?;
    let filter = read_filter(image, backend, true)?;
    let usual = if family == Family::OneVision { 384 } else { 224 };
    let square = |key: &str, is_shortest: bool| match &image.config[key] {
        Value::Null => Ok(None),
        value => square_of(value, is_shortest).map(Some).ok_or_else(|| {
            image.bad(format!("`{key}` {value} is not supported"), "write `height` and `width`, or `shortest_edge`")
        }),
    };
    let whole = square("size", true)?.unwrap_or((usual, usual));
    // What is cut has the side of the crop, whether or not anything is cropped.
    let says_crop = image.config.get("crop_size").is_some();
    let crop = square("crop_size", false)?.or((family != Family::OneVision && !says_crop).then_some((224, 224)));
    let cut = crop.unwrap_or(whole).0;
    let (height, width) = settings.output_size(cut, cut);
    if height != width || settings.output_size(whole.0, whole.1) != (height, width) {
        return Err(image.bad(
            format!("tiles of {cut} become {width}x{height}, and the whole image has another shape"),
            "make `size` and `crop_size` squares of the tower's `image_size`",
        ));
    }
    let (grid, max_tiles) = read_tokens(files, family, height)?;
    let pinpoints = pinpoints(image.config, family)
        .ok_or_else(|| image.wrong("image_grid_pinpoints", "a list of heights and widths in pixels"))?;
    let model_pinpoints = self::pinpoints(files.config, family).unwrap_or_else(|| pinpoints.clone());
    let token = Placeholder::find(files, "image", "<image>")?;
    let mut tiles = Tiles {
        settings,
        filter,
        token,
        cutting: Cutting { pinpoints, model_pinpoints, side: cut, grid, max_tiles },
        whole,
        side: height,
        cuts_one_image_only: family == Family::OneVision,
        clips: None,
    };
    if family == Family::Next {
        return Ok((tiles, None));
    }
    let (clips, defaults) = read_clips(files, family, &tiles)?;
    tiles.clips = Some(clips);
    Ok((tiles, Some(defaults)))
}

/// Tokens along a side of a tile, and the number of tiles above which a grid is shrunk.
fn read_tokens(files: &Files<'_>, family: Family, side: usize) -> Result<(usize, Option<usize>), DataError> {
    let path = files.dir.join("processor_config.json");
    let differs = |what: String| {
        DataError::checkpoint(&path, what, "processor and model belong to different checkpoints; copy both again")
    };
    let tower = &files.config["vision_config"];
    let (usual_side, usual_patch) = if tower.is_null() { family.tower() } else { (side as u64, 0) };
    let patch = [&tower["patch_size"], &files.processor["patch_size"]].into_iter().find_map(Value::as_u64);
    let patch = patch.or((usual_patch > 0).then_some(usual_patch)).filter(|&patch| patch > 0);
    let of_model = patch.map(|patch| tower["image_size"].as_u64().unwrap_or(usual_side) / patch);
    let counted = files.processor["num_image_tokens"].as_u64().map(u64::isqrt);
    let grid = match (counted, of_model) {
        (Some(counted), Some(of_model)) if counted != of_model => {
            return Err(differs(format!(
                "`num_image_tokens` is {}, and the model makes {of_model} x {of_model} of a picture",
                files.processor["num_image_tokens"]
            )));
        }
        (counted, of_model) => counted.or(of_model).filter(|&grid| grid > 0).ok_or_else(|| {
            DataError::checkpoint(&path, "`patch_size` is missing", "add it to `vision_config` in `config.json`")
        })?,
    };
    if family != Family::OneVision {
        return Ok((grid as usize, None));
    }
    let (own, of_model) = (&files.processor["vision_aspect_ratio"], &files.config["vision_aspect_ratio"]);
    if let (Some(own), Some(of_model)) = (own.as_str(), of_model.as_str())
        && own != of_model
    {
        return Err(differs(format!("`vision_aspect_ratio` is `{own}`, and `config.json` says `{of_model}`")));
    }
    let named = own.as_str().or(of_model.as_str()).unwrap_or("anyres_max_9");
    match named.trim_matches(|c| "anyres_max_".contains(c)).parse() {
        Ok(most) if most > 0 => Ok((grid as usize, Some(most))),
        _ => Err(DataError::checkpoint(
            &path,
            format!("`vision_aspect_ratio: {named}` is not supported"),
            "supported is `anyres_max_` with a number of tiles",
        )),
    }
}

/// `image_grid_pinpoints` of a file, or those of the family's class where it has none.
fn pinpoints(config: &Value, family: Family) -> Option<Vec<Size>> {
    if config["image_grid_pinpoints"].is_null() {
        return Some(match family {
            Family::OneVision => (0..36).map(|i| (384 * (i / 6 + 1), 384 * (i % 6 + 1))).collect(),
            _ => vec![(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)],
        });
    }
    let length = |value: &Value| value.as_u64().filter(|&length| length > 0).map(|length| length as usize);
    let pair = |pair: &Value| match pair.as_array()?.as_slice() {
        [height, width] => Some((length(height)?, length(width)?)),
        _ => None,
    };
    let pairs: Vec<Size> = config["image_grid_pinpoints"].as_array()?.iter().map(pair).collect::<Option<_>>()?;
    Some(pairs).filter(|pairs| !pairs.is_empty())
}

/// The settings of clips: nested in `processor_config.json`, else `video_preprocessor_config.json`, else those of images.
fn read_clips(files: &Files<'_>, family: Family, tiles: &Tiles) -> Result<(TileClips, VideoDefaults), DataError> {
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
    let class = video_class(&fields, family)?;
    let others = [&IMAGE_KEYS[..], &CLIP_KEYS, &INERT].concat();
    let settings = ImageSettings::read_as(&fields, ImageBackend::Torchvision, class, &others)?;
    if settings.fixed_size() != Some((tiles.side, tiles.side)) {
        let found = settings.fixed_size().map_or("of their own shape".to_owned(), |(h, w)| format!("of {w}x{h}"));
        return Err(fields.bad(
            format!("frames are {found}, and images are cut into tiles of {0}x{0}", tiles.side),
            "one tower takes both: set `size` and `crop_size` to its `image_size` in both files",
        ));
    }
    let token = Placeholder::find(files, "video", "<video>")?;
    let (side, behind) = match family {
        Family::OneVision => (tiles.cutting.grid.div_ceil(2), 1),
        _ => {
            let stride = files.config["spatial_pool_stride"].as_u64().filter(|&stride| stride > 0).unwrap_or(2);
            (tiles.cutting.grid / stride as usize, 0)
        }
    };
    let clips = TileClips { settings, token, tokens_a_frame: side * side, behind };
    Ok((clips, read_defaults(&fields)?))
}

/// The class that `AutoVideoProcessor` takes: by name, else by the image processor's name where there is such a one, else by the model.
fn video_class(fields: &Fields<'_>, family: Family) -> Result<&'static str, DataError> {
    let classes = [Family::NextVideo, Family::OneVision].map(Family::video_class);
    let known = |name: &str| classes.into_iter().find(|class| *class == name.trim_end_matches("Fast"));
    if let Some(name) = fields.name("video_processor_type")? {
        return known(name).ok_or_else(|| {
            fields.bad(
                format!("video processor `{name}` is not supported"),
                format!("supported are {}", classes.join(" and ")),
            )
        });
    }
    let by_image = fields.name("image_processor_type")?.map(|name| name.replace("ImageProcessor", "VideoProcessor"));
    Ok(by_image.and_then(|name| known(&name)).unwrap_or(family.video_class()))
}

/// Which frames are taken: all of them, unless the file asks for samples.
fn read_defaults(fields: &Fields<'_>) -> Result<VideoDefaults, DataError> {
    let is_sampled = fields.flag("do_sample_frames", false)?;
    let (num_frames, fps) = (fields.count_if_any("num_frames")?, fields.positive_if_any("fps")?);
    if let (Some(num_frames), Some(fps)) = (num_frames, fps) {
        return Err(fields.bad(format!("`num_frames: {num_frames}` stands beside `fps: {fps}`"), "keep one of them"));
    }
    let count = match (is_sampled, num_frames, fps) {
        (true, Some(count), _) => FrameCount::Num(count),
        (true, None, Some(fps)) => FrameCount::Fps(fps),
        _ => FrameCount::All,
    };
    Ok(VideoDefaults {
        count: Some(count),
        takes_all: count == FrameCount::All,
        rule: FrameRule::Transformers,
        ..VideoDefaults::default()
    })
}
