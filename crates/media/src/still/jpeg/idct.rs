//! Owns the inverse cosine transform of one block, in libjpeg's "slow integer" arithmetic.
//! It refuses other transforms: their pixels differ.
//!
//! Loeffler, Ligtenberg and Moschytz, "Practical fast 1-D DCT algorithms with 11 multiplications" (1989), in integers
//! with 13 fraction bits; columns first, with two more bits kept between the passes.

use std::num::Wrapping as W;

use super::entropy::Block;

const FRACTION: u32 = 13;
const KEPT: u32 = 2;

/// A constant of the transform with 13 fraction bits.
const fn fix(value: f64) -> W<i32> {
    W((value * 8192.0 + 0.5) as i32)
}

/// One 8-point transform; values come in with no fraction bits and leave with 13.
#[inline(always)]
fn transform(c: [W<i32>; 8]) -> [W<i32>; 8] {
    // Even part.
    let z1 = (c[2] + c[6]) * fix(0.541196100);
    let t2 = z1 - c[6] * fix(1.847759065);
    let t3 = z1 + c[2] * fix(0.765366865);
    let t0 = (c[0] + c[4]) << FRACTION as usize;
    let t1 = (c[0] - c[4]) << FRACTION as usize;
    let (e0, e3, e1, e2) = (t0 + t3, t0 - t3, t1 + t2, t1 - t2);
    // Odd part.
    let (z1, z2, z3, z4) = (c[7] + c[1], c[5] + c[3], c[7] + c[3], c[5] + c[1]);
    let z5 = (z3 + z4) * fix(1.175875602);
    let z1 = -z1 * fix(0.899976223);
    let z2 = -z2 * fix(2.562915447);
    let z3 = z5 - z3 * fix(1.961570560);
    let z4 = z5 - z4 * fix(0.390180644);
    let o0 = c[7] * fix(0.298631336) + z1 + z3;
    let o1 = c[5] * fix(2.053119869) + z2 + z4;
    let o2 = c[3] * fix(3.072711026) + z2 + z3;
    let o3 = c[1] * fix(1.501321110) + z1 + z4;
    [e0 + o3, e1 + o2, e2 + o1, e3 + o0, e3 - o0, e2 - o1, e1 - o2, e0 - o3]
}

/// Rounds `bits` bits away.
#[inline(always)]
fn descale(value: W<i32>, bits: u32) -> W<i32> {
    (value + W(1 << (bits - 1))) >> bits as usize
}

/// Samples of a block from its coefficients, written to eight rows of `out` that lie `stride` apart.
pub(super) fn block(coefficients: &Block, quantisation: &[u16; 64], out: &mut [u8], stride: usize) {
    // The product wraps to 16 bits, as in libjpeg-turbo's vector code; lawful data never gets there.
    let value = |at: usize| W(i32::from(coefficients[at].wrapping_mul(quantisation[at] as i16)));
    let mut between = [[W(0i32); 8]; 8];
    for column in 0..8 {
        let c = [0, 1, 2, 3, 4, 5, 6, 7].map(|row| value(row * 8 + column));
        for (row, result) in between.iter_mut().zip(transform(c)) {
            row[column] = descale(result, FRACTION - KEPT);
        }
    }
    for (row, out) in between.into_iter().zip(out.chunks_mut(stride)) {
        for (out, result) in out.iter_mut().zip(transform(row)) {
            *out = sample(descale(result, FRACTION + KEPT + 3));
        }
    }
}

/// As [`block`], where only the first coefficient is set: all samples are equal.
pub(super) fn flat(first: i16, quantisation: &[u16; 64], out: &mut [u8], stride: usize) {
    let value = W(i32::from(first.wrapping_mul(quantisation[0] as i16))) << KEPT as usize;
    let sample = sample(descale(value, KEPT + 3));
    for row in out.chunks_mut(stride).take(8) {
        row[..8].fill(sample);
    }
}

fn sample(value: W<i32>) -> u8 {
    (value + W(128)).0.clamp(0, 255) as u8
}
