//! Neighbor GRPO's advantage: rewards over a quasi-norm of the group's (arXiv 2511.16955).
//!
//! A_i = √G r_i / (Σ_j ∣r_j∣^p)^{1/p},  r = R − mean of the group,  p = 0.8
//!
//! p = 2 is the group's own deviation. Below it a group in which one sample stands out counts for less.

use super::{Advantage, History, Moments, Rewards};
use crate::{batch::Sample, setting::positive_number};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Rewards over a quasi-norm.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct QuasiNorm {
    /// p, above 0.
    pub power: f64,
}

impl Default for QuasiNorm {
    fn default() -> Self {
        Self { power: 0.8 }
    }
}

impl Advantage for QuasiNorm {
    fn advantages(&self, samples: &[Sample], _: &History) -> Vec<Option<f64>> {
        let rewards = Rewards::of(samples);
        let (moments, members) = (rewards.moments(), rewards.members());
        let norm = |(members, group): (&Vec<(usize, f64)>, &Moments)| {
            let sizes = members.iter().map(|(_, reward)| (reward - group.mean).abs());
            // Relative to the largest, whose power neither over- nor underflows.
            let largest = sizes.clone().fold(0.0, f64::max);
            largest * sizes.map(|size| (size / largest).powf(self.power)).sum::<f64>().powf(1.0 / self.power)
        };
        let norms: Vec<f64> = members.iter().zip(&moments).map(norm).collect();
        let advantage = |value: f64, group: usize| {
            let (moments, norm) = (moments[group], norms[group]);
            if moments.agree { 0.0 } else { (moments.count as f64).sqrt() * (value - moments.mean) / norm }
        };
        let pairs = rewards.values.iter().zip(&rewards.groups);
        pairs.map(|(value, &group)| value.map(|value| advantage(value, group))).collect()
    }

    fn validate(&self) -> Vec<String> {
        positive_number("advantage.power", self.power).into_iter().collect()
    }
}
