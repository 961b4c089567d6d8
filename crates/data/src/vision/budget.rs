//! Owns the sizes that pictures and clips of native resolution are scaled to: the roundings and budgets of the Qwen-VL
//! processors. It refuses to scale.
//!
//! Source: `transformers` 5.23 `image_processing_qwen2_vl.py`, `video_processing_qwen2_vl.py` and
//! `video_processing_qwen3_vl.py` (`smart_resize` and `resize` of each), and qwen-vl-utils 0.0.14 `fetch_video`.
//! Python's integers and floats meet here in f64: sides and budgets are far below 2^53, so nothing is rounded that
//! Python does not round.

/// Pixels that a picture, a frame or a clip may take: at least and at most.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Budget {
    pub min_pixels: usize,
    pub max_pixels: usize,
}

/// How the budget of a clip is shared by its frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ClipBudget {
    /// `Qwen2VLVideoProcessor`: the budget holds for each frame. With a number of tokens (`cap_pixels_per_frame`) nine
    /// tenths of them are the most that all frames take together.
    EachFrame { tokens: Option<usize> },
    /// `Qwen3VLVideoProcessor`: the budget holds for all frames together. With a number of tokens each frame takes at
    /// most so many.
    WholeClip { tokens_a_frame: Option<usize> },
    /// qwen-vl-utils: 128 to 768 tokens a frame, and nine tenths of 128000 tokens for all.
    QwenVlUtils,
}

/// Why there is no size.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TooOblong {
    /// The longer side over the shorter one.
    pub ratio: f64,
}

/// Longest side over shortest side beyond which nothing is scaled.
pub(crate) const MAX_RATIO: f64 = 200.0;

/// Sides and what they are rounded to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Grid {
    /// Pixels of a token's side: patch times merge.
    pub factor: usize,
    /// Frames that make one patch in time.
    pub temporal: usize,
}

impl Grid {
    /// Height and width of a picture of `height` x `width` pixels after scaling.
    pub fn of_image(self, height: usize, width: usize, budget: Budget) -> Result<(usize, usize), TooOblong> {
        self.rounded(height, width, Bounds::of_one(budget.min_pixels as f64, budget.max_pixels as f64))
    }

    /// Height and width of the frames of a clip of `frames` frames of `height` x `width` pixels after scaling.
    pub fn of_clip(
        self,
        frames: usize,
        height: usize,
        width: usize,
        budget: Budget,
        shared: ClipBudget,
    ) -> Result<(usize, usize), TooOblong> {
        let area = self.factor * self.factor;
        let Budget { min_pixels, max_pixels } = budget;
        let floor = |min: usize| (min as f64 * 1.05) as usize;
        match shared {
            ClipBudget::EachFrame { tokens } => {
                let most = match tokens {
                    None => max_pixels,
                    Some(tokens) => {
                        let total = ((tokens * area) as f64 * 0.9) as usize;
                        max_pixels.min(total * self.temporal / frames.max(1)).max(floor(min_pixels))
                    }
                };
                self.rounded(height, width, Bounds::of_one(min_pixels as f64, most as f64))
            }
            ClipBudget::WholeClip { tokens_a_frame } => {
                let most = match tokens_a_frame {
                    None => max_pixels,
                    Some(tokens) => (tokens * area).min(max_pixels / frames.max(1)).max(floor(min_pixels)) * frames,
                };
                // A clip of fewer frames than a patch is refused there; its last frame is repeated here.
                let frames = frames.max(self.temporal);
                let counted = (frames as f64 / self.temporal as f64).round_ties_even() as usize * self.temporal;
                let (height, width) = self.at_least_a_token(height, width);
                let bounds = Bounds { frames, counted, ..Bounds::of_one(min_pixels as f64, most as f64) };
                self.rounded(height, width, bounds)
            }
            ClipBudget::QwenVlUtils => {
                let min = 128 * area;
                let total = (128_000 * area) as f64 * 0.9;
                let most = (768.0 * area as f64).min(total / frames.max(1) as f64 * 2.0).max(floor(min) as f64);
                self.rounded(height, width, Bounds { at_least: self.factor, ..Bounds::of_one(min as f64, most) })
            }
        }
    }

