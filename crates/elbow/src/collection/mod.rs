//! **Which samples make an epoch.** A collection asks the rollout for draws and hands over the batch that is trained on.
//!
//! It keeps nothing itself: what it needs of earlier epochs is its [`Memory`], which a checkpoint holds.

mod memory;

pub use memory::Memory;

use crate::{
    advantage::Moments,
    axis::axis,
    batch::Batch,
    rollout::{Rollout, RolloutError},
    setting::Setting,
};
use serde_json::Value;

/// How an epoch's samples are collected.
pub trait Collection: Send + Sync {
    /// The samples of one epoch; `memory` is what the epoch before left.
    fn collect(&self, rollout: &Rollout<'_>, memory: &Memory) -> Result<Collected, RolloutError>;

    /// Whether all samples of its batches are drawn by the weights of their epoch.
    fn only_new(&self) -> bool {
        true
    }

    /// What keeps it from running in `setting`, one sentence each.
    fn validate(&self, setting: &Setting) -> Vec<String> {
        let _ = setting;
        Vec::new()
    }
}

/// An epoch's samples.
#[derive(Clone, Debug)]
pub struct Collected {
    /// The samples to train on, group after group.
    pub batch: Batch,
    /// What the next epoch needs to know.
    pub memory: Memory,
    /// Samples that were drawn in full, those that are not in the batch included.
    pub drawn: usize,
    /// What it adds to the record of the epoch.
    pub log: Vec<(String, Value)>,
}

impl Collected {
    /// A batch that is all that was drawn, and nothing to remember.
    pub fn all(batch: Batch) -> Self {
        Self { drawn: batch.len(), batch, memory: Memory::default(), log: Vec::new() }
    }
}

/// Mean of some numbers for a record; null of nothing.
fn mean(values: &[f64]) -> Value {
    if values.is_empty() { Value::Null } else { Moments::of(values).mean.into() }
}

axis! {
    /// The collection of a recipe.
    CollectionKind: Collection, default Plain;
    /// The groups of the batch, as they are drawn (DDPO, arXiv 2305.13301, and most others).
    plain::Plain,
    /// Further groups in place of those without variance (dynamic sampling of DAPO, arXiv 2503.14476).
    dynamic_sampling::DynamicSampling,
    /// Of many cheap samples of a prompt only the best and the worst are drawn in full (Sol-RL, arXiv 2604.06916).
    prefilter::Prefilter,
    /// Good samples of earlier epochs come back in groups of this one (OP-GRPO, arXiv 2604.04142).
    replay::Replay,
}
