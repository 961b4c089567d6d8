//! Owns [`ImageSettings`]: the settings of processors that make pictures of one size, and the way from RGB bytes there.
//! It refuses to decode files, and processors whose arithmetic it does not repeat exactly.
//!
//! Source: `transformers` 5.23 `image_processing_backends.py`. There every processor resizes with torchvision unless
//! the caller asks for Pillow, whatever the class name in the file says; `Backend::Pillow` repeats the other one.

use media::RgbImage;
use media::resize::Filter;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::fields::Fields;
use super::values::Values;
use crate::error::DataError;

pub(crate) const CLIP_MEAN: [f64; 3] = [0.48145466, 0.4578275, 0.40821073];
pub(crate) const CLIP_STD: [f64; 3] = [0.26862954, 0.26130258, 0.27577711];

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

impl ImageBackend {
    /// Scales as the library does.
    pub(crate) fn resize(self, image: &RgbImage, width: u32, height: u32, filter: Filter) -> RgbImage {
        match self {
            Self::Torchvision => media::resize::torchvision(image, width, height, filter),
            Self::Pillow => media::resize::pillow(image, width, height, filter),
        }
    }
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
    values: Values,
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

/// The image processor that a file names, without the ending that says which library computes.
pub(crate) fn image_class(config: &Value) -> Option<String> {
    let name = config["image_processor_type"].as_str().map(str::to_owned);
    let name = name
        .or_else(|| Some(config["feature_extractor_type"].as_str()?.replace("FeatureExtractor", "ImageProcessor")))?;
    Some(name.trim_end_matches("Fast").trim_end_matches("Pil").to_owned())
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
        "LlavaNextImageProcessor" | "LlavaNextVideoVideoProcessor" => Some(clip),
        "LlavaOnevisionImageProcessor" | "LlavaOnevisionVideoProcessor" => {
            Some(ClassDefaults { size: Target::Exact { height: 384, width: 384 }, crop: None, ..clip })
        }
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

/// Keys that are read here, beside those of [`values::KEYS`](super::values::KEYS).
const READ: [&str; 9] = [
    "size",
    "crop_size",
    "do_resize",
    "do_center_crop",
    "resample",
    "do_pad",
    "pad_size",
    "image_aspect_ratio",
    "use_square_size",
];

/// The filter that a file names, bicubic where it names none.
///
/// # Errors
/// One that the library does not have.
pub(crate) fn read_filter(fields: &Fields<'_>, backend: ImageBackend, resizes: bool) -> Result<Filter, DataError> {
    let number = match fields.config.get("resample") {
        None => 3,
        Some(Value::Null) if !resizes => 3,
        Some(value) => value.as_u64().ok_or_else(|| fields.wrong("resample", "a filter's number"))?,
    };
    Ok(match (number, backend) {
        (2, _) => Filter::Bilinear,
        (3, _) => Filter::Bicubic,
        (0, ImageBackend::Pillow) => Filter::Nearest,
        (1, ImageBackend::Pillow) => Filter::Lanczos,
        (4, ImageBackend::Pillow) => Filter::Box,
        (5, ImageBackend::Pillow) => Filter::Hamming,
        _ => return Err(fields.bad(format!("`resample: {number}` is not supported"), "supported are 2 and 3")),
    })
}

impl ImageSettings {
    /// Reads the settings of a file.
    ///
    /// # Errors
    /// A class or setting that is not supported, by name.
    pub fn read(fields: &Fields<'_>, backend: ImageBackend) -> Result<Self, DataError> {
        let class = image_class(fields.config).unwrap_or_else(|| "LlavaImageProcessor".to_owned());
        Self::read_as(fields, backend, &class, &[])
    }

    /// As [`ImageSettings::read`] for the settings of a class; `others` are keys that are read elsewhere or that the class never
    /// looks at.
    ///
    /// # Errors
    /// As [`ImageSettings::read`].
    pub fn read_as(
        fields: &Fields<'_>,
        backend: ImageBackend,
        class: &str,
        others: &[&str],
    ) -> Result<Self, DataError> {
        let config = fields.config;
        let Some(defaults) = class_defaults(class) else {
            return Err(fields.bad(
                format!("image processor `{class}` is not supported"),
                "supported are CLIPImageProcessor, SiglipImageProcessor, LlavaImageProcessor, LlavaNextImageProcessor, LlavaOnevisionImageProcessor and Qwen2VLImageProcessor",
            ));
        };
        fields.check_known(class, &[&READ[..], &super::values::KEYS].concat(), others)?;
        for key in ["image_processor_type", "feature_extractor_type", "image_aspect_ratio"] {
            fields.name(key)?;
        }
        let resizes = fields.flag("do_resize", true)?;
        let unsupported = |key: &str| fields.bad(format!("`{key}` {} is not supported", config[key]), SIZE_HINT);
        let target = if config["size"].is_null() {
            if fields.flag("use_square_size", false)? {
                Target::Exact { height: 224, width: 224 }
            } else {
                defaults.size
            }
        } else {
            read_size(&config["size"], defaults.int_size_is_shortest).ok_or_else(|| unsupported("size"))?
        };
        let filter = read_filter(fields, backend, resizes)?;
        let crop = if fields.flag("do_center_crop", defaults.crop.is_some())? {
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
            Some(crop.ok_or_else(|| unsupported("crop_size"))?)
        } else {
            None
        };
        let pad_square = match config["image_aspect_ratio"].as_str() {
            Some("pad") => true,
            None | Some("square") => defaults.pads_square && fields.flag("do_pad", false)?,
            Some(other) => {
                return Err(fields.bad(format!("`image_aspect_ratio: {other}` is not supported"), "supported is `pad`"));
            }
        };
        if !others.contains(&"do_pad") && fields.flag("do_pad", false)? && !defaults.pads_square {
            return Err(fields.bad(format!("`{class}` with `do_pad` is not supported"), "set `do_pad: false`"));
        }
        let values = Values::read(fields, backend, defaults.mean, defaults.std)?;
        Ok(Self { backend, pad_square, resize: resizes.then_some((target, filter)), crop, values })
    }

    /// The same settings, with pictures made square first.
    pub fn squaring(&self) -> Self {
        Self { pad_square: true, ..self.clone() }
    }

    /// The same settings with another resize.
    pub fn with_backend(self, backend: ImageBackend) -> Self {
        Self { backend, values: self.values.with_backend(backend), ..self }
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
        self.write_bytes(&image.data, values);
    }

    /// As [`ImageSettings::write_values`] for the bytes of a picture.
    pub fn write_bytes(&self, data: &[u8], values: &mut [f32]) {
        let plane = data.len() / 3;
        for (channel, out) in values.chunks_exact_mut(plane.max(1)).enumerate() {
            let table = self.values.of_channel(channel);
            for (value, pixel) in out.iter_mut().zip(data.chunks_exact(3)) {
                *value = table[usize::from(pixel[channel])];
            }
        }
    }

    /// The bytes of values that [`ImageSettings::write_values`] wrote.
    pub fn undo(&self, values: &[f32], height: usize, width: usize) -> RgbImage {
        let plane = height * width;
        let mut image = RgbImage::filled(width as u32, height as u32, [0; 3]);
        for (channel, values) in values.chunks_exact(plane.max(1)).enumerate() {
            for (value, pixel) in values.iter().zip(image.data.chunks_exact_mut(3)) {
                pixel[channel] = self.values.byte(channel, *value);
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
        self.values.mean().unwrap_or(CLIP_MEAN).map(|m| (m * 255.0) as u8)
    }

    fn resized(&self, image: &RgbImage, target: Target, filter: Filter) -> Option<RgbImage> {
        let (height, width) = target.of(image.height as usize, image.width as usize);
        let (height, width) = (height as u32, width as u32);
        if (height, width) == (image.height, image.width) {
            return None;
        }
        Some(self.backend.resize(image, width, height, filter))
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

/// Height and width that a size means for a square: those it names, or the shorter side twice. None for other sizes.
pub(crate) fn square_of(value: &Value, int_is_shortest: bool) -> Option<(usize, usize)> {
    match read_size(value, int_is_shortest)? {
        Target::Exact { height, width } => Some((height, width)),
        Target::Shortest(edge) => Some((edge, edge)),
        Target::Bounded { .. } => None,
    }
}

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
pub(crate) fn paste(out: &mut RgbImage, image: &RgbImage, x: i64, y: i64) {
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
