//! DiffusionNFT's map of rewards to the probability of being a good sample (arXiv 2509.16117, §3.2).
//!
//! r = ½ + ½ clip( (R − mean of the group) / (M · deviation of the batch), −1, 1 ),  M = 5

use super::{Advantage, History, Rewards};
use crate::{
    batch::Sample,
    setting::{Meaning, positive_number},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Optimality probability in [0, 1]; ½ is neutral.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Nft {
    /// M, the deviations that map to 0 and 1.
    pub max_advantage: f64,
}

impl Default for Nft {
    fn default() -> Self {
        Self { max_advantage: 5.0 }
    }
}

impl Advantage for Nft {
    fn meaning(&self) -> Meaning {
        Meaning::Probability
    }

    fn advantages(&self, samples: &[Sample], _: &History) -> Vec<Option<f64>> {
        let rewards = Rewards::of(samples);
        let total = rewards.total().std;
        rewards.map(|reward, group| {
            let deviations = (reward - group.mean) / (total + 1e-4);
            0.5 + 0.5 * (deviations / self.max_advantage).clamp(-1.0, 1.0)
        })
    }

    fn validate(&self) -> Vec<String> {
        positive_number("advantage.max_advantage", self.max_advantage).into_iter().collect()
    }
}
