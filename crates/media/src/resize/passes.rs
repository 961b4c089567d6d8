//! Owns the two passes over pixels: integer sums of weighted bytes, rounded and clipped to 8 bits.
//! It refuses to know filters.
//!
//! The loops are written for the compiler to turn into vector code: fixed groups of sums that stay in registers, one
//! weight for all of a group. On x86 they are compiled a second time with AVX2, chosen when the program runs. Sums fit
//! in 32 bits by the choice of the weights' precision; they wrap in name only, so that test builds are vector code too.
//!
//! One picture is the work of one thread, the caller's: records are decoded side by side, and work given to a shared pool
//! would stand in line there with the arithmetic of a training step.

use super::weights::Weights;

/// Rows that the horizontal pass handles together.
const ROWS: usize = 16;

/// Bytes that meet the same weight: a pixel of so many rows, or a piece of one row in the vertical pass.
const GROUP: usize = ROWS * 3;

/// Scales rows: `height` rows of `width` RGB pixels become rows of `weights.bounds.len()` pixels.
pub(super) fn horizontal(source: &[u8], width: usize, height: usize, weights: &Weights) -> Vec<u8> {
    let row = width * 3;
    let mut out = vec![0u8; weights.bounds.len() * 3 * height];
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has just been asked for AVX2.
        unsafe { horizontal_avx2(source, row, &mut out, weights) };
        return out;
    }
    horizontal_rows(source, row, &mut out, weights);
    out
}

/// Scales columns: rows of `width` RGB pixels become `weights.bounds.len()` rows.
pub(super) fn vertical(source: &[u8], width: usize, weights: &Weights) -> Vec<u8> {
    let row = width * 3;
    let mut out = vec![0u8; row * weights.bounds.len()];
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has just been asked for AVX2.
        unsafe { vertical_avx2(source, row, &mut out, weights) };
        return out;
    }
    vertical_rows(source, row, &mut out, weights);
    out
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn horizontal_avx2(source: &[u8], row: usize, out: &mut [u8], weights: &Weights) {
    horizontal_rows(source, row, out, weights);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn vertical_avx2(source: &[u8], row: usize, out: &mut [u8], weights: &Weights) {
    vertical_rows(source, row, out, weights);
}

#[inline(always)]
fn horizontal_rows(source: &[u8], row: usize, out: &mut [u8], weights: &Weights) {
    let out_row = weights.bounds.len() * 3;
    let mut side_by_side = vec![[0u8; GROUP]; row / 3];
    for (source, out) in source.chunks(row * ROWS).zip(out.chunks_mut(out_row * ROWS)) {
        // Pixels of all rows side by side, so that one weight meets all of them.
        for (r, source) in source.chunks_exact(row).enumerate() {
            for (group, pixel) in side_by_side.iter_mut().zip(source.chunks_exact(3)) {
                group[r * 3..r * 3 + 3].copy_from_slice(pixel);
            }
        }
        for x in 0..weights.bounds.len() {
            let (first, values) = weights.of(x);
            let groups = side_by_side[first..first + values.len()].iter();
            let bytes = weigh(groups.zip(values), weights.precision);
            for (r, out) in out.chunks_exact_mut(out_row).enumerate() {
                out[x * 3..x * 3 + 3].copy_from_slice(&bytes[r * 3..r * 3 + 3]);
            }
        }
    }
}

#[inline(always)]
fn vertical_rows(source: &[u8], row: usize, out: &mut [u8], weights: &Weights) {
    for (y, out) in out.chunks_exact_mut(row).enumerate() {
        let (start, values) = weights.of(y);
        let rows = || source[start * row..].chunks_exact(row).zip(values);
        let (out_groups, rest) = out.as_chunks_mut::<GROUP>();
        for (i, out) in out_groups.iter_mut().enumerate() {
            let groups = rows().filter_map(|(row, weight)| Some((row[i * GROUP..].first_chunk()?, weight)));
            *out = weigh(groups, weights.precision);
        }
        let at = out_groups.len() * GROUP;
        for (i, out) in rest.iter_mut().enumerate() {
            let half = 1 << (weights.precision - 1);
            let sum = rows().fold(half, |sum, (row, &weight)| sum + i32::from(row[at + i]) * weight);
            *out = clip(sum >> weights.precision);
        }
    }
}

/// The weighted sum of groups of bytes, rounded and clipped.
#[inline(always)]
fn weigh<'a>(groups: impl Iterator<Item = (&'a [u8; GROUP], &'a i32)>, precision: u32) -> [u8; GROUP] {
    let mut sums = [1i32 << (precision - 1); GROUP];
    for (bytes, &weight) in groups {
        for (sum, &byte) in sums.iter_mut().zip(bytes) {
            *sum = sum.wrapping_add(i32::from(byte).wrapping_mul(weight));
        }
    }
    sums.map(|sum| clip(sum >> precision))
}

#[inline(always)]
fn clip(value: i32) -> u8 {
    value.clamp(0, 255) as u8
}
