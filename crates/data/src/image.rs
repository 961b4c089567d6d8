//! Owns [`ImageSettings`]: a checkpoint's picture settings and the way from RGB bytes to normalised values.
//! It refuses to decode files, and processors whose arithmetic it does not repeat exactly.
//!
//! Source: `transformers` 5.23 `image_processing_backends.py`. There every processor resizes with torchvision unless
//! the caller asks for Pillow, whatever the class name in the file says; `Backend::Pillow` repeats the other one.
//! Values equal the reference bit for bit: the resize is integer arithmetic, and the rest is the same f32 operations
//! in the same order, looked up in a table of 256 values a channel.

use std::path::Path;

use media::RgbImage;
use media::resize::Filter;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::DataError;

const CLIP_MEAN: [f64; 3] = [0.48145466, 0.4578275, 0.40821073];
const CLIP_STD: [f64; 3] = [0.26862954, 0.26130258, 0.27577711];

/// Whose resize is repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageBackend {
    /// torchvision on bytes, as `transformers` 5 does for every class.
    #[default]
    Torchvision,
    /// Pillow, as `transformers` 4 did for classes without `Fast` in their name.
    Pillow,
}

/// The size that a picture is scaled to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Exact { height: usize, width: usize },
    Shortest(usize),
    Bounded { shortest: usize, longest: usize },
}

/// A checkpoint's picture settings.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ImageSettings {
    pub backend: ImageBackend,
    /// Pad to a square with the mean colour before anything else.
    pub pad_square: bool,
    resize: Option<(Target, Filter)>,
    crop: Option<(usize, usize)>,
    rescale: Option<f64>,
    normalize: Option<([f64; 3], [f64; 3])>,
    /// `table[channel][byte]`: the value of a byte.
    table: Box<[[f32; 256]; 3]>,
}

/// What a class says when its file says nothing.
struct ClassDefaults {
    size: Target,
    crop: Option<(usize, usize)>,
    mean: [f64; 3],
    std: [f64; 3],
    /// Whether the class pads to a square when `do_pad` is set.
    pads_square: bool,
    int_size_is_shortest: bool,
}

fn class_defaults(class: &str) -> Option<ClassDefaults> {
    let clip = ClassDefaults {
        size: Target::Shortest(224),
        crop: Some((224, 224)),
        mean: CLIP_MEAN,
        std: CLIP_STD,
        pads_square: false,
        int_size_is_shortest: true,
    };
    match class {
        "CLIPImageProcessor" => Some(clip),
        "LlavaImageProcessor" => Some(ClassDefaults { pads_square: true, ..clip }),
        "SiglipImageProcessor" => Some(ClassDefaults {
            size: Target::Exact { height: 224, width: 224 },
            crop: None,
            mean: [0.5; 3],
            std: [0.5; 3],
            pads_square: false,
            int_size_is_shortest: true,
        }),
        _ => None,
    }
}

/// Keys that are known and have no effect on values.
const WITHOUT_EFFECT: [&str; 14] = [
    "image_processor_type",
    "feature_extractor_type",
    "processor_class",
    "auto_map",
    "data_format",
    "input_data_format",
    "return_tensors",
    "disable_grouping",
    "device",
    "default_to_square",
    "_valid_processor_keys",
    "do_convert_rgb",
    "use_fast",
    "image_seq_length",
];

const READ: [&str; 14] = [
    "size",
    "crop_size",
    "do_resize",
    "do_center_crop",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
    "resample",
    "do_pad",
    "pad_size",
    "image_aspect_ratio",
    "use_square_size",
];

