//! Owns every buffer of the engine: a counted pool over a few large mappings, with huge pages.
//! Refuses to know what a buffer holds, and never zeroes one that was used before.
//!
//! Invariants:
//! - every byte handed out was initialised once (fresh memory is zero), so reading stale content is defined;
//! - large buffers take the lowest free place and free places join, so that steps of equal shapes ask the operating
//!   system for nothing, and the resident memory follows the counted peak;
//! - buffers start on a 64-byte boundary.

mod arena;
mod planning;

use std::alloc::{Layout, alloc_zeroed};
use std::collections::BTreeMap;
use std::ptr::NonNull;

use parking_lot::Mutex;

use crate::error::{Error, Result};
use arena::Arena;
pub use planning::{Mark, Planned, is_planning, mark, plan};
pub(crate) use planning::{count_flops, scratch};

const ALIGN: usize = 64;
/// Buffers from this size on live in the arena; smaller ones in lists by size.
const LARGE: usize = 32 << 10;
/// Behind every large buffer: a gap that keeps equal offsets of equally large buffers from sharing cache sets.
const GAP: usize = 128;

/// Bytes in use now and at most since the last [`reset_peak`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Bytes of live buffers.
    pub current_bytes: usize,
    /// Largest value of `current_bytes` since the start or the last [`reset_peak`].
    pub peak_bytes: usize,
    /// Bytes that were touched so far and not given back: what the pool holds of the resident memory, in use or free.
    pub held_bytes: usize,
}

/// The counters of the pool; in a plan, of the plan's pool.
pub fn stats() -> Stats {
    let pool = pool_of(is_planning()).lock();
    Stats { current_bytes: pool.live, peak_bytes: pool.peak, held_bytes: pool.small_held + pool.arena.touched() }
}

/// Lets the peak start again at what is live now; in a plan, that of the plan's pool.
pub fn reset_peak() {
    let mut pool = pool_of(is_planning()).lock();
    pool.peak = pool.live;
}

/// Gives free memory back to the operating system.
pub fn release_free() {
    POOL.lock().arena.release_free();
}

/// The bytes that a buffer of `bytes` bytes occupies and is counted with.
pub fn rounded_bytes(bytes: usize) -> usize {
    match bytes {
        0 => 0,
        1..LARGE => bytes.next_power_of_two().max(ALIGN),
        // A size beyond every address stays one: the allocator refuses it with the figure.
        _ => bytes.checked_next_multiple_of(ALIGN).unwrap_or(bytes).saturating_add(GAP),
    }
}

/// One buffer. Dropping it returns it to the pool.
pub(crate) struct Buffer {
    ptr: NonNull<u8>,
    capacity: usize,
    /// Whether it belongs to the pool of a plan, and is never touched.
    is_planned: bool,
}

// SAFETY: a buffer owns its memory, and every access goes through `&` or `&mut` of its owner.
unsafe impl Send for Buffer {}
// SAFETY: shared access only reads.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// A buffer of at least `bytes` bytes with arbitrary (initialised) content.
    pub(crate) fn stale(bytes: usize) -> Result<Buffer> {
        Ok(Buffer::take(bytes)?.0)
    }

    /// A buffer whose first `bytes` bytes are zero.
    pub(crate) fn zeroed(bytes: usize) -> Result<Buffer> {
        let (buffer, fresh) = Buffer::take(bytes)?;
        if !fresh && !buffer.is_planned {
            // SAFETY: the buffer holds at least `bytes` bytes and nobody else refers to it yet.
            unsafe { buffer.ptr.as_ptr().write_bytes(0, bytes) };
        }
        Ok(buffer)
    }

    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.ptr.as_ptr()
    }

    /// A buffer, and whether its memory was never used.
    fn take(bytes: usize) -> Result<(Buffer, bool)> {
        let capacity = rounded_bytes(bytes);
        let is_planned = is_planning();
        let mut pool = pool_of(is_planned).lock();
        let taken = match capacity {
            // Never read; aligned for every element type.
            0 => NonNull::new(std::ptr::without_provenance_mut(ALIGN)).map(|ptr| (ptr, true)),
            1..LARGE => pool.take_small(capacity),
            _ => pool.arena.take(capacity),
        };
        let (ptr, fresh) = taken.ok_or(Error::OutOfMemory { bytes })?;
        pool.live += capacity;
        pool.peak = pool.peak.max(pool.live);
        Ok((Buffer { ptr, capacity, is_planned }, fresh))
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.capacity == 0 {
            return;
        }
        let mut pool = pool_of(self.is_planned).lock();
        pool.live -= self.capacity;
        if self.capacity < LARGE {
            pool.small.entry(self.capacity).or_default().push(Free(self.ptr));
        } else {
            pool.arena.give_back(self.ptr, self.capacity);
        }
    }
}

struct Free(NonNull<u8>);
// SAFETY: a free buffer belongs to the pool alone.
unsafe impl Send for Free {}

struct Pool {
    arena: Arena,
    /// Free small buffers by capacity.
    small: BTreeMap<usize, Vec<Free>>,
    small_held: usize,
    live: usize,
    peak: usize,
}

static POOL: Mutex<Pool> = Mutex::new(Pool::new());
/// Buffers of plans: address space that nobody touches.
static PLAN_POOL: Mutex<Pool> = Mutex::new(Pool::new());

fn pool_of(is_planned: bool) -> &'static Mutex<Pool> {
    if is_planned { &PLAN_POOL } else { &POOL }
}

impl Pool {
    const fn new() -> Pool {
        Pool { arena: Arena::new(), small: BTreeMap::new(), small_held: 0, live: 0, peak: 0 }
    }

    fn take_small(&mut self, capacity: usize) -> Option<(NonNull<u8>, bool)> {
        if let Some(Free(ptr)) = self.small.get_mut(&capacity).and_then(Vec::pop) {
            return Some((ptr, false));
        }
        let layout = Layout::from_size_align(capacity, ALIGN).ok()?;
        // SAFETY: the size is not zero. Small buffers are kept for good, so the layout is not needed again.
        let ptr = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        self.small_held += capacity;
        Some((ptr, true))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_round_up() {
        assert_eq!(rounded_bytes(0), 0);
        assert_eq!(rounded_bytes(1), 64);
        assert_eq!(rounded_bytes(5000), 8192);
        assert_eq!(rounded_bytes((1 << 20) + 1), (1 << 20) + 64 + GAP);
    }

    #[test]
    fn buffers_are_aligned_and_zeroed_on_demand() {
        for bytes in [100, 70_001, 5 << 20] {
            let buffer = Buffer::stale(bytes).unwrap();
            assert_eq!(buffer.as_ptr() as usize % ALIGN, 0);
            // SAFETY: the buffer holds `bytes` bytes.
            unsafe { buffer.as_ptr().write_bytes(7, bytes) };
            drop(buffer);
            let again = Buffer::zeroed(bytes).unwrap();
            // SAFETY: the buffer holds `bytes` bytes.
            let content = unsafe { std::slice::from_raw_parts(again.as_ptr(), bytes) };
            assert!(content.iter().all(|&b| b == 0));
        }
    }

    #[test]
    fn an_impossible_size_is_an_error() {
        assert!(matches!(Buffer::stale(1 << 60), Err(Error::OutOfMemory { .. })));
        assert!(matches!(Buffer::stale(usize::MAX), Err(Error::OutOfMemory { .. })));
    }
}
