//! Owns what the kernel tests of all operators share: random numbers and comparison with a plain reference.

use crate::rng::Stream;

/// Numbers between -1 and 1, the same for the same seed.
pub(crate) fn random(seed: u64, len: usize) -> Vec<f32> {
    let stream = Stream::new(seed, 0, 0);
    let word = |i: usize| stream.block((i / 4) as u64)[i % 4];
    (0..len).map(|i| (word(i) >> 8) as f32 / (1 << 23) as f32 - 1.0).collect()
}

/// Whether every number is within `tolerance` of the largest expected one (at least of 1).
pub(crate) fn agree(found: &[f32], expected: &[f32], tolerance: f32) -> bool {
    let scale = expected.iter().fold(1f32, |m, x| m.max(x.abs()));
    found.len() == expected.len() && found.iter().zip(expected).all(|(f, e)| (f - e).abs() <= tolerance * scale)
}
