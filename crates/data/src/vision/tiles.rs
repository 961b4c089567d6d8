//! Owns [`Tiles`]: processors that scale an image into the resolution that fits it best, cut that into tiles and put the whole
//! image before them, and take clips as frames of one size. It refuses to read configuration files: that is `llava_next`.
//!
//! Source: `transformers` 5.23 `image_processing_llava_next.py`, `image_processing_llava_onevision.py`, their `pil` twins, and
//! `processing_*.py`. A shaped image is one picture: the whole image on top, its tiles below it in the order of rows.
//! How many tokens stand for an image follows from its size as in `models::config::anyres`, which `data` cannot see.

use media::RgbImage;
use media::resize::Filter;

use super::settings::{ImageBackend, ImageSettings, paste};
use super::{Placeholder, Planned, Target};
use crate::batch::{Visual, VisualKind};
use crate::clips::{Place, name_of};
use crate::error::{DataError, RecordError};
use crate::options::EncodeOptions;
use crate::record::Sample;

/// Height and width.
pub(crate) type Size = (usize, usize);

/// Tiles of one size.
#[derive(Debug, Clone)]
pub(crate) struct Tiles {
    /// What every tile goes through.
    pub settings: ImageSettings,
    pub filter: Filter,
    pub token: Placeholder,
    pub cutting: Cutting,
    /// Size of the whole image before it goes through the settings.
    pub whole: Size,
    /// Side of every tile in the end.
    pub side: usize,
    /// Whether several images of a record are padded to squares and not cut.
    pub cuts_one_image_only: bool,
    pub clips: Option<TileClips>,
}

/// How images are cut.
#[derive(Debug, Clone)]
pub(crate) struct Cutting {
    /// Resolutions to choose from, and those of the model.
    pub pinpoints: Vec<Size>,
    pub model_pinpoints: Vec<Size>,
    /// Side of the squares that are cut.
    pub side: usize,
    /// Tokens along a side of a tile.
    pub grid: usize,
    /// Grids of more than so many tiles are shrunk.
    pub max_tiles: Option<usize>,
}

/// Clips whose frames stand at one place.
#[derive(Debug, Clone)]
pub(crate) struct TileClips {
    pub settings: ImageSettings,
    pub token: Placeholder,
    pub tokens_a_frame: usize,
    /// Tokens behind the last frame.
    pub behind: usize,
}

/// What an image is cut into, and what it takes of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cut {
    num_tiles: usize,
    num_tokens: usize,
}

impl Tiles {
    /// The same with still pictures scaled by another library.
    pub fn with_backend(self, backend: ImageBackend) -> Self {
        Self { settings: self.settings.with_backend(backend), ..self }
    }

    /// What is done to the pictures of a place in a record of `num_images` images.
    pub fn target(&self, is_clip: bool, num_images: usize) -> Target {
        match is_clip && self.clips.is_some() {
            true => Target::Frame,
            false if self.cuts_one_image_only && num_images > 1 => Target::Square,
            false => Target::Own,
        }
    }

    /// Plans a clip whose frames stand at one place.
    pub fn plan_clip(&self, place: &Place<'_>, clips: &TileClips) -> Planned {
        let num_frames = place.frames.len();
        let num_tokens = num_frames * clips.tokens_a_frame + clips.behind;
        let visual = Visual {
            kind: VisualKind::Video,
            grid: [num_frames, self.cutting.grid, self.cutting.grid],
            num_tokens,
            seconds: place.frames.clone().map(|frame| place.clip.seconds(frame)).collect(),
            ..Visual::default()
        };
        Planned { visual, size: (self.side, self.side), text: None, slots: vec![num_tokens] }
    }

    /// Plans an image.
    ///
    /// # Errors
    /// An image that cannot be read, or that fits no resolution.
    pub fn plan_image(
        &self,
        place: &Place<'_>,
        frame: usize,
        target: Target,
        sample: &Sample,
        options: &EncodeOptions,
    ) -> Result<Planned, DataError> {
        let (height, width) = place.clip.source_size(frame, sample, options)?;
        let grid = self.cutting.grid;
        let cut = match target {
            Target::Square => Cut { num_tiles: 0, num_tokens: grid * grid + 1 },
            _ => self.cutting.cut((height, width)).map_err(|(what, hint)| {
                let what = format!("`{}` is {width}x{height}, and {what}", name_of(place.clip.reference()));
                RecordError::new("picture_shapes", &sample.origin, Some(&sample.id), what).hint(hint)
            })?,
        };
        let visual = Visual {
            grid: [1 + cut.num_tiles, grid, grid],
            num_tokens: cut.num_tokens,
            source_size: [height, width],
            seconds: vec![place.clip.seconds(frame)],
            ..Visual::default()
        };
        let size = (self.side * (1 + cut.num_tiles), self.side);
        Ok(Planned { visual, size, text: None, slots: vec![cut.num_tokens] })
    }

