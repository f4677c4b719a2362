//! Tests of the worker pool.

use super::*;
use crossbeam_channel::{RecvTimeoutError, bounded};
use std::sync::Barrier;

const P: ShareHolder = ShareHolder::ANONYMOUS;

#[test]
fn refuses_beyond_its_bounds_and_survives_panics() {
    let pool = Pool::new("test", 0, 2, 0).unwrap();
    let hold = Arc::new(Barrier::new(3));
    for _ in 0..2 {
        let hold = hold.clone();
        pool.submit(P, move || {
            hold.wait();
        })
        .unwrap();
    }
    let mut refused = 0;
    for _ in 0..3 {
        refused += usize::from(pool.submit(P, || panic!("on purpose")).is_err());
    }
    assert!(refused >= 2, "{refused}");
    hold.wait();
    let (done, finished) = bounded(1);
    while pool
        .submit(P, {
            let done = done.clone();
            move || done.send(()).unwrap()
        })
        .is_err()
    {}
    finished.recv().unwrap();
}

#[test]
fn stepping_aside_frees_the_worker_for_another_job() {
    let pool = Pool::new("test", 1, 1, 0).unwrap();
    let (go_on, long) = bounded::<()>(0);
    let (done, finished) = bounded(2);
    let report = done.clone();
    pool.submit(P, move || {
        step_aside();
        step_aside();
        report.send(1).unwrap();
        let _ = long.recv();
        report.send(2).unwrap();
    })
    .unwrap();
    assert_eq!(finished.recv(), Ok(1));
    pool.submit(P, move || done.send(3).unwrap()).unwrap();
    assert_eq!(finished.recv(), Ok(3));
    drop(go_on);
    assert_eq!(finished.recv(), Ok(2));
    while pool.reserve(P).is_err() {}
    drop(pool.reserve(P).unwrap());
    assert!(lock(&pool.0.state).live_threads <= 1);
    step_aside();
}

#[test]
fn released_early_job_has_given_its_permit_back() {
    let pool = Pool::new("test", 0, 1, 0).unwrap();
    let (clean_up, cleaning) = bounded::<()>(0);
    let (done, finished) = bounded(2);
    let report = done.clone();
    pool.submit(P, move || {
        release_early();
        release_early();
        report.send(1).unwrap();
        let _ = cleaning.recv();
        report.send(2).unwrap();
    })
    .unwrap();
    assert_eq!(finished.recv(), Ok(1));
    pool.submit(P, move || done.send(3).unwrap()).expect("the permit is free before the job reports its end");
    assert!(pool.reserve(P).is_err());
    drop(clean_up);
    assert_eq!((finished.recv(), finished.recv()), (Ok(2), Ok(3)));
    while pool.reserve(P).is_err() {}
    {
        let state = lock(&pool.0.state);
        assert!(state.live_threads <= state.max_threads && state.finishing == 0);
    }
    release_early();
}

#[test]
fn stepping_aside_starts_a_worker_for_queued_jobs() {
    let pool = Pool::new("test", 0, 1, 1).unwrap();
    let (go, report) = bounded(0);
    let (done, finished) = bounded(1);
    pool.submit(P, move || {
        report.recv().unwrap();
        step_aside();
        finished.recv().unwrap();
    })
    .unwrap();
    pool.submit(P, move || done.send(()).unwrap()).unwrap();
    go.send(()).unwrap();
}

#[test]
fn callers_own_thread_holds_a_permit_until_it_steps_aside() {
    let pool = Pool::new("test", 0, 1, 1).unwrap();
    let permit = pool.occupy().unwrap();
    assert!(pool.occupy().is_err());
    permit.run_here(|| {
        assert!(pool.occupy().is_err());
        // A submitted job waits, although a thread for the job exists.
        let (done, finished) = bounded(1);
        pool.submit(P, move || done.send(()).unwrap()).unwrap();
        let waited = finished.recv_timeout(std::time::Duration::from_millis(100));
        assert_eq!(waited, Err(RecvTimeoutError::Timeout));
        step_aside();
        finished.recv().unwrap();
        while pool.occupy().is_err() {}
    });
    drop(pool.occupy().unwrap());
    let permit = pool.occupy().unwrap();
    drop(catch_unwind(AssertUnwindSafe(|| permit.run_here(|| panic!("on purpose")))));
    drop(pool.occupy().unwrap());
}

