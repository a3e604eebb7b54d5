//! DPOK's surrogate as its authors released it (arXiv 2305.16381; google-research/dpok, `train_online_pg.py`).
//!
//! loss = −A clamp(ρ, 1 − c, 1 + c)
//!
//! Unlike [`super::Grpo`] there is no pairing with the unclipped term: outside the range the gradient is zero for either sign of A,
//! also where the step would lead back. The paper's KL term is `kl.kind = "girsanov"`; its learned value baseline is not here: advantages
//! are centered by group.

use super::{Objective, Setting, positive};
use crate::evaluation::{Evaluation, Groups};
use burn::tensor::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Policy gradient that stops at the edge of a range of ratios.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Dpok {
    /// Half-width of the range.
    pub clip: f64,
}

impl Default for Dpok {
    fn default() -> Self {
        Self { clip: 1e-4 }
    }
}

impl Objective for Dpok {
    fn loss(&self, e: &Evaluation<'_>, groups: &Groups<'_>) -> Tensor<1> {
        let advantages = groups.advantages.clone();
        -advantages * e.ratio().clamp(1.0 - self.clip, 1.0 + self.clip)
    }

    fn rests(&self) -> bool {
        true
    }

    fn clipped(&self, e: &Evaluation<'_>, _: &Groups<'_>) -> Option<Tensor<1>> {
        Some((e.ratio().detach() - 1.0).abs().greater_scalar(self.clip).float())
    }

    fn validate(&self, _: &Setting) -> Vec<String> {
        positive([("objective.clip", self.clip)]).collect()
    }
}
