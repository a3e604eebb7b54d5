//! PAR, proximal advantage regression (arXiv 2602.04663, §3.1): the log-ratio is regressed on the advantage.
//!
//! loss = ½ sg(ρ) (A − (L − L_b))²

use super::{Objective, with_ratio};
use crate::evaluation::{Evaluation, Groups};
use burn::tensor::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Least squares on the log-ratio.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Par {
    /// Keep the leading sg(ρ); without it the variant `par_noratio` of the reference code.
    #[serde(default = "with_ratio")]
    pub ratio: bool,
}

impl Default for Par {
    fn default() -> Self {
        Self { ratio: true }
    }
}

impl Objective for Par {
    fn loss(&self, e: &Evaluation<'_>, groups: &Groups<'_>) -> Tensor<1> {
        let advantages = groups.advantages.clone();
        let loss = (advantages - e.log_ratio()).square() * 0.5;
        if self.ratio { loss * e.ratio().detach() } else { loss }
    }
}
