//! Keeping the policy near the reference, and near the behavior policy (arXiv 2602.04663, §3.4; estimators k1–k3: Schulman, *Approximating KL
//! divergence*, 2020).
//!
//! With d = L − L_ref and ρ the importance ratio:
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

use crate::{evaluation::Evaluation, gaussian};
use burn::tensor::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which estimate of the divergence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum KlKind {
    /// Squared distance of velocities.
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
}

impl Default for Kl {
    fn default() -> Self {
        Self { kind: KlKind::Girsanov, weight: 1e-4, importance: false }
    }
}

impl Kl {
    /// The unweighted divergence of each sample `[B]`; `None` if it is off.
    pub fn value(&self, e: &Evaluation<'_>) -> Option<Tensor<1>> {
        if self.weight == 0.0 {
            return None;
        }
        let d = || e.log_prob() - e.reference_log_prob();
        let value = match self.kind {
            KlKind::Girsanov => {
                let difference = gaussian::wide(e.velocity() - e.reference_velocity());
                e.merge(gaussian::mean(difference.square()))
            }
            KlKind::K1 => d(),
            KlKind::K2 => d().square() * 0.5,
            KlKind::K3 => (-d()).exp() - 1.0 + d(),
            KlKind::K3Reversed => d().exp() - 1.0 - d(),
        };
        Some(if self.importance { value * e.ratio() } else { value })
    }
}

/// A penalty on leaving the behavior policy, w · mean ‖v_θ − v_b‖²: what AWM (arXiv 2509.25050) and V-GRPO (arXiv 2604.23380, of clean
/// samples) add to their losses. Without effect while the behavior policy is the current one, as it is for the first update of
/// an epoch with `behavior.max = 0`.
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
        (self.weight != 0.0).then(|| e.proximity(self.clean))
    }
}