    /// Sides below a token's are scaled up first, as Qwen3-VL does.
    fn at_least_a_token(self, height: usize, width: usize) -> (usize, usize) {
        if height >= self.factor && width >= self.factor {
            return (height, width);
        }
        let factor = self.factor as f64;
        let scale = (factor / height as f64).max(factor / width as f64);
        ((height as f64 * scale) as usize, (width as f64 * scale) as usize)
    }

    /// `smart_resize`: both sides rounded to whole tokens (halves to the even number), then scaled into the bounds.
    fn rounded(self, height: usize, width: usize, bounds: Bounds) -> Result<(usize, usize), TooOblong> {
        let ratio = height.max(width) as f64 / height.min(width).max(1) as f64;
        if ratio > MAX_RATIO {
            return Err(TooOblong { ratio });
        }
        let Bounds { min, max, frames, counted, at_least } = bounds;
        let factor = self.factor as f64;
        let (h, w) = (height as f64, width as f64);
        let whole = |tokens: f64| tokens as usize * self.factor;
        let near = |side: f64| whole((side / factor).round_ties_even()).max(at_least);
        let pixels = (counted * near(h) * near(w)) as f64;
        let all = (frames * height * width) as f64;
        if pixels > max {
            let beta = (all / max).sqrt();
            let below = |side: f64| whole((side / beta / factor).floor()).max(self.factor);
            Ok((below(h), below(w)))
        } else if pixels < min {
            let beta = (min / all).sqrt();
            let above = |side: f64| whole((side * beta / factor).ceil());
            Ok((above(h), above(w)))
        } else {
            Ok((near(h), near(w)))
        }
    }
}

/// What a size is rounded into.
struct Bounds {
    min: f64,
    max: f64,
    /// Frames among which the pixels are counted, and what their number is rounded to before it is compared.
    frames: usize,
    counted: usize,
    /// Least side after rounding.
    at_least: usize,
}

impl Bounds {
    fn of_one(min: f64, max: f64) -> Self {
        Self { min, max, frames: 1, counted: 1, at_least: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sizes that the reference's own functions gave (`tools/oracle/data_qwen_vl.py`).
    #[test]
    fn sizes_are_those_of_the_reference() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/data/qwen_vl/sizes.json");
        let rows: Vec<serde_json::Value> = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let mut refused = 0;
        for row in &rows {
            let args: Vec<Option<u64>> = row["args"].as_array().unwrap().iter().map(|n| n.as_u64()).collect();
            let [frames, height, width, patch, merge, temporal, min_pixels, max_pixels] =
                std::array::from_fn(|i| args[i].unwrap() as usize);
            let cap = args[8].map(|n| n as usize);
            let grid = Grid { factor: patch * merge, temporal };
            let budget = Budget { min_pixels, max_pixels };
            let clip = |shared| grid.of_clip(frames, height, width, budget, shared);
            for (key, found) in [
                ("image", grid.of_image(height, width, budget)),
                ("qwen2", clip(ClipBudget::EachFrame { tokens: cap })),
                ("qwen3", clip(ClipBudget::WholeClip { tokens_a_frame: cap })),
                ("utils", clip(ClipBudget::QwenVlUtils)),
            ] {
                let wanted = row[key].as_array().map(|size| [size[0].as_u64().unwrap(), size[1].as_u64().unwrap()]);
                let found = found.ok().map(|(height, width)| [height as u64, width as u64]);
                assert_eq!(found, wanted, "{key} of {row}");
                refused += usize::from(wanted.is_none());
            }
        }
        assert!(rows.len() == 400 && (20..800).contains(&refused), "{refused} refused");
    }
}
