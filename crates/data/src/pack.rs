//! Owns how records are put into batches of limited room: by best fit, so that batches are full and every one of them is
//! a function of the sizes alone. It refuses to know where the sizes come from.

use crate::batch::RecordSize;

/// What one batch holds at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Room {
    /// Input tokens.
    pub tokens: usize,
    /// Patches of pictures, where they are limited.
    pub patches: Option<usize>,
}

/// What the records of a batch take so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Taken {
    pub tokens: usize,
    pub patches: usize,
}

impl Taken {
    pub fn plus(self, size: RecordSize) -> Self {
        Self { tokens: self.tokens + size.tokens as usize, patches: self.patches + size.patches as usize }
    }
}

impl Room {
    /// Whether a record still goes into a batch.
    pub fn fits(&self, taken: Taken, size: RecordSize) -> bool {
        let sum = taken.plus(size);
        sum.tokens <= self.tokens && self.patches.is_none_or(|patches| sum.patches <= patches)
    }

    /// Whether a batch could hold the record at all.
    pub fn holds(&self, size: RecordSize) -> bool {
        self.fits(Taken::default(), size)
    }

    /// The larger of the two shares of a batch that a record takes, for comparisons only.
    fn share(&self, size: RecordSize) -> u128 {
        let patches = self.patches.unwrap_or(usize::MAX) as u128;
        (u128::from(size.tokens) * patches).max(u128::from(size.patches) * self.tokens as u128)
    }
}

/// Puts records into batches: the largest first, each into the batch that it fills up most (best fit decreasing). `None`
/// and what no batch could hold is left out. The records of a batch stand in their own order, and the batches in that of
/// their first records, so that small and large ones come mixed.
pub(crate) fn best_fit(sizes: &[Option<RecordSize>], room: &Room) -> Vec<Vec<usize>> {
    let mut places: Vec<(usize, RecordSize)> =
        sizes.iter().enumerate().filter_map(|(place, size)| Some((place, (*size)?))).collect();
    places.retain(|(_, size)| room.holds(*size));
    places.sort_by_key(|(place, size)| (std::cmp::Reverse((room.share(*size), size.tokens)), *place));
    let mut batches: Vec<(Taken, Vec<usize>)> = Vec::new();
    for (place, size) in places {
        let fitting = batches.iter_mut().filter(|(taken, _)| room.fits(*taken, size));
        // Of equally full ones the first.
        match fitting.min_by_key(|(taken, _)| std::cmp::Reverse((taken.tokens, taken.patches))) {
            Some((taken, places)) => {
                *taken = taken.plus(size);
                places.push(place);
            }
            None => batches.push((Taken::default().plus(size), vec![place])),
        }
    }
    let mut batches: Vec<Vec<usize>> = batches.into_iter().map(|(_, places)| places).collect();
    batches.iter_mut().for_each(|places| places.sort_unstable());
    batches.sort_by_key(|places| places.first().copied());
    batches
}

/// Consecutive records as long as they fit. `None` and what no batch could hold is left out.
pub(crate) fn in_order(sizes: &[Option<RecordSize>], room: &Room) -> Vec<Vec<usize>> {
    let mut batches: Vec<Vec<usize>> = Vec::new();
    let mut taken = Taken::default();
    for (place, size) in sizes.iter().enumerate() {
        let Some(size) = size.as_ref().filter(|size| room.holds(**size)) else { continue };
        match batches.last_mut() {
            Some(batch) if room.fits(taken, *size) => batch.push(place),
            _ => {
                batches.push(vec![place]);
                taken = Taken::default();
            }
        }
        taken = taken.plus(*size);
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(tokens: u32, patches: u32) -> Option<RecordSize> {
        Some(RecordSize { tokens, patches })
    }

    fn check(sizes: &[Option<RecordSize>], tokens: usize, patches: Option<usize>, expected: &[&[usize]]) {
        assert_eq!(best_fit(sizes, &Room { tokens, patches }), expected);
    }

    #[test]
    fn small_worked_examples() {
        // 6 4 | 5 3 2: a batch of 10 each, where consecutive filling would need three.
        check(&[size(6, 0), size(5, 0), size(4, 0), size(3, 0), size(2, 0)], 10, None, &[&[0, 2], &[1, 3, 4]]);
        // The 2 goes to the 7, which it fills up, and not to the 5.
        check(&[size(5, 0), size(7, 0), size(2, 0)], 9, None, &[&[0], &[1, 2]]);
        // Patches part what tokens would let together.
        check(&[size(1, 6), size(1, 5), size(1, 4)], 10, Some(10), &[&[0, 2], &[1]]);
        check(&[size(3, 0), None, size(11, 0), size(3, 0)], 10, None, &[&[0, 3]]);
        check(&[], 10, None, &[]);
        check(&[size(0, 0), size(0, 0)], 1, Some(1), &[&[0, 1]]);
    }

    #[test]
    fn every_record_once_and_never_too_full() {
        let mut state = 7u64;
        let mut next = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 33) % below) as u32
        };
        let sizes: Vec<_> = (0..256).map(|_| size(50 + next(1950), 64 * next(9))).collect();
        let room = Room { tokens: 8192, patches: Some(2048) };
        let batches = best_fit(&sizes, &room);
        let mut seen: Vec<usize> = batches.concat();
        seen.sort_unstable();
        assert_eq!(seen, (0..256).collect::<Vec<_>>());
        let sum = |places: &Vec<usize>, of: fn(RecordSize) -> u32| {
            places.iter().map(|&p| u64::from(of(sizes[p].unwrap()))).sum::<u64>()
        };
        assert!(batches.iter().all(|b| sum(b, |s| s.tokens) <= 8192 && sum(b, |s| s.patches) <= 2048));
        // No fewer batches than the sums ask for, and no more than best fit decreasing is known to make of one size:
        // 11/9 of the least, and one (Johnson, 1973).
        let all: Vec<usize> = (0..256).collect();
        let least = sum(&all, |s| s.tokens).div_ceil(8192).max(sum(&all, |s| s.patches).div_ceil(2048)) as usize;
        assert!((least..=least * 11 / 9 + 1).contains(&batches.len()), "{} of {least}", batches.len());
    }
}
