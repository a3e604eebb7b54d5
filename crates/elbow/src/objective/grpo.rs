//! GRPO's clipped surrogate (PPO, arXiv 1707.06347, eq. 7; for diffusion arXiv 2505.05470).
//!
//! loss = max(−A ρ, −A clip(ρ, 1 − c, 1 + c)),  A clamped to ±5
//!
//! L is a mean over dimensions, so ρ stays near 1 and c is tiny: 10⁻⁴ in Flow-GRPO, 10⁻³ in arXiv 2602.04663.

use super::Objective;
use crate::evaluation::Evaluation;
use burn::tensor::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Proximal policy optimization with group advantages.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Grpo {
    /// Half-width of the range in which the ratio counts; `inf` never clips.
    pub clip: f64,
    /// Advantages are clamped to ± this.
    pub max_advantage: f64,
}

impl Default for Grpo {
    fn default() -> Self {
        Self { clip: 1e-3, max_advantage: 5.0 }
    }
}

impl Objective for Grpo {
    fn loss(&self, e: &Evaluation<'_>, advantages: Tensor<1>) -> Tensor<1> {
        let gain = advantages.clamp(-self.max_advantage, self.max_advantage);
        let ratio = e.ratio();
        let clipped = ratio.clone().clamp(1.0 - self.clip, 1.0 + self.clip);
        (-gain.clone() * ratio).max_pair(-gain * clipped)
    }

    fn clipped(&self, e: &Evaluation<'_>, _: Tensor<1>) -> Option<Tensor<1>> {
        let outside = (e.ratio().detach() - 1.0).abs().greater_scalar(self.clip);
        Some(outside.float())
    }
}
