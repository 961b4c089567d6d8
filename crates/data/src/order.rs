//! Owns the order of records in an epoch: a permutation that gives any position at once, so that a run resumes without
//! replaying what came before. It holds no list, so that memory does not grow with the dataset, unless records are
//! grouped by length, which needs the lengths of all of them.
//!
//! A Feistel network of four rounds over the smallest even number of bits that hold the records, walked until it lands
//! inside (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002). Four steps are the expected worst.

/// The order of the records of one epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// File order.
    File,
    /// A permutation that depends on seed and epoch.
    Shuffled { len: u64, half_bits: u32, key: u64 },
}

impl Order {
    /// The order of `len` records in an epoch.
    pub fn new(len: u64, shuffle: bool, seed: u64, epoch: u64) -> Self {
        if !shuffle || len < 2 {
            return Self::File;
        }
        let bits = 64 - (len - 1).leading_zeros();
        let key = mix(seed ^ mix(epoch.wrapping_add(0x9E37_79B9_7F4A_7C15)));
        Self::Shuffled { len, half_bits: bits.div_ceil(2), key }
    }

    /// The record at a position of the epoch.
    pub fn record(self, position: u64) -> u64 {
        match self {
            Self::File => position,
            Self::Shuffled { len, half_bits, key } => {
                let mut at = permute(position, half_bits, key);
                while at >= len {
                    at = permute(at, half_bits, key);
                }
                at
            }
        }
    }
}

/// Datasets of which an epoch takes a share each: less than all, or some records more than once.
///
/// Each dataset is walked through again and again, every time in another order, and an epoch takes the next records of
/// this walk. So over epochs every record comes equally often, give or take one time, and any position is found at once.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Mixture {
    parts: Vec<MixturePart>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct MixturePart {
    /// Its first record.
    start: u64,
    /// Its records.
    len: u64,
    /// What an epoch takes of them.
    take: u64,
    /// What an epoch takes of the parts before.
    before: u64,
}

impl Mixture {
    /// Puts `len` records behind those that are there; an epoch takes `weight` times as many, at least one.
    pub fn add(&mut self, len: u64, weight: f64) {
        let (start, before) = self.parts.last().map_or((0, 0), |last| (last.start + last.len, last.before + last.take));
        let take = ((len as f64 * weight).round() as u64).max(1);
        self.parts.push(MixturePart { start, len, take, before });
    }

    /// What an epoch takes of each part, and of how many records.
    pub fn takes(&self) -> impl Iterator<Item = (u64, u64)> {
        self.parts.iter().map(|part| (part.take, part.len))
    }

    /// What an epoch takes in all.
    pub fn epoch_len(&self) -> u64 {
        self.parts.last().map_or(0, |last| last.before + last.take)
    }

    /// The record at one of the epoch's places.
    fn record(&self, place: u64, shuffle: bool, seed: u64, epoch: u64) -> u64 {
        let number = self.parts.partition_point(|part| part.before <= place).saturating_sub(1);
        let part = self.parts[number];
        let at = epoch * part.take + (place - part.before);
        let walk = Order::new(part.len, shuffle, mix(seed ^ mix(number as u64)), at / part.len);
        part.start + walk.record(at % part.len)
    }
}

/// Which record stands at which position of one epoch.
#[derive(Debug, Clone)]
pub(crate) enum Sequence {
    /// Shares of several datasets: an order of the epoch's places.
    Mixed { order: Order, mixture: Mixture, shuffle: bool, seed: u64, epoch: u64 },
    /// By rule.
    Plain(Order),
    /// By list.
    Grouped(Vec<u64>),
}

impl Sequence {
    /// The record at a position.
    pub fn record(&self, position: u64) -> u64 {
        match self {
            Self::Mixed { order, mixture, shuffle, seed, epoch } => {
                mixture.record(order.record(position), *shuffle, *seed, *epoch)
            }
            Self::Plain(order) => order.record(position),
            Self::Grouped(records) => records[position as usize],
        }
    }
}

/// Records of like length side by side, as `get_length_grouped_indices` of `transformers` (`trainer_pt_utils.py`): a
/// random order is cut into groups of `50 * step` records, or into four where that is less, and each is sorted from long
/// to short. The longest record of all changes places with the first, so that a run that needs too much memory does so
/// at once. `order` gives the random order, `step` is the number of records that one step takes.
pub(crate) fn grouped(order: impl Fn(u64) -> u64, lengths: &[u32], step: usize) -> Vec<u64> {
    let num_steps = (lengths.len() / (step * 4)).clamp(1, 50);
    let length = |record: &u64| lengths[*record as usize];
    let mut records: Vec<u64> = (0..lengths.len() as u64).map(order).collect();
    // Stable, as the reference: of equally long ones the order stays, and of equally long groups the first counts.
    records
        .chunks_mut(num_steps * step)
        .for_each(|group| group.sort_by_key(|record| std::cmp::Reverse(length(record))));
    let mut longest = 0;
    for first in (0..records.len()).step_by(num_steps * step) {
        if length(&records[first]) > length(&records[longest]) {
            longest = first;
        }
    }
    if !records.is_empty() {
        records.swap(0, longest);
    }
    records
}

