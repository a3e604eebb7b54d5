//! Online Diffusion-DPO: the best sample of a group preferred to its worst (arXiv 2311.12908, eq. 14).
//!
//! loss = −ln σ( (β/2) [ (L⁺ − L⁺_ref) − (L⁻ − L⁻_ref) ] ),  half of it for each of the two
//!
//! Pairs come from `advantage.kind = "best-worst"`: one sample with advantage 1 and one with −1 a group. L is a mean
//! over dimensions, as in the released code, whose β is 2000 for SD1.5 and 5000 for SDXL.

use super::{Objective, Setting, positive_and_finite};
use crate::{
    evaluation::{Evaluation, Groups, Weights},
    functions::log_sigmoid,
    setting::Meaning,
};
use burn::tensor::{Tensor, TensorData};
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
    fn loss(&self, e: &Evaluation<'_>, groups: &Groups<'_>) -> Tensor<1> {
        let signed = (e.log_prob(Weights::Current) - e.log_prob(Weights::Reference)) * groups.advantages.clone();
        let mut partners = vec![0i32; groups.samples.len()];
        for pair in groups.members() {
            let [first, second] = pair[..] else { panic!("invariant: refused unless groups have pairs") };
            (partners[first], partners[second]) = (second as i32, first as i32);
        }
        let partners = Tensor::from_data(TensorData::new(partners, [groups.samples.len()]), &signed.device());
        let margin = signed.clone() + signed.select(0, partners);
        log_sigmoid(margin * (self.beta / 2.0)) * -0.5
    }

    fn groupwise(&self) -> bool {
        true
    }

    fn validate(&self, setting: &Setting) -> Vec<String> {
        let mut problems: Vec<String> = positive_and_finite([("objective.beta", self.beta)]).collect();
        if setting.meaning != Meaning::Pair {
            problems.push("objective `dpo` compares pairs: set advantage.kind = \"best-worst\"".into());
        }
        problems
    }
}
