//! Two batches in flight: while one does what only one core can do, the other uses the rest.

use std::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering},
};

/// Batches in flight. Memory grows with it, and two already keep a small machine busy.
const LANES: usize = 2;

/// `f(0), f(1), … f(count − 1)` in that order, computed on two threads. What `f(i)` returns depends on `i` alone, so the
/// result is that of a loop.
pub(crate) fn map<T: Send>(count: usize, f: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::with_capacity(count));
    let lane = || {
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= count {
                break;
            }
            let value = f(i);
            done.lock().expect("invariant: no lane panics while it holds the lock").push((i, value));
        }
    };
    std::thread::scope(|scope| {
        let lanes: Vec<_> = (0..LANES.min(count)).map(|_| scope.spawn(lane)).collect();
        for lane in lanes {
            lane.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
    });
    let mut done = done.into_inner().expect("invariant: a panic has been passed on");
    done.sort_by_key(|(i, _)| *i);
    done.into_iter().map(|(_, value)| value).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn results_come_in_order() {
        let wait = |i: usize| {
            std::thread::sleep(std::time::Duration::from_millis(5 * (i as u64 % 3)));
            i * i
        };
        assert_eq!(super::map(7, wait), [0, 1, 4, 9, 16, 25, 36]);
        assert!(super::map(0, |i| i).is_empty());
    }
}
