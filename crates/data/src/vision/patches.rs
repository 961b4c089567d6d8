//! Owns [`Patches`]: processors that keep a picture's own shape and hand its patches to the tower as rows, clips with
//! several frames to a patch. It refuses to read configuration files: that is `qwen`.
//!
//! Source: `transformers` 5.23 `image_processing_qwen2_vl.py`, `video_processing_qwen2_vl.py`,
//! `video_processing_qwen3_vl.py`: a row is `[C, T, P, P]`, rows stand in the order `(t, h / m, w / m, m, m)`. A picture is
//! repeated to fill its patch in time, and so is the last frame of a clip.

use media::RgbImage;
use media::resize::Filter;

use super::Placeholder;
use super::budget::{Budget, ClipBudget, Grid, TooOblong};
use super::settings::ImageBackend;
use super::values::Values;
use crate::batch::{Visual, VisualKind};

/// Settings of one kind of medium.
#[derive(Debug, Clone)]
pub(crate) struct Side {
    pub backend: ImageBackend,
    /// `None` where pictures are taken as they are.
    pub filter: Option<Filter>,
    pub budget: Budget,
    pub values: Values,
}

/// How clips are taken.
#[derive(Debug, Clone)]
pub(crate) enum ClipStyle {
    /// Every frame is a picture of its own.
    Frames,
    /// All frames together.
    Whole(WholeClips),
}

/// Clips whose frames are taken together.
#[derive(Debug, Clone)]
pub(crate) struct WholeClips {
    pub side: Side,
    pub shared: ClipBudget,
    pub token: Placeholder,
    /// Whether each step in time stands in the text by itself, with its time.
    pub has_times: bool,
}

/// Patches at native resolution.
#[derive(Debug, Clone)]
pub(crate) struct Patches {
    pub image: Side,
    pub clips: ClipStyle,
    pub token: Placeholder,
    /// Tokens that stand around a placeholder: the template writes them, or we where it takes texts.
    pub around: (String, String),
    /// Pixels of a patch's side.
    pub patch: usize,
    /// Patches of a token's side.
    pub merge: usize,
    /// Frames of a patch.
    pub temporal: usize,
}

/// Why a medium cannot be cut into patches.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Unfit {
    TooOblong(f64),
    /// It is not scaled, and this is not a multiple of a token's side.
    Uneven {
        factor: usize,
    },
}

impl From<TooOblong> for Unfit {
    fn from(error: TooOblong) -> Self {
        Self::TooOblong(error.ratio)
    }
}

impl Side {
    /// A picture scaled to a height and width.
    pub fn scaled(&self, image: RgbImage, (height, width): (usize, usize)) -> RgbImage {
        let (height, width) = (height as u32, width as u32);
        match self.filter {
            Some(filter) if (height, width) != (image.height, image.width) => {
                self.backend.resize(&image, width, height, filter)
            }
            _ => image,
        }
    }
}

impl Patches {
    /// Values of a row.
    pub fn row_len(&self) -> usize {
        3 * self.temporal * self.patch * self.patch
    }

    fn sides(&self) -> Grid {
        Grid { factor: self.patch * self.merge, temporal: self.temporal }
    }

    /// Height and width of a picture of this size after scaling.
    pub fn image_size(&self, height: usize, width: usize) -> Result<(usize, usize), Unfit> {
        match self.image.filter {
            Some(_) => Ok(self.sides().of_image(height, width, self.image.budget)?),
            None => self.even(height, width),
        }
    }

    /// Height and width of the frames of a clip after scaling; `shared` replaces the checkpoint's own budget.
    pub fn clip_size(
        &self,
        clips: &WholeClips,
        frames: usize,
        (height, width): (usize, usize),
        shared: Option<ClipBudget>,
    ) -> Result<(usize, usize), Unfit> {
        match clips.side.filter {
            Some(_) => {
                let shared = shared.unwrap_or(clips.shared);
                Ok(self.sides().of_clip(frames, height, width, clips.side.budget, shared)?)
            }
            None => self.even(height, width),
        }
    }