    /// A picture or frame as the model takes it, still in bytes.
    pub fn shape(&self, image: RgbImage, target: Target) -> RgbImage {
        match (target, &self.clips) {
            (Target::Frame, Some(clips)) => clips.settings.shape(image),
            (Target::Square, _) => self.settings.squaring().shape(image),
            _ => self.stacked(&image),
        }
    }

    /// Everything that [`Tiles::shape`] depends on, as a text.
    pub fn shape_key(&self, target: Target) -> String {
        match (target, &self.clips) {
            (Target::Frame, Some(clips)) => clips.settings.shape_key(),
            (Target::Square, _) => self.settings.squaring().shape_key(),
            _ => {
                let Self { filter, whole, cutting: Cutting { pinpoints, side, .. }, .. } = self;
                format!("{}, {filter:?}, tiles of {side} of {pinpoints:?} below {whole:?}", self.settings.shape_key())
            }
        }
    }

    /// The whole image and its tiles, one below the other.
    fn stacked(&self, image: &RgbImage) -> RgbImage {
        let size = (image.height as usize, image.width as usize);
        let best = best_resolution(size, &self.cutting.pinpoints);
        let (height, width) = fitted(size, best);
        let fitted = self.scaled(image, (height, width));
        let mut canvas = RgbImage::filled(best.1 as u32, best.0 as u32, [0; 3]);
        paste(&mut canvas, &fitted, ((best.1 - width) / 2) as i64, ((best.0 - height) / 2) as i64);
        let mut data = self.settings.shape(self.scaled(image, self.whole)).data;
        let cut = self.cutting.side;
        for (top, left) in
            (0..best.0).step_by(cut).flat_map(|top| (0..best.1).step_by(cut).map(move |left| (top, left)))
        {
            let mut tile = RgbImage::filled(cut as u32, cut as u32, [0; 3]);
            paste(&mut tile, &canvas, -(left as i64), -(top as i64));
            data.extend_from_slice(&self.settings.shape(tile).data);
        }
        let num_rows = data.len() / (3 * self.side).max(1);
        RgbImage { width: self.side as u32, height: num_rows as u32, data }
    }

    fn scaled(&self, image: &RgbImage, (height, width): Size) -> RgbImage {
        if (height, width) == (image.height as usize, image.width as usize) {
            return image.clone();
        }
        self.settings.backend.resize(image, width as u32, height as u32, self.filter)
    }

    /// The settings that hold for a medium.
    fn settings(&self, kind: VisualKind) -> &ImageSettings {
        match (&self.clips, kind) {
            (Some(clips), VisualKind::Video) => &clips.settings,
            _ => &self.settings,
        }
    }

    /// Writes the values `[tiles and frames, 3, side, side]` of media at the end of `values`.
    pub fn write(&self, visuals: &[Visual], pictures: &[RgbImage], values: &mut Vec<f32>) {
        let mut pictures = pictures.iter();
        for visual in visuals {
            let settings = self.settings(visual.kind);
            for picture in pictures.by_ref().take(visual.seconds.len()) {
                for tile in picture.data.chunks_exact((3 * self.side * self.side).max(1)) {
                    let start = values.len();
                    values.resize(start + tile.len(), 0.0);
                    settings.write_bytes(tile, &mut values[start..]);
                }
            }
        }
    }

    /// The pictures of values that [`Tiles::write`] wrote.
    pub fn undo(&self, visuals: &[Visual], values: &[f32]) -> Vec<RgbImage> {
        let mut tiles = values.chunks_exact((3 * self.side * self.side).max(1));
        let mut pictures = Vec::new();
        for visual in visuals {
            let settings = self.settings(visual.kind);
            let num_pictures = visual.seconds.len();
            for _ in 0..num_pictures {
                let own = tiles.by_ref().take(visual.grid[0] / num_pictures);
                let data: Vec<u8> = own.flat_map(|tile| settings.undo(tile, self.side, self.side).data).collect();
                let height = data.len() / (3 * self.side).max(1);
                pictures.push(RgbImage { width: self.side as u32, height: height as u32, data });
            }
        }
        pictures
    }
}

