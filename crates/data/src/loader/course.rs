//! Owns the course of an epoch: which record comes when, and where a batch ends. It refuses to make records, and to measure
//! them.
//!
//! Records stand at positions, in an order of the epoch. They are handed out by places: place and position are the same
//! unless records are packed by best fit. Then as many positions as a window has are measured first, packed as a whole,
//! and the places of that window are its batches one after the other, so that the place alone says where a run stands.

use std::collections::BTreeMap;

use super::measure::print_of;
use super::{LoaderOptions, LoaderState};
use crate::batch::RecordSize;
use crate::error::DataError;
use crate::order::{Mixture, Order, Sequence, grouped};
use crate::pack::{Room, best_fit, in_order};

/// How places become batches.
#[derive(Debug, Clone, Copy)]
pub(super) enum Cut {
    /// So many records each.
    Records(u64),
    /// Consecutive records as long as they fit.
    InOrder(Room),
    /// Windows of `len` records, each packed by best fit.
    Windows { len: u64, room: Room },
}

impl Cut {
    /// What the options ask for.
    pub fn of(options: &LoaderOptions) -> Self {
        let room = |tokens| Room { tokens, patches: options.pack_patches };
        match options.pack_tokens {
            None => Self::Records(options.batch_size as u64),
            Some(tokens) if options.pack_window == 1 => Self::InOrder(room(tokens)),
            Some(tokens) => Self::Windows { len: options.pack_window, room: room(tokens) },
        }
    }

    /// The batches of records with these sizes, from the first position of an epoch, as positions. What has no size, or is
    /// larger than a batch, is left out.
    pub fn batches(&self, sizes: &[Option<RecordSize>]) -> Vec<Vec<usize>> {
        match self {
            Self::Records(count) => {
                chunked(sizes, *count, |part| vec![(0..part.len()).filter(|&at| part[at].is_some()).collect()])
            }
            Self::InOrder(room) => in_order(sizes, room),
            Self::Windows { len, room } => chunked(sizes, *len, |part| best_fit(part, room)),
        }
    }
}

/// The batches of chunks of `len` records, each chunk for itself.
fn chunked(
    sizes: &[Option<RecordSize>],
    len: u64,
    batches: impl Fn(&[Option<RecordSize>]) -> Vec<Vec<usize>>,
) -> Vec<Vec<usize>> {
    let mut all = Vec::new();
    for (number, chunk) in sizes.chunks(len as usize).enumerate() {
        let start = number * len as usize;
        all.extend(batches(chunk).into_iter().map(|batch| batch.iter().map(|at| start + at).collect::<Vec<_>>()));
    }
    all
}

/// The order of epochs, and the present one.
#[derive(Debug)]
pub(super) struct Course {
    pub cut: Cut,
    shuffle: bool,
    seed: u64,
    num_records: u64,
    /// Lengths of all records and the records of one step, where they are grouped by length.
    grouping: Option<(Vec<u32>, usize)>,
    /// Shares of datasets, where they differ.
    mixture: Option<Mixture>,
    /// The hash of these lengths.
    pub lengths_print: Option<u64>,
    sequence: Sequence,
}

impl Course {
    /// The course of the epoch of `state`. `measure` gives the size of every record in file order, and is asked where records
    /// are grouped by length.
    ///
    /// # Errors
    /// The sizes of the records are not those behind `state`.
    pub fn new(
        options: &LoaderOptions,
        state: &LoaderState,
        mixture: Option<&Mixture>,
        measure: impl FnOnce() -> Vec<Option<RecordSize>>,
    ) -> Result<Self, DataError> {
        let grouping = options.group_by_length.map(|step| {
            // What cannot be measured is met at its turn, with the reason.
            (measure().iter().map(|size| size.map_or(0, |size| size.tokens)).collect::<Vec<_>>(), step)
        });
        let lengths_print = grouping.as_ref().map(|(lengths, _)| print_of(lengths.iter().map(|&l| u64::from(l))));
        if let (Some(then), Some(now)) = (state.sizes, lengths_print)
            && then != now
        {
            return Err(other_sizes());
        }
        let mut course = Self {
            cut: Cut::of(options),
            shuffle: options.shuffle,
            seed: options.seed,
            num_records: state.num_records,
            grouping,
            mixture: mixture.cloned(),
            lengths_print,
            sequence: Sequence::Plain(Order::File),
        };
        course.begin(state.epoch);
        Ok(course)
    }

