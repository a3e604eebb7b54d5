//! The weights of sparse reward-weighted regression (arXiv 2305.13301, §4.1): the best samples of a batch, and no others.
//!
//! w_i = 1 where z_i is among the best (1 − percentile) B of the batch, else 0;  z the reward in deviations of its group
//!
//! Images that tie with the last of them count too.

use super::{Advantage, History, Rewards};
use crate::{batch::Sample, setting::Meaning};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Filtered fine-tuning.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Top {
    /// Share of the batch that is left out, in [0, 1).
    pub percentile: f64,
}

impl Default for Top {
    fn default() -> Self {
        Self { percentile: 0.9 }
    }
}

impl Advantage for Top {
    fn meaning(&self) -> Meaning {
        Meaning::Weight
    }

    fn advantages(&self, samples: &[Sample], _: &History) -> Vec<Option<f64>> {
        let deviations = Rewards::of(samples).standardized();
        let mut sorted: Vec<f64> = deviations.iter().flatten().copied().collect();
        sorted.sort_by(f64::total_cmp);
        let Some(last) = sorted.len().checked_sub(1) else { return deviations };
        let threshold = sorted[((sorted.len() as f64 * self.percentile) as usize).min(last)];
        deviations.into_iter().map(|z| z.map(|z| if z >= threshold { 1.0 } else { 0.0 })).collect()
    }

    fn compares_groups(&self) -> bool {
        false
    }

    fn validate(&self) -> Vec<String> {
        let told = format!("advantage.percentile = {}: must lie between 0 and 1", self.percentile);
        (!(0.0..1.0).contains(&self.percentile)).then_some(told).into_iter().collect()
    }
}