impl ImageSettings {
    /// Reads the settings of a file that was parsed to `config`.
    ///
    /// # Errors
    /// A class or setting that is not supported, by name.
    pub fn read(config: &Value, path: &Path, backend: ImageBackend) -> Result<Self, DataError> {
        let bad = |what: String, hint: &str| DataError::checkpoint(path, what, hint);
        let class = config["image_processor_type"]
            .as_str()
            .map(str::to_owned)
            .or_else(|| {
                config["feature_extractor_type"].as_str().map(|s| s.replace("FeatureExtractor", "ImageProcessor"))
            })
            .unwrap_or_else(|| "LlavaImageProcessor".to_owned());
        let class = class.trim_end_matches("Fast");
        let Some(defaults) = class_defaults(class) else {
            return Err(bad(
                format!("image processor `{class}` is not supported"),
                "supported are CLIPImageProcessor, SiglipImageProcessor and LlavaImageProcessor",
            ));
        };
        for (key, value) in config.as_object().into_iter().flatten() {
            if !value.is_null() && !READ.contains(&key.as_str()) && !WITHOUT_EFFECT.contains(&key.as_str()) {
                return Err(bad(
                    format!("`{class}`: setting `{key}` is not supported"),
                    "remove the setting if it has no effect on pixel values",
                ));
            }
        }
        let wrong = |key: &str, expected: &str| {
            bad(
                format!("`{key}` must be {expected}, found `{}`", config[key]),
                "correct the setting, or remove it for the class's own",
            )
        };
        // As in the reference, a null says no and an absent flag leaves it to the class.
        let flag = |key: &str, default: bool| match config.get(key) {
            None => Ok(default),
            Some(Value::Null) => Ok(false),
            Some(value) => value.as_bool().ok_or_else(|| wrong(key, "true or false")),
        };
        let texts = ["image_processor_type", "feature_extractor_type", "image_aspect_ratio"];
        if let Some(key) = texts.into_iter().find(|key| !config[*key].is_null() && !config[*key].is_string()) {
            return Err(wrong(key, "a name"));
        }
        let resizes = flag("do_resize", true)?;
        // Media are RGB before they come here; a null asks for nothing.
        if !flag("do_convert_rgb", true)? && !config["do_convert_rgb"].is_null() {
            return Err(bad("`do_convert_rgb: false` is not supported".into(), "media are always RGB here"));
        }
        let target = if config["size"].is_null() {
            if flag("use_square_size", false)? { Target::Exact { height: 224, width: 224 } } else { defaults.size }
        } else {
            read_size(&config["size"], defaults.int_size_is_shortest)
                .ok_or_else(|| bad(format!("`size` {} is not supported", config["size"]), SIZE_HINT))?
        };
        let filter = match config.get("resample") {
            None => 3,
            Some(Value::Null) if !resizes => 3,
            Some(value) => value.as_u64().ok_or_else(|| wrong("resample", "a filter's number"))?,
        };
        let filter = match filter {
            2 => Filter::Bilinear,
            3 => Filter::Bicubic,
            other => match (backend, other) {
                (ImageBackend::Pillow, 0) => Filter::Nearest,
                (ImageBackend::Pillow, 1) => Filter::Lanczos,
                (ImageBackend::Pillow, 4) => Filter::Box,
                (ImageBackend::Pillow, 5) => Filter::Hamming,
                _ => return Err(bad(format!("`resample: {other}` is not supported"), "supported are 2 and 3")),
            },
        };
        let crop = if flag("do_center_crop", defaults.crop.is_some())? {
            let crop = match &config["crop_size"] {
                Value::Null => defaults.crop.or(match target {
                    Target::Exact { height, width } => Some((height, width)),
                    _ => None,
                }),
                value => match read_size(value, false) {
                    Some(Target::Exact { height, width }) => Some((height, width)),
                    _ => None,
                },
            };
            Some(crop.ok_or_else(|| bad(format!("`crop_size` {} is not supported", config["crop_size"]), SIZE_HINT))?)
        } else {
            None
        };
        let pad_square = match config["image_aspect_ratio"].as_str() {
            Some("pad") => true,
            None | Some("square") => defaults.pads_square && flag("do_pad", false)?,
            Some(other) => {
                return Err(bad(format!("`image_aspect_ratio: {other}` is not supported"), "supported is `pad`"));
            }
        };
        if flag("do_pad", false)? && !defaults.pads_square {
            return Err(bad(format!("`{class}` with `do_pad` is not supported"), "set `do_pad: false`"));
        }
        let rescale = match (flag("do_rescale", true)?, config.get("rescale_factor")) {
            (false, _) => None,
            (true, None) => Some(1.0 / 255.0),
            (true, Some(value)) => {
                let factor = value.as_f64().filter(|f| *f > 0.0);
                Some(factor.ok_or_else(|| wrong("rescale_factor", "a number above 0"))?)
            }
        };
        let normalizes = flag("do_normalize", true)?;
        let channels = |key: &str, default: [f64; 3]| match config.get(key) {
            None => Ok(default),
            Some(Value::Null) if !normalizes => Ok(default),
            Some(Value::Number(n)) => Ok([n.as_f64().unwrap_or_default(); 3]),
            Some(value) => {
                let list = value.as_array().and_then(|l| l.iter().map(Value::as_f64).collect::<Option<Vec<_>>>());
                list.and_then(|l| <[f64; 3]>::try_from(l).ok())
                    .ok_or_else(|| wrong(key, "three numbers, one a channel"))
            }
        };
        let (mean, std) = (channels("image_mean", defaults.mean)?, channels("image_std", defaults.std)?);
        if std.iter().any(|s| *s <= 0.0) {
            return Err(bad("`image_std` must be above 0".into(), "use 1 for a channel that is not scaled"));
        }
        let normalize = normalizes.then_some((mean, std));
        let table = table(backend, rescale, normalize);
        let resize = resizes.then_some((target, filter));
        Ok(Self { backend, pad_square, resize, crop, rescale, normalize, table })
    }

