//! Owns the threads that stay awake between the parallel sections of a decoding step. Refuses to know what they compute,
//! and to cut work: [`crate::threads`] does that.
//!
//! A step of one token is a hundred sections of some ten microseconds to a few hundred. Waking a thread of a pool takes as
//! long as many of them, so the helpers of this team look for the next section for a while before they sleep, and the
//! calling thread works along instead of waiting. Helpers that wait give their core to whoever wants it, and a section
//! does not wait for helpers that come late: whoever is there does all of its tasks.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// How long a helper looks for the next section before it sleeps.
const AWAKE: Duration = Duration::from_millis(1);
/// Looks (some 50 microseconds in all) before it begins to offer its core to others between them.
const LOOKS: u32 = 2000;

/// The team of this process; locked while a section runs.
static TEAM: Mutex<Option<Team>> = Mutex::new(None);

thread_local! {
    /// Guards of this thread that are alive.
    static GUARDS: Cell<usize> = const { Cell::new(0) };
    /// Whether this thread runs a task of a section that has enough tasks for all threads.
    static IS_INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// While it lives, parallel sections of its thread run on the team.
pub(crate) struct StayAwake {
    _thread: PhantomData<*const ()>,
}

impl StayAwake {
    pub(crate) fn new() -> StayAwake {
        GUARDS.set(GUARDS.get() + 1);
        StayAwake { _thread: PhantomData }
    }
}

impl Drop for StayAwake {
    fn drop(&mut self) {
        GUARDS.set(GUARDS.get() - 1);
    }
}

/// Whether this thread runs a task of a section that keeps every thread busy, so that cutting further would gain nothing.
pub(crate) fn is_inside() -> bool {
    IS_INSIDE.get()
}

/// Calls `f(0)` to `f(num_tasks - 1)` on this thread and helpers, `num_threads` in all, where this thread asked for it with
/// [`StayAwake`] and the team is free. Says whether it did.
pub(crate) fn for_each(num_tasks: usize, num_threads: usize, f: &(dyn Fn(usize) + Sync)) -> bool {
    if GUARDS.get() == 0 {
        return false;
    }
    let Some(mut team) = TEAM.try_lock() else { return false };
    if team.as_ref().is_none_or(|team| team.num_wanted != num_threads) {
        // The old helpers end before new ones begin.
        *team = None;
        *team = Some(Team::new(num_threads));
    }
    if let Some(team) = team.as_ref() {
        team.run(num_tasks, f);
    }
    true
}

struct Team {
    num_wanted: usize,
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
}

/// What the caller and the helpers see.
struct Shared {
    /// The number of the section in the upper half, [`OPEN`], and the helpers inside in the lower bits.
    state: AtomicU64,
    section: UnsafeCell<Option<Section>>,
    /// The tasks left to each thread, the caller's first. Who has none takes the others'.
    spans: Box<[Span]>,
    num_asleep: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
    is_over: AtomicBool,
    /// The first panic of a helper.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// Whether helpers may enter.
const OPEN: u64 = 1 << 31;
/// The bits that count helpers inside.
const INSIDE: u64 = OPEN - 1;
/// One section in the upper half.
const SECTION: u64 = 1 << 32;

/// The work of a section. The borrow is valid while a helper is inside.
#[derive(Clone, Copy)]
struct Section {
    f: *const (dyn Fn(usize) + Sync),
    is_full: bool,
}

/// Consecutive tasks; on a line of its own, as every thread writes to its own one.
#[repr(align(128))]
#[derive(Default)]
struct Span {
    next: AtomicUsize,
    end: AtomicUsize,
}

// SAFETY: the section is written by the caller alone while it is closed and nobody is inside, and read by those inside; what
// it points to may be called from any thread.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Team {
    fn new(num_wanted: usize) -> Team {
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            section: UnsafeCell::new(None),
            spans: (0..num_wanted).map(|_| Span::default()).collect(),
            num_asleep: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
            is_over: AtomicBool::new(false),
            panic: Mutex::new(None),
        });
        let spawn = |place: usize| {
            let shared = shared.clone();
            // A helper that cannot be had leaves its tasks to the others.
            std::thread::Builder::new().name(format!("decode-{place}")).spawn(move || shared.help(place)).ok()
        };
        let helpers = (1..num_wanted).filter_map(spawn).collect();
        Team { num_wanted, shared, helpers }
    }

    fn run(&self, num_tasks: usize, f: &(dyn Fn(usize) + Sync)) {
        let shared = &*self.shared;
        let num_spans = shared.spans.len();
        for (i, span) in shared.spans.iter().enumerate() {
            span.next.store(i * num_tasks / num_spans, Ordering::Relaxed);
            span.end.store((i + 1) * num_tasks / num_spans, Ordering::Relaxed);
        }
        // SAFETY: the lifetime alone is changed; nobody is inside past the guard below, which ends before the borrow.
        let f: &'static (dyn Fn(usize) + Sync) = unsafe { std::mem::transmute(f) };
        let section = Section { f, is_full: num_tasks >= num_spans };
        // SAFETY: the section before is closed and nobody is inside of it.
        unsafe { *shared.section.get() = Some(section) };
        let number = (shared.state.load(Ordering::Relaxed) / SECTION).wrapping_add(1);
        // In one order with the count of sleepers: either they are seen here, or they see the section.
        shared.state.store(number.wrapping_mul(SECTION) | OPEN, Ordering::SeqCst);
        if shared.num_asleep.load(Ordering::SeqCst) > 0 {
            let _held = shared.sleep.lock();
            shared.wake.notify_all();
        }
        let closing = Closing { shared };
        shared.work(0, section);
        drop(closing);
        let panic = shared.panic.lock().take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::SeqCst);
        {
            let _held = self.shared.sleep.lock();
            self.shared.wake.notify_all();
        }
        for helper in self.helpers.drain(..) {
            // A helper catches the panics of its tasks.
            let _ = helper.join();
        }
    }
}

