//! Owns counter-based random numbers for dropout (Philox 4x32-10). Refuses state: a number is a function of its place.
//!
//! Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.

/// The random numbers of one operator: a function of seed, step, ordinal and element.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stream {
    key: [u32; 2],
    high: [u32; 2],
}

impl Stream {
    pub(crate) fn new(seed: u64, step: u64, ordinal: u64) -> Stream {
        // Step and ordinal share the upper counter words; the seed is the key, with the step's upper half mixed in.
        let key = seed ^ (step >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Stream { key: [key as u32, (key >> 32) as u32], high: [ordinal as u32, step as u32] }
    }

    /// Four random words of the block `index`.
    #[inline(always)]
    pub(crate) fn block(&self, index: u64) -> [u32; 4] {
        philox([index as u32, (index >> 32) as u32, self.high[0], self.high[1]], self.key)
    }
}

#[inline(always)]
fn philox(mut c: [u32; 4], mut k: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let p0 = u64::from(c[0]) * 0xd251_1f53;
        let p1 = u64::from(c[2]) * 0xcd9e_8d57;
        c = [(p1 >> 32) as u32 ^ c[1] ^ k[0], p1 as u32, (p0 >> 32) as u32 ^ c[3] ^ k[1], p0 as u32];
        k = [k[0].wrapping_add(0x9e37_79b9), k[1].wrapping_add(0xbb67_ae85)];
    }
    c
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_the_published_vectors() {
        // Known answers distributed with the authors' Random123 library (kat_vectors, philox4x32 10 rounds).
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
    }

    #[test]
    fn streams_differ_by_each_part_of_their_place() {
        let base = Stream::new(1, 2, 3).block(4);
        for other in [Stream::new(9, 2, 3), Stream::new(1, 9, 3), Stream::new(1, 2, 9), Stream::new(1, 2 << 32, 3)] {
            assert_ne!(base, other.block(4));
        }
        assert_ne!(base, Stream::new(1, 2, 3).block(5));
    }
}