    /// The same settings with another resize.
    pub fn with_backend(mut self, backend: ImageBackend) -> Self {
        self.backend = backend;
        self.table = table(backend, self.rescale, self.normalize);
        self
    }

    /// Height and width of every picture, where they do not depend on the picture.
    pub fn fixed_size(&self) -> Option<(usize, usize)> {
        self.crop.or(match self.resize {
            Some((Target::Exact { height, width }, _)) => Some((height, width)),
            Some((Target::Shortest(edge), _)) if self.pad_square => Some((edge, edge)),
            _ => None,
        })
    }

    /// Height and width of the picture that [`ImageSettings::shape`] makes of one of this size.
    pub fn output_size(&self, height: usize, width: usize) -> (usize, usize) {
        let (height, width) = if self.pad_square { (height.max(width), height.max(width)) } else { (height, width) };
        self.crop.unwrap_or_else(|| self.resize.map_or((height, width), |(target, _)| target.of(height, width)))
    }

    /// The picture as the model takes it, still in bytes: made square, scaled and cropped as the settings say.
    pub fn shape(&self, image: RgbImage) -> RgbImage {
        let image = if self.pad_square { self.squared(&image).unwrap_or(image) } else { image };
        let resized = self.resize.and_then(|(target, filter)| self.resized(&image, target, filter));
        let image = resized.unwrap_or(image);
        self.crop.and_then(|size| self.cropped(&image, size)).unwrap_or(image)
    }

    /// Everything that [`ImageSettings::shape`] depends on, as a text: equal texts make equal bytes.
    pub fn shape_key(&self) -> String {
        let padding = self.pad_square.then(|| self.padding());
        format!("{:?}, padding {padding:?}, resize {:?}, crop {:?}", self.backend, self.resize, self.crop)
    }

    /// Writes the values `[3, H, W]` of a picture that [`ImageSettings::shape`] made.
    pub fn write_values(&self, image: &RgbImage, values: &mut [f32]) {
        let plane = image.width as usize * image.height as usize;
        for (channel, (out, table)) in values.chunks_exact_mut(plane.max(1)).zip(self.table.iter()).enumerate() {
            for (value, pixel) in out.iter_mut().zip(image.data.chunks_exact(3)) {
                *value = table[usize::from(pixel[channel])];
            }
        }
    }