    fn even(&self, height: usize, width: usize) -> Result<(usize, usize), Unfit> {
        let factor = self.sides().factor;
        if height.is_multiple_of(factor) && width.is_multiple_of(factor) {
            Ok((height, width))
        } else {
            Err(Unfit::Uneven { factor })
        }
    }

    /// Patches of `frames` pictures of this size.
    pub fn grid(&self, frames: usize, height: usize, width: usize) -> [usize; 3] {
        [frames.div_ceil(self.temporal), height / self.patch, width / self.patch]
    }

    /// Tokens of one step in time.
    pub fn tokens_a_step(&self, [_, rows, columns]: [usize; 3]) -> usize {
        rows * columns / (self.merge * self.merge)
    }

    /// The settings that hold for a medium.
    fn side(&self, kind: VisualKind) -> &Side {
        match (&self.clips, kind) {
            (ClipStyle::Whole(clips), VisualKind::Video) => &clips.side,
            _ => &self.image,
        }
    }

    /// Writes the rows of media at the end of `values`; `pictures` are the scaled frames of all of them.
    pub fn write(&self, visuals: &[Visual], pictures: &[RgbImage], values: &mut Vec<f32>) {
        let mut pictures = pictures;
        for visual in visuals {
            let (frames, rest) = pictures.split_at(visual.seconds.len());
            pictures = rest;
            let table = &self.side(visual.kind).values;
            for step in frames.chunks(self.temporal) {
                self.write_step(step, visual, table, values);
            }
        }
    }

    /// The rows of one step in time, whose last frame is repeated where frames are missing.
    fn write_step(&self, frames: &[RgbImage], visual: &Visual, table: &Values, values: &mut Vec<f32>) {
        let Some(last) = frames.last() else { return };
        let width = visual.grid[2] * self.patch;
        for (top, left) in self.corners(visual.grid) {
            for channel in 0..3 {
                let table = table.of_channel(channel);
                for time in 0..self.temporal {
                    let data = &frames.get(time).unwrap_or(last).data;
                    for y in top..top + self.patch {
                        let start = (y * width + left) * 3;
                        let row = &data[start..start + self.patch * 3];
                        values.extend(row.iter().skip(channel).step_by(3).map(|&byte| table[usize::from(byte)]));
                    }
                }
            }
        }
    }

    /// Upper left corners of the patches of one step in time, in the order of the rows: token after token, and inside a
    /// token row after row.
    fn corners(&self, [_, rows, columns]: [usize; 3]) -> impl Iterator<Item = (usize, usize)> {
        let (merge, patch) = (self.merge, self.patch);
        let tokens = (0..rows / merge).flat_map(move |y| (0..columns / merge).map(move |x| (y, x)));
        tokens.flat_map(move |(y, x)| {
            (0..merge * merge).map(move |i| ((y * merge + i / merge) * patch, (x * merge + i % merge) * patch))
        })
    }

    /// The pictures of rows that [`Patches::write`] wrote, without repeated frames.
    pub fn undo(&self, visuals: &[Visual], values: &[f32]) -> Vec<RgbImage> {
        let area = self.patch * self.patch;
        let mut values = values;
        let mut pictures = Vec::new();
        for visual in visuals {
            let [_, rows, columns] = visual.grid;
            let table = &self.side(visual.kind).values;
            let (own, rest) = values.split_at(visual.num_patches() * self.row_len());
            values = rest;
            let step_len = (rows * columns * self.row_len()).max(1);
            for frame in 0..visual.seconds.len() {
                let (step, time) = (frame / self.temporal, frame % self.temporal);
                let step = &own[step * step_len..(step + 1) * step_len];
                let (height, width) = (rows * self.patch, columns * self.patch);
                let mut image = RgbImage::filled(width as u32, height as u32, [0; 3]);
                for (row, (top, left)) in step.chunks_exact(self.row_len()).zip(self.corners(visual.grid)) {
                    for channel in 0..3 {
                        let first = (channel * self.temporal + time) * area;
                        for (i, &value) in row[first..first + area].iter().enumerate() {
                            let (y, x) = (top + i / self.patch, left + i % self.patch);
                            image.data[(y * width + x) * 3 + channel] = table.byte(channel, value);
                        }
                    }
                }
                pictures.push(image);
            }
        }
        pictures
    }
}
