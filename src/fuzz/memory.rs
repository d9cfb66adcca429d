//! What a claim costs in memory: an allocator that counts for each thread.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// The system's allocator. Each thread counts what it allocates and frees itself.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
    static TOTAL: Cell<usize> = const { Cell::new(0) };
}

fn allocated(bytes: usize) {
    let live = LIVE.get() + bytes as isize;
    LIVE.set(live);
    PEAK.set(PEAK.get().max(live));
    TOTAL.set(TOTAL.get() + bytes);
}

fn freed(bytes: usize) {
    LIVE.set(LIVE.get() - bytes as isize);
}

#[allow(
    unsafe_code,
    reason = "an allocator has no other interface; each call goes to the system's as it came"
)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        allocated(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        freed(layout.size());
        unsafe { System.dealloc(place, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        allocated(layout.size());
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        freed(layout.size());
        allocated(size);
        unsafe { System.realloc(place, layout, size) }
    }
}

/// Bytes that this thread has allocated and not freed, since it began. What another thread frees is not seen.
pub(super) fn live() -> isize {
    LIVE.get()
}

/// Forgets the peak so far.
pub(super) fn begin_peak() {
    PEAK.set(live());
}

/// The most that [`live`] has been since [`begin_peak`].
pub(super) fn peak() -> isize {
    PEAK.get()
}

/// Bytes that this thread has allocated in all: a measure of its work that does not depend on the machine.
pub(super) fn total() -> usize {
    TOTAL.get()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_freed_counts_at_its_peak_and_in_the_total_only() {
        let (before, all) = (live(), total());
        begin_peak();
        drop(vec![0_u8; 3000]);
        drop(vec![0_u8; 5000]);
        let kept = vec![1_u8; 1000];
        assert_eq!((peak() - before, total() - all, live() - before), (5000, 9000, 1000));
        drop(kept);
        assert_eq!(live(), before);
    }
}
