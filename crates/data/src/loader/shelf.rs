//! Owns what the threads of a loader share: records made and not yet in a batch, batches made and not yet taken, and the
//! one rule by which a thread finds its next work. It refuses to know how a record is made.
//!
//! Threads draw places one after the other and put what they made on the shelf; records leave it in the order of their
//! places, into the batch that stands open. A full batch is put together by a thread, so that the caller only takes it.
//! A thread waits while the shelf is full, except for the record that the caller waits for: a budget smaller than one
//! record slows the loader down and never stops it. Pictures lie there in bytes; values are made of them per batch.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::course::{Course, Cut, Window, Windows, other_sizes};
use super::measure::{check_room, guarded, measure_one};
use super::{LoaderOptions, LoaderState, OnBadMedia};
use crate::batch::{Batch, Prepared, RecordSize};
use crate::dataset::Dataset;
use crate::error::{DataError, RecordError};
use crate::ledger::{LedgerEvent, Status};
use crate::options::EncodeOptions;
use crate::order::mix;
use crate::pack::Taken;
use crate::processor::Processor;

/// What the threads and the caller share.
#[derive(Debug)]
pub(super) struct Shared {
    dataset: Arc<Dataset>,
    processor: Arc<Processor>,
    options: LoaderOptions,
    cut: Cut,
    shelf: Mutex<Shelf>,
    changed: Condvar,
}

/// A batch on its way to the caller.
#[derive(Debug)]
pub(super) struct Ready {
    /// The batch, or why there is none.
    pub result: Result<Batch, DataError>,
    /// News about its records; of a failure those that were skipped before and the one at fault.
    pub events: Vec<LedgerEvent>,
    /// Where the loader stands once it is handed out.
    pub state: LoaderState,
}

#[derive(Debug)]
struct Shelf {
    course: Course,
    /// Where the open batch ends so far.
    book: LoaderState,
    /// Next place to be drawn by a thread.
    next: u64,
    /// End of the epoch; 0 while the threads rest.
    end: u64,
    made: BTreeMap<u64, Made>,
    windows: Windows,
    /// Next position to be measured.
    next_measured: u64,
    /// The window that the run was resumed in, with the hash of the sizes that it had.
    expected: Option<(u64, u64)>,
    open: Open,
    ready: VecDeque<Ready>,
    is_building: bool,
    /// Bytes of records that are not in a batch yet, and of batches that are not taken yet.
    made_bytes: usize,
    ready_bytes: usize,
    in_work: usize,
    largest: usize,
    stop: bool,
}

/// What became of a place.
#[derive(Debug)]
struct Made {
    index: u64,
    result: Result<Prepared, DataError>,
}

/// The batch that records are put into.
#[derive(Debug, Default)]
struct Open {
    records: Vec<Prepared>,
    events: Vec<LedgerEvent>,
    taken: Taken,
    num_places: u64,
    num_bytes: usize,
}

/// What a thread does next.
enum Work {
    Measure { epoch: u64, position: u64, index: u64 },
    Make { epoch: u64, place: u64, index: u64, size: Option<RecordSize> },
    Build { open: Open, state: LoaderState },
}

impl Made {
    fn num_bytes(&self) -> usize {
        self.result.as_ref().map_or(256, Prepared::num_bytes)
    }
}

impl Shared {
    pub fn new(
        dataset: Arc<Dataset>,
        processor: Arc<Processor>,
        options: LoaderOptions,
        course: Course,
        state: LoaderState,
    ) -> Self {
        let cut = course.cut;
        let expected = match cut {
            Cut::Windows { len, .. } => state.sizes.map(|print| (state.cursor / len, print)),
            _ => None,
        };
        let mut shelf = Shelf {
            course,
            book: state.clone(),
            next: 0,
            end: 0,
            made: BTreeMap::new(),
            windows: Windows::new(),
            next_measured: 0,
            expected,
            open: Open::default(),
            ready: VecDeque::new(),
            is_building: false,
            made_bytes: 0,
            ready_bytes: 0,
            in_work: 0,
            largest: 0,
            stop: false,
        };
        shelf.start();
        Self { dataset, processor, options, cut, shelf: Mutex::new(shelf), changed: Condvar::new() }
    }

