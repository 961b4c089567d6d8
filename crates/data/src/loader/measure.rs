//! Owns the measuring of records before they are made: tokens and patches, without decoding a video.
//! It refuses to decide what follows from the sizes.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use serde::Serialize;

use super::course::{Course, Cut};
use super::{LoaderOptions, LoaderState};
use crate::batch::RecordSize;
use crate::dataset::Dataset;
use crate::error::{DataError, RecordError};
use crate::order::mix;
use crate::pack::Room;
use crate::processor::Processor;
use crate::record::Origin;

/// Records that are measured to estimate packing: where batches are filled in order, and at most.
const SAMPLED: u64 = 256;
const MAX_SAMPLED: u64 = 1024;

/// How well batches would be filled.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct PackEstimate {
    /// Records that were measured.
    pub records: u64,
    /// Batches they make.
    pub batches: u64,
    /// Mean tokens of a batch over `data.pack_tokens`.
    pub fill: f64,
}

/// Packs the first records of a run; `None` where batches are not filled by tokens, or no record can be measured.
pub fn estimate_packing(dataset: &Dataset, processor: &Processor, options: &LoaderOptions) -> Option<PackEstimate> {
    let tokens = options.pack_tokens?;
    let room = Room { tokens, patches: options.pack_patches };
    let course = Course::new(options, &LoaderState::begin(dataset, options), dataset.mixture(), Vec::new).ok()?;
    let len = if options.pack_window > 1 { options.pack_window } else { SAMPLED };
    let num_sampled = len.min(dataset.epoch_len()).min(MAX_SAMPLED);
    let sizes = measure_many(num_sampled, options.workers, |position| {
        measure_one(dataset, processor, options, course.record(position)).ok().filter(|size| room.holds(*size))
    });
    let batches = Cut::of(options).batches(&sizes);
    let known: Vec<RecordSize> = batches.iter().flatten().filter_map(|&place| sizes[place]).collect();
    let sum: u64 = known.iter().map(|size| u64::from(size.tokens)).sum();
    let room = batches.len() as f64 * tokens as f64;
    (!batches.is_empty()).then_some(PackEstimate {
        records: known.len() as u64,
        batches: batches.len() as u64,
        fill: sum as f64 / room,
    })
}

/// Sizes of some records, by index, found without decoding a video; `None` for what cannot be measured.
pub fn measure_records(
    dataset: &Dataset,
    processor: &Processor,
    options: &LoaderOptions,
    indices: &[u64],
) -> Vec<Option<RecordSize>> {
    measure_many(indices.len() as u64, options.workers, |at| {
        measure_one(dataset, processor, options, indices[at as usize]).ok()
    })
}

/// The size of every record in file order; `None` for what cannot be measured.
pub(super) fn measure_all(
    dataset: &Dataset,
    processor: &Processor,
    options: &LoaderOptions,
) -> Vec<Option<RecordSize>> {
    measure_many(dataset.len(), options.workers, |index| measure_one(dataset, processor, options, index).ok())
}

fn measure_many(
    count: u64,
    workers: usize,
    measure: impl Fn(u64) -> Option<RecordSize> + Sync,
) -> Vec<Option<RecordSize>> {
    let sizes = Mutex::new(vec![None; count as usize]);
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..workers.min(count as usize) {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    if at >= count {
                        return;
                    }
                    let size = measure(at);
                    sizes.lock()[at as usize] = size;
                }
            });
        }
    });
    sizes.into_inner()
}

/// The size of one record.
pub(super) fn measure_one(
    dataset: &Dataset,
    processor: &Processor,
    options: &LoaderOptions,
    index: u64,
) -> Result<RecordSize, DataError> {
    guarded(index, || processor.measure(&dataset.get(index)?, &options.encode))
}

/// Runs the work on one record; a panic becomes an error of the record.
pub(super) fn guarded<T>(index: u64, work: impl FnOnce() -> Result<T, DataError>) -> Result<T, DataError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        Err(DataError::Fault { what: format!("record {index}: {}", text.unwrap_or("a panic without a message")) })
    })
}

/// Refuses a record that no batch could hold.
pub(super) fn check_room(dataset: &Dataset, index: u64, size: RecordSize, room: &Room) -> Result<(), DataError> {
    let (what, limit, found, hint) = if size.tokens as usize > room.tokens {
        ("tokens (`pack_tokens`)", room.tokens, size.tokens, "raise `data.pack_tokens`")
    } else if room.patches.is_some_and(|patches| size.patches as usize > patches) {
        ("patches (`pack_patches`)", room.patches.unwrap_or(0), size.patches, "raise `data.pack_patches`")
    } else {
        return Ok(());
    };
    let origin = Origin { file: dataset.path().to_path_buf(), line: 0, index };
    Err(RecordError::new("too_long", &origin, Some(&dataset.id(index)), "the record is larger than a batch")
        .expected(format!("at most {limit} {what}"), found.to_string())
        .hint(format!("{hint}, lower `data.num_frames`, or remove the record"))
        .into())
}

/// A hash of numbers in their order.
pub(super) fn print_of(numbers: impl Iterator<Item = u64>) -> u64 {
    numbers.fold(0, |print, number| mix(print ^ mix(number)))
}
