//! The queue by itself, and the thread with gates instead of clocks.

use std::sync::Mutex;
use std::time::Duration;

use super::*;
use crate::cancel::is_cancelled;

const SECOND: Duration = Duration::from_secs(1);

/// Long enough for any machine.
fn far() -> Instant {
    Instant::now() + 600 * SECOND
}

fn thread_with(limit: usize) -> DecodeThread {
    DecodeThread::start(Held::new(0), limit)
}

/// Holds the thread until the sender is used or dropped; back once it is held.
fn hold(thread: &DecodeThread) -> (mpsc::Sender<()>, Decoding<()>) {
    let ((open, gate), (tell, held)) = (mpsc::channel::<()>(), mpsc::channel());
    let work = move || {
        tell.send(()).expect("the test waits");
        let _ = gate.recv();
    };
    let holding = thread.run(Instant::now() + 600 * SECOND, work).expect("a place");
    held.recv().expect("the thread runs it");
    (open, holding)
}

fn result<T>(decoding: Decoding<T>) -> Result<T, NoResult> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(decoding)
}

/// Tells when it is dropped.
struct Told(mpsc::Sender<&'static str>, &'static str);

impl Drop for Told {
    fn drop(&mut self) {
        let _ = self.0.send(self.1);
    }
}

#[test]
fn the_earliest_deadline_comes_first_and_what_is_late_or_unwanted_is_dropped() {
    let now = Instant::now();
    let (tell, told) = mpsc::channel();
    let job = |after: u32, name: &'static str| {
        let owned = Told(tell.clone(), name);
        Job { deadline: now + after * SECOND, cancel: Cancel::default(), run: Box::new(move || drop(owned)) }
    };
    let mut jobs = Jobs::default();
    let unwanted = job(4, "unwanted");
    let cancel = unwanted.cancel.clone();
    jobs.extend([job(5, "fifth"), job(1, "late"), unwanted, job(3, "third"), job(2, "due now")].into_iter());
    jobs.add(job(6, "sixth"));
    cancel.cancel();
    let mut order = Vec::new();
    while !jobs.is_empty() {
        match jobs.next(now + 2 * SECOND) {
            Some(job) => {
                assert_eq!(told.try_recv(), Err(mpsc::TryRecvError::Empty), "not dropped");
                (job.run)();
                order.push(format!("ran {}", told.try_recv().expect("run")));
            }
            None => order.push(format!("dropped {}", told.try_recv().expect("dropped"))),
        }
    }
    assert_eq!(
        order,
        ["dropped late", "dropped due now", "ran third", "dropped unwanted", "ran fifth", "ran sixth"]
    );
}

#[test]
fn the_thread_does_what_is_due_first_first_and_returns_each_result_to_its_caller() {
    let thread = thread_with(100);
    let (open, held) = hold(&thread);
    let done = Arc::new(Mutex::new(Vec::new()));
    let begun = far();
    let waiting: Vec<_> = [5, 1, 4, 2, 3]
        .map(|number: u32| {
            let done = Arc::clone(&done);
            let work = move || {
                done.lock().expect("no panic").push(number);
                number * 10
            };
            (number, thread.run(begun + number * SECOND, work).expect("a place"))
        })
        .into();
    drop(open);
    assert_eq!(result(held), Ok(()));
    for (number, decoding) in waiting {
        assert_eq!(result(decoding), Ok(number * 10));
    }
    assert_eq!(*done.lock().expect("no panic"), [1, 2, 3, 4, 5]);
}

#[test]
fn work_whose_deadline_has_passed_or_that_nobody_waits_for_is_not_done_and_what_belongs_to_it_is_dropped() {
    let thread = thread_with(100);
    let (open, _held) = hold(&thread);
    let (tell, told) = mpsc::channel();
    let work = |name| {
        let owned = Told(tell.clone(), name);
        move || {
            drop(owned);
            panic!("it is not done")
        }
    };
    let late: Decoding<()> = thread.run(Instant::now(), work("late")).expect("a place");
    let unwanted: Decoding<()> = thread.run(far(), work("unwanted")).expect("a place");
    drop(unwanted);
    assert_eq!(told.try_recv(), Err(mpsc::TryRecvError::Empty), "not before its turn");
    let after = thread.run(far() + SECOND, || "done").expect("a place");
    drop(open);
    assert_eq!(result(late), Err(NoResult));
    assert_eq!(result(after), Ok("done"));
    assert_eq!(told.try_iter().collect::<Vec<_>>(), ["late", "unwanted"]);
}

#[test]
fn work_under_way_learns_that_nobody_waits_for_it_any_more() {
    let thread = thread_with(100);
    let ((tell, began), (ended, end)) = (mpsc::channel(), mpsc::channel());
    let work = move || {
        tell.send(is_cancelled()).expect("the test waits");
        while !is_cancelled() {
            std::hint::spin_loop();
        }
        ended.send(()).expect("the test waits");
    };
    let decoding = thread.run(far(), work).expect("a place");
    assert_eq!(began.recv(), Ok(false));
    drop(decoding);
    end.recv().expect("it ended");
    // The flag is its own.
    assert_eq!(result(thread.run(far(), is_cancelled).expect("a place")), Ok(false));
}

#[test]
fn a_panic_ends_neither_the_thread_nor_a_place() {
    let thread = thread_with(1);
    let panicking: Decoding<()> = thread.run(far(), || panic!("a bug")).expect("a place");
    assert_eq!(result(panicking), Err(NoResult));
    // The result of a panic is known a little before its place is free.
    while thread.count.load(Ordering::Relaxed) > 0 {
        thread::yield_now();
    }
    assert_eq!(result(thread.run(far(), || 7).expect("a place")), Ok(7));
}

#[test]
fn there_is_no_more_work_than_bytes_held_and_callbacks_in_flight_let_in() {
    for (held, in_flight, limit) in
        [(0, 3, 3), (LARGE_BODY_BYTES - 1, 3, 3), (2 * LARGE_BODY_BYTES, 1, 3), (usize::MAX, usize::MAX, 0)]
    {
        let thread = DecodeThread::start(Held::new(held), in_flight);
        if limit == 0 {
            assert_eq!(thread.limit(), usize::MAX, "no overflow");
            continue;
        }
        assert_eq!(thread.limit(), limit);
        let (open, holding) = hold(&thread);
        let mut waiting: Vec<_> =
            (1..limit).map(|_| thread.run(far(), || ()).expect("the one under way counts too")).collect();
        assert_eq!(thread.run(far(), || ()).err(), Some(TooMany));
        // Work that nobody waits for stays, and counts, until its turn.
        drop(waiting.pop());
        assert_eq!(thread.run(far(), || ()).err(), Some(TooMany));
        drop(open);
        assert_eq!(result(holding), Ok(()));
        for decoding in waiting {
            assert_eq!(result(decoding), Ok(()));
        }
        assert_eq!(result(thread.run(far(), || 1).expect("a place is free")), Ok(1));
    }
}