    pub fn cut(&self) -> Cut {
        self.cut
    }

    /// Lets the threads rest before the epoch of `state`.
    pub fn rest(&self, state: LoaderState) {
        let mut shelf = self.shelf.lock();
        shelf.book = state;
        (shelf.next, shelf.end) = (0, 0);
        shelf.windows.clear();
    }

    /// Wakes the threads if they rest, and waits for the next batch.
    pub fn take(&self) -> Ready {
        let mut shelf = self.shelf.lock();
        if shelf.end == 0 {
            let epoch = shelf.book.epoch;
            shelf.course.begin(epoch);
            shelf.start();
            self.changed.notify_all();
        }
        loop {
            if let Some(ready) = shelf.ready.pop_front() {
                shelf.ready_bytes -= ready.num_bytes();
                self.changed.notify_all();
                return ready;
            }
            self.changed.wait(&mut shelf);
        }
    }

    pub fn stop(&self) {
        self.shelf.lock().stop = true;
        self.changed.notify_all();
    }

    /// The life of a thread.
    pub fn work(&self) {
        while let Some(work) = self.draw() {
            match work {
                Work::Measure { epoch, position, index } => self.measure(epoch, position, index),
                Work::Make { epoch, place, index, size } => self.make(epoch, place, index, size),
                Work::Build { open, state } => self.build(open, state),
            }
            self.changed.notify_all();
        }
    }

    /// What to do next: first what the caller is nearest to.
    fn draw(&self) -> Option<Work> {
        let mut shelf = self.shelf.lock();
        loop {
            if shelf.stop {
                return None;
            }
            let work = self.next_batch(&mut shelf);
            let work = work.or_else(|| shelf.next_make(&self.options)).or_else(|| shelf.next_measure());
            if work.is_some() {
                return work;
            }
            self.changed.wait(&mut shelf);
        }
    }

    /// The batch to be put together, if one is full and may be: one at a time, in their order, and no more of them than
    /// half of the budget, so that the other half stays for records in bytes.
    fn next_batch(&self, shelf: &mut MutexGuard<'_, Shelf>) -> Option<Work> {
        while !shelf.is_building && (shelf.ready.is_empty() || shelf.ready_bytes < self.options.byte_budget / 2) {
            match shelf.fill(self)? {
                Ok(()) => {
                    shelf.is_building = true;
                    let state = shelf.state();
                    return Some(Work::Build { open: std::mem::take(&mut shelf.open), state });
                }
                Err(error) => {
                    let mut open = std::mem::take(&mut shelf.open);
                    shelf.made_bytes -= open.num_bytes;
                    open.events.retain(|event| event.status != Status::Trained);
                    let state = shelf.state();
                    shelf.put(Ready { result: Err(error), events: open.events, state });
                    self.changed.notify_all();
                }
            }
        }
        None
    }

    fn measure(&self, epoch: u64, position: u64, index: u64) {
        let Cut::Windows { room, .. } = self.cut else { return };
        let size = measure_one(&self.dataset, &self.processor, &self.options, index)
            .and_then(|size| check_room(&self.dataset, index, size, &room).map(|()| size));
        let mut shelf = self.shelf.lock();
        if shelf.book.epoch == epoch {
            shelf.measured(position, size);
        }
    }

    fn make(&self, epoch: u64, place: u64, index: u64, size: Option<RecordSize>) {
        let result = guarded(index, || {
            let sample = self.dataset.get(index)?;
            let prepared = match self.options.encode.jitter {
                None => self.processor.prepare(&sample, &self.options.encode)?,
                Some(seed) => {
                    let jitter = Some(mix(seed ^ mix(epoch)));
                    self.processor.prepare(&sample, &EncodeOptions { jitter, ..self.options.encode.clone() })?
                }
            };
            match size.filter(|size| *size != prepared.encoded.size()) {
                None => Ok(prepared),
                Some(then) => Err(RecordError::new("changed", &sample.origin, Some(&sample.id), "its size changed")
                    .expected(format!("{then:?}, as measured"), format!("{:?}", prepared.encoded.size()))
                    .hint("leave the media as they are during a run")
                    .into()),
            }
        });
        let made = Made { index, result };
        let mut shelf = self.shelf.lock();
        shelf.in_work -= 1;
        // The epoch may have been left while this record was made.
        if shelf.book.epoch == epoch {
            shelf.largest = shelf.largest.max(made.num_bytes());
            shelf.made_bytes += made.num_bytes();
            shelf.made.insert(place, made);
        }
    }

