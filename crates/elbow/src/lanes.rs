//! Several batches in flight, one a core: the operations of a small network are too short to be divided among threads.
//!
//! Each lane is a thread pool of its own, and what runs in it takes its threads from that pool: with as many batches as
//! cores, one each, so that nothing waits for another core in the middle of a network. An accelerator takes one batch after the
//! other.

use burn::tensor::Device;
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::{
    collections::BTreeMap,
    sync::{
        Arc, LazyLock, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
};

/// Pools by their number. They live on, because a thread's freed memory is cheapest for the thread itself to use again.
static POOLS: LazyLock<Mutex<BTreeMap<usize, Arc<Vec<ThreadPool>>>>> = LazyLock::new(Mutex::default);

/// `lanes` pools that share the cores.
fn pools(lanes: usize) -> Arc<Vec<ThreadPool>> {
    let threads = (rayon::current_num_threads() / lanes).max(1);
    let pool = |_| ThreadPoolBuilder::new().num_threads(threads).build().expect("the system can start threads");
    let mut pools = POOLS.lock().unwrap_or_else(PoisonError::into_inner);
    Arc::clone(pools.entry(lanes).or_insert_with(|| Arc::new((0..lanes).map(pool).collect())))
}

/// Batches that a device computes side by side.
pub fn count(device: &Device) -> usize {
    let cpu = device.clone().without_autodiff() == Device::flex();
    if cpu { rayon::current_num_threads() } else { 1 }
}

/// `consume(f(0)), consume(f(1)), …, consume(f(batches − 1))` in that order, with `in_flight` calls of `f` at a time, and `consume`
/// here. What `f(i)` returns depends on `i` alone, so the result is that of a loop, however many are in flight.
pub(crate) fn in_order<T: Send>(
    in_flight: usize,
    batches: usize,
    f: impl Fn(usize) -> T + Sync,
    mut consume: impl FnMut(T),
) {
    let lanes = in_flight.min(batches);
    if lanes < 2 {
        return (0..batches).for_each(|i| consume(f(i)));
    }
    let (pools, next) = (pools(lanes), AtomicUsize::new(0));
    let (send, receive) = mpsc::channel();
    let lane = |send: mpsc::Sender<(usize, T)>| {
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= batches || send.send((i, f(i))).is_err() {
                return;
            }
        }
    };
    std::thread::scope(|scope| {
        let running: Vec<_> = pools
            .iter()
            .map(|pool| {
                let (send, lane) = (send.clone(), &lane);
                scope.spawn(move || pool.install(|| lane(send)))
            })
            .collect();
        drop(send);
        let mut early = BTreeMap::new();
        let mut due = 0;
        for (i, value) in receive {
            early.insert(i, value);
            while let Some(value) = early.remove(&due) {
                consume(value);
                due += 1;
            }
        }
        for lane in running {
            lane.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
    });
}

/// `f(0), f(1), … f(count − 1)`, computed as [`in_order`] does.
pub(crate) fn map<T: Send>(in_flight: usize, count: usize, f: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let mut values = Vec::with_capacity(count);
    in_order(in_flight, count, f, |value| values.push(value));
    values
}

#[cfg(test)]
mod tests {
    #[test]
    fn results_come_in_order() {
        let wait = |i: usize| {
            std::thread::sleep(std::time::Duration::from_millis(5 * (i as u64 % 3)));
            i * i
        };
        assert_eq!(super::map(3, 7, wait), [0, 1, 4, 9, 16, 25, 36]);
        assert!(super::map(2, 0, |i| i).is_empty());
    }

    #[test]
    #[should_panic(expected = "third")]
    fn a_panic_passes_on() {
        super::map(2, 5, |i| assert!(i != 2, "third"));
    }
}
