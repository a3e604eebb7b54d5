//! RAM, reinforced adjoint matching: regression on the reference, moved along the residual (arXiv 2605.10759).
//!
//! loss = mean ‖v_θ − sg[ v_ref + c A (u − v*) ]‖²,  u = ε − x₀,  v* = v_b as in the reference code or v_θ
//!
//! This is −2cA·L with a frozen residual plus the Girsanov divergence with weight 1, up to a constant: the penalty is part of the
//! loss, and `kl.weight` may be 0.

use super::{Objective, Setting, finite};
use crate::{
    evaluation::{Evaluation, Groups, Weights},
    gaussian,
    setting::Scored,
};
use burn::tensor::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Whose residual the target moves along.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Residual {
    /// u − v_b.
    #[default]
    Behavior,
    /// u − v_θ, without gradient.
    Current,
}

/// Regression on a tilted reference.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Ram {
    /// c, how far an advantage of 1 moves the target.
    pub multiplier: f64,
    /// Whose residual the target moves along.
    pub residual: Residual,
}

impl Default for Ram {
    fn default() -> Self {
        Self { multiplier: 1.0, residual: Residual::Behavior }
    }
}

impl Objective for Ram {
    fn loss(&self, e: &Evaluation<'_>, groups: &Groups<'_>) -> Tensor<1> {
        let advantages = groups.advantages.clone();
        let target = e.target().expect("invariant: refused without a velocity to compare with");
        let from = match self.residual {
            Residual::Behavior => e.velocity(Weights::Behavior),
            Residual::Current => e.velocity(Weights::Current).detach(),
        };
        let rows = e.repeat(advantages * self.multiplier);
        let rows = rows.clone().reshape([rows.dims()[0], 1]);
        let wanted = gaussian::to_f64(e.velocity(Weights::Reference)) + gaussian::to_f64(target - from) * rows;
        e.mean(gaussian::mean((gaussian::to_f64(e.velocity(Weights::Current)) - wanted).square()))
    }

    fn validate(&self, setting: &Setting) -> Vec<String> {
        let elbo = (setting.scored != Scored::Velocities)
            .then(|| "objective `ram` regresses velocities: use likelihood `elbo`".to_owned());
        finite([("objective.multiplier", self.multiplier)]).chain(elbo).collect()
    }
}
