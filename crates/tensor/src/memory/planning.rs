//! Owns plans: a computation that allocates and frees as it would, and computes nothing, so that its memory and its
//! operations are known from shapes alone. Refuses to know what is computed.
//!
//! While a thread plans, its buffers come from a pool of their own, whose address space is reserved and not touched; the
//! loops of kernels do not run, and copies into new tensors are left out. Values are meaningless.

use std::cell::{Cell, RefCell};

use parking_lot::Mutex;

use super::{Buffer, PLAN_POOL};
use crate::error::Result;

thread_local! {
    static PLANNING: Cell<bool> = const { Cell::new(false) };
    static NOTES: RefCell<Notes> = const { RefCell::new(Notes { flops: 0, marks: Vec::new() }) };
}

/// One plan at a time: the counters of its pool are its own.
static ONE: Mutex<()> = Mutex::new(());

struct Notes {
    flops: u64,
    marks: Vec<Mark>,
}

/// A place that a plan came by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// What begins or ends here.
    pub name: &'static str,
    /// Which one of several, such as a layer.
    pub index: usize,
    /// Bytes of live buffers.
    pub live_bytes: usize,
    /// Largest number of bytes of live buffers so far.
    pub peak_bytes: usize,
}

/// What a plan found.
#[derive(Debug)]
pub struct Planned<T> {
    /// What the planned computation returned.
    pub value: T,
    /// Largest number of bytes of live buffers, as [`super::stats`] counts them in a real run.
    pub peak_bytes: usize,
    /// Operations of all matrix products, as [`crate::profile::flops`] counts them in a real run.
    pub flops: u64,
    /// The places that it came by, in order.
    pub marks: Vec<Mark>,
}

/// Runs `f` as a plan. Whatever buffers it returns hold nothing.
pub fn plan<T>(f: impl FnOnce() -> T) -> Planned<T> {
    let _one = ONE.lock();
    let session = Session::begin();
    let value = f();
    let peak_bytes = PLAN_POOL.lock().peak;
    let Notes { flops, marks } = session.end();
    Planned { value, peak_bytes, flops, marks }
}

/// Whether this thread plans.
pub fn is_planning() -> bool {
    PLANNING.get()
}

/// Notes a place of a plan; does nothing otherwise.
pub fn mark(name: &'static str, index: usize) {
    if !is_planning() {
        return;
    }
    let (live_bytes, peak_bytes) = {
        let pool = PLAN_POOL.lock();
        (pool.live, pool.peak)
    };
    NOTES.with_borrow_mut(|notes| notes.marks.push(Mark { name, index, live_bytes, peak_bytes }));
}

/// Counts operations of a plan; false outside of one.
pub(crate) fn count_flops(count: u64) -> bool {
    if is_planning() {
        NOTES.with_borrow_mut(|notes| notes.flops += count);
    }
    is_planning()
}

/// In a plan, stands for the buffers of several tasks that run at once: `each` bytes in as many tasks as threads allow.
pub(crate) fn scratch(num_tasks: usize, each: &[usize]) -> Result<Vec<Buffer>> {
    if !is_planning() {
        return Ok(Vec::new());
    }
    let at_once = num_tasks.min(crate::num_threads());
    (0..at_once).flat_map(|_| each).map(|&bytes| Buffer::stale(bytes)).collect()
}

/// Ends the plan also where `f` panics.
struct Session;

impl Session {
    fn begin() -> Session {
        let mut pool = PLAN_POOL.lock();
        // What an earlier plan returned may still live.
        pool.peak = pool.live;
        drop(pool);
        NOTES.set(Notes { flops: 0, marks: Vec::new() });
        PLANNING.set(true);
        Session
    }

    fn end(self) -> Notes {
        NOTES.replace(Notes { flops: 0, marks: Vec::new() })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        PLANNING.set(false);
        PLAN_POOL.lock().arena.release_free();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DType, LinearWeights, Param, Tape, Tensor, memory};

    #[test]
    fn a_plan_counts_and_touches_nothing() {
        let before = memory::stats();
        // Far more than any machine has.
        let planned = plan(|| {
            let huge = Tensor::zeros(&[1 << 20, 1 << 22], DType::F32).unwrap();
            mark("huge", 3);
            let head =
                LinearWeights::new(Param::new("w", Tensor::zeros(&[1 << 16, 1 << 12], DType::BF16).unwrap()), None);
            let tape = Tape::inference();
            let x = tape.constant(Tensor::zeros(&[1 << 12, 1 << 12], DType::BF16).unwrap());
            drop(huge);
            tape.linear(&x, &head).unwrap().value().num_bytes()
        });
        assert_eq!(planned.value, 1 << 29);
        assert_eq!(planned.flops, 2 << 40);
        assert_eq!((planned.marks[0].name, planned.marks[0].index), ("huge", 3));
        assert!(planned.peak_bytes > 1 << 44 && planned.peak_bytes < (1 << 44) + (1 << 31));
        assert!(!is_planning());
        assert_eq!(memory::stats().current_bytes, before.current_bytes);
    }

    #[test]
    fn a_panic_ends_the_plan() {
        let failed = std::panic::catch_unwind(|| plan(|| panic!("inside")));
        assert!(failed.is_err() && !is_planning());
        assert_eq!(plan(|| 5).value, 5);
    }
}
