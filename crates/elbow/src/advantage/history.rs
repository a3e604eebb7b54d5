//! Earlier rewards of prompts, which are part of a checkpoint.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Rewards by prompt, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct History {
    /// Bits of the rewards of each prompt: numbers in text may come back rounded.
    prompts: BTreeMap<String, Vec<u64>>,
}

impl History {
    /// What is remembered of a prompt.
    pub fn of(&self, prompt: &str) -> Vec<f64> {
        self.prompts.get(prompt).into_iter().flatten().copied().map(f64::from_bits).collect()
    }

    /// Adds rewards of a prompt and forgets all but the last `memory`.
    pub fn extend(&mut self, prompt: &str, rewards: impl Iterator<Item = f64>, memory: usize) {
        let kept = self.prompts.entry(prompt.to_owned()).or_default();
        kept.extend(rewards.map(f64::to_bits));
        kept.drain(..kept.len().saturating_sub(memory));
    }
}
