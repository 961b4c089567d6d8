//! What LLaVA-NeXT and its successors do with the tokens of tiles and frames: frames pooled, tiles joined into the grid of the
//! whole image, its padding taken off, a newline behind every row. Owns the newline; the tower and the projector are LLaVA's.
//!
//! Source: `LlavaNextVideoModel`, `LlavaNextVideoPooler`, `LlavaOnevisionModel` of `transformers`: `pack_image_features`,
//! `get_video_features`, `apply_pooling`. Shapes: pictures are tiles and frames, in the order of the text; each has `g * g` rows.

use crate::config::LlavaConfig;
use crate::config::anyres::{AnyresConfig, Canvas, ClipPooling, SquarePooling};
use crate::error::{ModelError, Result};
use crate::linear::Linear;
use crate::model::Visual;
use crate::names::{NEWLINE, RESAMPLER_PREFIX};
use crate::weights::{Builder, Init, Part};
use std::ops::Range;
use tensor::{DType, Param, Tape, Var};

/// The parts that stand beside LLaVA's tower and projector.
pub(super) struct Anyres {
    config: AnyresConfig,
    newline: Param,
    /// The learned pooling of frames, where the family has it: a convolution, which takes no adapter.
    resampler: Option<Linear>,
    /// Pixels and tokens along a side of a tile.
    side: usize,
    grid: usize,
}

/// One image or clip with its rows.
struct Medium {
    /// Its pictures among all.
    pictures: Range<usize>,
    is_clip: bool,
    /// How its tiles lie; none for a clip, and for an image that is one tile.
    canvas: Option<Canvas>,
    /// Its first row in what the projector gave.
    first: usize,
}

/// All images and clips of an input.
pub(super) struct Media {
    media: Vec<Medium>,
}

impl Anyres {
    pub(super) fn build(b: &mut Builder<'_>, llava: &LlavaConfig, hidden: usize) -> Result<Option<Anyres>> {
        let Some(config) = &llava.anyres else { return Ok(None) };
        let std = (hidden as f32).sqrt().recip();
        // The decoder's own rows stand beside it: it trains and freezes with them, as in the code of its authors.
        let newline = b.weight_as(NEWLINE, &[hidden], &[1, hidden], Init::Normal(std), Part::Llm)?;
        let resampler = match config.clips.as_ref().map(|clips| clips.pooling) {
            Some(ClipPooling::Squares(SquarePooling::Convolution, stride)) => {
                let width = llava.vision.hidden_size;
                let disk = [width, width, stride, stride];
                let shape = [width, width * stride * stride];
                Some(Linear::build_as(b, &format!("{RESAMPLER_PREFIX}pool"), &disk, &shape, true, Part::Projector)?)
            }
            _ => None,
        };
        let (side, grid) = (llava.vision.image_size, llava.vision.grid());
        Ok(Some(Anyres { config: config.clone(), newline, resampler, side, grid }))
    }

    /// Finds the pictures of every image and clip; `num_rows` are those that the tower gave.
    pub(super) fn media(&self, visuals: &[Visual], num_rows: usize) -> Result<Media> {
        let mut at = 0;
        let mut media = Vec::with_capacity(visuals.len());
        for visual in visuals {
            let pictures = at..at + visual.grid[0];
            at = pictures.end;
            if visual.is_video && self.config.clips.is_none() {
                return Err(ModelError::Input("a clip, and the model takes no clips".to_owned()));
            }
            let canvas = match visual.is_video || visual.grid[0] == 1 {
                true => None,
                false => Some(self.canvas(visual)?),
            };
            media.push(Medium { pictures, is_clip: visual.is_video, canvas, first: 0 });
        }
        if at * self.grid * self.grid != num_rows {
            return Err(ModelError::Input(format!(
                "{num_rows} rows of pictures do not fit {at} tiles and frames of {} x {} each",
                self.grid, self.grid
            )));
        }
        Ok(Media { media })
    }

    fn canvas(&self, visual: &Visual) -> Result<Canvas> {
        let [height, width] = visual.source_size;
        let tiles = visual.grid[0] - 1;
        let found = match visual.source_size.contains(&0) {
            true => None,
            false => self.config.canvas(visual.source_size, self.side, self.grid),
        };
        match found {
            Some(canvas) if canvas.shrunk.is_some_and(|size| size.contains(&0)) => Err(ModelError::Input(format!(
                "an image of {width}x{height} is too oblong: no row of it would be left"
            ))),
            Some(canvas) if canvas.tiles[0] * canvas.tiles[1] == tiles => Ok(canvas),
            Some(Canvas { tiles: [down, across], .. }) => Err(ModelError::Input(format!(
                "an image of {width}x{height} is cut into {tiles} tiles, `image_grid_pinpoints` of `config.json` asks for {down} x {across}"
            ))),
            None => Err(ModelError::Input(format!(
                "`image_grid_pinpoints` of `config.json` has no resolution of whole tiles of {} pixels for an image of {width}x{height}",
                self.side
            ))),
        }
    }

