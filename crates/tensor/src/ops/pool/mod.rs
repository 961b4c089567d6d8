//! Grids of rows, resized: `[n * h * w, c]` to `[n * oh * ow, c]`, f32, rows in the order (grid, y, x).
//!
//! `avg_pool_grid` as PyTorch's `adaptive_avg_pool2d` (window i of a side covers floor(i h / oh) to ceil((i + 1) h / oh));
//! `bilinear_grid` as `interpolate(mode="bilinear", align_corners=False)`. Both are the same small linear map along
//! either side, applied as output row = sum of weight * input row. Backward applies the transposed map, adding in the
//! order of output rows. Nothing is kept but the two maps.

#[cfg(test)]
mod reference;
mod squares;

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::gradients::Write;
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;
use crate::threads;

/// For each output place of one side, the input places it takes and their weights.
type Taps = Vec<Vec<(usize, f32)>>;

impl Tape {
    /// Mean of the cells of each window: `[n*h*w, c]` to `[n*oh*ow, c]`; windows as PyTorch's adaptive average pooling.
    pub fn avg_pool_grid(&self, x: &Var, n: usize, from: [usize; 2], to: [usize; 2]) -> Result<Var> {
        self.resize_grid("avg_pool_grid", x, n, from, to, windows)
    }

    /// Bilinear resizing with `align_corners=False`: `[n*h*w, c]` to `[n*oh*ow, c]`.
    pub fn bilinear_grid(&self, x: &Var, n: usize, from: [usize; 2], to: [usize; 2]) -> Result<Var> {
        self.resize_grid("bilinear_grid", x, n, from, to, neighbours)
    }

    fn resize_grid(
        &self,
        op: &'static str,
        x: &Var,
        n: usize,
        from: [usize; 2],
        to: [usize; 2],
        taps: fn(usize, usize) -> Taps,
    ) -> Result<Var> {
        let place = self.place(op, "x", x)?;
        if from.contains(&0) || to.contains(&0) {
            return Err(Error::argument(op, format!("a side of {from:?} to {to:?} is 0")));
        }
        let expected = n * from[0] * from[1];
        let (rows, c) = match *x.shape() {
            [rows, c] if rows == expected => (rows, c),
            _ => return Err(Error::shape(op, "x", format!("[{n} * {} * {}, c]", from[0], from[1]), x.shape())),
        };
        let map = GridMap { from, to, sides: [taps(from[0], to[0]), taps(from[1], to[1])] };
        let mut y = Tensor::stale(&[n * to[0] * to[1], c], DType::F32)?;
        map.apply(x.value().f32s()?, y.f32s_mut()?, c);
        let Some(place) = place else { return Ok(self.constant(y)) };
        Ok(self.push_op(y, move |g, sweep| {
            sweep.write(place, &[rows, c], |dx, write| {
                map.apply_transposed(g.f32s()?, dx, c, write);
                Ok(())
            })
        }))
    }
}

/// A separable linear map between grids.
struct GridMap {
    from: [usize; 2],
    to: [usize; 2],
    sides: [Taps; 2],
}

impl GridMap {
    /// Calls `f(input cell, weight)` for every cell that output cell `cell` of a grid takes.
    fn for_each_tap(&self, cell: usize, mut f: impl FnMut(usize, f32)) {
        for &(y, wy) in &self.sides[0][cell / self.to[1]] {
            for &(x, wx) in &self.sides[1][cell % self.to[1]] {
                f(y * self.from[1] + x, wy * wx);
            }
        }
    }

    fn apply(&self, x: &[f32], y: &mut [f32], c: usize) {
        let (num_in, num_out) = (self.from[0] * self.from[1], self.to[0] * self.to[1]);
        threads::for_each_rows(y, c, |rows, y| {
            for (row, y) in rows.zip(y.chunks_exact_mut(c)) {
                y.fill(0.0);
                self.for_each_tap(row % num_out, |cell, weight| {
                    let x = &x[(row / num_out * num_in + cell) * c..][..c];
                    y.iter_mut().zip(x).for_each(|(y, x)| *y += weight * x);
                });
            }
        });
    }

    /// One task a grid: its output cells add to its input cells in order.
    fn apply_transposed(&self, g: &[f32], dx: &mut [f32], c: usize, write: Write) {
        let (num_in, num_out) = (self.from[0] * self.from[1], self.to[0] * self.to[1]);
        threads::for_each_rows(dx, num_in * c, |grids, dx| {
            for (grid, dx) in grids.zip(dx.chunks_exact_mut(num_in * c)) {
                if write == Write::Replace {
                    dx.fill(0.0);
                }
                for cell in 0..num_out {
                    let g = &g[(grid * num_out + cell) * c..][..c];
                    self.for_each_tap(cell, |input, weight| {
                        let dx = &mut dx[input * c..][..c];
                        dx.iter_mut().zip(g).for_each(|(dx, g)| *dx += weight * g);
                    });
                }
            }
        });
    }
}

fn windows(from: usize, to: usize) -> Taps {
    let window = |i: usize| {
        let (start, end) = (i * from / to, ((i + 1) * from).div_ceil(to));
        (start..end).map(|j| (j, 1.0 / (end - start) as f32)).collect()
    };
    (0..to).map(window).collect()
}

fn neighbours(from: usize, to: usize) -> Taps {
    let scale = from as f32 / to as f32;
    let pair = |i: usize| {
        let at = ((i as f32 + 0.5) * scale - 0.5).max(0.0);
        let low = (at as usize).min(from - 1);
        let high = (low + 1).min(from - 1);
        let part = at - low as f32;
        if high == low { vec![(low, 1.0)] } else { vec![(low, 1.0 - part), (high, part)] }
    };
    (0..to).map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_maps_agree_with_plain_loops() {
        for (from, to) in [([5, 7], [2, 3]), ([3, 2], [6, 5]), ([1, 1], [4, 4]), ([4, 4], [4, 4])] {
            let x: Vec<f32> = (0..2 * from[0] * from[1]).map(|i| ((i * 37) % 11) as f32).collect();
            for (taps, expected) in [
                (windows as fn(usize, usize) -> Taps, reference::avg(&x, 2, from, to)),
                (neighbours, reference::bilinear(&x, 2, from, to)),
            ] {
                let map = GridMap { from, to, sides: [taps(from[0], to[0]), taps(from[1], to[1])] };
                let mut y = vec![0.0; 2 * to[0] * to[1]];
                map.apply(&x, &mut y, 1);
                for (found, expected) in y.iter().zip(expected) {
                    assert!((found - expected).abs() < 1e-5, "{from:?} {to:?}: {found} {expected}");
                }
            }
        }
    }
}
