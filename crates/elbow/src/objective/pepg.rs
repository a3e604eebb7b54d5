//! PEPG, the proximal exact policy gradient (arXiv 2602.04663, §3.1): mirror descent toward the behavior policy.
//!
//! loss = −sg(ρ) (A − sg(ln ρ)) L
//!
//! Its iterate is π_{k+1} ∝ (e^{R/β} π_ref)^{η/(1+η)} π_k^{1/(1+η)} when A = (η/β)(R − mean). The gradient equals that of
//! [`super::Par`], always.

use super::{Objective, with_ratio};
use crate::evaluation::{Evaluation, Groups, Weights};
use burn::tensor::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Policy gradient whose advantage shrinks as the policy moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Pepg {
    /// Keep the leading sg(ρ); without it the variant `pepg_noratio` of the reference code.
    #[serde(default = "with_ratio")]
    pub ratio: bool,
}

impl Default for Pepg {
    fn default() -> Self {
        Self { ratio: true }
    }
}

impl Objective for Pepg {
    fn loss(&self, e: &Evaluation<'_>, groups: &Groups<'_>) -> Tensor<1> {
        let advantages = groups.advantages.clone();
        let loss = (e.log_ratio().detach() - advantages) * e.log_prob(Weights::Current);
        if self.ratio { loss * e.ratio().detach() } else { loss }
    }
}