/// Ends a section however its caller leaves it: nobody enters any more, and who is inside finishes first.
struct Closing<'a> {
    shared: &'a Shared,
}

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut looks = 0;
        while state & INSIDE != 0 {
            look_again(&mut looks);
            state = self.shared.state.load(Ordering::Acquire);
        }
    }
}

/// A moment between two looks.
fn look_again(looks: &mut u32) {
    *looks = looks.saturating_add(1);
    if *looks < LOOKS {
        std::hint::spin_loop();
    } else {
        std::thread::yield_now();
    }
}

impl Shared {
    /// Tasks until there are none left, those of `place` first.
    fn work(&self, place: usize, section: Section) {
        let before = IS_INSIDE.replace(section.is_full);
        let _restored = Restore { before };
        for i in 0..self.spans.len() {
            let span = &self.spans[(place + i) % self.spans.len()];
            let end = span.end.load(Ordering::Relaxed);
            while span.next.load(Ordering::Relaxed) < end {
                let task = span.next.fetch_add(1, Ordering::Relaxed);
                if task >= end {
                    break;
                }
                // SAFETY: this thread is inside of the section, which its caller does not leave before.
                unsafe { (*section.f)(task) };
            }
        }
    }

    /// A helper's life.
    fn help(&self, place: usize) {
        let mut last = 0;
        while let Some(number) = self.enter(last) {
            last = number;
            // SAFETY: this thread is inside, and nobody writes the section meanwhile.
            if let Some(section) = unsafe { *self.section.get() }
                && let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.work(place, section)))
            {
                self.panic.lock().get_or_insert(panic);
            }
            self.state.fetch_sub(1, Ordering::Release);
        }
    }

    /// Waits for a section after `last` and enters it; its number, or nothing when the team is over.
    fn enter(&self, last: u64) -> Option<u64> {
        let mut looks = 0;
        let mut since = None;
        loop {
            if self.is_over.load(Ordering::Relaxed) {
                return None;
            }
            let state = self.state.load(Ordering::Acquire);
            if state & OPEN != 0 && state / SECTION != last {
                let entered = self.state.compare_exchange(state, state + 1, Ordering::AcqRel, Ordering::Relaxed);
                if entered.is_ok() {
                    return Some(state / SECTION);
                }
                continue;
            }
            look_again(&mut looks);
            if looks >= LOOKS && since.get_or_insert_with(Instant::now).elapsed() > AWAKE {
                self.sleep(last);
                (looks, since) = (0, None);
            }
        }
    }

    /// Sleeps until there is a section after `last`, or the team is over.
    fn sleep(&self, last: u64) {
        let mut held = self.sleep.lock();
        self.num_asleep.fetch_add(1, Ordering::SeqCst);
        let nothing = || {
            let state = self.state.load(Ordering::SeqCst);
            (state & OPEN == 0 || state / SECTION == last) && !self.is_over.load(Ordering::SeqCst)
        };
        if nothing() {
            self.wake.wait(&mut held);
        }
        self.num_asleep.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Puts back what [`IS_INSIDE`] was, after a panic too.
struct Restore {
    before: bool,
}

impl Drop for Restore {
    fn drop(&mut self) {
        IS_INSIDE.set(self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often each task of a section ran.
    fn counts(num_tasks: usize, num_threads: usize) -> Vec<usize> {
        let counts: Vec<AtomicUsize> = (0..num_tasks).map(|_| AtomicUsize::new(0)).collect();
        let f = |i: usize| {
            counts[i].fetch_add(1, Ordering::Relaxed);
        };
        // Another test may hold the team.
        while !for_each(num_tasks, num_threads, &f) {
            std::thread::yield_now();
        }
        counts.into_iter().map(AtomicUsize::into_inner).collect()
    }

    #[test]
    fn every_task_runs_once() {
        let _awake = StayAwake::new();
        for round in 0..300 {
            for (num_tasks, num_threads) in [(1, 2), (2, 2), (3, 4), (7, 2), (100, 3), (1000, 4)] {
                assert_eq!(counts(num_tasks, num_threads), vec![1; num_tasks], "{num_tasks} {num_threads} {round}");
            }
        }
    }

    #[test]
    fn sleepers_come_back() {
        let _awake = StayAwake::new();
        let sleeps = |team: &Team| team.shared.num_asleep.load(Ordering::Relaxed) == team.helpers.len();
        for _ in 0..3 {
            assert_eq!(counts(50, 3), [1; 50]);
            while !TEAM.lock().as_ref().is_some_and(sleeps) {
                std::thread::yield_now();
            }
        }
    }

    #[test]
    fn without_a_guard_there_is_no_team() {
        assert!(!for_each(3, 2, &|_| unreachable!("nobody asked for it")));
        drop(StayAwake::new());
        assert!(!for_each(3, 2, &|_| unreachable!("the guard is gone")));
    }

    #[test]
    fn a_task_of_a_full_section_cuts_no_further() {
        let _awake = StayAwake::new();
        let cut = AtomicUsize::new(0);
        let nested = |_| {
            assert!(is_inside());
            assert!(!for_each(2, 2, &|_| unreachable!("the team is at work")));
            cut.fetch_add(1, Ordering::Relaxed);
        };
        while !for_each(4, 2, &nested) {
            std::thread::yield_now();
        }
        assert_eq!(cut.into_inner(), 4);
        assert!(!is_inside());
    }

    #[test]
    fn panics_reach_the_caller_and_leave_the_team_usable() {
        let _awake = StayAwake::new();
        for bad in [0, 63] {
            let f = |i: usize| assert!(i != bad, "task {i}");
            let run = || {
                while !for_each(64, 2, &f) {
                    std::thread::yield_now();
                }
            };
            assert!(catch_unwind(AssertUnwindSafe(run)).is_err());
            assert!(!is_inside());
            assert_eq!(counts(64, 2), [1; 64]);
        }
    }
}
