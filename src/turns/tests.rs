use tokio::task::{LocalSet, yield_now};

use super::*;

/// Runs this beside a keeper, on a worker's kind of runtime.
async fn kept<T>(turns: &Rc<Turns>, work: impl Future<Output = T>) -> T {
    let local = LocalSet::new();
    let keeper = Rc::clone(turns);
    local.spawn_local(async move { keeper.keep().await });
    local.run_until(work).await
}

/// A connection with endless work in pieces of so many bytes. Notes each turn that begins.
async fn greedy(name: usize, piece: usize, lane: Rc<Lane>, log: Rc<RefCell<Vec<usize>>>) {
    let mut turn = Turn::new(lane);
    loop {
        let waited = poll_fn(|cx| Poll::Ready(turn.poll(cx).is_pending())).await;
        if waited {
            turn.next().await;
            log.borrow_mut().push(name);
        }
        turn.spend(piece);
    }
}

/// A task that is ready again and again. Notes each poll.
async fn busy(name: usize, lane: Rc<Lane>, alone: bool, log: Rc<RefCell<Vec<usize>>>) {
    let mut pace = Pace::new(lane, alone);
    loop {
        poll_fn(|cx| pace.poll(cx)).await;
        log.borrow_mut().push(name);
        yield_now().await;
    }
}

