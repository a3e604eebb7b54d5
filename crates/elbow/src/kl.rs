//! Keeping the policy near the reference, and near its own moving average (arXiv 2602.04663, §3.4; estimators k1–k3: Schulman, *Approximating KL
//! divergence*, 2020).
//!
//! With d = L − L_ref and ρ the importance ratio, v_ref and L_ref being those of the base or of the lagged weights:
//!
//! | kind | value |
//! |---|---|
//! | girsanov | mean ‖v_θ − v_ref‖² (the path KL with weight 1) |
//! | k1 | d |
//! | k2 | d²/2 |
//! | k3 | e^{−d} − 1 + d |
//! | k3-reversed | e^{d} − 1 − d (the reference code's sign) |
//!
//! `importance` multiplies by ρ, which makes the value an estimate under the current policy instead of the behavior's.

use crate::{
    evaluation::{Evaluation, Weights},
    functions, gaussian,
};
use burn::tensor::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which estimate of the divergence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum KlKind {
    /// Squared distance of velocities (arXiv 2602.04663).
    #[default]
    Girsanov,
    /// Log-ratio: unbiased, its gradient is zero on average.
    K1,
    /// Half the squared log-ratio.
    K2,
    /// Schulman's low-variance estimate, d = ln π/π_ref under samples of π.
    K3,
    /// k3 with the sign of d that the reference code has.
    K3Reversed,
}

/// Whom the policy is kept near.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Anchor {
    /// The base, which never moves.
    #[default]
    Base,
    /// The lagged weights of `[behavior]`, a moving average of the policy (AWM, arXiv 2509.25050).
    Lagged,
}

/// A penalty on leaving the reference.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Kl {
    /// Which estimate.
    pub kind: KlKind,
    /// Its weight in the loss; 0 turns it off and saves the reference's forward pass.
    pub weight: f64,
    /// Multiply by the importance ratio.
    pub importance: bool,
    /// Whom the policy is kept near.
    pub reference: Anchor,
}

impl Default for Kl {
    fn default() -> Self {
        Self { kind: KlKind::Girsanov, weight: 1e-4, importance: false, reference: Anchor::Base }
    }
}

impl Kl {
    /// The unweighted divergence of each sample `[B]`; `None` if it is off.
    pub fn value(&self, e: &Evaluation<'_>) -> Option<Tensor<1>> {
        if self.weight == 0.0 {
            return None;
        }
        let anchor = match self.reference {
            Anchor::Base => Weights::Reference,
            Anchor::Lagged => Weights::Lagged,
        };
        let d = || e.log_prob(Weights::Current) - e.log_prob(anchor);
        let value = match self.kind {
            KlKind::Girsanov => {
                let difference = gaussian::to_f64(e.velocity(Weights::Current) - e.velocity(anchor));
                e.merge(gaussian::mean(difference.square()))
            }
            KlKind::K1 => d(),
            KlKind::K2 => d().square() * 0.5,
            KlKind::K3 => functions::exp(-d()) - 1.0 + d(),
            KlKind::K3Reversed => functions::exp(d()) - 1.0 - d(),
        };
        Some(if self.importance { value * e.ratio() } else { value })
    }
}

/// A penalty on leaving the lagged weights, w · mean ‖v_θ − v‖²: what AWM (arXiv 2509.25050) and V-GRPO (arXiv 2604.23380, of clean
/// samples) add to their losses. The lagged weights are those of the behavior policy, or with `behavior.on_policy` a moving average
/// beside it. Without effect while they are the current ones, as they are for the first update of an epoch with `behavior.max = 0`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Proximal {
    /// w; 0 turns it off.
    pub weight: f64,
    /// Whether clean samples are compared instead of velocities: t² times the distance on rectified flow.
    pub clean: bool,
}

impl Proximal {
    /// The unweighted distance of each sample `[B]`; `None` if it is off.
    pub fn value(&self, e: &Evaluation<'_>) -> Option<Tensor<1>> {
        (self.weight != 0.0).then(|| e.proximity(Weights::Lagged, self.clean))
    }
}
