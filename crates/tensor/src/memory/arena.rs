//! Owns the large mappings and the free places in them: lowest place first, neighbours join.
//! Refuses counting and small buffers.

use std::collections::BTreeMap;
use std::ptr::NonNull;

/// Address space reserved at a time; memory is used only where it is touched.
const SEGMENT: usize = 1 << 30;
const HUGE_PAGE: usize = 2 << 20;

/// A mapping and the free places in it.
struct Segment {
    start: NonNull<u8>,
    size: usize,
    /// Bytes from the start on that were ever handed out; behind them memory is zero.
    touched: usize,
    /// Length of each free place by its offset.
    free: BTreeMap<usize, usize>,
}

// SAFETY: the arena alone hands out parts of its mappings.
unsafe impl Send for Segment {}

/// Large mappings, in the order they were made.
pub(super) struct Arena {
    segments: Vec<Segment>,
}

impl Arena {
    pub(super) const fn new() -> Arena {
        Arena { segments: Vec::new() }
    }

    /// Bytes that were ever handed out and not released since.
    pub(super) fn touched(&self) -> usize {
        self.segments.iter().map(|segment| segment.touched).sum()
    }

    /// The lowest free place of `size` bytes, and whether it was never used.
    pub(super) fn take(&mut self, size: usize) -> Option<(NonNull<u8>, bool)> {
        if let Some(place) = self.segments.iter_mut().find_map(|segment| segment.take(size)) {
            return Some(place);
        }
        let mut wanted = size.max(SEGMENT).checked_next_multiple_of(HUGE_PAGE)?;
        let start = loop {
            match map(wanted) {
                Some(start) => break start,
                // A limit on address space may allow a smaller mapping.
                None if wanted / 2 >= size => wanted = (wanted / 2).next_multiple_of(HUGE_PAGE),
                None => return None,
            }
        };
        let mut segment = Segment { start, size: wanted, touched: 0, free: BTreeMap::from([(0, wanted)]) };
        let place = segment.take(size);
        self.segments.push(segment);
        place
    }

    /// Takes back a place that `take` gave.
    pub(super) fn give_back(&mut self, ptr: NonNull<u8>, size: usize) {
        let inside = |segment: &&mut Segment| {
            let start = segment.start.addr().get();
            (start..start + segment.size).contains(&ptr.addr().get())
        };
        match self.segments.iter_mut().find(inside) {
            Some(segment) => segment.give_back(ptr.addr().get() - segment.start.addr().get(), size),
            None => unreachable!("a buffer that no segment holds"),
        }
    }

    /// Gives the free end of every segment back to the operating system.
    pub(super) fn release_free(&mut self) {
        self.segments.iter_mut().for_each(Segment::release_end);
    }
}

impl Segment {
    fn take(&mut self, size: usize) -> Option<(NonNull<u8>, bool)> {
        let (&offset, &len) = self.free.iter().find(|&(_, &len)| len >= size)?;
        self.free.remove(&offset);
        if len > size {
            self.free.insert(offset + size, len - size);
        }
        let fresh = offset >= self.touched;
        self.touched = self.touched.max(offset + size);
        // SAFETY: a free place lies inside of the mapping.
        Some((unsafe { self.start.add(offset) }, fresh))
    }

    fn give_back(&mut self, mut offset: usize, mut size: usize) {
        if let Some(behind) = self.free.remove(&(offset + size)) {
            size += behind;
        }
        if let Some((&before, len)) = self.free.range_mut(..offset).next_back()
            && before + *len == offset
        {
            (offset, size) = (before, *len + size);
        }
        self.free.insert(offset, size);
    }

    #[cfg(target_os = "linux")]
    fn release_end(&mut self) {
        let Some((&offset, _)) = self.free.iter().next_back().filter(|&(&at, &len)| at + len == self.size) else {
            return;
        };
        let first = offset.next_multiple_of(HUGE_PAGE);
        if first < self.touched {
            // SAFETY: these pages hold no buffer; the next use finds them zero.
            unsafe {
                libc::madvise(self.start.as_ptr().add(first).cast(), self.size - first, libc::MADV_DONTNEED);
            }
            self.touched = first;
        }
    }

    /// Elsewhere released pages need not read as zero, so they are kept.
    #[cfg(not(target_os = "linux"))]
    fn release_end(&mut self) {}
}

#[cfg(unix)]
fn map(size: usize) -> Option<NonNull<u8>> {
    let reserved = size.checked_add(HUGE_PAGE)?;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new anonymous mapping of our own.
    unsafe {
        let start = libc::mmap(std::ptr::null_mut(), reserved, protection, flags, -1, 0);
        if start == libc::MAP_FAILED {
            return None;
        }
        let aligned = start.cast::<u8>().add(start.cast::<u8>().align_offset(HUGE_PAGE));
        #[cfg(target_os = "linux")]
        libc::madvise(aligned.cast(), size, libc::MADV_HUGEPAGE);
        NonNull::new(aligned)
    }
}

#[cfg(not(unix))]
fn map(size: usize) -> Option<NonNull<u8>> {
    let layout = std::alloc::Layout::from_size_align(size, 4096).ok()?;
    // SAFETY: the size is not zero; segments are kept for good.
    NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_lowest_first_and_join() {
        let mut arena = Arena::new();
        let take = |arena: &mut Arena, size| arena.take(size).unwrap();
        let (a, fresh) = take(&mut arena, 1000);
        assert!(fresh);
        let (b, _) = take(&mut arena, 2000);
        let (c, _) = take(&mut arena, 3000);
        assert_eq!(b.addr().get() - a.addr().get(), 1000);
        arena.give_back(a, 1000);
        arena.give_back(b, 2000);
        let (d, fresh) = take(&mut arena, 2500);
        assert!(d == a && !fresh, "joined places are used again");
        arena.give_back(c, 3000);
        arena.give_back(d, 2500);
        assert_eq!(arena.segments[0].free, BTreeMap::from([(0, SEGMENT)]));
        assert_eq!(arena.touched(), 6000);
        let (big, _) = take(&mut arena, SEGMENT + 1);
        assert_eq!(arena.segments.len(), 2);
        arena.give_back(big, SEGMENT + 1);
        arena.release_free();
        if cfg!(target_os = "linux") {
            assert_eq!(arena.touched(), 0);
        }
    }
}
