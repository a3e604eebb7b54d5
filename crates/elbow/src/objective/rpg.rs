//! RPG, the regularized policy gradient: the divergence to the behavior policy inside the reward (arXiv 2505.17508).
//!
//! | divergence | loss |
//! |---|---|
//! | reverse, KL(π_θ ‖ π_b) | −sg( ρ (A − β ln ρ) ) L |
//! | forward, KL(π_b ‖ π_θ) | −sg( ρ A + β ) L |
//!
//! The reverse form with β = 1 is [`super::Pepg`]. Both are the unnormalized divergences, whose constant a baseline absorbs.

use super::{Objective, Setting, finite};
use crate::evaluation::{Evaluation, Groups, Weights};
use burn::tensor::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which way the divergence is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Divergence {
    /// KL(π_θ ‖ π_b): seeks modes.
    #[default]
    Reverse,
    /// KL(π_b ‖ π_θ): covers modes.
    Forward,
}

/// Policy gradient of a regularized reward.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Rpg {
    /// Which way the divergence is taken.
    pub divergence: Divergence,
    /// β, its weight.
    pub beta: f64,
}

impl Default for Rpg {
    fn default() -> Self {
        Self { divergence: Divergence::Reverse, beta: 1.0 }
    }
}

impl Objective for Rpg {
    fn loss(&self, e: &Evaluation<'_>, groups: &Groups<'_>) -> Tensor<1> {
        let advantages = groups.advantages.clone();
        let ratio = e.ratio().detach();
        let weight = match self.divergence {
            Divergence::Reverse => ratio * (advantages - e.log_ratio().detach() * self.beta),
            Divergence::Forward => ratio * advantages + self.beta,
        };
        -weight * e.log_prob(Weights::Current)
    }

    fn validate(&self, _: &Setting) -> Vec<String> {
        finite([("objective.beta", self.beta)]).collect()
    }
}
