//! SAPO, soft adaptive policy optimization: a smooth gate in place of GRPO's clip (arXiv 2511.20347; defaults as in TRL).
//!
//! loss = −(4/τ) σ(τ (ρ − 1)) A,  τ = τ₊ where A > 0, else τ₋
//!
//! The gate's slope is 1 at ρ = 1, so that the gradient on policy is that of [`super::Epg`], and falls off on both sides. L is a
//! mean over dimensions: with ρ near 1 the default temperatures leave the gradient all but unweighted; to damp ratios that are off by 10⁻³,
//! use temperatures of some 10³.

use super::{Objective, Setting, positive_and_finite};
use crate::{
    evaluation::{Evaluation, Groups},
    functions::sigmoid,
};
use burn::tensor::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Policy gradient through a sigmoid of the ratio.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Sapo {
    /// Steepness of the gate for good samples.
    pub tau_positive: f64,
    /// Steepness of the gate for bad samples; larger is more cautious.
    pub tau_negative: f64,
}

impl Default for Sapo {
    fn default() -> Self {
        Self { tau_positive: 1.0, tau_negative: 1.05 }
    }
}

impl Objective for Sapo {
    fn loss(&self, e: &Evaluation<'_>, groups: &Groups<'_>) -> Tensor<1> {
        let advantages = groups.advantages.clone();
        let off = e.ratio() - 1.0;
        let gate = |tau: f64| sigmoid(off.clone() * tau) * (4.0 / tau);
        let (good, bad) = (advantages.clone().clamp_min(0.0), advantages.clamp_max(0.0));
        -(gate(self.tau_positive) * good + gate(self.tau_negative) * bad)
    }

    fn rests(&self) -> bool {
        true
    }

    fn validate(&self, _: &Setting) -> Vec<String> {
        positive_and_finite([
            ("objective.tau_positive", self.tau_positive),
            ("objective.tau_negative", self.tau_negative),
        ])
        .collect()
    }
}