    /// Lays out an epoch.
    pub fn begin(&mut self, epoch: u64) {
        let order = Order::new(self.num_records, self.shuffle, self.seed, epoch);
        let (shuffle, seed) = (self.shuffle, self.seed);
        self.sequence = match (&self.grouping, &self.mixture) {
            (None, None) => Sequence::Plain(order),
            (None, Some(mixture)) => Sequence::Mixed { order, mixture: mixture.clone(), shuffle, seed, epoch },
            (Some((lengths, step)), _) => Sequence::Grouped(grouped(|position| order.record(position), lengths, *step)),
        };
    }

    /// The record at a position.
    pub fn record(&self, position: u64) -> u64 {
        self.sequence.record(position)
    }
}

/// The error for sizes that are not those of the saved run.
pub(super) fn other_sizes() -> DataError {
    DataError::State { what: "the lengths of its records are not those that the run measured".into() }
}

/// The records of a window: measured one by one, then packed.
#[derive(Debug)]
pub(super) struct Window {
    /// Its first position, and its first place.
    start: u64,
    sizes: Vec<Option<Result<RecordSize, DataError>>>,
    missing: usize,
    packed: Option<Packed>,
}

/// A window whose batches are known.
#[derive(Debug)]
struct Packed {
    /// For every place of the window its position in the window: first what cannot be in a batch, then the batches.
    positions: Vec<usize>,
    /// Places, counted from the window's first, at which a batch ends.
    ends: Vec<usize>,
    print: u64,
}

impl Window {
    pub fn new(start: u64, len: u64) -> Self {
        let len = len as usize;
        Self { start, sizes: (0..len).map(|_| None).collect(), missing: len, packed: None }
    }

    /// Notes the size of a record; packs the window once all are known.
    pub fn measured(&mut self, position: u64, size: Result<RecordSize, DataError>, room: &Room) {
        let slot = &mut self.sizes[(position - self.start) as usize];
        self.missing -= usize::from(slot.is_none());
        *slot = Some(size);
        if self.missing == 0 {
            self.pack(room);
        }
    }

    fn pack(&mut self, room: &Room) {
        let sizes: Vec<Option<RecordSize>> =
            self.sizes.iter().map(|size| size.as_ref().and_then(|size| size.as_ref().ok()).copied()).collect();
        let batches = best_fit(&sizes, room);
        let mut is_packed = vec![false; sizes.len()];
        batches.iter().flatten().for_each(|&position| is_packed[position] = true);
        let mut positions: Vec<usize> = (0..sizes.len()).filter(|&position| !is_packed[position]).collect();
        let mut ends = Vec::with_capacity(batches.len());
        for batch in &batches {
            positions.extend(batch);
            ends.push(positions.len());
        }
        if ends.is_empty() {
            ends.push(positions.len());
        }
        let print = print_of(sizes.iter().flat_map(|size| match size {
            Some(size) => [1, u64::from(size.tokens), u64::from(size.patches)],
            None => [0; 3],
        }));
        self.packed = Some(Packed { positions, ends, print });
    }

    /// The position at a place, once the window is packed.
    pub fn position(&self, place: u64) -> Option<u64> {
        let packed = self.packed.as_ref()?;
        Some(self.start + packed.positions[(place - self.start) as usize] as u64)
    }

    /// Whether a batch ends before this place, once the window is packed.
    pub fn ends_before(&self, place: u64) -> bool {
        let place = (place - self.start) as usize;
        self.packed.as_ref().is_some_and(|packed| packed.ends.binary_search(&place).is_ok())
    }

    /// The hash of the sizes behind the batches.
    pub fn print(&self) -> Option<u64> {
        self.packed.as_ref().map(|packed| packed.print)
    }

    /// The size that was measured at a position.
    pub fn size(&self, position: u64) -> Option<RecordSize> {
        self.sizes[(position - self.start) as usize].as_ref().and_then(|size| size.as_ref().ok()).copied()
    }

    /// Takes the errors of what could not be measured, with place and position, once the window is packed.
    pub fn take_errors(&mut self) -> Vec<(u64, u64, DataError)> {
        let Some(packed) = &self.packed else { return Vec::new() };
        let mut errors = Vec::new();
        for (place, &position) in packed.positions.iter().enumerate() {
            if let Some(Err(error)) = self.sizes[position].take_if(|size| size.is_err()) {
                errors.push((self.start + place as u64, self.start + position as u64, error));
            }
        }
        errors
    }
}

/// The windows at hand, by number.
pub(super) type Windows = BTreeMap<u64, Window>;