    /// The bytes of values that [`ImageSettings::write_values`] wrote.
    pub fn undo(&self, values: &[f32], height: usize, width: usize) -> RgbImage {
        let plane = height * width;
        let mut image = RgbImage::filled(width as u32, height as u32, [0; 3]);
        for (channel, (values, table)) in values.chunks_exact(plane.max(1)).zip(self.table.iter()).enumerate() {
            for (value, pixel) in values.iter().zip(image.data.chunks_exact_mut(3)) {
                // The table rises with the byte.
                pixel[channel] = table.partition_point(|known| known < value).min(255) as u8;
            }
        }
        image
    }

    /// The picture in the middle of a square of the mean colour; `None` when it is one already.
    fn squared(&self, image: &RgbImage) -> Option<RgbImage> {
        let side = image.width.max(image.height);
        if image.width == image.height {
            return None;
        }
        let mut square = RgbImage::filled(side, side, self.padding());
        paste(&mut square, image, i64::from((side - image.width) / 2), i64::from((side - image.height) / 2));
        Some(square)
    }

    /// The mean colour.
    fn padding(&self) -> [u8; 3] {
        self.normalize.map_or(CLIP_MEAN, |(mean, _)| mean).map(|m| (m * 255.0) as u8)
    }

    fn resized(&self, image: &RgbImage, target: Target, filter: Filter) -> Option<RgbImage> {
        let (height, width) = target.of(image.height as usize, image.width as usize);
        let (height, width) = (height as u32, width as u32);
        if (height, width) == (image.height, image.width) {
            return None;
        }
        Some(match self.backend {
            ImageBackend::Torchvision => media::resize::torchvision(image, width, height, filter),
            ImageBackend::Pillow => media::resize::pillow(image, width, height, filter),
        })
    }

    /// The middle of the picture, black where the picture is smaller; `None` when it has that size already.
    fn cropped(&self, image: &RgbImage, (height, width): (usize, usize)) -> Option<RgbImage> {
        if (image.height as usize, image.width as usize) == (height, width) {
            return None;
        }
        let top = self.crop_offset(image.height as i64, height as i64);
        let left = self.crop_offset(image.width as i64, width as i64);
        let mut out = RgbImage::filled(width as u32, height as u32, [0; 3]);
        paste(&mut out, image, -left, -top);
        Some(out)
    }

    /// Where the crop starts in the picture; negative where the picture is smaller than the crop.
    fn crop_offset(&self, side: i64, crop: i64) -> i64 {
        if crop <= side {
            return (side - crop) / 2;
        }
        match self.backend {
            // torchvision pads by half the gap rounded down on the near side.
            ImageBackend::Torchvision => -((crop - side) / 2),
            // The numpy code pads by half the gap rounded up.
            ImageBackend::Pillow => -((crop - side + 1) / 2),
        }
    }
}

const SIZE_HINT: &str = "supported are `height` and `width`, `shortest_edge`, and `shortest_edge` with `longest_edge`";

fn read_size(value: &Value, int_is_shortest: bool) -> Option<Target> {
    let whole = |v: &Value| v.as_u64().filter(|&n| n > 0 && n <= 1 << 16).map(|n| n as usize);
    if let Some(n) = whole(value) {
        return Some(if int_is_shortest { Target::Shortest(n) } else { Target::Exact { height: n, width: n } });
    }
    if let Some([height, width]) = value.as_array().map(Vec::as_slice) {
        return Some(Target::Exact { height: whole(height)?, width: whole(width)? });
    }
    let object = value.as_object()?;
    let keys: Vec<&str> = object.iter().filter(|(_, v)| !v.is_null()).map(|(k, _)| k.as_str()).collect();
    let get = |key: &str| object.get(key).and_then(whole);
    match keys.as_slice() {
        ["height", "width"] | ["width", "height"] => {
            Some(Target::Exact { height: get("height")?, width: get("width")? })
        }
        ["shortest_edge"] => Some(Target::Shortest(get("shortest_edge")?)),
        ["shortest_edge", "longest_edge"] | ["longest_edge", "shortest_edge"] => {
            Some(Target::Bounded { shortest: get("shortest_edge")?, longest: get("longest_edge")? })
        }
        _ => None,
    }
}

