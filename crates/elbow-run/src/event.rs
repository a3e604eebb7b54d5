//! What a run tells whoever watches it.

use elbow::{eval::Measured, observer::Observer, train::Shown};
use serde_json::{Map, Value};
use std::{path::Path, time::Duration};

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
        /// The first sample of each prompt.
        samples: &'a [Shown],
        /// How long it took, with its evaluation if there was one.
        took: Duration,
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

/// Hands the core's progress on as events.
pub(crate) struct Progress<'a>(pub(crate) &'a Watch<'a>);

impl Observer for Progress<'_> {
    fn progress(&self, phase: &'static str, done: usize, total: usize) {
        (self.0)(Event::Progress { phase, done, total });
    }
}
