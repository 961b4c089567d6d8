//! Owns [`Loader`]: threads that make batches ahead, in an order that does not depend on their number.
//! It refuses to move anything to a device: it hands out plain host vectors. What the threads share is `shelf`'s, which
//! record comes when `course`'s.

mod course;
mod measure;
mod outline;
mod shelf;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread::JoinHandle;

use serde::{Deserialize, Serialize};

use crate::batch::Batch;
use crate::dataset::Dataset;
use crate::error::DataError;
use crate::ledger::LedgerEvent;
use crate::options::EncodeOptions;
use crate::processor::Processor;
use course::{Course, Cut};
use measure::measure_all;
use shelf::Shared;

pub use measure::{PackEstimate, estimate_packing, measure_records};
pub use outline::{BatchOutline, largest_batches};

/// What to do with a record whose media or content is bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnBadMedia {
    /// Stop the run and name the record.
    #[default]
    Stop,
    /// Leave the record out and note it in the ledger.
    Skip,
}

/// How records become batches.
#[derive(Debug, Clone, PartialEq)]
pub struct LoaderOptions {
    /// Records a batch, when `pack_tokens` is `None`. A skipped record makes its batch smaller.
    pub batch_size: usize,
    /// Fill batches up to this many tokens instead.
    pub pack_tokens: Option<usize>,
    /// With `pack_tokens`: fill batches up to this many patches of pictures as well.
    pub pack_patches: Option<usize>,
    /// With `pack_tokens`: this many records at a time are put into batches by best fit; 1 fills them in order.
    pub pack_window: u64,
    /// Records of like length side by side, in groups that are multiples of this many records (those of one step).
    pub group_by_length: Option<usize>,
    /// Another order every epoch; otherwise file order.
    pub shuffle: bool,
    /// Seed of the order.
    pub seed: u64,
    /// Threads that encode.
    pub workers: usize,
    /// Bytes of records and batches held ahead at most.
    pub byte_budget: usize,
    /// What a bad record does.
    pub on_bad_media: OnBadMedia,
    /// Most records skipped in an epoch before the run stops; `None` for a tenth of the records, at least 10.
    pub max_skips: Option<u64>,
    /// What a run wants of every record.
    pub encode: EncodeOptions,
}

impl Default for LoaderOptions {
    fn default() -> Self {
        Self {
            batch_size: 1,
            pack_tokens: None,
            pack_patches: None,
            pack_window: 1,
            group_by_length: None,
            shuffle: false,
            seed: 42,
            workers: 2,
            byte_budget: 1 << 30,
            on_bad_media: OnBadMedia::Stop,
            max_skips: None,
            encode: EncodeOptions::default(),
        }
    }
}

/// Where a loader stands; with the same dataset and options it goes on with the same batches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoaderState {
    /// Epoch, counted from 0.
    pub epoch: u64,
    /// Records of this epoch already handed out or skipped.
    pub cursor: u64,
    /// Records skipped in this epoch, by reason.
    #[serde(default)]
    pub skipped: BTreeMap<String, u64>,
    /// Seed of the order.
    pub seed: u64,
    /// Records of an epoch, to notice another dataset: all of the dataset's, or what the weights take of them.
    pub num_records: u64,
    /// Where batches depend on sizes that were measured in advance: a hash of these sizes, to notice others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sizes: Option<u64>,
}

impl LoaderState {
    /// Before the first record of the first epoch.
    fn begin(dataset: &Dataset, options: &LoaderOptions) -> Self {
        let (seed, num_records) = (options.seed, dataset.epoch_len());
        Self { epoch: 0, cursor: 0, skipped: BTreeMap::new(), seed, num_records, sizes: None }
    }
}

/// What a loader handed out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct LoaderStats {
    /// Batches that hold a record.
    pub batches: u64,
    /// Their records.
    pub records: u64,
    /// Their input tokens, and those of targets.
    pub tokens: u64,
}

impl LoaderStats {
    /// How full batches of at most `pack_tokens` tokens were, from 0 to 1; `None` before the first.
    pub fn fill(&self, pack_tokens: usize) -> Option<f64> {
        let room = self.batches as f64 * pack_tokens as f64;
        (room > 0.0).then(|| self.tokens as f64 / room)
    }
}

/// Batches of a dataset, made ahead by threads.
#[derive(Debug)]
pub struct Loader {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    state: LoaderState,
    failed: Vec<LedgerEvent>,
    stats: LoaderStats,
}

impl Loader {
    /// A loader that stands before the first record of the first epoch. Where records are grouped by length, it
    /// measures all of them first.
    ///
    /// # Errors
    /// The dataset is empty, or options contradict each other.
    pub fn new(dataset: Arc<Dataset>, processor: Arc<Processor>, options: LoaderOptions) -> Result<Self, DataError> {
        let state = LoaderState::begin(&dataset, &options);
        Self::from_state(dataset, processor, options, state)
    }