impl Target {
    /// Height and width after the resize of a picture.
    fn of(self, height: usize, width: usize) -> (usize, usize) {
        match self {
            Self::Exact { height, width } => (height, width),
            Self::Shortest(edge) => {
                let (short, long) = (height.min(width), height.max(width));
                let long = ((edge * long) as f64 / short as f64) as usize;
                if width <= height { (long.max(1), edge) } else { (edge, long.max(1)) }
            }
            Self::Bounded { shortest, longest } => bounded(height, width, shortest, longest),
        }
    }
}

/// `get_size_with_aspect_ratio` of the reference.
fn bounded(height: usize, width: usize, shortest: usize, longest: usize) -> (usize, usize) {
    let (short, long) = (height.min(width) as f64, height.max(width) as f64);
    let mut size = shortest;
    let mut raw = None;
    if long / short * shortest as f64 > longest as f64 {
        let exact = longest as f64 * short / long;
        size = exact.round_ties_even() as usize;
        raw = Some(exact);
    }
    if (height <= width && height == size) || (width <= height && width == size) {
        return (height, width);
    }
    let scaled = |a: usize, b: usize| match raw {
        Some(raw) => (raw * a as f64 / b as f64) as usize,
        None => ((size * a) as f64 / b as f64) as usize,
    };
    let size = size.max(1);
    if width < height { (scaled(height, width).max(1), size) } else { (size, scaled(width, height).max(1)) }
}

/// Copies `image` into `out` with its upper left corner at column `x` and row `y`, either of which may be negative.
fn paste(out: &mut RgbImage, image: &RgbImage, x: i64, y: i64) {
    let (out_width, width) = (i64::from(out.width), i64::from(image.width));
    let first = (-x).max(0);
    let last = (out_width - x).min(width);
    if first >= last {
        return;
    }
    for row in 0..i64::from(image.height) {
        let target = row + y;
        if target < 0 || target >= i64::from(out.height) {
            continue;
        }
        let from = ((row * width + first) * 3) as usize;
        let to = ((target * out_width + first + x) * 3) as usize;
        let length = ((last - first) * 3) as usize;
        out.data[to..to + length].copy_from_slice(&image.data[from..from + length]);
    }
}

/// The value of every byte of every channel, in the reference's order of operations.
fn table(backend: ImageBackend, rescale: Option<f64>, normalize: Option<([f64; 3], [f64; 3])>) -> Box<[[f32; 256]; 3]> {
    let mut table = Box::new([[0.0f32; 256]; 3]);
    for (channel, row) in table.iter_mut().enumerate() {
        for (byte, value) in row.iter_mut().enumerate() {
            let byte = byte as f32;
            *value = match (backend, rescale, normalize) {
                // Mean and deviation are scaled up instead of the picture down.
                (ImageBackend::Torchvision, Some(factor), Some((mean, std))) => {
                    let up = (1.0 / factor) as f32;
                    (byte - mean[channel] as f32 * up) / (std[channel] as f32 * up)
                }
                (ImageBackend::Torchvision, Some(factor), None) => byte * factor as f32,
                (ImageBackend::Pillow, Some(factor), None) => (f64::from(byte) * factor) as f32,
                (ImageBackend::Pillow, Some(factor), Some((mean, std))) => {
                    ((f64::from(byte) * factor) as f32 - mean[channel] as f32) / std[channel] as f32
                }
                (_, None, Some((mean, std))) => (byte - mean[channel] as f32) / std[channel] as f32,
                (_, None, None) => byte,
            };
        }
    }
    table
}
