//! Online Diffusion-DPO: the best image of a group preferred to its worst (arXiv 2311.12908, eq. 14).
//!
//! loss = −ln σ( (β/2) [ (L⁺ − L⁺_ref) − (L⁻ − L⁻_ref) ] ),  half of it for each of the two
//!
//! Pairs come from `advantage.kind = "best-worst"`: one image with advantage 1 and one with −1 a group, side by side. L is a mean
//! over dimensions, as in the released code, whose β is 2000 for SD1.5 and 5000 for SDXL.

use super::{Objective, Setting, positive};
use crate::{advantage::AdvantageKind, evaluation::Evaluation, functions::log_sigmoid};
use burn::tensor::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Preference of pairs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Dpo {
    /// β: how strongly a preference moves the policy off the reference.
    pub beta: f64,
}

impl Default for Dpo {
    fn default() -> Self {
        Self { beta: 2000.0 }
    }
}

impl Objective for Dpo {
    fn loss(&self, e: &Evaluation<'_>, advantages: Tensor<1>) -> Tensor<1> {
        let pairs = advantages.dims()[0] / 2;
        let signed = (e.log_prob() - e.reference_log_prob()) * advantages;
        let margin: Tensor<2> = signed.reshape([pairs, 2]).sum_dim(1);
        let loss = log_sigmoid(margin * (self.beta / 2.0)) * -0.5;
        loss.repeat_dim(1, 2).reshape([pairs * 2])
    }

    fn problems(&self, setting: &Setting) -> Vec<String> {
        let mut problems: Vec<String> = positive([("objective.beta", self.beta)]).collect();
        if !matches!(setting.advantage, AdvantageKind::BestWorst(_)) {
            problems.push("objective `dpo` compares pairs: set advantage.kind = \"best-worst\"".into());
        }
        if !setting.rows.is_multiple_of(2) {
            problems
                .push(format!("batch.rows = {}: objective `dpo` needs pairs in one pass; make it even", setting.rows));
        }
        problems
    }
}
