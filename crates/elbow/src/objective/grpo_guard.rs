//! GRPO-Guard: a ratio whose mean is 1 and whose spread is that of no step in particular (arXiv 2510.22319).
//!
//! ρ = exp( (L − L_b + b) s ),  b = mean (μ_θ − μ_b)²/(2s²),  loss = max(−Aρ, −A clip(ρ, 1 − c, 1 + c)) / |Δ|
//!
//! for the step x' ~ N(μ, s² I) over time Δ. Samples come from the behavior policy, where E[L − L_b] = −b: the plain ratio lies
//! below 1, by an amount that depends on the step, and a fixed range hardly ever stops a good sample. Adding b and multiplying by s
//! leaves mean z·(μ_θ − μ_b), z the noise of the step.

use super::{Objective, Setting, positive, steps_only};
use crate::{
    evaluation::{Evaluation, Groups, Weights},
    functions,
};
use burn::tensor::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Clipped surrogate of the normalized ratio.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct GrpoGuard {
    /// Half-width of the range in which the ratio counts.
    pub clip: f64,
    /// Advantages are clamped to ± this.
    pub max_advantage: f64,
}

impl Default for GrpoGuard {
    fn default() -> Self {
        Self { clip: 2e-6, max_advantage: 5.0 }
    }
}

impl GrpoGuard {
    /// The normalized ratio of every draw `[N]`, with gradient.
    fn ratio(e: &Evaluation<'_>) -> Tensor<1> {
        let (steps, drift) = e.steps(Weights::Behavior).expect("invariant: refused unless steps are scored");
        functions::exp((e.log_ratio_rows() + drift) * steps.std.clone())
    }
}

impl Objective for GrpoGuard {
    fn loss(&self, e: &Evaluation<'_>, groups: &Groups<'_>) -> Tensor<1> {
        let advantages = groups.advantages.clone();
        let gain = e.repeat(advantages.clamp(-self.max_advantage, self.max_advantage));
        let ratio = Self::ratio(e);
        let clipped = ratio.clone().clamp(1.0 - self.clip, 1.0 + self.clip);
        let (steps, _) = e.steps(Weights::Behavior).expect("invariant: refused unless steps are scored");
        e.mean((-gain.clone() * ratio).max_pair(-gain * clipped) / steps.dt.clone())
    }

    fn rests(&self) -> bool {
        true
    }

    fn clipped(&self, e: &Evaluation<'_>, _: &Groups<'_>) -> Option<Tensor<1>> {
        Some(e.mean((Self::ratio(e).detach() - 1.0).abs().greater_scalar(self.clip).float()))
    }

    fn validate(&self, setting: &Setting) -> Vec<String> {
        positive([("objective.clip", self.clip), ("objective.max_advantage", self.max_advantage)])
            .chain(steps_only("grpo-guard", setting))
            .collect()
    }
}
