//! Rotary position embedding on the CPU, in place, rows in parallel.

use super::Heads;
use crate::element::Element;
use crate::simd::multiversion;
use crate::threads;

/// Rotates in place the heads at the start of rows of `width` elements; `sign` -1 rotates back.
pub(super) fn rotate<E: Element>(x: &mut [E], width: usize, heads: &Heads, cos: &[f32], sin: &[f32], sign: f32) {
    let half = heads.half;
    if half == 0 || width == 0 {
        return;
    }
    threads::for_each_rows(x, width, |rows, x| {
        let range = rows.start * half..rows.end * half;
        let tables = cos[range.clone()].chunks_exact(half).zip(sin[range].chunks_exact(half));
        for (row, (cos, sin)) in x.chunks_exact_mut(width).zip(tables) {
            rotate_row(&mut row[..heads.num_heads * heads.head_dim], heads.head_dim, cos, sin, sign);
        }
    });
}

multiversion! {
    fn rotate_row<E: Element>(row: &mut [E], head_dim: usize, cos: &[f32], sin: &[f32], sign: f32) {
        let half = cos.len();
        for head in row.chunks_exact_mut(head_dim) {
            let (first, second) = head[..2 * half].split_at_mut(half);
            for (((u, v), &c), &s) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                let (s, a, b) = (s * sign, u.wide(), v.wide());
                (*u, *v) = (E::narrow(a * c - b * s), E::narrow(b * c + a * s));
            }
        }
    }
}
