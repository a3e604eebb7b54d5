//! DiffusionNFT: a good and a bad policy on either side of the behavior policy (arXiv 2509.16117, eq. 5).
//!
//! loss = −(M/b) [ r L(v⁺) + (1 − r) L(v⁻) ],  v± = v_b ± b (v_θ − v_b),  r in [0, 1] the advantage (`advantage.kind = "nft"`)
//!
//! L(v) is the ELBO that velocity v would have, without the division by the guidance scale that ratios of arXiv 2602.04663 have; the
//! reference uses the adaptive weighting, normalized for each branch on its own.
//! With the error e = v_b − u and δ = v_θ − v_b, L = −mean (v − u)² gives r‖e + bδ‖² + (1 − r)‖e − bδ‖² =
//! ‖e‖² + 2b(2r − 1) e·δ + b²‖δ‖²: a policy gradient with A = 2r − 1, held to the behavior policy by a term that no reward
//! enters.

use super::{Objective, Setting, positive_and_finite};
use crate::{
    evaluation::{Evaluation, Groups, Weights},
    setting::Meaning,
};
use burn::tensor::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Negative-aware fine-tuning.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Nft {
    /// b, how far the two implicit policies lie from the behavior policy; 0.1 for several rewards in the reference.
    pub mix: f64,
    /// M, the factor on the loss: the reference's largest advantage.
    pub scale: f64,
}

impl Default for Nft {
    fn default() -> Self {
        Self { mix: 1.0, scale: 5.0 }
    }
}

impl Objective for Nft {
    fn loss(&self, e: &Evaluation<'_>, groups: &Groups<'_>) -> Tensor<1> {
        let advantages = groups.advantages.clone();
        let behavior = e.velocity(Weights::Behavior);
        let step = (e.velocity(Weights::Current) - behavior.clone()) * self.mix;
        let good = e.log_prob_of(behavior.clone() + step.clone());
        let bad = e.log_prob_of(behavior - step);
        (good * advantages.clone() + bad * (1.0 - advantages)) * (-self.scale / self.mix * e.divisor())
    }

    fn validate(&self, setting: &Setting) -> Vec<String> {
        let map = (setting.meaning != Meaning::Probability)
            .then(|| "objective `nft` takes probabilities: set advantage.kind = \"nft\"".to_owned());
        positive_and_finite([("objective.mix", self.mix), ("objective.scale", self.scale)]).chain(map).collect()
    }
}
