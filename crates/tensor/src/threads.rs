//! Owns the worker threads and the ways to split work. Refuses any split that depends on the number of threads:
//! every helper cuts at fixed places, so that results have the same bits whatever runs them. In a plan
//! ([`crate::memory::plan`]) none of them runs anything.

use std::ops::Range;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use rayon::prelude::*;

use crate::error::Result;
use crate::memory::is_planning;
use crate::team;

/// Elements that one task of an element-wise kernel handles.
pub(crate) const CHUNK: usize = 16 * 1024;
/// Below this many elements a kernel stays on the calling thread: waking workers would cost more.
const INLINE: usize = 32 * 1024;

static POOL: RwLock<Option<Arc<rayon::ThreadPool>>> = RwLock::new(None);

/// Lets the engine use `n` threads from now on (at least one). Results do not depend on it.
pub fn set_num_threads(n: usize) {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(n.max(1)).thread_name(|i| format!("tensor-{i}")).build();
    // Without a pool of its own the engine runs on rayon's global one.
    *POOL.write() = pool.ok().map(Arc::new);
}

/// The number of threads that the engine uses.
pub fn num_threads() -> usize {
    POOL.read().as_ref().map_or_else(rayon::current_num_threads, |pool| pool.current_num_threads())
}

/// Runs `f` on the engine's worker threads.
pub(crate) fn on_pool<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    // A plan belongs to its thread.
    let pool = POOL.read().clone().filter(|_| !is_planning());
    match pool {
        Some(pool) => pool.install(f),
        None => f(),
    }
}

/// Calls `f`, but not in a plan: for copies that are not worth a task.
pub(crate) fn here(f: impl FnOnce()) {
    if !is_planning() {
        f();
    }
}

/// Calls `f(0)` to `f(num_tasks - 1)`, in parallel when `work` (in elements touched) is worth it.
pub(crate) fn for_each_task(num_tasks: usize, work: usize, f: impl Fn(usize) + Sync + Send) {
    for_each(num_tasks, work >= INLINE, f);
}

/// Calls `f(0)` to `f(num_tasks - 1)`, in parallel when asked: on the team where the thread keeps it awake
/// ([`team::StayAwake`]), else on the pool.
pub(crate) fn for_each(num_tasks: usize, parallel: bool, f: impl Fn(usize) + Sync + Send) {
    if is_planning() {
        return;
    }
    if num_tasks <= 1 || !parallel || num_threads() == 1 || team::is_inside() {
        (0..num_tasks).for_each(f);
    } else if !team::for_each(num_tasks, num_threads(), &f) {
        on_pool(|| (0..num_tasks).into_par_iter().with_max_len(1).for_each(f));
    }
}

/// As [`for_each_task`] for tasks that can fail; the error of the first task that failed.
pub(crate) fn try_for_each_task(
    num_tasks: usize,
    work: usize,
    f: impl Fn(usize) -> Result<()> + Sync + Send,
) -> Result<()> {
    try_for_each(num_tasks, work >= INLINE, f)
}

/// As [`for_each`] for tasks that can fail; the error of the first task that failed.
pub(crate) fn try_for_each(
    num_tasks: usize,
    parallel: bool,
    f: impl Fn(usize) -> Result<()> + Sync + Send,
) -> Result<()> {
    let failed = Mutex::new(None);
    for_each(num_tasks, parallel, |i| {
        if let Err(error) = f(i) {
            let mut first = failed.lock();
            if first.as_ref().is_none_or(|(other, _)| i < *other) {
                *first = Some((i, error));
            }
        }
    });
    failed.into_inner().map_or(Ok(()), |(_, error)| Err(error))
}

/// Calls `f` on consecutive pieces of `data`.
pub(crate) fn for_each_chunk<T: Send>(data: &mut [T], f: impl Fn(&mut [T]) + Sync + Send) {
    if is_planning() {
        return;
    }
    if data.len() < INLINE || num_threads() == 1 {
        data.chunks_mut(CHUNK).for_each(f);
    } else {
        on_pool(|| data.par_chunks_mut(CHUNK).with_max_len(1).for_each(f));
    }
}

/// Cuts `n` rows of `width` elements into fixed pieces of about [`CHUNK`] elements.
pub(crate) fn row_pieces(n: usize, width: usize) -> (usize, impl Fn(usize) -> Range<usize> + Sync + Send + Copy) {
    let rows = (CHUNK / width.max(1)).max(1);
    (n.div_ceil(rows), move |i| i * rows..((i + 1) * rows).min(n))
}

/// Calls `f(rows, out of those rows)` for fixed pieces of the rows of `out`, each `width` elements wide.
pub(crate) fn for_each_rows<T: Send>(out: &mut [T], width: usize, f: impl Fn(Range<usize>, &mut [T]) + Sync + Send) {
    if width == 0 {
        return;
    }
    let len = out.len();
    let (num_pieces, piece) = row_pieces(len / width, width);
    let out = Shared::new(out);
    for_each_task(num_pieces, len, |i| {
        let rows = piece(i);
        // SAFETY: pieces are disjoint.
        let out = unsafe { out.slice(rows.start * width..rows.end * width) };
        f(rows, out);
    });
}

/// The sum of squares in f64: fixed pieces, then their sums in order.
pub(crate) fn sum_of_squares(data: &[f32]) -> f64 {
    if is_planning() {
        return 0.0;
    }
    let piece = |chunk: &[f32]| {
        let mut lanes = [0f64; 8];
        for part in chunk.chunks(8) {
            for (lane, &x) in lanes.iter_mut().zip(part) {
                *lane += f64::from(x) * f64::from(x);
            }
        }
        lanes.iter().sum::<f64>()
    };
    let sums: Vec<f64> = if data.len() < INLINE || num_threads() == 1 {
        data.chunks(CHUNK).map(piece).collect()
    } else {
        on_pool(|| data.par_chunks(CHUNK).map(piece).collect())
    };
    sums.iter().sum()
}

/// A slice that several tasks write to at places that they know to be disjoint.
pub(crate) struct Shared<'a, T = f32> {
    ptr: *mut T,
    len: usize,
    _borrow: std::marker::PhantomData<&'a mut [T]>,
}

impl<T> Clone for Shared<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Shared<'_, T> {}

// SAFETY: access goes through `slice`, whose callers promise disjoint ranges.
unsafe impl<T: Send> Send for Shared<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(crate) fn new(data: &'a mut [T]) -> Shared<'a, T> {
        Shared { ptr: data.as_mut_ptr(), len: data.len(), _borrow: std::marker::PhantomData }
    }

    /// Where `range` starts, for a kernel that writes to parts of it.
    pub(crate) fn at(&self, range: Range<usize>) -> *mut T {
        assert!(range.start <= range.end && range.end <= self.len, "range {range:?} of {}", self.len);
        // SAFETY: inside of the borrowed slice.
        unsafe { self.ptr.add(range.start) }
    }

    /// The elements of `range` for writing.
    ///
    /// # Safety
    /// No other live slice taken from this borrow may overlap `range`.
    pub(crate) unsafe fn slice(&self, range: Range<usize>) -> &'a mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "range {range:?} of {}", self.len);
        // SAFETY: inside of the borrowed slice; the caller promises disjointness.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(range.start), range.len()) }
    }
}
