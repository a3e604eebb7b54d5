//! CRD, contrastive reward distillation: rewards regressed on log-ratios within a group (arXiv 2603.14128).
//!
//! loss = ½ ( β (d_i − c(d)) − A_i )²,  d = L − L_lagged,  c without gradient
//!
//! | centring | c(d) |
//! |---|---|
//! | mean | mean of d over the group |
//! | halves | ½ (mean of d where A > 0 + mean of d where A < 0) |
//! | softmax | Σ_i d_i e^{A_i/τ} / Σ_i e^{A_i/τ} |
//!
//! Where a group has no better or no worse samples, all of it stands for that half.
//! With other = reference, the mean and β = 1 it is [`super::TrajectoryBalance`]. The paper holds the policy to the base under guidance:
//! `kl.guidance = 4.5`. Whether c has a gradient is not said; with the mean and advantages around 0 it makes no difference.

use super::{Objective, Setting, dgpo::Other, positive_and_finite};
use crate::evaluation::{Evaluation, Groups, Weights};
use burn::tensor::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What log-ratios of a group are centered by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Centring {
    /// The mean.
    #[default]
    Mean,
    /// The mean of the means of its better and its worse samples.
    Halves,
    /// The mean weighted by e^{A/τ}.
    Softmax,
}

/// Regression of rewards on log-ratios.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Crd {
    /// β, how much a log-ratio stands for.
    pub beta: f64,
    /// What log-ratios of a group are centered by.
    pub centring: Centring,
    /// τ of the softmax; the others do not use it.
    pub temperature: f64,
    /// Whom log-probabilities are compared with.
    pub other: Other,
}

impl Default for Crd {
    fn default() -> Self {
        Self { beta: 1.0, centring: Centring::Mean, temperature: 1.0, other: Other::Lagged }
    }
}

impl Crd {
    /// c(d) of each sample's group.
    fn center(self, groups: &Groups<'_>, d: Tensor<1>) -> Tensor<1> {
        let half = |sign: f64| {
            let mut weights = vec![1.0; groups.values.len()];
            for members in groups.members() {
                let inside = |&i: &usize| sign * groups.values[i] > 0.0;
                if members.iter().any(inside) {
                    for i in &members {
                        weights[*i] = f64::from(u8::from(inside(i)));
                    }
                }
            }
            groups.weighted_means(d.clone(), &weights)
        };
        match self.centring {
            Centring::Mean => groups.means(d),
            Centring::Halves => (half(1.0) + half(-1.0)) * 0.5,
            Centring::Softmax => {
                let mut weights = vec![0.0; groups.values.len()];
                for members in groups.members() {
                    let largest = members.iter().map(|&i| groups.values[i]).fold(f64::NEG_INFINITY, f64::max);
                    for &i in &members {
                        weights[i] = ((groups.values[i] - largest) / self.temperature).exp();
                    }
                }
                groups.weighted_means(d, &weights)
            }
        }
    }
}

impl Objective for Crd {
    fn loss(&self, e: &Evaluation<'_>, groups: &Groups<'_>) -> Tensor<1> {
        let d = e.log_prob(Weights::Current) - e.log_prob(self.other.weights());
        let center = self.center(groups, d.clone().detach());
        ((d - center) * self.beta - groups.advantages.clone()).square() * 0.5
    }

    fn groupwise(&self) -> bool {
        true
    }

    fn validate(&self, _: &Setting) -> Vec<String> {
        positive_and_finite([("objective.beta", self.beta), ("objective.temperature", self.temperature)]).collect()
    }
}
