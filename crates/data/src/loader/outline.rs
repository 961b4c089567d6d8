//! Owns the outline of a run's batches before any record is made: which records each holds, from their measured sizes alone.
//! It refuses to say what a batch costs: that is whoever trains on it.

use std::ops::Range;

use super::course::Course;
use super::measure::measure_all;
use super::{LoaderOptions, LoaderState};
use crate::dataset::Dataset;
use crate::error::DataError;
use crate::processor::Processor;

/// A batch that a run will make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchOutline {
    /// The epoch that it belongs to, counted from 0.
    pub epoch: u64,
    /// Its records, by index in the dataset.
    pub records: Vec<u64>,
    /// Their input tokens.
    pub tokens: u64,
    /// Patches of their pictures.
    pub patches: u64,
}

/// Of all batches of some epochs those that can be the largest: whatever a token and a patch cost, one of these costs the most.
/// The one with most tokens comes first. All records are measured for it, without decoding a video; what cannot be measured is
/// left out.
///
/// # Errors
/// Options that a [`super::Loader`] refuses.
pub fn largest_batches(
    dataset: &Dataset,
    processor: &Processor,
    options: &LoaderOptions,
    epochs: Range<u64>,
) -> Result<Vec<BatchOutline>, DataError> {
    let state = LoaderState::begin(dataset, options);
    super::check(dataset, options, &state)?;
    let sizes = measure_all(dataset, processor, options);
    let mut course = Course::new(options, &state, dataset.mixture(), || sizes.clone())?;
    let mut largest: Vec<BatchOutline> = Vec::new();
    for epoch in epochs {
        course.begin(epoch);
        let records: Vec<u64> = (0..dataset.epoch_len()).map(|position| course.record(position)).collect();
        let placed: Vec<_> = records.iter().map(|&record| sizes[record as usize]).collect();
        for batch in course.cut.batches(&placed) {
            let sum = |of: fn(&crate::batch::RecordSize) -> u32| {
                batch.iter().filter_map(|&at| placed[at].as_ref()).map(|size| u64::from(of(size))).sum()
            };
            let (tokens, patches) = (sum(|size| size.tokens), sum(|size| size.patches));
            if tokens == 0 || largest.iter().any(|other| other.tokens >= tokens && other.patches >= patches) {
                continue;
            }
            largest.retain(|other| other.tokens > tokens || other.patches > patches);
            largest.push(BatchOutline {
                epoch,
                records: batch.iter().map(|&at| records[at]).collect(),
                tokens,
                patches,
            });
        }
    }
    Ok(outer(largest))
}

/// Of batches none of which has as many tokens and as many patches as another, the corners of the hull around them (Andrew's
/// monotone chain), from most tokens to most patches.
fn outer(mut batches: Vec<BatchOutline>) -> Vec<BatchOutline> {
    batches.sort_by_key(|batch| std::cmp::Reverse(batch.tokens));
    let mut corners: Vec<BatchOutline> = Vec::new();
    for batch in batches {
        let is_inside = |a: &BatchOutline, b: &BatchOutline| {
            // Whether b lies on the line from a to the new one, or below it.
            let tokens = |of: &BatchOutline| i128::from(a.tokens) - i128::from(of.tokens);
            let patches = |of: &BatchOutline| i128::from(of.patches) - i128::from(a.patches);
            patches(b) * tokens(&batch) <= patches(&batch) * tokens(b)
        };
        while let [.., a, b] = corners.as_slice()
            && is_inside(a, b)
        {
            corners.pop();
        }
        corners.push(batch);
    }
    corners
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_corners_are_the_largest_whatever_tokens_and_patches_cost() {
        let batch = |&(tokens, patches): &(u64, u64)| BatchOutline { epoch: 0, records: vec![], tokens, patches };
        let check = |sizes: &[(u64, u64)], expected: &[(u64, u64)]| {
            let found: Vec<_> =
                outer(sizes.iter().map(batch).collect()).iter().map(|b| (b.tokens, b.patches)).collect();
            assert_eq!(found, expected);
        };
        check(&[], &[]);
        check(&[(5, 5)], &[(5, 5)]);
        check(&[(1, 9), (9, 1)], &[(9, 1), (1, 9)]);
        check(&[(1, 9), (6, 6), (9, 1)], &[(9, 1), (6, 6), (1, 9)]);
        check(&[(1, 9), (4, 4), (9, 1), (5, 5)], &[(9, 1), (1, 9)]);
        check(&[(10, 0), (9, 5), (8, 6), (5, 9), (0, 10)], &[(10, 0), (9, 5), (5, 9), (0, 10)]);
    }
}