    /// Before the projector: states of tiles first, as they are, and those of frames pooled, where the family does so here.
    pub(super) fn pooled(&self, t: &Tape, states: &Var, media: &mut Media) -> Result<Var> {
        let area = self.grid * self.grid;
        let pooling = match self.config.clips.as_ref().map(|clips| clips.pooling) {
            Some(ClipPooling::Squares(mode, stride)) if media.media.iter().any(|m| m.is_clip) => (mode, stride),
            _ => {
                media.media.iter_mut().for_each(|m| m.first = m.pictures.start * area);
                return Ok(states.clone());
            }
        };
        let of = |is_clip: bool| {
            let rows = media.media.iter().filter(move |m| m.is_clip == is_clip);
            rows.flat_map(|m| m.pictures.start * area..m.pictures.end * area).map(|row| row as u32).collect::<Vec<_>>()
        };
        let (tiles, frames) = (of(false), of(true));
        let compute = states.value().dtype();
        // Gathering and pooling are done in f32.
        let states = t.cast(states, DType::F32)?;
        let small = self.squares(t, &states, &frames, pooling, compute)?;
        let joined = match tiles.is_empty() {
            true => small,
            false => t.concat_rows(&[t.gather_rows(&states, &tiles)?, small])?,
        };
        let side = self.grid / pooling.1;
        let (mut tile, mut frame) = (0, tiles.len());
        for medium in &mut media.media {
            let (next, each) = if medium.is_clip { (&mut frame, side * side) } else { (&mut tile, area) };
            medium.first = *next;
            *next += medium.pictures.len() * each;
        }
        Ok(t.cast(&joined, compute)?)
    }

    /// Rows `frames` of `states`, whole grids, with every square of them made one row.
    fn squares(
        &self,
        t: &Tape,
        states: &Var,
        frames: &[u32],
        pooling: (SquarePooling, usize),
        compute: DType,
    ) -> Result<Var> {
        let (mode, stride) = pooling;
        let (area, side) = (self.grid * self.grid, self.grid / stride);
        let (count, inner) = (frames.len() / area, side * stride);
        // What does not fill a square is dropped first: the windows of the mean lie over everything.
        let is_kept = |row: usize| row % area / self.grid < inner && row % self.grid < inner;
        let kept: Vec<u32> = (0..frames.len()).filter(|&row| is_kept(row)).map(|row| frames[row]).collect();
        let kept = t.gather_rows(states, &kept)?;
        Ok(match (mode, &self.resampler) {
            (SquarePooling::Average, _) => t.avg_pool_grid(&kept, count, [inner; 2], [side; 2])?,
            (SquarePooling::Convolution, Some(resampler)) => {
                let columns = t.unfold_grid(&kept, count, [inner; 2], stride)?;
                resampler.forward_wide(t, &t.cast(&columns, compute)?)?
            }
            _ => t.max_pool_grid(&kept, count, [inner; 2], stride)?,
        })
    }

    /// After the projector: the rows of every image and clip as the decoder takes them, `[tokens, hidden]` in f32.
    pub(super) fn packed(&self, t: &Tape, features: Var, media: &Media) -> Result<Var> {
        let (grid, area) = (self.grid, self.grid * self.grid);
        let pooling = self.config.clips.as_ref().map(|clips| clips.pooling);
        let has_newlines = media.media.iter().any(|m| !m.is_clip) || pooling == Some(ClipPooling::Halves);
        let is_in_order = media.media.windows(2).all(|pair| pair[0].first < pair[1].first);
        if media.media.is_empty() || (!has_newlines && is_in_order) {
            return Ok(features);
        }
        // Rows stand in several tables, one after the other: what the projector gave, what was resized, the newline.
        let mut num_rows = features.shape()[0];
        let mut tables = vec![features.clone()];
        let mut rows: Vec<Option<usize>> = Vec::new();
        for medium in &media.media {
            let count = medium.pictures.len();
            let own = medium.first..medium.first + count * area;
            match (medium.canvas, medium.is_clip) {
                (None, false) => rows.extend(own.map(Some).chain([None])),
                (None, true) => match pooling {
                    Some(ClipPooling::Squares(_, stride)) => {
                        let side = grid / stride;
                        rows.extend((medium.first..medium.first + count * side * side).map(Some));
                    }
                    _ => {
                        let side = ClipPooling::Halves.side(grid);
                        let whole = t.gather_rows(&features, &own.map(|row| row as u32).collect::<Vec<_>>())?;
                        tables.push(t.bilinear_grid(&whole, count, [grid; 2], [side; 2])?);
                        let small = count * side * side;
                        rows.extend((num_rows..num_rows + small).map(Some).chain([None]));
                        num_rows += small;
                    }
                },
                (Some(canvas), _) => {
                    rows.extend((medium.first..medium.first + area).map(Some));
                    let Canvas { tiles, padding, size, shrunk } = canvas;
                    let place = |y: usize, x: usize| {
                        let (y, x) = (y + padding[0], x + padding[1]);
                        let tile = 1 + y / grid * tiles[1] + x / grid;
                        medium.first + tile * area + y % grid * grid + x % grid
                    };
                    let whole = (0..size[0]).flat_map(|y| (0..size[1]).map(move |x| (y, x)));
                    let (lines, columns, first) = match shrunk {
                        None => (size[0], size[1], None),
                        Some(to) => {
                            let whole: Vec<u32> = whole.map(|(y, x)| place(y, x) as u32).collect();
                            let whole = t.gather_rows(&features, &whole)?;
                            tables.push(t.bilinear_grid(&whole, 1, size, to)?);
                            let first = num_rows;
                            num_rows += to[0] * to[1];
                            (to[0], to[1], Some(first))
                        }
                    };
                    for y in 0..lines {
                        let row = |x: usize| first.map_or_else(|| place(y, x), |first| first + y * columns + x);
                        rows.extend((0..columns).map(row).map(Some).chain([None]));
                    }
                }
            }
        }
        if has_newlines {
            tables.push(t.embedding(&[0], &self.newline)?);
        }
        let table = match tables.len() {
            1 => features,
            _ => t.concat_rows(&tables)?,
        };
        let rows: Vec<u32> = rows.into_iter().map(|row| row.unwrap_or(num_rows) as u32).collect();
        Ok(t.gather_rows(&table, &rows)?)
    }
}
