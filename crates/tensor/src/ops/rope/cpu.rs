//! Rotary position embedding on the CPU, in place, rows in parallel.

use crate::simd::multiversion;
use crate::threads;

/// Rotates in place; `sign` -1 rotates back.
pub(super) fn rotate(x: &mut [f32], width: usize, num_heads: usize, half: usize, cos: &[f32], sin: &[f32], sign: f32) {
    if half == 0 || width == 0 {
        return;
    }
    threads::for_each_rows(x, width, |rows, x| {
        let range = rows.start * half..rows.end * half;
        rotate_rows(x, width / num_heads, num_heads, &cos[range.clone()], &sin[range], sign);
    });
}

multiversion! {
    fn rotate_rows(x: &mut [f32], head_dim: usize, num_heads: usize, cos: &[f32], sin: &[f32], sign: f32) {
        let width = head_dim * num_heads;
        let half = cos.len() / (x.len() / width);
        for ((row, cos), sin) in x.chunks_exact_mut(width).zip(cos.chunks_exact(half)).zip(sin.chunks_exact(half)) {
            for head in row.chunks_exact_mut(head_dim) {
                let (first, second) = head[..2 * half].split_at_mut(half);
                for (((u, v), &c), &s) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                    let s = s * sign;
                    (*u, *v) = (*u * c - *v * s, *v * c + *u * s);
                }
            }
        }
    }
}