impl Cutting {
    /// The tiles and tokens of an image of this size.
    fn cut(&self, source: Size) -> Result<Cut, (String, &'static str)> {
        let copy = "processor and model belong to different checkpoints; copy both again";
        let show = |(height, width): Size| format!("{width}x{height}");
        let best = best_resolution(source, &self.pinpoints);
        let of_model = best_resolution(source, &self.model_pinpoints);
        if best != of_model {
            let what = format!("the processor scales that to {}, the model expects {}", show(best), show(of_model));
            return Err((what, copy));
        }
        if !best.0.is_multiple_of(self.side) || !best.1.is_multiple_of(self.side) {
            let what = format!("{} is not made of whole tiles of {}", show(best), self.side);
            return Err((what, "correct `image_grid_pinpoints` in `preprocessor_config.json`"));
        }
        let tiles = (best.0 / self.side, best.1 / self.side);
        let Some((rows, columns)) = self.lines(source, tiles) else {
            return Err(("shrunk no row of it would be left".to_owned(), "crop the file, or remove the record"));
        };
        Ok(Cut { num_tiles: tiles.0 * tiles.1, num_tokens: self.grid * self.grid + rows * (columns + 1) })
    }

    /// Rows and columns of tokens of an image that is cut into `tiles`: padding taken off, large ones shrunk; none where nothing
    /// is left then.
    fn lines(&self, (height, width): Size, tiles: Size) -> Option<Size> {
        let (mut rows, mut columns) = (self.grid * tiles.0, self.grid * tiles.1);
        if width as f64 / height as f64 > columns as f64 / rows as f64 {
            let filled = rounded_down(height as f64 * (columns as f64 / width as f64));
            rows -= (rows - filled.min(rows)) / 2 * 2;
        } else {
            let filled = rounded_down(width as f64 * (rows as f64 / height as f64));
            columns -= (columns - filled.min(columns)) / 2 * 2;
        }
        let Some(most) = self.max_tiles else { return Some((rows, columns)) };
        let ratio = ((rows * columns) as f64 / (most * self.grid * self.grid) as f64).sqrt();
        if ratio <= 1.1 {
            return Some((rows, columns));
        }
        let shrunk = (whole_part(rows as f64, ratio), whole_part(columns as f64, ratio));
        (shrunk.0 > 0 && shrunk.1 > 0).then_some(shrunk)
    }
}

/// Of several resolutions the one that keeps the most of an image, and of these the one that wastes the least.
fn best_resolution((height, width): Size, pinpoints: &[Size]) -> Size {
    let mut best = (0, usize::MAX, (0, 0));
    for &(to_height, to_width) in pinpoints {
        let scale = (to_width as f64 / width as f64).min(to_height as f64 / height as f64);
        let scaled = |length: usize| (length as f64 * scale) as usize;
        let kept = (scaled(width) * scaled(height)).min(width * height);
        let wasted = to_height * to_width - kept;
        if kept > best.0 || (kept == best.0 && wasted < best.1) {
            best = (kept, wasted, (to_height, to_width));
        }
    }
    best.2
}

/// The size of an image scaled to fit into another one.
fn fitted((height, width): Size, (to_height, to_width): Size) -> Size {
    let (across, down) = (to_width as f64 / width as f64, to_height as f64 / height as f64);
    if across < down {
        (((height as f64 * across).ceil() as usize).min(to_height), to_width)
    } else {
        (to_height, ((width as f64 * down).ceil() as usize).min(to_width))
    }
}

/// `int(round(x, 7))` of Python.
fn rounded_down(x: f64) -> usize {
    format!("{x:.7}").parse::<f64>().map_or(0, |rounded| rounded as usize)
}

/// `int(x // y)` of Python, for positive numbers.
fn whole_part(x: f64, y: f64) -> usize {
    ((x - x % y) / y).round() as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    /// Sizes of images with what the reference's processors and models make of them.
    #[test]
    fn tiles_and_tokens_are_those_of_the_reference() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/data/llava_next/sizes.json");
        let all: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let number = |value: &Value| value.as_u64().unwrap() as usize;
        let mut num_shrunk = 0;
        for row in all["rows"].as_array().unwrap() {
            let config = &all["configs"][number(&row["config"])];
            let pair = |pair: &Value| (number(&pair[0]), number(&pair[1]));
            let pinpoints: Vec<Size> = config["pinpoints"].as_array().unwrap().iter().map(pair).collect();
            let cutting = Cutting {
                model_pinpoints: pinpoints.clone(),
                pinpoints,
                side: number(&config["side"]),
                grid: number(&config["grid"]),
                max_tiles: config["max_tiles"].as_u64().map(|most| most as usize),
            };
            let source = pair(&row["source"]);
            let tiles = pair(&row["tiles"]);
            let found = cutting.cut(source).ok();
            let num_tokens = row["tokens"].as_u64().map(|tokens| tokens as usize);
            assert_eq!(found.map(|cut| cut.num_tokens), num_tokens, "{row}");
            assert!(found.is_none_or(|cut| cut.num_tiles == tiles.0 * tiles.1), "{row}");
            num_shrunk += usize::from(row["shrunk"].is_array());
        }
        assert!(num_shrunk > 30);
    }
}
