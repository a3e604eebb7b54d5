//! CISPO, the policy gradient with a clipped importance weight (MiniMax-M1, arXiv 2506.13585, §3.1).
//!
//! loss = −sg(clip(ρ, 1 − low, 1 + high)) A L
//!
//! Clipping bounds the weight of a sample and never silences it, as it does in [`super::Grpo`]. The paper sets no lower bound,
//! which is `low = 1` here; its upper bound is not published, and ours is as to_f64 as GRPO's range, since L is a mean over
//! dimensions.

use super::{Objective, Setting, positive};
use crate::evaluation::{Evaluation, Groups, Weights};
use burn::tensor::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Policy gradient with a bounded importance weight.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Cispo {
    /// How far the weight may fall below 1; 1 is no bound.
    pub low: f64,
    /// How far the weight may rise above 1.
    pub high: f64,
}

impl Default for Cispo {
    fn default() -> Self {
        Self { low: 1.0, high: 1e-3 }
    }
}

impl Objective for Cispo {
    fn loss(&self, e: &Evaluation<'_>, groups: &Groups<'_>) -> Tensor<1> {
        let advantages = groups.advantages.clone();
        let weight = e.ratio().detach().clamp(1.0 - self.low, 1.0 + self.high);
        -weight * advantages * e.log_prob(Weights::Current)
    }

    fn rests(&self) -> bool {
        true
    }

    fn clipped(&self, e: &Evaluation<'_>, _: &Groups<'_>) -> Option<Tensor<1>> {
        let ratio = e.ratio().detach();
        let below = ratio.clone().lower_scalar(1.0 - self.low).float();
        Some(below + ratio.greater_scalar(1.0 + self.high).float())
    }

    fn validate(&self, _: &Setting) -> Vec<String> {
        positive([("objective.low", self.low), ("objective.high", self.high)]).collect()
    }
}
