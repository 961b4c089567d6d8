//! Owns [`Loader`]: threads that encode records ahead, in an order that does not depend on their number.
//! It refuses to move anything to a device: it hands out plain host vectors.
//!
//! Threads draw positions of the epoch one after the other and put what they made into a shelf; the caller takes from
//! the shelf in order. A thread waits before it draws while the shelf is full, except for the position that the caller
//! waits for, so that a budget smaller than one record slows the loader down and never stops it.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};
use serde::{Deserialize, Serialize};

use crate::batch::{Batch, Encoded, collate};
use crate::dataset::Dataset;
use crate::error::{DataError, RecordError};
use crate::ledger::{LedgerEvent, Status};
use crate::options::EncodeOptions;
use crate::order::{Order, mix};
use crate::processor::Processor;
use crate::record::Origin;

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
    /// Another order every epoch; otherwise file order.
    pub shuffle: bool,
    /// Seed of the order.
    pub seed: u64,
    /// Threads that encode.
    pub workers: usize,
    /// Bytes of encoded records held ahead at most.
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
    /// Records in the dataset, to notice another one.
    pub num_records: u64,
}

/// Batches of a dataset, encoded ahead by threads.
#[derive(Debug)]
pub struct Loader {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    state: LoaderState,
    failed: Vec<LedgerEvent>,
}

/// What the threads and the caller share.
#[derive(Debug)]
struct Shared {
    dataset: Arc<Dataset>,
    processor: Arc<Processor>,
    options: LoaderOptions,
    shelf: Mutex<Shelf>,
    changed: Condvar,
}

/// Records made and not yet taken.
#[derive(Debug)]
struct Shelf {
    epoch: u64,
    /// Next position to be drawn by a thread.
    next: u64,
    /// Position that the caller takes next.
    wanted: u64,
    /// End of the epoch.
    end: u64,
    made: BTreeMap<u64, Made>,
    bytes: usize,
    in_work: usize,
    largest: usize,
    stop: bool,
}

/// What became of a position.
#[derive(Debug)]
struct Made {
    index: u64,
    result: Result<Encoded, DataError>,
}

impl Made {
    fn num_bytes(&self) -> usize {
        self.result.as_ref().map_or(256, Encoded::num_bytes)
    }
}

