//! Columns of a convolution in plain loops.

use super::Window;

/// `x` holds `n` sequences of rows of `c` numbers.
pub(super) fn unfold(x: &[f32], n: usize, c: usize, window: Window) -> Vec<f32> {
    let len = x.len() / n / c;
    let mut y = vec![];
    for sequence in x.chunks(len * c) {
        for output in 0..window.outputs(len) {
            for channel in 0..c {
                for j in 0..window.width {
                    let at = (output * window.stride + j) as isize - window.padding as isize;
                    let inside = at >= 0 && at < len as isize;
                    y.push(if inside { sequence[at as usize * c + channel] } else { 0.0 });
                }
            }
        }
    }
    y
}
