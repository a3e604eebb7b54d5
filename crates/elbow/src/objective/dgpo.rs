//! DGPO, direct group preference optimization: the better half of a group preferred to the worse (arXiv 2510.08425).
//!
//! loss = −ln σ( β ( Σ_{A_i > 0} w_i d_i − Σ_{A_j < 0} w_j d_j ) ),  d = L − L_ref,  w ∝ ∣A∣ with sum 1 on either side
//!
//! One loss a group, of which each of its samples has the same share. The draws of (t, ε) belong to the group: `likelihood.draws =
//! "per-group"`. With one sample on either side it is [`super::Dpo`] of 2β.

use super::{Objective, Setting, positive_and_finite};
use crate::{
    evaluation::{Evaluation, Groups, Weights},
    functions::log_sigmoid,
    gaussian,
    setting::Meaning,
};
use burn::tensor::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Whom log-probabilities are compared with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Other {
    /// The base.
    #[default]
    Reference,
    /// The lagged weights of `[behavior]`, a moving average.
    Lagged,
}

impl Other {
    /// The weights.
    pub(super) fn weights(self) -> Weights {
        match self {
            Self::Reference => Weights::Reference,
            Self::Lagged => Weights::Lagged,
        }
    }
}

/// Preference of groups.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Dgpo {
    /// β: how strongly a preference moves the policy off the others.
    pub beta: f64,
    /// Whom log-probabilities are compared with.
    pub other: Other,
}

impl Default for Dgpo {
    fn default() -> Self {
        Self { beta: 1000.0, other: Other::Reference }
    }
}

impl Objective for Dgpo {
    fn loss(&self, e: &Evaluation<'_>, groups: &Groups<'_>) -> Tensor<1> {
        let d = e.log_prob(Weights::Current) - e.log_prob(self.other.weights());
        let side = |sign: f64| {
            let weights: Vec<f64> = groups.values.iter().map(|a| (sign * a).max(0.0)).collect();
            groups.weighted_means(d.clone(), &weights)
        };
        let shares: Vec<f64> = groups.sizes().into_iter().map(|size| -1.0 / size as f64).collect();
        log_sigmoid((side(1.0) - side(-1.0)) * self.beta) * gaussian::rows(&shares, &d.device())
    }

    fn groupwise(&self) -> bool {
        true
    }

    fn rests(&self) -> bool {
        true
    }

    fn validate(&self, setting: &Setting) -> Vec<String> {
        let mut problems: Vec<String> = positive_and_finite([("objective.beta", self.beta)]).collect();
        if !matches!(setting.meaning, Meaning::Relative | Meaning::Pair) {
            problems.push(
                "objective `dgpo` divides a group by the sign of its advantages: set advantage.kind = \"standard\" or another \
                 around 0"
                    .into(),
            );
        }
        problems
    }
}
