//! The columns of a one-dimensional convolution: `[n * len, c]` to `[n * out, c * width]`, f32 or bf16, so that a product with
//! a weight `[o, c * width]`, which is PyTorch's `[o, c, width]`, is the convolution.
//!
//! y[i, ch * width + j] = x[stride * i + j - padding, ch] within the same of the n sequences, 0 outside of it;
//! out = (len + 2 * padding - width) / stride + 1, as PyTorch's `Conv1d` without dilation. Backward adds what came of each
//! input, in the order of j. Nothing is kept.

#[cfg(test)]
mod reference;

use crate::element::{Element, with_element};
use crate::error::{Error, Result};
use crate::gradients::Write;
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;
use crate::threads;

/// Width, stride and padding of a convolution along time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Inputs that one output sees.
    pub width: usize,
    /// Inputs from one output to the next.
    pub stride: usize,
    /// Zeros before the first and behind the last input.
    pub padding: usize,
}

impl Window {
    /// Outputs for so many inputs.
    pub fn outputs(&self, len: usize) -> usize {
        (len + 2 * self.padding).checked_sub(self.width).map_or(0, |rest| rest / self.stride.max(1) + 1)
    }
}

impl Tape {
    /// The columns of a convolution over `n` sequences of equal length: `[n*len, c]` to `[n*out, c*width]`.
    pub fn unfold(&self, x: &Var, n: usize, window: Window) -> Result<Var> {
        let place = self.place("unfold", "x", x)?;
        let [rows, c] = match *x.shape() {
            [rows, c] if n > 0 && rows.is_multiple_of(n) => [rows, c],
            _ => return Err(Error::shape("unfold", "x", format!("[{n} * len, c]"), x.shape())),
        };
        if window.width == 0 || window.stride == 0 {
            return Err(Error::argument("unfold", format!("width or stride of {window:?} is 0")));
        }
        let (len, out) = (rows / n, window.outputs(rows / n));
        let columns = Columns { window, len, out, c };
        let dtype = x.value().dtype();
        let mut y = Tensor::stale(&[n * out, c * window.width], dtype)?;
        with_element!("unfold", "x", dtype, E => columns.gather(E::of(x.value())?, E::of_mut(&mut y)?));
        let Some(place) = place else { return Ok(self.constant(y)) };
        Ok(self.push_op(y, move |g, sweep| {
            sweep.write_as(place, &[rows, c], dtype, |dx, write| {
                with_element!("unfold", "x", dtype, E => columns.scatter(E::of(&g)?, E::of_mut(dx)?, write));
                Ok(())
            })
        }))
    }
}

/// The map of one sequence of `len` inputs to `out` outputs.
#[derive(Clone, Copy)]
struct Columns {
    window: Window,
    len: usize,
    out: usize,
    c: usize,
}

impl Columns {
    fn gather<E: Element>(&self, x: &[E], y: &mut [E]) {
        let Columns { window: Window { width, stride, padding }, len, out, c } = *self;
        threads::for_each_rows(y, c * width, |rows, y| {
            for (row, y) in rows.zip(y.chunks_exact_mut(c * width)) {
                for j in 0..width {
                    let from = (row % out * stride + j).checked_sub(padding).filter(|&at| at < len);
                    let from = from.map(|at| &x[(row / out * len + at) * c..][..c]);
                    for (ch, y) in y.chunks_exact_mut(width).enumerate() {
                        y[j] = from.map_or(E::narrow(0.0), |x| x[ch]);
                    }
                }
            }
        });
    }

    fn scatter<E: Element>(&self, g: &[E], dx: &mut [E], write: Write) {
        let Columns { window: Window { width, stride, padding }, len, out, c } = *self;
        threads::for_each_rows(dx, c, |rows, dx| {
            for (row, dx) in rows.zip(dx.chunks_exact_mut(c)) {
                let at = row % len + padding;
                for (ch, dx) in dx.iter_mut().enumerate() {
                    let mut sum = if write == Write::Replace { 0.0 } else { dx.wide() };
                    for j in 0..width.min(at + 1) {
                        let output = (at - j) / stride;
                        if (at - j).is_multiple_of(stride) && output < out {
                            sum += g[(row / len * out + output) * c * width + ch * width + j].wide();
                        }
                    }
                    *dx = E::narrow(sum);
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_agree_with_plain_loops() {
        for (n, len, c, [width, stride, padding]) in [
            (2, 7, 3, [3, 1, 1]),
            (3, 8, 2, [3, 2, 1]),
            (1, 5, 4, [2, 3, 0]),
            (2, 1, 1, [3, 2, 1]),
            (1, 2, 2, [5, 1, 1]),
        ] {
            let window = Window { width, stride, padding };
            let x: Vec<f32> = (0..n * len * c).map(|i| ((i * 37) % 23) as f32 - 9.0).collect();
            let tape = Tape::inference();
            let x_var = tape.constant(Tensor::from_f32(&x, &[n * len, c]).unwrap());
            let y = tape.unfold(&x_var, n, window).unwrap();
            let expected = reference::unfold(&x, n, c, window);
            assert_eq!(y.shape(), [n * window.outputs(len), c * width]);
            assert_eq!(y.value().to_vec_f32().unwrap(), expected, "{n} {len} {c} {window:?}");
        }
    }

    #[test]
    fn wrong_shapes_are_refused() {
        let tape = Tape::inference();
        let x = tape.constant(Tensor::from_f32(&[0.0; 10], &[5, 2]).unwrap());
        let window = Window { width: 3, stride: 1, padding: 1 };
        assert!(tape.unfold(&x, 2, window).is_err());
        assert!(tape.unfold(&x, 1, Window { stride: 0, ..window }).is_err());
    }
}
