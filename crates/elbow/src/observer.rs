//! What long-running work tells whoever watches, and asks.

use std::{thread, time::Duration};

/// Is told how far a phase has come.
pub trait Observer: Sync {
    /// `done` of `total` samples have passed `phase` ("rollout", "prefilter", "update" or "evaluation").
    fn progress(&self, phase: &'static str, done: usize, total: usize);

    /// Waits a while before a reward is asked again; `false` gives up, and the work ends with an error. Unless it is overridden it waits
    /// as long as [`Waiting::pause`] says, without end.
    fn wait(&self, waiting: &Waiting<'_>) -> bool {
        thread::sleep(waiting.pause());
        true
    }
}

/// A reward that is waited for.
#[derive(Clone, Copy, Debug)]
pub struct Waiting<'a> {
    /// Its name.
    pub reward: &'a str,
    /// Samples without a score.
    pub missing: usize,
    /// Of so many.
    pub total: usize,
    /// Why the first has none.
    pub first: &'a str,
    /// How often it was asked again.
    pub attempt: u32,
}

impl Waiting<'_> {
    /// Half a second at first, twice as long each time, at most half a minute.
    pub fn pause(&self) -> Duration {
        Duration::from_millis(500 << self.attempt.min(6)).min(Duration::from_secs(30))
    }
}

/// Watches nothing.
impl Observer for () {
    fn progress(&self, _: &'static str, _: usize, _: usize) {}
}