    fn build(&self, open: Open, state: LoaderState) {
        let Open { records, mut events, num_bytes, .. } = open;
        let index = records.first().map_or(0, |record| record.encoded.index);
        let result = guarded(index, || {
            Batch::of_prepared(records, |visuals, pictures, values| {
                self.processor.write_values(visuals, pictures, values);
            })
        });
        if let Err(error) = &result {
            let named = match error {
                DataError::PictureShapes { id, .. } => events.iter().find(|event| event.id == *id).cloned(),
                _ => None,
            };
            let status = Status::Failed { reason: error.reason().to_owned(), message: error.to_string() };
            events.retain(|event| event.status != Status::Trained);
            events.extend(named.map(|event| LedgerEvent { status, ..event }));
        }
        let mut shelf = self.shelf.lock();
        shelf.made_bytes -= num_bytes;
        shelf.is_building = false;
        shelf.put(Ready { result, events, state });
    }
}

impl Ready {
    fn num_bytes(&self) -> usize {
        self.result.as_ref().map_or(0, Batch::num_bytes)
    }
}

impl Shelf {
    /// Begins with the epoch and the place of the book.
    fn start(&mut self) {
        self.end = self.book.num_records;
        self.next = self.book.cursor;
        self.next_measured = match self.course.cut {
            Cut::Windows { len, .. } if self.next < self.end => self.next / len * len,
            _ => self.end,
        };
    }

    fn put(&mut self, ready: Ready) {
        self.ready_bytes += ready.num_bytes();
        self.ready.push_back(ready);
    }

    /// The book, with what a resumption from here must find again.
    fn state(&self) -> LoaderState {
        let sizes = match self.course.cut {
            // Between windows, and at the end of the epoch, nothing that was measured matters any more.
            Cut::Windows { len, .. } if !self.book.cursor.is_multiple_of(len) && self.book.cursor < self.end => {
                self.windows.get(&(self.book.cursor / len)).and_then(Window::print)
            }
            _ => self.course.lengths_print,
        };
        LoaderState { sizes, ..self.book.clone() }
    }

    /// The next record to be made.
    fn next_make(&mut self, options: &LoaderOptions) -> Option<Work> {
        // What cannot be measured was put on the shelf when its window was packed.
        self.next = self.next.max(self.book.cursor);
        while self.made.contains_key(&self.next) {
            self.next += 1;
        }
        let expected = self.made_bytes + self.ready_bytes + (self.in_work + 1) * self.largest;
        let is_awaited = self.next == self.book.cursor && self.ready.is_empty() && !self.is_building;
        if self.next >= self.end || (expected > options.byte_budget && !is_awaited) {
            return None;
        }
        let place = self.next;
        let (position, size) = match self.course.cut {
            Cut::Records(_) | Cut::InOrder(_) => (place, None),
            Cut::Windows { len, .. } => {
                let window = self.windows.get(&(place / len))?;
                let position = window.position(place)?;
                (position, window.size(position))
            }
        };
        self.next += 1;
        self.in_work += 1;
        Some(Work::Make { epoch: self.book.epoch, place, index: self.course.record(position), size })
    }

    /// The next record to be measured: of the window that records are made of, or of the one after it.
    fn next_measure(&mut self) -> Option<Work> {
        let Cut::Windows { len, .. } = self.course.cut else { return None };
        let position = self.next_measured;
        let number = position / len;
        if position >= self.end || number > self.next / len + 1 {
            return None;
        }
        let start = number * len;
        let count = len.min(self.end - start);
        self.windows.entry(number).or_insert_with(|| Window::new(start, count));
        self.next_measured += 1;
        Some(Work::Measure { epoch: self.book.epoch, position, index: self.course.record(position) })
    }