/// A bijection of the numbers below `2^(2 * half_bits)`.
fn permute(value: u64, half_bits: u32, key: u64) -> u64 {
    let mask = (1u64 << half_bits) - 1;
    let (mut left, mut right) = (value >> half_bits, value & mask);
    for round in 0..4u64 {
        let scrambled = mix(right ^ mix(key.wrapping_add(round)));
        (left, right) = (right, left ^ (scrambled & mask));
    }
    left << half_bits | right
}

/// The finaliser of SplitMix64: every bit of the input moves every bit of the output.
pub(crate) fn mix(value: u64) -> u64 {
    let z = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected: `get_length_grouped_indices` of `transformers` 4.57 with these permutations in place of `torch.randperm`.
    #[test]
    fn records_of_like_length_stand_side_by_side() {
        let check = |order: &[u64], lengths: &[u32], step, expected: &[u64]| {
            assert_eq!(grouped(|position| order[position as usize], lengths, step), expected);
        };
        check(&[0, 1, 2, 3, 4, 5, 6, 7], &[5, 1, 4, 2, 9, 3, 8, 7], 2, &[4, 1, 2, 3, 0, 5, 6, 7]);
        let order = [7, 2, 5, 0, 9, 3, 8, 1, 6, 4];
        check(&order, &[4, 4, 9, 1, 9, 2, 7, 7, 3, 9], 1, &[2, 7, 0, 5, 9, 3, 1, 8, 4, 6]);
        check(&[3, 0, 2, 1], &[1, 2, 2, 1], 5, &[2, 1, 3, 0]);
        check(&[4, 1, 3, 0, 2], &[3, 8, 8, 2, 5], 1, &[1, 4, 3, 0, 2]);
        check(&[], &[], 3, &[]);
    }

    #[test]
    fn every_record_comes_once() {
        for len in [0, 1, 2, 3, 7, 16, 17, 255, 256, 257, 1000] {
            let order = Order::new(len, true, 7, 3);
            let mut seen: Vec<u64> = (0..len).map(|p| order.record(p)).collect();
            seen.sort_unstable();
            assert_eq!(seen, (0..len).collect::<Vec<_>>());
        }
    }

    #[test]
    fn shares_of_datasets_come_evenly() {
        let mut mixture = Mixture::default();
        for (len, weight) in [(6, 0.5), (5, 2.0), (4, 1.0), (3, 0.01), (4, 1.5)] {
            mixture.add(len, weight);
        }
        let takes: Vec<(u64, u64)> = mixture.takes().collect();
        assert_eq!(takes, [(3, 6), (10, 5), (4, 4), (1, 3), (6, 4)]);
        assert_eq!(mixture.epoch_len(), 24);
        for shuffle in [false, true] {
            let epoch = |epoch| {
                let order = Order::new(24, shuffle, 7, epoch);
                let sequence = Sequence::Mixed { order, mixture: mixture.clone(), shuffle, seed: 7, epoch };
                (0..24).map(|position| sequence.record(position)).collect::<Vec<_>>()
            };
            let mut counts = [0; 22];
            for record in epoch(0) {
                counts[record as usize] += 1;
            }
            assert_eq!(counts[..6].iter().sum::<i32>(), 3);
            assert_eq!((&counts[6..11], &counts[11..15]), (&[2; 5][..], &[1; 4][..]));
            // Six epochs: three times all of the first, twelve the third part's walk, and so on, to the record.
            for record in (1..6).flat_map(epoch) {
                counts[record as usize] += 1;
            }
            assert_eq!((&counts[..6], &counts[6..11], &counts[11..15]), (&[3; 6][..], &[12; 5][..], &[6; 4][..]));
            assert_eq!((&counts[15..18], &counts[18..]), (&[2; 3][..], &[9; 4][..]));
            assert_ne!(epoch(3), epoch(4));
        }
    }

    #[test]
    fn epochs_and_seeds_differ_and_repeat() {
        let order = |seed, epoch| {
            let order = Order::new(100, true, seed, epoch);
            (0..100).map(|p| order.record(p)).collect::<Vec<_>>()
        };
        assert_eq!(order(1, 0), order(1, 0));
        assert_ne!(order(1, 0), order(1, 1));
        assert_ne!(order(1, 0), order(2, 0));
    }

    #[test]
    fn neighbours_are_torn_apart() {
        // In a random order of 10 000 records about 2 positions keep their place's neighbour.
        let order = Order::new(10_000, true, 42, 0);
        let kept = (1..10_000).filter(|&p| order.record(p) == order.record(p - 1) + 1).count();
        assert!(kept < 10, "{kept} neighbours stayed together");
    }

    #[test]
    fn positions_spread_evenly() {
        // Mean place of the first half of the positions over 200 epochs: 499.5 +- 5 deviations of 288.7 / sqrt(100 000).
        let sum: u64 = (0..200)
            .map(|epoch| {
                let order = Order::new(1000, true, 9, epoch);
                (0..500).map(|p| order.record(p)).sum::<u64>()
            })
            .sum();
        let mean = sum as f64 / 100_000.0;
        assert!((mean - 499.5).abs() < 5.0, "{mean}");
    }
}
