//! GRPO's clipped surrogate (PPO, arXiv 1707.06347, eq. 7; for diffusion arXiv 2505.05470).
//!
//! loss = max(−A ρ, −A clip(ρ, 1 − c, 1 + c₊)),  A clamped to ±5
//!
//! L is a mean over dimensions, so ρ stays near 1 and c is tiny: 10⁻⁴ in Flow-GRPO, 10⁻³ in arXiv 2602.04663. c₊ = c but in DAPO
//! (arXiv 2503.14476), whose range of language models, 0.2 and 0.28, is wider above.

use super::{Objective, Setting, positive};
use crate::evaluation::{Evaluation, Groups};
use burn::tensor::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Proximal policy optimization with group advantages.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Grpo {
    /// c, half-width of the range in which the ratio counts; `inf` never clips.
    pub clip: f64,
    /// c₊, its width above 1 where that differs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_high: Option<f64>,
    /// Advantages are clamped to ± this.
    pub max_advantage: f64,
}

impl Default for Grpo {
    fn default() -> Self {
        Self { clip: 1e-3, clip_high: None, max_advantage: 5.0 }
    }
}

impl Grpo {
    /// The range of ratios that count.
    fn range(self) -> [f64; 2] {
        [1.0 - self.clip, 1.0 + self.clip_high.unwrap_or(self.clip)]
    }
}

impl Objective for Grpo {
    fn loss(&self, e: &Evaluation<'_>, groups: &Groups<'_>) -> Tensor<1> {
        let advantages = groups.advantages.clone();
        let gain = advantages.clamp(-self.max_advantage, self.max_advantage);
        let ratio = e.ratio();
        let [low, high] = self.range();
        let clipped = ratio.clone().clamp(low, high);
        (-gain.clone() * ratio).max_pair(-gain * clipped)
    }

    fn rests(&self) -> bool {
        true
    }

    fn clipped(&self, e: &Evaluation<'_>, _: &Groups<'_>) -> Option<Tensor<1>> {
        let (ratio, [low, high]) = (e.ratio().detach(), self.range());
        Some(ratio.clone().lower_scalar(low).float() + ratio.greater_scalar(high).float())
    }

    fn validate(&self, _: &Setting) -> Vec<String> {
        let high = self.clip_high.unwrap_or(self.clip);
        positive([
            ("objective.clip", self.clip),
            ("objective.clip_high", high),
            ("objective.max_advantage", self.max_advantage),
        ])
        .collect()
    }
}
