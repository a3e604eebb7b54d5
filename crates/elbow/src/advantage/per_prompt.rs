//! DDPO's advantage: a reward against the history of its prompt (arXiv 2305.13301, §5; kvablack/ddpo-pytorch, `stat_tracking.py`).
//!
//! A = clip( (R − mean) / (std + 10⁻⁶), −5, 5 ),  over the last `buffer` rewards of the prompt, those of this epoch included, of all
//! its groups; over the batch while the prompt has fewer than `min_count`
//!
//! Prompts may come back over many epochs with one image each. What is remembered is part of a checkpoint.

use super::{Advantage, History, Moments, Rewards};
use crate::batch::Sample;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

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
        let mut by_prompt: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for sample in samples {
            let text = &*sample.prompt.text;
            by_prompt.entry(text).or_insert_with(|| history.of(text)).extend(sample.value());
        }
        let moments = |known: &[f64]| {
            let recent = &known[known.len().saturating_sub(self.buffer)..];
            if recent.len() < self.min_count { total } else { Moments::of(recent) }
        };
        let by_prompt: BTreeMap<&str, Moments> =
            by_prompt.into_iter().map(|(text, known)| (text, moments(&known))).collect();
        let standardize = |r: f64, m: Moments| ((r - m.mean) / (m.std + 1e-6)).clamp(-5.0, 5.0);
        let advantage = |sample: &Sample| Some(standardize(sample.value()?, by_prompt[&*sample.prompt.text]));
        samples.iter().map(advantage).collect()
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
