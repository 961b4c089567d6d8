//! Where the patches of a batch stand: their order in windows, the boundaries of frames, their angles, and what they take of
//! a table of positions. Owns numbers alone, no weights and no operator.
//!
//! Source: `get_vision_position_ids`, `get_vision_window_index`, `get_vision_interpolation_indices_and_weights` of `transformers`.

use crate::config::native::{NativeInput, NativeVisionConfig, Windows};
use crate::error::{ModelError, Result};
use crate::model::Visual;
use std::sync::Arc;
use tensor::{Taps, Tensor};

/// Where the patches of a batch stand, and who sees whom.
pub(super) struct Layout {
    /// For every row the patch that stands there: the identity without windows. Class tokens are not counted.
    pub(super) order: Vec<u32>,
    /// For every token in its own place the row of the merger's output.
    pub(super) back: Vec<u32>,
    /// Boundaries of the frames, in rows, class tokens among them.
    pub(super) frames: Arc<[usize]>,
    /// Boundaries of the windows, in rows.
    pub(super) windows: Arc<[usize]>,
    /// Row and column of every patch within its frame, and the frame's rows and columns, in the order of the patches.
    places: Vec<Place>,
}

#[derive(Clone, Copy)]
struct Place {
    at: [usize; 2],
    of: [usize; 2],
}

impl Layout {
    /// Lays out patches `[p, values]` of some images and clips.
    pub(super) fn new(c: &NativeVisionConfig, pixels: &Tensor, visuals: &[Visual]) -> Result<Layout> {
        let m = c.merge_size;
        let num_patches: usize = visuals.iter().map(|v| v.grid.iter().product::<usize>()).sum();
        if pixels.shape() != [num_patches, c.patch_values()] {
            return Err(ModelError::Input(format!(
                "patches have shape {:?}, the vision tower expects [{num_patches}, {}] for the grids of {} images and clips; check `patch_size`, `temporal_patch_size` and `merge_size` in the processor's files",
                pixels.shape(),
                c.patch_values(),
                visuals.len()
            )));
        }
        if let Some(v) = visuals.iter().find(|v| v.grid[1] % m != 0 || v.grid[2] % m != 0 || v.grid.contains(&0)) {
            return Err(ModelError::Input(format!(
                "a grid of {:?} patches is not made of squares of {m} x {m}; check `merge_size` in the processor's files",
                v.grid
            )));
        }
        let unit = m * m;
        let (mut groups, mut frames, mut windows) = (Vec::new(), vec![0], vec![0]);
        for visual in visuals {
            let [t, h, w] = [visual.grid[0], visual.grid[1] / m, visual.grid[2] / m];
            for _ in 0..t {
                let first = groups.len() as u32;
                match &c.windows {
                    None => groups.extend(first..first + (h * w) as u32),
                    Some(Windows { side, .. }) => {
                        for (top, left) in
                            (0..h).step_by(*side).flat_map(|y| (0..w).step_by(*side).map(move |x| (y, x)))
                        {
                            for y in top..h.min(top + side) {
                                groups.extend((left..w.min(left + side)).map(|x| first + (y * w + x) as u32));
                            }
                            windows.push(groups.len() * unit);
                        }
                    }
                }
                frames.push(groups.len() * unit);
            }
        }
        let order: Vec<u32> = groups.iter().flat_map(|&g| (0..unit).map(move |i| g * unit as u32 + i as u32)).collect();
        let mut back = vec![0; groups.len()];
        for (row, &group) in groups.iter().enumerate() {
            back[group as usize] = row as u32;
        }
        if c.input == NativeInput::ClassToken {
            frames.iter_mut().enumerate().for_each(|(frame, end)| *end += frame);
        }
        let places = places(visuals, m);
        Ok(Layout { order, back, frames: frames.into(), windows: windows.into(), places })
    }

    /// Number of frames.
    pub(super) fn num_frames(&self) -> usize {
        self.frames.len() - 1
    }

    /// Rows of the class tokens, each in front of its frame.
    pub(super) fn class_rows(&self) -> Vec<u32> {
        self.frames[..self.num_frames()].iter().map(|&first| first as u32).collect()
    }

    /// Rows of the patches behind class tokens.
    pub(super) fn patch_rows(&self) -> Vec<u32> {
        self.frames.windows(2).flat_map(|frame| frame[0] as u32 + 1..frame[1] as u32).collect()
    }

    /// For every row where its content stands in class tokens of all frames and then all patches.
    pub(super) fn joined_rows(&self) -> Vec<u32> {
        let classes = self.num_frames() as u32;
        let frame = |(i, bounds): (usize, &[usize])| {
            // Frames before this one have as many class tokens as there are of them.
            let patches = (bounds[0] - i) as u32..(bounds[1] - i - 1) as u32;
            std::iter::once(i as u32).chain(patches.map(move |patch| classes + patch))
        };
        self.frames.windows(2).enumerate().flat_map(frame).collect()
    }

    /// The angles of each patch, row by row `head_dim / 2` of them: the first half of a head's pairs turns by the patch's row,
    /// the second by its column.
    pub(super) fn angles(&self, c: &NativeVisionConfig) -> Vec<f32> {
        let axis = c.head_dim() / 2;
        let inverse: Vec<f32> =
            (0..axis / 2).map(|i| (1.0 / c.rope_theta.powf(2.0 * i as f64 / axis as f64)) as f32).collect();
        let mut angles = Vec::with_capacity(self.order.len() * axis);
        for &patch in &self.order {
            for place in self.places[patch as usize].at {
                angles.extend(inverse.iter().map(|f| place as f32 * f));
            }
        }
        angles
    }

    /// What each patch takes of a table of `side x side` positions: four of them, bilinearly, corners upon corners; counted
    /// in f32 as the reference counts.
    pub(super) fn taps(&self, side: usize) -> Taps {
        let axis = |at: usize, of: usize| {
            let source = at as f32 * (side - 1) as f32 / (of.max(2) - 1) as f32;
            let low = source.floor();
            let part = source - low;
            let row = |row: f32| (row as usize).min(side - 1) as u32;
            [(row(low), 1.0 - part), (row(low + 1.0), 1.0 - (part - 1.0).abs())]
        };
        let (mut rows, mut weights) = (Vec::new(), Vec::new());
        for &patch in &self.order {
            let Place { at, of } = self.places[patch as usize];
            for (y, wy) in axis(at[0], of[0]) {
                for (x, wx) in axis(at[1], of[1]) {
                    rows.push(y * side as u32 + x);
                    weights.push(wy * wx);
                }
            }
        }
        Taps { rows, weights }
    }
}

/// The places of all patches, squares of `m x m` one after the other.
fn places(visuals: &[Visual], m: usize) -> Vec<Place> {
    let mut places = Vec::new();
    for visual in visuals {
        let [t, h, w] = visual.grid;
        for _ in 0..t {
            for (top, left) in (0..h).step_by(m).flat_map(|y| (0..w).step_by(m).map(move |x| (y, x))) {
                places.extend((0..m * m).map(|i| Place { at: [top + i / m, left + i % m], of: [h, w] }));
            }
        }
    }
    places
}