impl Loader {
    /// A loader that stands before the first record of the first epoch.
    ///
    /// # Errors
    /// The dataset is empty, or options contradict each other.
    pub fn new(dataset: Arc<Dataset>, processor: Arc<Processor>, options: LoaderOptions) -> Result<Self, DataError> {
        let state = LoaderState {
            epoch: 0,
            cursor: 0,
            skipped: BTreeMap::new(),
            seed: options.seed,
            num_records: dataset.len(),
        };
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
        let shelf = Shelf {
            epoch: state.epoch,
            next: state.cursor,
            wanted: state.cursor,
            end: state.num_records,
            made: BTreeMap::new(),
            bytes: 0,
            in_work: 0,
            largest: 0,
            stop: false,
        };
        let workers = options.workers;
        let shared =
            Arc::new(Shared { dataset, processor, options, shelf: Mutex::new(shelf), changed: Condvar::new() });
        let mut loader = Self { shared, threads: Vec::with_capacity(workers), state, failed: Vec::new() };
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
            self.begin_epoch();
            return Ok(None);
        }
        let options = &self.shared.options;
        let (batch_size, pack_tokens) = (options.batch_size as u64, options.pack_tokens);
        let mut records: Vec<Encoded> = Vec::new();
        let mut events = Vec::new();
        let (mut tokens, mut positions) = (0, 0);
        while self.state.cursor < self.state.num_records {
            let is_full = match pack_tokens {
                None => positions >= batch_size,
                Some(limit) => !records.is_empty() && tokens + self.peek_tokens(limit) > limit,
            };
            if is_full {
                break;
            }
            let made = self.take();
            positions += 1;
            let result = made.result.and_then(|encoded| match pack_tokens {
                Some(limit) if encoded.ids.len() > limit => Err(larger_than_a_batch(&self.shared, &encoded, limit)),
                _ => Ok(encoded),
            });
            match result {
                Ok(encoded) => {
                    tokens += encoded.ids.len();
                    let notes = encoded.notes.clone();
                    let id = encoded.id.clone();
                    events.push(LedgerEvent { index: made.index, id, status: Status::Trained, notes });
                    records.push(encoded);
                }
                Err(error) => self.skip(made.index, error, &mut events)?,
            }
        }
        match collate(&records) {
            Ok(batch) => Ok(Some((batch, events))),
            Err(error) => {
                let named = match &error {
                    DataError::PictureShapes { id, .. } => events.iter().find(|event| event.id == *id).cloned(),
                    _ => None,
                };
                let status = || Status::Failed { reason: error.reason().to_owned(), message: error.to_string() };
                events.extend(named.map(|event| LedgerEvent { status: status(), ..event }));
                Err(self.fail(events, error))
            }
        }
    }

    /// Keeps what the ledger has to know of a batch that is not handed out.
    fn fail(&mut self, mut events: Vec<LedgerEvent>, error: DataError) -> DataError {
        events.retain(|event| event.status != Status::Trained);
        self.failed = events;
        error
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

    /// Batches of an epoch, where they do not depend on the records' lengths.
    pub fn batches_per_epoch(&self) -> Option<u64> {
        let options = &self.shared.options;
        options.pack_tokens.is_none().then(|| self.state.num_records.div_ceil(options.batch_size as u64))
    }

    fn begin_epoch(&mut self) {
        self.state.epoch += 1;
        self.state.cursor = 0;
        self.state.skipped.clear();
        let mut shelf = self.shared.shelf.lock();
        shelf.epoch = self.state.epoch;
        // Threads start on the new epoch when the first batch of it is asked for: who wants one epoch pays for one.
        (shelf.next, shelf.wanted, shelf.end) = (0, 0, 0);
    }

    /// Wakes the threads for the epoch if they rest, and waits for the next position.
    fn wait(&self) -> parking_lot::MutexGuard<'_, Shelf> {
        let mut shelf = self.shared.shelf.lock();
        if shelf.end == 0 {
            shelf.end = self.state.num_records;
            self.shared.changed.notify_all();
        }
        while !shelf.made.contains_key(&self.state.cursor) {
            self.shared.changed.wait(&mut shelf);
        }
        shelf
    }

    /// Tokens of the next record; one that is bad or larger than a batch belongs to the batch that meets it.
    fn peek_tokens(&self, limit: usize) -> usize {
        let shelf = self.wait();
        let tokens = shelf.made.get(&self.state.cursor).and_then(|m| m.result.as_ref().ok()).map_or(0, |e| e.ids.len());
        if tokens > limit { 0 } else { tokens }
    }

    fn take(&mut self) -> Made {
        let mut shelf = self.wait();
        let Some(made) = shelf.made.remove(&self.state.cursor) else {
            unreachable!("`wait` returns when the position is on the shelf");
        };
        shelf.bytes -= made.num_bytes();
        shelf.wanted = self.state.cursor + 1;
        self.shared.changed.notify_all();
        drop(shelf);
        self.state.cursor += 1;
        made
    }

    /// Skips a bad record if the policy allows it.
    fn skip(&mut self, index: u64, error: DataError, events: &mut Vec<LedgerEvent>) -> Result<(), DataError> {
        let (reason, message) = (error.reason().to_owned(), error.to_string());
        let id = self.shared.dataset.id(index);
        let event = |status| LedgerEvent { index, id, status, notes: Vec::new() };
        let options = &self.shared.options;
        if options.on_bad_media == OnBadMedia::Stop || !error.is_one_record() {
            events.push(event(Status::Failed { reason, message }));
            return Err(self.fail(std::mem::take(events), error));
        }
        *self.state.skipped.entry(reason.clone()).or_default() += 1;
        let skipped: u64 = self.state.skipped.values().sum();
        let limit = options.max_skips.unwrap_or_else(|| (self.state.num_records / 10).max(10));
        if skipped > limit {
            let causes: Vec<String> = self.state.skipped.iter().map(|(r, n)| format!("{r} {n}")).collect();
            let error = DataError::TooManySkips { skipped, limit, causes: causes.join(", ") };
            events.push(event(Status::Failed { reason, message }));
            return Err(self.fail(std::mem::take(events), error));
        }
        events.push(event(Status::Skipped { reason, message }));
        Ok(())
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.shared.shelf.lock().stop = true;
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            // A thread never panics: what panics inside it becomes an error of its record.
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// The life of a thread: draw a position, make the record, put it on the shelf.
    fn work(&self) {
        while let Some((epoch, position)) = self.draw() {
            let made = self.make(epoch, position);
            let mut shelf = self.shelf.lock();
            shelf.in_work -= 1;
            // The epoch may have been left while this record was made.
            if shelf.epoch == epoch {
                shelf.largest = shelf.largest.max(made.num_bytes());
                shelf.bytes += made.num_bytes();
                shelf.made.insert(position, made);
            }
            self.changed.notify_all();
        }
    }

    fn draw(&self) -> Option<(u64, u64)> {
        let mut shelf = self.shelf.lock();
        loop {
            if shelf.stop {
                return None;
            }
            let expected = shelf.bytes + (shelf.in_work + 1) * shelf.largest;
            let has_room = expected <= self.options.byte_budget || shelf.next == shelf.wanted;
            if shelf.next < shelf.end && has_room {
                let position = shelf.next;
                shelf.next += 1;
                shelf.in_work += 1;
                return Some((shelf.epoch, position));
            }
            self.changed.wait(&mut shelf);
        }
    }

    fn make(&self, epoch: u64, position: u64) -> Made {
        let options = &self.options;
        let index = Order::new(self.dataset.len(), options.shuffle, options.seed, epoch).record(position);
        let encode = || {
            let sample = self.dataset.get(index)?;
            match options.encode.jitter {
                None => self.processor.encode(&sample, &options.encode),
                Some(seed) => {
                    let jitter = Some(mix(seed ^ mix(epoch)));
                    self.processor.encode(&sample, &EncodeOptions { jitter, ..options.encode.clone() })
                }
            }
        };
        let result = catch_unwind(AssertUnwindSafe(encode)).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
            Err(DataError::Fault { what: format!("record {index}: {}", text.unwrap_or("a panic without a message")) })
        });
        Made { index, result }
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
    if options.workers == 0 {
        return plan("data.num_workers", "no thread would read the data", "use 1 or more");
    }
    let wrong = if state.num_records != dataset.len() {
        Some(format!("it belongs to {} records, the dataset has {}", state.num_records, dataset.len()))
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

fn larger_than_a_batch(shared: &Shared, encoded: &Encoded, limit: usize) -> DataError {
    let origin = Origin { file: shared.dataset.path().to_path_buf(), line: 0, index: encoded.index };
    RecordError::new("too_long", &origin, Some(&encoded.id), "the record is larger than a batch")
        .expected(format!("at most {limit} tokens (`pack_tokens`)"), encoded.ids.len().to_string())
        .hint("raise `data.pack_tokens`, lower `data.num_frames`, or remove the record")
        .into()
}