#[test]
fn jobs_of_other_tokens_pass_those_beyond_a_tokens_share() {
    let party = |token: &str| ShareHolder::new(token, None, false);
    let pool = Pool::new("test", 0, 2, 8).unwrap();
    let (go_on, long) = bounded::<()>(0);
    let (done, finished) = bounded(8);
    for number in 0..4 {
        let (long, done) = (long.clone(), done.clone());
        pool.submit(party("a"), move || {
            let _ = long.recv();
            done.send(number).unwrap();
        })
        .unwrap();
    }
    assert_eq!(pool.submit(party("a"), || ()).and(pool.submit(party("a"), || ())), Err(ShareError::Token));
    let report = done.clone();
    pool.submit(party("b"), move || report.send(10).unwrap()).unwrap();
    assert_eq!(finished.recv(), Ok(10));
    let report = done.clone();
    pool.submit(ShareHolder::OWNER, move || report.send(11).unwrap()).unwrap();
    assert_eq!(finished.recv(), Ok(11));
    drop(go_on);
    assert_eq!((0..4).map(|_| finished.recv().unwrap()).collect::<Vec<_>>(), [0, 1, 2, 3]);
}

#[test]
fn permit_is_claimed_once_its_party_is_known() {
    let party = ShareHolder::new("a", None, false);
    let pool = Pool::new("test", 0, 2, 0).unwrap();
    let (first, second) = (pool.occupy().unwrap(), pool.occupy().unwrap());
    first.run_here(|| {
        claim(party, Duration::ZERO).unwrap();
        assert_eq!(pool.reserve(party).err(), Some(ShareError::Full));
        let pool = &pool;
        std::thread::scope(|scope| {
            scope.spawn(move || {
                second.run_here(|| assert_eq!(claim(party, Duration::ZERO), Err(ShareError::Token)))
            });
        });
        drop(pool.occupy().unwrap());
    });
    assert!(claim(party, Duration::ZERO).is_ok() && lock(&pool.0.state).begun.used() == 0);
}

#[test]
fn claim_waits_while_its_party_holds_its_share() {
    let party = ShareHolder::new("a", None, false);
    let pool = Pool::new("test", 0, 2, 4).unwrap();
    let (go_on, held) = bounded::<()>(0);
    pool.submit(party, move || {
        let _ = held.recv();
    })
    .unwrap();
    while lock(&pool.0.state).begun.used() == 0 {
        std::thread::yield_now();
    }
    let permit = pool.occupy().unwrap();
    std::thread::scope(|scope| {
        let claiming = scope.spawn(|| {
            let mut claimed = None;
            permit.run_here(|| claimed = Some(claim(party, Duration::from_secs(60))));
            claimed
        });
        while lock(&pool.0.state).claims.is_empty() {
            std::thread::yield_now();
        }
        drop(pool.occupy().expect("a waiting claim leaves its permit to others"));
        drop(go_on);
        assert_eq!(claiming.join().unwrap(), Some(Ok(())));
    });
    let state = lock(&pool.0.state);
    assert_eq!((state.claims.len(), state.pending.used(), state.begun.used()), (0, 0, 0));
}

#[test]
fn claims_are_granted_in_order_and_no_other_thread_is_woken() {
    let [held, other] = ["a", "b"].map(|token| ShareHolder::new(token, None, false));
    let pool = Pool::new("test", 0, 4, 8).unwrap();
    let order = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        let mut holding = Vec::new();
        for _ in 0..2 {
            let mut state = lock(&pool.0.state);
            state.pending.take(held).unwrap();
            state.begun.take(held).unwrap();
            holding.push(Permit { pool: pool.0.clone(), party: held, used: false, begun: true });
        }
        for number in 0..2 {
            let (permit, order) = (pool.occupy().unwrap(), &order);
            scope.spawn(move || {
                permit.run_here(|| {
                    claim(held, Duration::from_secs(60)).unwrap();
                    lock(order).push(number);
                });
            });
            while lock(&pool.0.state).claims.len() <= number {
                std::thread::yield_now();
            }
        }
        let permit = pool.occupy().unwrap();
        permit.run_here(|| claim(other, Duration::from_secs(60)).expect("another token's share is free"));
        let late = pool.occupy().unwrap();
        late.run_here(|| assert!(claim(held, Duration::ZERO).is_err(), "earlier claims are still waiting"));
        assert_eq!(lock(&pool.0.state).claims.len(), 2);
        drop(holding.pop());
        while lock(&order).is_empty() {
            std::thread::yield_now();
        }
        drop(holding);
    });
    assert_eq!(order.into_inner().unwrap(), [0, 1]);
    let state = lock(&pool.0.state);
    assert_eq!((state.claims.len(), state.pending.used(), state.begun.used()), (0, 0, 0));
}

#[test]
fn reserved_permit_counts_until_it_is_used_or_dropped() {
    let pool = Pool::new("test", 0, 1, 0).unwrap();
    let permit = pool.reserve(P).unwrap();
    assert!(pool.reserve(P).is_err());
    drop(permit);
    let permit = pool.reserve(P).unwrap();
    let (done, finished) = bounded(1);
    permit.run(move || done.send(()).unwrap());
    finished.recv().unwrap();
    while pool.reserve(P).is_err() {}
    let late = pool.reserve(P).unwrap();
    drop(pool);
    late.run(|| panic!("the pool has been dropped"));
}