fn pending(mut poll: impl FnMut(&mut Context<'_>) -> Poll<()>) -> bool {
    poll(&mut Context::from_waker(Waker::noop())).is_pending()
}

#[tokio::test]
async fn of_many_with_endless_work_one_is_called_per_pass_each_in_its_order() {
    let (turns, log) = (Rc::new(Turns::default()), Rc::new(RefCell::default()));
    kept(&turns, async {
        let lane = turns.lane(1);
        for name in 0..5 {
            tokio::task::spawn_local(greedy(name, 8 << 10, Rc::clone(&lane), Rc::clone(&log)));
        }
        let mut most = 0;
        for _ in 0..200 {
            let before = log.borrow().len();
            yield_now().await;
            most = most.max(log.borrow().len() - before);
        }
        assert_eq!(most, 1, "two long turns in one pass");
    })
    .await;
    let log = log.borrow();
    assert!(log.len() > 50, "{log:?}");
    let first: Vec<_> = log[..5].to_vec();
    for (at, name) in log.iter().enumerate() {
        assert_eq!(*name, first[at % 5], "{log:?}");
    }
}

#[tokio::test]
async fn a_caller_with_one_connection_has_every_other_long_turn_beside_one_with_20() {
    let (turns, log) = (Rc::new(Turns::default()), Rc::new(RefCell::default()));
    kept(&turns, async {
        let (many, one) = (turns.lane(1), turns.lane(2));
        for name in 1..=20 {
            tokio::task::spawn_local(greedy(name, 16 << 10, Rc::clone(&many), Rc::clone(&log)));
        }
        tokio::task::spawn_local(greedy(0, 16 << 10, one, Rc::clone(&log)));
        for _ in 0..200 {
            yield_now().await;
        }
    })
    .await;
    let log = log.borrow();
    let of_one = log.iter().filter(|name| **name == 0).count();
    assert!(log.len() > 100 && of_one * 2 + 2 >= log.len(), "{of_one} of {}", log.len());
}

#[tokio::test]
async fn of_500_tasks_of_a_caller_32_run_per_pass_beside_that_of_another_caller() {
    let (turns, log) = (Rc::new(Turns::default()), Rc::<RefCell<Vec<usize>>>::default());
    let mut passes = 0;
    kept(&turns, async {
        let (many, other) = (turns.lane(1), turns.lane(2));
        for name in 1..=500 {
            tokio::task::spawn_local(busy(name, Rc::clone(&many), false, Rc::clone(&log)));
        }
        tokio::task::spawn_local(busy(0, other, false, Rc::clone(&log)));
        // Until all are there.
        for _ in 0..20 {
            yield_now().await;
        }
        log.borrow_mut().clear();
        passes = PASS.get();
        for _ in 0..200 {
            yield_now().await;
        }
        passes = PASS.get() - passes;
    })
    .await;
    let log = log.borrow();
    let runs = |name| log.iter().filter(|ran| **ran == name).count();
    let (of_many, of_other, passes) = (log.len() - runs(0), runs(0), passes as usize);
    assert!(passes >= 100, "{passes}");
    assert!(of_many <= PIECES as usize * (passes + 1), "{of_many} in {passes} passes");
    // It yields in between, so that it has every other pass at the least.
    assert!(of_other >= passes / 2, "{of_other} in {passes} passes");
    let of_each: Vec<_> = (1..=500).map(runs).collect();
    let [least, most] = [of_each.iter().min(), of_each.iter().max()].map(|count| count.copied().unwrap_or(0));
    assert!(least >= most / 2, "{least} to {most} turns");
}

#[tokio::test]
async fn of_pieces_that_take_as_long_as_a_turn_one_runs_per_pass() {
    let (turns, log) = (Rc::new(Turns::default()), Rc::<RefCell<Vec<usize>>>::default());
    kept(&turns, async {
        let lane = turns.lane(1);
        lane.count(PIECES);
        let mut long = Vec::new();
        for name in 0..10 {
            let (mut pace, log) = (Pace::new(Rc::clone(&lane), false), Rc::clone(&log));
            long.push(tokio::task::spawn_local(async move {
                poll_fn(|cx| pace.poll(cx)).await;
                log.borrow_mut().push(name);
                let begun = Instant::now();
                while begun.elapsed() < TURN_TIME {}
            }));
        }
        let mut most = 0;
        while log.borrow().len() < 10 {
            let before = log.borrow().len();
            yield_now().await;
            most = most.max(log.borrow().len() - before);
        }
        assert_eq!(most, 1);
    })
    .await;
    let mut names = log.borrow().clone();
    assert_eq!(names[0], 0);
    names.sort_unstable();
    assert_eq!(names, (0..10).collect::<Vec<_>>());
}

#[tokio::test]
async fn what_may_have_many_callbacks_in_it_is_called_alone() {
    let (turns, log) = (Rc::new(Turns::default()), Rc::new(RefCell::default()));
    kept(&turns, async {
        let lane = turns.lane(1);
        lane.count(PIECES);
        for name in 0..4 {
            tokio::task::spawn_local(busy(name, Rc::clone(&lane), true, Rc::clone(&log)));
        }
        while log.borrow().is_empty() {
            yield_now().await;
        }
        // Whoever runs has as many pieces as a pass may have.
        for _ in 0..20 {
            lane.count(PIECES);
            let before = log.borrow().len();
            yield_now().await;
            assert!(log.borrow().len() - before <= 1);
        }
        assert!(log.borrow().len() >= 10, "{:?}", log.borrow());
    })
    .await;
}

#[tokio::test]
async fn a_caller_has_fewer_pieces_of_a_pass_the_more_callers_wait() {
    let turns = Rc::new(Turns::default());
    let lanes: Vec<_> = (1..=64).map(|caller| turns.lane(caller)).collect();
    let mut waiting = Vec::new();
    let mut pieces = Vec::new();
    for lane in &lanes {
        waiting.push(Next(lane.join(false, Waker::noop().clone())));
        pieces.push(turns.pieces.get());
    }
    assert_eq!((pieces[0], pieces[1], pieces[3], pieces[63]), (PIECES, PIECES / 2, PIECES / 4, LEAST_PIECES));
    kept(&turns, async { waiting.pop().expect("the last").await }).await;
    waiting.clear();
    kept(&turns, async { turns.lane(1).join(false, Waker::noop().clone()).left.set(true) }).await;
    turns.call_next();
    assert_eq!(turns.pieces.get(), PIECES, "nobody waits");
}

#[test]
fn pieces_of_a_pass_are_forgotten_with_the_next_and_a_lane_is_one_while_it_is_used() {
    let turns = Rc::new(Turns::default());
    let lane = turns.lane(7);
    let mut pace = Pace::new(turns.lane(7), false);
    for _ in 0..PIECES {
        assert!(!pending(|cx| pace.poll(cx)));
    }
    assert!(!lane.enter() && turns.lane(8).enter());
    rest();
    assert!(lane.enter() && !pending(|cx| pace.poll(cx)), "the worker slept");
    drop((lane, pace));
    for caller in 100..1_000 {
        drop(turns.lane(caller));
    }
    assert!(turns.lanes.borrow().len() < 100, "callers that have gone");
}

#[tokio::test]
async fn small_work_never_waits_however_long_the_queue_is() {
    let (turns, log) = (Rc::new(Turns::default()), Rc::new(RefCell::default()));
    kept(&turns, async {
        let lane = turns.lane(1);
        for name in 0..20 {
            tokio::task::spawn_local(greedy(name, 16 << 10, Rc::clone(&lane), Rc::clone(&log)));
        }
        yield_now().await;
        assert!(lane.waiting.borrow().len() > 10);
        let (mut small, mut large) = (Turn::new(turns.lane(2)), Turn::new(turns.lane(2)));
        for _ in 0..100 {
            for _ in 0..3 {
                assert!(poll_fn(|cx| Poll::Ready(small.poll(cx))).await.is_ready());
                small.spend(1024);
            }
            small.pause();
        }
        large.spend(FREE_BYTES);
        assert!(poll_fn(|cx| Poll::Ready(large.poll(cx))).await.is_pending(), "the twin");
        large.pause();
        assert!(
            poll_fn(|cx| Poll::Ready(large.poll(cx))).await.is_pending(),
            "a pause is no way around the queue"
        );
    })
    .await;
}

#[tokio::test]
async fn who_leaves_the_queue_costs_no_pass() {
    let turns = Rc::new(Turns::default());
    kept(&turns, async {
        let next = |alone| Next(turns.lane(1).join(alone, Waker::noop().clone()));
        let gone: Vec<_> = (0..100).map(|number| next(number % 2 == 0)).collect();
        let last = next(true);
        drop(gone);
        last.await;
        assert!(turns.ring.borrow().is_empty());
    })
    .await;
}

#[tokio::test]
async fn a_pass_decodes_64_kib_and_one_body_more_than_that_only_alone() {
    let turns = Rc::new(Turns::default());
    kept(&turns, async {
        let decode = |bytes| turns.decode(bytes, || 1);
        assert!(decode(200 << 10).is_none(), "alone");
        assert!(decode(1).is_some());
        decode(1).expect("not in this pass").await;
        for _ in 0..4 {
            assert!(decode(16 << 10).is_none());
        }
        decode(1).expect("64 KiB are decoded").await;
        assert!(decode(1).is_none(), "the twin: another pass");
    })
    .await;
}