    /// A loader that goes on where another stood.
    ///
    /// # Errors
    /// As [`Loader::new`]; the state belongs to other data or another seed.
    pub fn from_state(
        dataset: Arc<Dataset>,
        processor: Arc<Processor>,
        options: LoaderOptions,
        state: LoaderState,
    ) -> Result<Self, DataError> {
        check(&dataset, &options, &state)?;
        let workers = options.workers;
        let course = Course::new(&options, &state, dataset.mixture(), || measure_all(&dataset, &processor, &options))?;
        let shared = Arc::new(Shared::new(dataset, processor, options, course, state.clone()));
        let threads = Vec::with_capacity(workers);
        let mut loader = Self { shared, threads, state, failed: Vec::new(), stats: LoaderStats::default() };
        for number in 0..workers {
            let shared = Arc::clone(&loader.shared);
            let thread = std::thread::Builder::new()
                .name(format!("data-{number}"))
                .spawn(move || shared.work())
                .map_err(|e| DataError::Fault { what: format!("a loader thread cannot start: {e}") })?;
            loader.threads.push(thread);
        }
        Ok(loader)
    }

    /// The next batch and the news about its records; `None` once at the end of every epoch, after which the next
    /// call begins the next epoch. A batch is empty when every record that belongs to it was skipped.
    ///
    /// # Errors
    /// A bad record under [`OnBadMedia::Stop`] (see [`Loader::failed`]), or too many skips.
    pub fn next_batch(&mut self) -> Result<Option<(Batch, Vec<LedgerEvent>)>, DataError> {
        if self.state.cursor >= self.state.num_records {
            self.state.epoch += 1;
            self.state.cursor = 0;
            self.state.skipped.clear();
            // Threads start on the new epoch when its first batch is asked for: who wants one epoch pays for one.
            self.shared.rest(self.state.clone());
            return Ok(None);
        }
        let ready = self.shared.take();
        self.state = ready.state;
        match ready.result {
            Ok(batch) => {
                self.stats.batches += u64::from(batch.num_samples() > 0);
                self.stats.records += batch.num_samples() as u64;
                self.stats.tokens += batch.num_rows() as u64;
                Ok(Some((batch, ready.events)))
            }
            Err(error) => {
                self.failed = ready.events;
                Err(error)
            }
        }
    }

    /// Where the loader stands: after the last batch handed out.
    pub fn state(&self) -> LoaderState {
        self.state.clone()
    }

    /// For the ledger, of the batch that a failed call was about: the records skipped before, and the one that made the
    /// call fail.
    pub fn failed(&self) -> &[LedgerEvent] {
        &self.failed
    }

    /// What was handed out so far.
    pub fn stats(&self) -> LoaderStats {
        self.stats
    }

    /// Batches of an epoch, where they do not depend on the records' lengths.
    pub fn batches_per_epoch(&self) -> Option<u64> {
        match self.shared.cut() {
            Cut::Records(count) => Some(self.state.num_records.div_ceil(count)),
            Cut::InOrder(_) | Cut::Windows { .. } => None,
        }
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.shared.stop();
        for thread in self.threads.drain(..) {
            // A thread never panics: what panics inside it becomes an error of its record.
            let _ = thread.join();
        }
    }
}

fn check(dataset: &Dataset, options: &LoaderOptions, state: &LoaderState) -> Result<(), DataError> {
    let plan = |key: &str, what: &str, hint: &str| {
        Err(DataError::Plan { key: key.into(), what: what.into(), hint: hint.into() })
    };
    if options.batch_size == 0 {
        return plan("train.per_device_train_batch_size", "a batch of 0 records", "use 1 or more");
    }
    if options.pack_tokens == Some(0) {
        return plan("data.pack_tokens", "a batch of 0 tokens", "use the length of a long record or more");
    }
    if options.pack_patches == Some(0) {
        return plan("data.pack_patches", "a batch of 0 patches", "use the patches of a long record or more");
    }
    if options.pack_window == 0 {
        return plan("data.pack_window", "batches would be made of 0 records", "use 1 for the order as it is, or more");
    }
    if options.group_by_length == Some(0) {
        return plan("data.group_by_length", "groups of 0 records", "use the records of one step");
    }
    if options.group_by_length.is_some() && (!options.shuffle || options.pack_tokens.is_some()) {
        let what = "orders records itself, beside `shuffle: false` or `pack_tokens`";
        return plan("data.group_by_length", what, "keep one of them");
    }
    if options.workers == 0 {
        return plan("data.num_workers", "no thread would read the data", "use 1 or more");
    }
    if options.group_by_length.is_some() && dataset.mixture().is_some() {
        let what = "orders all records once an epoch, beside a `weight` that is not 1";
        return plan("data.group_by_length", what, "keep one of them");
    }
    let wrong = if state.num_records != dataset.epoch_len() {
        Some(format!("it belongs to {} records, the dataset has {}", state.num_records, dataset.epoch_len()))
    } else if state.seed != options.seed {
        Some(format!("it belongs to seed {}, the run has {}", state.seed, options.seed))
    } else if state.cursor > state.num_records {
        Some(format!("it stands at record {} of {}", state.cursor, state.num_records))
    } else {
        None
    };
    match wrong {
        Some(what) => Err(DataError::State { what }),
        None => Ok(()),
    }
}
