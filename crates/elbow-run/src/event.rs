//! What a run tells whoever watches it.

use elbow::{
    eval::Measured,
    observer::{Observer, Waiting},
    train::Logged,
};
use serde_json::{Map, Value};
use std::{
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

/// Something that happened.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// `done` of `total` prompts or images have passed a phase: "encoding prompts", "rollout", "update" or "evaluation". Threads
    /// report side by side, so numbers of a phase may come out of order.
    Progress {
        /// The phase.
        phase: &'static str,
        /// How many have passed it.
        done: usize,
        /// Of how many.
        total: usize,
    },
    /// Something that runs and is probably not meant.
    Warning {
        /// A sentence or two.
        text: &'a str,
    },
    /// A reward is out of reach, and is asked again after a pause (`on_missing = "wait"`).
    Waiting {
        /// What is waited for.
        waiting: Waiting<'a>,
    },
    /// The policy was measured on the held-out prompts.
    Evaluation {
        /// Epochs trained; 0 is the base.
        epoch: u64,
        /// Images and scores.
        measured: &'a Measured,
    },
    /// An epoch is over and in the record.
    Epoch {
        /// Its number, from 1.
        epoch: u64,
        /// Its line of `metrics.jsonl`.
        record: &'a Map<String, Value>,
        /// All samples of the batch, group after group.
        samples: &'a [Logged],
        /// How long it took, with its evaluation if there was one.
        took: Duration,
        /// How long the epochs that follow should take, by those that were trained since the run was started or resumed.
        left: Duration,
    },
    /// Pictures of an epoch are written: those that it drew, in one file, with their prompts and rewards.
    Pictures {
        /// Its number, from 1.
        epoch: u64,
        /// The file.
        path: &'a Path,
    },
    /// A checkpoint is complete.
    Checkpoint {
        /// Epochs trained.
        epoch: u64,
        /// Its folder.
        path: &'a Path,
    },
    /// The results are written.
    Finished {
        /// The policy before training.
        base: &'a Measured,
        /// The policy after training, under the averaged weights.
        tuned: &'a Measured,
    },
}

/// Who watches: any function of an event. `&|_| {}` watches nothing.
pub type Watch<'a> = dyn Fn(Event<'_>) + Sync + 'a;

/// How often a flag is looked at during a pause.
const GLANCE: Duration = Duration::from_millis(50);

/// Hands the core's progress on as events.
#[derive(Clone, Copy)]
pub(crate) struct Progress<'a> {
    pub(crate) watch: &'a Watch<'a>,
    /// Set it to wait no longer for a reward.
    pub(crate) stop: Option<&'a AtomicBool>,
}

impl Observer for Progress<'_> {
    fn progress(&self, phase: &'static str, done: usize, total: usize) {
        (self.watch)(Event::Progress { phase, done, total });
    }

    fn wait(&self, waiting: &Waiting<'_>) -> bool {
        (self.watch)(Event::Waiting { waiting: *waiting });
        let stopped = || self.stop.is_some_and(|stop| stop.load(Ordering::SeqCst));
        let end = Instant::now() + waiting.pause();
        while !stopped() && Instant::now() < end {
            thread::sleep(GLANCE);
        }
        !stopped()
    }
}
