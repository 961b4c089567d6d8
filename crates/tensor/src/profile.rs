//! Owns what the engine can say about its own work: a count of floating point operations, and spans of time for a trace.
//! Refuses to know files and their formats, and who asks; neither changes any result.
//!
//! Both are process-wide. The count is always on. Spans cost one relaxed load while nobody records; a recording keeps at
//! most as many spans as its caller allows and counts those beyond.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

use crate::memory;

static FLOPS: AtomicU64 = AtomicU64::new(0);
static RECOMPUTED: AtomicU64 = AtomicU64::new(0);
static NEXT_THREAD: AtomicU64 = AtomicU64::new(1);
static NEXT_RECORDING: AtomicU64 = AtomicU64::new(1);
/// The number of the recording under way; 0 for none.
static ACTIVE: AtomicU64 = AtomicU64::new(0);
static RECORDER: Mutex<Option<Recorder>> = Mutex::new(None);

thread_local! {
    static THREAD: u64 = NEXT_THREAD.fetch_add(1, Ordering::Relaxed);
}

/// One closed span. Spans of one thread nest: two of them are either apart, or one holds the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// What was done.
    pub name: &'static str,
    /// Which one of several, such as a layer or a step.
    pub index: Option<u64>,
    /// Number of the thread; [`Trace::threads`] has its name.
    pub thread: u64,
    /// Nanoseconds from the start of the recording.
    pub start_ns: u64,
    /// Nanoseconds.
    pub duration_ns: u64,
}

/// What a recording brought.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Trace {
    /// The spans that began and ended while it ran, by their start.
    pub spans: Vec<Span>,
    /// Names of the threads they ran on, by number.
    pub threads: BTreeMap<u64, String>,
    /// Spans that found no place.
    pub num_dropped: u64,
}

/// A recording under way; dropping it ends it.
#[derive(Debug)]
pub struct Recording {
    number: u64,
}

/// Measures until it is dropped.
#[derive(Debug)]
#[must_use = "a span ends where its guard is dropped"]
pub struct SpanGuard {
    open: Option<Open>,
    /// It ends on the thread that it began on.
    _thread: PhantomData<*const ()>,
}

#[derive(Debug, Clone, Copy)]
struct Open {
    recording: u64,
    slot: usize,
    origin: Instant,
}

struct Recorder {
    number: u64,
    origin: Instant,
    capacity: usize,
    /// Spans by their start, so that a full buffer loses the latest ones; without a duration while they are open.
    slots: Vec<(Span, bool)>,
    threads: BTreeMap<u64, String>,
    num_dropped: u64,
}

/// Adds operations that were just done or are about to be: two for each multiplication with its addition.
pub fn add_flops(count: u64) {
    if memory::count_flops(count) {
        return;
    }
    FLOPS.fetch_add(count, Ordering::Relaxed);
}

/// Operations of all matrix products of this process so far, recomputation included.
pub fn flops() -> u64 {
    FLOPS.load(Ordering::Relaxed)
}

/// The part of [`flops`] that computed a block a second time ([`crate::Tape::checkpoint`]).
pub fn recomputed_flops() -> u64 {
    RECOMPUTED.load(Ordering::Relaxed)
}

/// Begins to record spans, at most `capacity` of them; `None` where a recording is under way already.
pub fn start(capacity: usize) -> Option<Recording> {
    let mut recorder = RECORDER.lock();
    if recorder.is_some() {
        return None;
    }
    let number = NEXT_RECORDING.fetch_add(1, Ordering::Relaxed);
    let (slots, threads) = (Vec::new(), BTreeMap::new());
    *recorder = Some(Recorder { number, origin: Instant::now(), capacity, slots, threads, num_dropped: 0 });
    ACTIVE.store(number, Ordering::Relaxed);
    Some(Recording { number })
}

impl Recording {
    /// Ends the recording. Spans that are still open are left out.
    pub fn finish(self) -> Trace {
        stop(self.number).unwrap_or_default()
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        stop(self.number);
    }
}

fn stop(number: u64) -> Option<Trace> {
    let mut slot = RECORDER.lock();
    let recorder = slot.take_if(|recorder| recorder.number == number)?;
    ACTIVE.store(0, Ordering::Relaxed);
    drop(slot);
    let Recorder { slots, threads, num_dropped, .. } = recorder;
    let spans = slots.into_iter().filter(|(_, is_closed)| *is_closed).map(|(span, _)| span).collect();
    Some(Trace { spans, threads, num_dropped })
}

/// A span from here to where the guard is dropped.
pub fn span(name: &'static str) -> SpanGuard {
    open(|| name, None)
}

/// As [`span`], for one of several, such as a layer or a step.
pub fn span_at(name: &'static str, index: u64) -> SpanGuard {
    open(|| name, Some(index))
}

/// The span of an operator's backward pass, named after the operator's module.
pub(crate) fn backward_span(closure: &'static str) -> SpanGuard {
    open(|| operator_of(closure), None)
}

/// `rms_norm` from `tensor::ops::rms_norm::<impl tensor::tape::Tape>::rms_norm::{{closure}}`.
fn operator_of(closure: &'static str) -> &'static str {
    closure.split("::").nth(2).unwrap_or(closure)
}

fn open(name: impl FnOnce() -> &'static str, index: Option<u64>) -> SpanGuard {
    let is_on = ACTIVE.load(Ordering::Relaxed) != 0;
    let open = if is_on { RECORDER.lock().as_mut().and_then(|recorder| recorder.open(name(), index)) } else { None };
    SpanGuard { open, _thread: PhantomData }
}

impl Recorder {
    fn open(&mut self, name: &'static str, index: Option<u64>) -> Option<Open> {
        let slot = self.slots.len();
        if slot == self.capacity {
            self.num_dropped += 1;
            return None;
        }
        let thread = THREAD.with(|thread| *thread);
        self.threads
            .entry(thread)
            .or_insert_with(|| std::thread::current().name().map_or_else(|| format!("thread {thread}"), str::to_owned));
        let start_ns = nanoseconds(self.origin);
        self.slots.push((Span { name, index, thread, start_ns, duration_ns: 0 }, false));
        Some(Open { recording: self.number, slot, origin: self.origin })
    }
}

impl SpanGuard {
    /// Leaves the span out of the recording.
    pub fn discard(mut self) {
        self.open = None;
    }
}

impl Drop for SpanGuard {
    fn drop(&mut self) {
        let Some(open) = self.open else { return };
        let end_ns = nanoseconds(open.origin);
        let mut recorder = RECORDER.lock();
        let Some(recorder) = recorder.as_mut().filter(|recorder| recorder.number == open.recording) else { return };
        let (span, is_closed) = &mut recorder.slots[open.slot];
        span.duration_ns = end_ns.saturating_sub(span.start_ns);
        *is_closed = true;
    }
}

/// Nanoseconds since `origin`; the clamp is 584 years away.
fn nanoseconds(origin: Instant) -> u64 {
    u64::try_from(origin.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// Counts what is computed until it is dropped as recomputation, and measures it.
pub(crate) struct Recompute {
    before: u64,
    _span: SpanGuard,
}

/// A block is computed a second time until the guard is dropped.
pub(crate) fn recompute() -> Recompute {
    Recompute { before: flops(), _span: span("recompute") }
}

impl Drop for Recompute {
    fn drop(&mut self) {
        RECOMPUTED.fetch_add(flops() - self.before, Ordering::Relaxed);
    }
}
