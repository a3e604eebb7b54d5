//! GMPO, the geometric mean of clipped ratios in place of GRPO's arithmetic one (arXiv 2507.20673; range as in TRL).
//!
//! loss = −A exp( mean over draws of s min(s ℓ, c) ),  s = sign A, ℓ = ln ρ of a draw
//!
//! With likelihood.ratio = "per-sample" the mean runs over all draws of an sample; with "per-draw" it is over one, and this is GRPO
//! with a range in logarithms. L is a mean over dimensions, so that c, 0.4 in language models, is as small as GRPO's here.

use super::{Objective, Setting, positive};
use crate::{
    evaluation::{Evaluation, Groups},
    functions,
};
use burn::tensor::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Clipped surrogate of a geometric mean.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Gmpo {
    /// c, how far the logarithm of a draw's ratio counts.
    pub log_clip: f64,
}

impl Default for Gmpo {
    fn default() -> Self {
        Self { log_clip: 1e-3 }
    }
}

impl Objective for Gmpo {
    fn loss(&self, e: &Evaluation<'_>, groups: &Groups<'_>) -> Tensor<1> {
        let advantages = groups.advantages.clone();
        let sign = e.repeat(advantages.clone().sign());
        let bounded = (e.log_ratio_rows() * sign.clone()).clamp_max(self.log_clip) * sign;
        -advantages * functions::exp(e.mean(bounded))
    }

    fn rests(&self) -> bool {
        true
    }

    fn clipped(&self, e: &Evaluation<'_>, groups: &Groups<'_>) -> Option<Tensor<1>> {
        let advantages = groups.advantages.clone();
        let outside = (e.log_ratio_rows().detach() * e.repeat(advantages.sign())).greater_scalar(self.log_clip);
        Some(e.mean(outside.float()))
    }

    fn validate(&self, _: &Setting) -> Vec<String> {
        positive([("objective.log_clip", self.log_clip)]).collect()
    }
}