    /// Notes a size; what it completes is put on the shelf.
    fn measured(&mut self, position: u64, size: Result<RecordSize, DataError>) {
        let Cut::Windows { len, room } = self.course.cut else { return };
        let number = position / len;
        let Some(window) = self.windows.get_mut(&number) else { return };
        window.measured(position, size, &room);
        let Some(print) = window.print() else { return };
        let cursor = self.book.cursor;
        for (place, position, error) in window.take_errors() {
            if place >= cursor {
                let made = Made { index: self.course.record(position), result: Err(error) };
                self.made_bytes += made.num_bytes();
                self.made.insert(place, made);
            }
        }
        if self.expected.take_if(|(expected, _)| *expected == number).is_some_and(|(_, then)| then != print) {
            let ready = Ready { result: Err(other_sizes()), events: Vec::new(), state: self.book.clone() };
            self.put(ready);
        }
    }

    /// Moves records from the shelf into the open batch. `None` while it is not full and the next record is not there,
    /// or where nothing is left of the epoch.
    fn fill(&mut self, shared: &Shared) -> Option<Result<(), DataError>> {
        loop {
            let place = self.book.cursor;
            if place >= self.end {
                return (self.open.num_places > 0).then_some(Ok(()));
            }
            let is_full = match &self.course.cut {
                Cut::Records(count) => self.open.num_places >= *count,
                Cut::InOrder(room) => {
                    // What is bad or larger than a batch belongs to the batch that meets it.
                    let size = self.made.get(&place)?.result.as_ref().ok().map(|made| made.encoded.size());
                    let size = size.filter(|size| room.holds(*size));
                    !self.open.records.is_empty() && size.is_some_and(|size| !room.fits(self.open.taken, size))
                }
                Cut::Windows { len, .. } => {
                    let window = self.windows.get(&(place / len));
                    self.open.num_places > 0
                        && (place.is_multiple_of(*len) || window.is_some_and(|window| window.ends_before(place)))
                }
            };
            if is_full {
                return Some(Ok(()));
            }
            let made = self.made.remove(&place)?;
            self.book.cursor += 1;
            self.open.num_places += 1;
            if let Cut::Windows { len, .. } = self.course.cut {
                // The window of the last place stays: the state after it may lie inside.
                self.windows = self.windows.split_off(&(place / len));
            }
            if let Err(error) = self.add(made, shared) {
                return Some(Err(error));
            }
        }
    }

    /// Puts a record into the open batch, or skips it if the policy allows it.
    fn add(&mut self, made: Made, shared: &Shared) -> Result<(), DataError> {
        let (num_bytes, index) = (made.num_bytes(), made.index);
        self.open.num_bytes += num_bytes;
        let result = made.result.and_then(|record| {
            if let Cut::InOrder(room) = &self.course.cut {
                check_room(&shared.dataset, index, record.encoded.size(), room)?;
            }
            Ok(record)
        });
        let record = match result {
            Ok(record) => record,
            Err(error) => return self.skip(index, error, shared),
        };
        let (id, notes) = (record.encoded.id.clone(), record.encoded.notes.clone());
        self.open.events.push(LedgerEvent { index, id, status: Status::Trained, notes });
        self.open.taken = self.open.taken.plus(record.encoded.size());
        self.open.records.push(record);
        Ok(())
    }

    fn skip(&mut self, index: u64, error: DataError, shared: &Shared) -> Result<(), DataError> {
        let (reason, message) = (error.reason().to_owned(), error.to_string());
        let id = shared.dataset.id(index);
        let event = |status| LedgerEvent { index, id, status, notes: Vec::new() };
        let options = &shared.options;
        if options.on_bad_media == OnBadMedia::Stop || !error.is_one_record() {
            self.open.events.push(event(Status::Failed { reason, message }));
            return Err(error);
        }
        *self.book.skipped.entry(reason.clone()).or_default() += 1;
        let skipped: u64 = self.book.skipped.values().sum();
        let limit = options.max_skips.unwrap_or_else(|| (self.book.num_records / 10).max(10));
        if skipped > limit {
            let causes: Vec<String> = self.book.skipped.iter().map(|(r, n)| format!("{r} {n}")).collect();
            self.open.events.push(event(Status::Failed { reason, message }));
            return Err(DataError::TooManySkips { skipped, limit, causes: causes.join(", ") });
        }
        self.open.events.push(event(Status::Skipped { reason, message }));
        Ok(())
    }
}
