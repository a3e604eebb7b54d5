//! **Axis i: how advantages and log-probabilities become a loss** (arXiv 2602.04663, §3.1).
//!
//! Notation: L, L_b log-probabilities under current and behavior weights at the same points, ρ = exp(L − L_b),
//! A the advantage, sg stop-gradient. Losses are minimized.

pub use crd::Centring;
pub use dgpo::Other;
pub use distill::{Compare, Teacher};
pub use guided::{Origin, Target};
pub use ram::Residual;
pub use rpg::Divergence;

use crate::{
    axis::axis,
    evaluation::{Evaluation, Groups},
    setting::{Scored, Setting, positive_number},
};
use burn::tensor::Tensor;

/// A policy-gradient loss.
pub trait Objective: Send + Sync {
    /// One loss a sample `[B]`. Only what is asked of `e` is computed.
    fn loss(&self, e: &Evaluation<'_>, groups: &Groups<'_>) -> Tensor<1>;

    /// Whether the loss of a sample depends on log-probabilities of others of its group. It then sees those of all samples of an
    /// update at once, and nothing else of `e`; its graph is that of these numbers, whatever the size of a micro-batch, and costs one
    /// more forward pass a sample. Otherwise the loss is a sum over samples, of a micro-batch at a time.
    fn groupwise(&self) -> bool {
        false
    }

    /// Whether a sample with advantage 0 adds nothing to the gradient. Then groups without variance need no forward pass if there is no
    /// penalty either.
    fn rests(&self) -> bool {
        false
    }

    /// Paths of the teachers' weights that it needs ([`Weights::Teacher`](crate::evaluation::Weights::Teacher)), in order.
    /// Whoever runs a recipe loads them into the trainer's `teachers`.
    fn teachers(&self) -> Vec<&str> {
        Vec::new()
    }

    /// Share-of-samples indicator `[B]` of a ratio outside the clip range, for objectives that clip.
    fn clipped(&self, e: &Evaluation<'_>, groups: &Groups<'_>) -> Option<Tensor<1>> {
        let _ = (e, groups);
        None
    }

    /// What keeps this objective from running in `setting`: its own parameters, and what it needs of the other choices.
    fn validate(&self, setting: &Setting) -> Vec<String> {
        let _ = setting;
        Vec::new()
    }
}

axis! {
    /// The objective of a recipe.
    ObjectiveKind: Objective, default Pepg;
    /// Exact policy gradient: REINFORCE with a group baseline (arXiv 2602.04663).
    epg::Epg,
    /// Proximal exact policy gradient: mirror descent toward the behavior policy (arXiv 2602.04663).
    pepg::Pepg,
    /// Proximal advantage regression: least squares on the log-ratio (arXiv 2602.04663).
    par::Par,
    /// Clipped surrogate of PPO and GRPO (arXiv 1707.06347, arXiv 2505.05470); DAPO's with two widths (arXiv 2503.14476).
    grpo::Grpo,
    /// Clipped surrogate of a normalized ratio (GRPO-Guard, arXiv 2510.22319).
    grpo_guard::GrpoGuard,
    /// Clipped surrogate of a geometric mean of ratios (GMPO, arXiv 2507.20673).
    gmpo::Gmpo,
    /// Clipped importance weight (MiniMax-M1, arXiv 2506.13585).
    cispo::Cispo,
    /// Smooth gate on the ratio (SAPO, arXiv 2511.20347).
    sapo::Sapo,
    /// Clamped ratio (DPOK, arXiv 2305.16381).
    dpok::Dpok,
    /// No step further away once the policies differ (Flow-DPPO, arXiv 2606.11025).
    flow_dppo::FlowDppo,
    /// A good and a bad policy around the behavior policy (DiffusionNFT, arXiv 2509.16117).
    nft::Nft,
    /// Regression on a tilted reference (reinforced adjoint matching, arXiv 2605.10759).
    ram::Ram,
    /// Regression on a velocity moved by a residual, a group's covariance or a pair (RAM; DiffusionART, arXiv 2610.12572; FDFO,
    /// arXiv 2603.12893).
    guided::Guided,
    /// Divergence to the behavior policy inside the reward (RPG, arXiv 2505.17508).
    rpg::Rpg,
    /// Trajectory balance with a group's baseline (arXiv 2201.13259).
    trajectory_balance::TrajectoryBalance,
    /// The best sample of a group preferred to its worst (online Diffusion-DPO, arXiv 2311.12908).
    dpo::Dpo,
    /// The better half of a group preferred to the worse (DGPO, arXiv 2510.08425).
    dgpo::Dgpo,
    /// Rewards regressed on log-ratios within a group (CRD, arXiv 2603.14128).
    crd::Crd,
    /// The velocity of teachers at the points that the student visits (Flow-OPD, arXiv 2605.08063).
    distill::Distill,
}

/// A complaint of the objective `name` unless Gaussian steps are scored, by their mean over dimensions.
fn steps_only(name: &str, setting: &Setting) -> Option<String> {
    (setting.scored != Scored::Steps { gaussian_means: true }).then(|| {
        format!(
            "objective `{name}` compares steps: use likelihood `trajectory` with its Gaussian density and reduction \"mean\""
        )
    })
}

/// A complaint for each parameter that is not above 0; infinity is.
fn positive<const N: usize>(parameters: [(&'static str, f64); N]) -> impl Iterator<Item = String> {
    let wrong = |(_, value): &(_, f64)| value.is_nan() || *value <= 0.0;
    parameters.into_iter().filter(wrong).map(|(name, value)| format!("{name} = {value}: must be above 0"))
}

/// A complaint for each parameter that is not a positive and finite number.
fn positive_and_finite<const N: usize>(parameters: [(&'static str, f64); N]) -> impl Iterator<Item = String> {
    parameters.into_iter().filter_map(|(name, value)| positive_number(name, value))
}

/// A complaint for each parameter that is not a finite number.
fn finite<const N: usize>(parameters: [(&'static str, f64); N]) -> impl Iterator<Item = String> {
    parameters.into_iter().filter(|p| !p.1.is_finite()).map(|(name, value)| format!("{name} = {value}: must be finite"))
}

/// Serde's default for the leading importance ratio.
fn with_ratio() -> bool {
    true
}

#[cfg(test)]
mod tests;
