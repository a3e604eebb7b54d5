//! DDPO's advantage: a reward against the history of its prompt (arXiv 2305.13301, §5; kvablack/ddpo-pytorch, `stat_tracking.py`).
//!
//! A = clip( (R − mean) / (std + 10⁻⁶), −5, 5 ),  over the last `buffer` rewards of the prompt, those of this epoch included; over
//! the batch while the prompt has fewer than `min_count`
//!
//! Prompts may come back over many epochs with one image each. What is remembered is part of a checkpoint.

use super::{Advantage, History, Moments, Rewards};
use crate::batch::Sample;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
    fn advantages(&self, samples: &[Sample], history: &History) -> Vec<Option<f64>> {
        let rewards = Rewards::of(samples);
        let total = rewards.total();
        let moments = |(group, members): (usize, Vec<(usize, f64)>)| {
            let first = samples.iter().find(|sample| sample.group == group);
            let mut known = first.map(|sample| history.of(&sample.prompt.text)).unwrap_or_default();
            known.extend(members.into_iter().map(|(_, reward)| reward));
            let recent = &known[known.len().saturating_sub(self.buffer)..];
            if recent.len() < self.min_count { total } else { Moments::of(recent) }
        };
        let moments: Vec<Moments> = rewards.members().into_iter().enumerate().map(moments).collect();
        let standardize = |r: f64, m: Moments| ((r - m.mean) / (m.std + 1e-6)).clamp(-5.0, 5.0);
        let pairs = rewards.values.iter().zip(&rewards.groups);
        pairs.map(|(value, &group)| value.map(|value| standardize(value, moments[group]))).collect()
    }

    fn compares_groups(&self) -> bool {
        false
    }

    fn memory(&self) -> usize {
        self.buffer
    }

    fn validate(&self) -> Vec<String> {
        let told = format!(
            "advantage.buffer = {}, advantage.min_count = {}: the buffer must hold min_count rewards, at least 1",
            self.buffer, self.min_count
        );
        (self.buffer < self.min_count.max(1)).then_some(told).into_iter().collect()
    }
}
