//! Keeping the policy near the reference, and near its own moving average (arXiv 2602.04663, §3.4; estimators k1–k3: Schulman,
//! *Approximating KL divergence*, 2020).
//!
//! With d = L − L_ref and ρ the importance ratio, v_ref and L_ref being those of the base, of an adapter that training starts from, or of the
//! lagged weights:
//!
//! | kind | value |
//! |---|---|
//! | girsanov | mean ‖v_θ − v_ref‖² (the divergence of paths with weight 1) |
//! | path | α/(σΔ + 10⁻³) mean ‖v_θ − v_ref‖²: that divergence by Girsanov's theorem, on any path; (1 − t)/t on rectified flow |
//! | step | mean (μ_θ − μ_ref)²/(2 s²) of the scored steps N(μ, s² I): the divergence of the two Gaussians, over dimensions |
//! | step-dt | the same times the length of the step, which is Flow-GRPO's code: its σ_t is s/√∣Δt∣ (arXiv 2505.05470) |
//! | k1 | d |
//! | k2 | d²/2 |
//! | k3 | e^{−d} − 1 + d |
//! | k3-reversed | e^{d} − 1 − d (the reference code's sign) |
//!
//! Distances of velocities and of means are averaged over the draws of a sample whatever the ratio compares; k1 to k3 are those of L.
//! With `guidance` the reference is the base under a guidance of its own, which the policy is drawn to (CRD, arXiv 2603.14128: 4.5).
//!
//! `importance` multiplies by ρ, which makes the value an estimate under the current policy instead of the behavior's.

use crate::{
    evaluation::{Evaluation, Weights},
    functions,
    setting::{Scored, Setting, positive_number},
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
    /// Squared distance of velocities by Girsanov's weight: the divergence of paths, on any schedule.
    Path,
    /// Divergence of the Gaussian steps that a trajectory's likelihood scores.
    Step,
    /// The same times the length of the step (Flow-GRPO's code, arXiv 2505.05470).
    StepDt,
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
    /// The adapter that training starts from (`model.adapter`), as it was then. It takes the base's place in objectives that compare with a
    /// reference too.
    Adapter,
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
    /// Classifier-free guidance of the base or adapter that the policy is kept near, if it is another than the sampler's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guidance: Option<f64>,
}

impl Default for Kl {
    fn default() -> Self {
        Self { kind: KlKind::Girsanov, weight: 1e-4, importance: false, reference: Anchor::Base, guidance: None }
    }
}

impl Kl {
    /// The unweighted divergence of each sample `[B]`; `None` if it is off.
    pub fn value(&self, e: &Evaluation<'_>) -> Option<Tensor<1>> {
        if self.weight == 0.0 {
            return None;
        }
        let anchor = match self.reference {
            Anchor::Base | Anchor::Adapter => Weights::GuidedReference,
            Anchor::Lagged => Weights::Lagged,
        };
        let d = || e.log_prob(Weights::Current) - e.log_prob(anchor);
        let value = match self.kind {
            KlKind::Girsanov => e.mean(e.distance(anchor)),
            KlKind::Path => e.mean(e.distance(anchor) * e.path_weight()),
            KlKind::Step | KlKind::StepDt => {
                let (steps, divergence) = e.steps(anchor).expect("invariant: refused unless steps are scored");
                e.mean(if self.kind == KlKind::Step { divergence } else { divergence * steps.dt.clone() })
            }
            KlKind::K1 => d(),
            KlKind::K2 => d().square() * 0.5,
            KlKind::K3 => functions::exp(-d()) - 1.0 + d(),
            KlKind::K3Reversed => functions::exp(d()) - 1.0 - d(),
        };
        Some(if self.importance { value * e.ratio() } else { value })
    }

    /// Whether the log tells by it how far the policy is from the base, or from the adapter that training starts from.
    pub fn measures_reference(&self) -> bool {
        self.weight != 0.0 && self.reference != Anchor::Lagged
    }

    /// Whether it compares the steps that a likelihood scores.
    pub fn of_steps(&self) -> bool {
        matches!(self.kind, KlKind::Step | KlKind::StepDt)
    }

    /// What keeps it from being a penalty in `setting`, one sentence each.
    pub fn validate(&self, setting: &Setting) -> Vec<String> {
        let mut problems = Vec::new();
        if self.weight != 0.0 && self.of_steps() && !matches!(setting.scored, Scored::Steps { .. }) {
            problems.push("kl.kind = \"step\" compares the steps that likelihood `trajectory` scores: use \"girsanov\" or \"path\"".into());
        }
        if let Some(guidance) = self.guidance {
            problems.extend(positive_number("kl.guidance", guidance));
            if self.reference == Anchor::Lagged {
                problems.push(
                    "kl.guidance is that of the base: set kl.reference = \"base\" or \"adapter\", or leave it out"
                        .into(),
                );
            }
        }
        problems
    }
}

/// DiPOD's term (arXiv 2606.13795): λ · mean(−L_θ) on samples of the policy. Where L is an ELBO it drifts away from the log-probability
/// that it bounds, and ratios do not show it; the term keeps the bound tight. It equals a shift of every advantage by λ in a policy
/// gradient without ratio. The log has the mean of L as `log_prob`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Tightness {
    /// λ; 0 turns it off.
    pub weight: f64,
}

impl Tightness {
    /// −L of each sample `[B]`; `None` if it is off.
    pub fn value(&self, e: &Evaluation<'_>) -> Option<Tensor<1>> {
        (self.weight != 0.0).then(|| -e.log_prob(Weights::Current))
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
