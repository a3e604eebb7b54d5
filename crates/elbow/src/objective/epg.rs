//! EPG, the exact policy gradient: REINFORCE with a group baseline (arXiv 2602.04663, eq. 3).
//!
//! loss = −sg(ρ) A L

use super::{Objective, with_ratio};
use crate::evaluation::{Evaluation, Groups, Weights};
use burn::tensor::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// REINFORCE with an importance ratio.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Epg {
    /// Keep the leading sg(ρ); without it the variant `epg_noratio` of the reference code.
    #[serde(default = "with_ratio")]
    pub ratio: bool,
}

impl Default for Epg {
    fn default() -> Self {
        Self { ratio: true }
    }
}

impl Objective for Epg {
    fn loss(&self, e: &Evaluation<'_>, groups: &Groups<'_>) -> Tensor<1> {
        let advantages = groups.advantages.clone();
        let loss = -advantages * e.log_prob(Weights::Current);
        if self.ratio { loss * e.ratio().detach() } else { loss }
    }

    fn rests(&self) -> bool {
        true
    }
}
