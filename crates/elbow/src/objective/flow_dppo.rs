//! Flow-DPPO: no step further away once the policies differ (arXiv 2606.11025).
//!
//! loss = −m A ρ,  m = 0 where mean (μ_θ − μ_b)²/(2s²) > δ and the step leads away (A > 0 and ρ > 1, or A < 0 and ρ < 1), else 1
//!
//! The divergence of the two Gaussian steps decides in place of the ratio of one sample, which noise alone can push out of a range.

use super::{Objective, Setting, positive, steps_only};
use crate::{
    evaluation::{Evaluation, Groups, Weights},
    functions,
};
use burn::tensor::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Policy gradient within a divergence.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct FlowDppo {
    /// δ, the largest divergence of a step, a mean over latent dimensions.
    pub max_divergence: f64,
}

impl Default for FlowDppo {
    fn default() -> Self {
        Self { max_divergence: 1e-5 }
    }
}

impl FlowDppo {
    /// 1 − m of every draw `[N]`; advantages and log-ratios `[N]`.
    fn stopped(self, e: &Evaluation<'_>, advantages: Tensor<1>, log_ratio: Tensor<1>) -> Tensor<1> {
        let (_, divergence) = e.steps(Weights::Behavior).expect("invariant: refused unless steps are scored");
        let kind = advantages.dtype();
        let far = divergence.detach().greater_scalar(self.max_divergence).float().cast(kind);
        far * (advantages * log_ratio.detach()).greater_scalar(0.0).float().cast(kind)
    }
}

impl Objective for FlowDppo {
    fn loss(&self, e: &Evaluation<'_>, groups: &Groups<'_>) -> Tensor<1> {
        let advantages = groups.advantages.clone();
        let (gain, log_ratio) = (e.repeat(advantages), e.log_ratio_rows());
        let stopped = self.stopped(e, gain.clone(), log_ratio.clone());
        e.mean((stopped - 1.0) * gain * functions::exp(log_ratio))
    }

    fn rests(&self) -> bool {
        true
    }

    fn clipped(&self, e: &Evaluation<'_>, groups: &Groups<'_>) -> Option<Tensor<1>> {
        let advantages = groups.advantages.clone();
        Some(e.mean(self.stopped(e, e.repeat(advantages), e.log_ratio_rows())))
    }

    fn validate(&self, setting: &Setting) -> Vec<String> {
        positive([("objective.max_divergence", self.max_divergence)]).chain(steps_only("flow-dppo", setting)).collect()
    }
}
