//! Squares of a grid that do not overlap, `[n * h * w, c]` to one row each, f32: stride and side are the same, and what does
//! not fill a square at the far edges is left out. Rows stand in the order (grid, y, x).
//!
//! `max_pool_grid` as PyTorch's `max_pool2d` (of equal values the first one, in the order of rows, takes the gradient);
//! `unfold_grid` puts the values of a square side by side in the order `(c, y, x)` of a convolution's weight, as `F.unfold`.
//! Kept by the maximum: its input.

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::gradients::Write;
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;
use crate::threads;

/// Where the squares of a grid lie.
#[derive(Clone, Copy)]
struct Squares {
    from: [usize; 2],
    to: [usize; 2],
    stride: usize,
}

impl Tape {
    /// The largest value of each square, channel by channel: `[n*h*w, c]` to `[n*(h/s)*(w/s), c]`.
    pub fn max_pool_grid(&self, x: &Var, n: usize, from: [usize; 2], stride: usize) -> Result<Var> {
        let place = self.place("max_pool_grid", "x", x)?;
        let (squares, rows, c) = Squares::new("max_pool_grid", x, n, from, stride)?;
        let mut y = Tensor::stale(&[n * squares.num_out(), c], DType::F32)?;
        squares.max(x.value().f32s()?, y.f32s_mut()?, c);
        let Some(place) = place else { return Ok(self.constant(y)) };
        let kept = x.value().clone();
        Ok(self.push_op(y, move |g, sweep| {
            sweep.write(place, &[rows, c], |dx, write| {
                squares.max_backward(kept.f32s()?, g.f32s()?, dx, c, write);
                Ok(())
            })
        }))
    }

    /// The values of each square in one row: `[n*h*w, c]` to `[n*(h/s)*(w/s), c*s*s]`.
    pub fn unfold_grid(&self, x: &Var, n: usize, from: [usize; 2], stride: usize) -> Result<Var> {
        let place = self.place("unfold_grid", "x", x)?;
        let (squares, rows, c) = Squares::new("unfold_grid", x, n, from, stride)?;
        let mut y = Tensor::stale(&[n * squares.num_out(), c * stride * stride], DType::F32)?;
        squares.unfold(x.value().f32s()?, y.f32s_mut()?, c);
        let Some(place) = place else { return Ok(self.constant(y)) };
        Ok(self.push_op(y, move |g, sweep| {
            sweep.write(place, &[rows, c], |dx, write| {
                squares.fold(g.f32s()?, dx, c, write);
                Ok(())
            })
        }))
    }
}

impl Squares {
    fn new(op: &'static str, x: &Var, n: usize, from: [usize; 2], stride: usize) -> Result<(Squares, usize, usize)> {
        if stride == 0 || from.iter().any(|side| *side < stride) {
            return Err(Error::argument(op, format!("a grid of {from:?} has no square of {stride}")));
        }
        let (rows, c) = match *x.shape() {
            [rows, c] if rows == n * from[0] * from[1] => (rows, c),
            _ => return Err(Error::shape(op, "x", format!("[{n} * {} * {}, c]", from[0], from[1]), x.shape())),
        };
        Ok((Squares { from, to: from.map(|side| side / stride), stride }, rows, c))
    }

    fn num_in(&self) -> usize {
        self.from[0] * self.from[1]
    }

    fn num_out(&self) -> usize {
        self.to[0] * self.to[1]
    }

    /// Rows of the input, within its grid, of the places of a square.
    fn places(&self, cell: usize) -> impl Iterator<Item = usize> + use<> {
        let Squares { from, to, stride } = *self;
        let first = cell / to[1] * stride * from[1] + cell % to[1] * stride;
        (0..stride * stride).map(move |place| first + place / stride * from[1] + place % stride)
    }

    fn max(&self, x: &[f32], y: &mut [f32], c: usize) {
        threads::for_each_rows(y, c, |rows, y| {
            for (row, y) in rows.zip(y.chunks_exact_mut(c)) {
                let grid = row / self.num_out() * self.num_in();
                y.fill(f32::NEG_INFINITY);
                for place in self.places(row % self.num_out()) {
                    let x = &x[(grid + place) * c..][..c];
                    y.iter_mut().zip(x).filter(|(y, x)| **x > **y || x.is_nan()).for_each(|(y, x)| *y = *x);
                }
            }
        });
    }

    fn max_backward(&self, x: &[f32], g: &[f32], dx: &mut [f32], c: usize, write: Write) {
        let (num_in, num_out) = (self.num_in(), self.num_out());
        threads::for_each_rows(dx, num_in * c, |grids, dx| {
            for (grid, dx) in grids.zip(dx.chunks_exact_mut(num_in * c)) {
                if write == Write::Replace {
                    dx.fill(0.0);
                }
                let x = &x[grid * num_in * c..][..num_in * c];
                for cell in 0..num_out {
                    let g = &g[(grid * num_out + cell) * c..][..c];
                    for (channel, g) in g.iter().enumerate() {
                        let (mut best, mut at) = (f32::NEG_INFINITY, None);
                        for place in self.places(cell).map(|place| place * c + channel) {
                            if at.is_none() || x[place] > best || x[place].is_nan() {
                                (best, at) = (x[place], Some(place));
                            }
                        }
                        if let Some(at) = at {
                            dx[at] += g;
                        }
                    }
                }
            }
        });
    }

    fn unfold(&self, x: &[f32], y: &mut [f32], c: usize) {
        let area = self.stride * self.stride;
        threads::for_each_rows(y, c * area, |rows, y| {
            for (row, y) in rows.zip(y.chunks_exact_mut(c * area)) {
                let grid = row / self.num_out() * self.num_in();
                for (i, place) in self.places(row % self.num_out()).enumerate() {
                    let x = &x[(grid + place) * c..][..c];
                    y[i..].iter_mut().step_by(area).zip(x).for_each(|(y, x)| *y = *x);
                }
            }
        });
    }

    fn fold(&self, g: &[f32], dx: &mut [f32], c: usize, write: Write) {
        let (num_in, num_out, area) = (self.num_in(), self.num_out(), self.stride * self.stride);
        threads::for_each_rows(dx, num_in * c, |grids, dx| {
            for (grid, dx) in grids.zip(dx.chunks_exact_mut(num_in * c)) {
                if write == Write::Replace {
                    dx.fill(0.0);
                }
                for cell in 0..num_out {
                    let g = &g[(grid * num_out + cell) * c * area..][..c * area];
                    for (i, place) in self.places(cell).enumerate() {
                        let dx = &mut dx[place * c..][..c];
                        dx.iter_mut().zip(g[i..].iter().step_by(area)).for_each(|(dx, g)| *dx += g);
                    }
                }
            }
        });
    }
}
