//! DDPO's advantage: a reward against the history of its prompt (arXiv 2305.13301, §5; kvablack/ddpo-pytorch, `stat_tracking.py`).
//!
//! A = clip( (R − mean) / (std + 10⁻⁶), −5, 5 ),  over the last `buffer` rewards of the prompt, those of this epoch included; over
//! the batch while the prompt has fewer than `min_count`
//!
//! Prompts may come back over many epochs with one image each. What is remembered is part of a checkpoint.

use super::{Advantage, Grouped, Moments};
use schemars::JsonSchema;
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

/// Standardized by the prompt's own past.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PerPrompt {
    /// Rewards remembered of a prompt.
    pub buffer: usize,
    /// Rewards of a prompt below which the batch stands in.
    pub min_count: usize,
}

impl Default for PerPrompt {
    fn default() -> Self {
        Self { buffer: 32, min_count: 16 }
    }
}

impl Advantage for PerPrompt {
    fn advantages(&self, batch: &Grouped) -> Vec<Option<f64>> {
        let total = batch.total();
        let moments = |(group, members): (usize, Vec<(usize, f64)>)| {
            let now = members.into_iter().map(|(_, reward)| reward);
            let known: Vec<f64> = batch.earlier.get(group).into_iter().flatten().copied().chain(now).collect();
            let recent = &known[known.len().saturating_sub(self.buffer)..];
            if recent.len() < self.min_count { total } else { Moments::of(recent) }
        };
        let moments: Vec<Moments> = batch.members().into_iter().enumerate().map(moments).collect();
        let standardize = |r: f64, m: Moments| ((r - m.mean) / (m.std + 1e-6)).clamp(-5.0, 5.0);
        batch.rewards.iter().zip(&batch.groups).map(|(r, &g)| r.map(|r| standardize(r, moments[g]))).collect()
    }

    fn within_groups(&self) -> bool {
        false
    }

    fn memory(&self) -> usize {
        self.buffer
    }

    fn problems(&self) -> Vec<String> {
        let told = format!(
            "advantage.buffer = {}, advantage.min_count = {}: the buffer must hold min_count rewards, at least 1",
            self.buffer, self.min_count
        );
        (self.buffer < self.min_count.max(1)).then_some(told).into_iter().collect()
    }
}
