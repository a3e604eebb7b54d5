//! **Axis i: how advantages and log-probabilities become a loss** (arXiv 2602.04663, §3.1).
//!
//! Notation: L, L_b log-probabilities under current and behavior weights at the same points, ρ = exp(L − L_b),
//! A the advantage, sg stop-gradient. Losses are minimized.

mod cispo;
mod dpo;
mod dpok;
mod epg;
mod flow_dppo;
mod gmpo;
mod grpo;
mod grpo_guard;
mod nft;
mod par;
mod pepg;
mod ram;
mod rpg;
mod sapo;
mod trajectory_balance;

pub use cispo::Cispo;
pub use dpo::Dpo;
pub use dpok::Dpok;
pub use epg::Epg;
pub use flow_dppo::FlowDppo;
pub use gmpo::Gmpo;
pub use grpo::Grpo;
pub use grpo_guard::GrpoGuard;
pub use nft::NegativeAware;
pub use par::Par;
pub use pepg::Pepg;
pub use ram::{Ram, Residual};
pub use rpg::{Divergence, Rpg};
pub use sapo::Sapo;
pub use trajectory_balance::TrajectoryBalance;

use crate::{
    advantage::AdvantageKind,
    evaluation::Evaluation,
    gaussian::Reduction,
    likelihood::{Density, LikelihoodKind, Trajectory},
};
use burn::tensor::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A policy-gradient loss.
pub trait Objective: Send + Sync {
    /// One loss a sample `[B]`; `advantages` `[B]`. Only what is asked of `e` is computed.
    fn loss(&self, e: &Evaluation<'_>, advantages: Tensor<1>) -> Tensor<1>;

    /// Share-of-samples indicator `[B]` of a ratio outside the clip range, for objectives that clip.
    fn clipped(&self, e: &Evaluation<'_>, advantages: Tensor<1>) -> Option<Tensor<1>> {
        let _ = (e, advantages);
        None
    }

    /// What keeps this objective from running in `setting`: its own parameters, and what it needs of the other choices.
    fn problems(&self, setting: &Setting) -> Vec<String> {
        let _ = setting;
        Vec::new()
    }
}

/// The other choices that an objective may depend on.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// How log-probabilities are read off the network.
    pub likelihood: LikelihoodKind,
    /// How images of a group are compared.
    pub advantage: AdvantageKind,
    /// Images in one forward pass.
    pub rows: usize,
}

/// The objective of a recipe.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum ObjectiveKind {
    /// Exact policy gradient: REINFORCE with a group baseline (arXiv 2602.04663).
    Epg(Epg),
    /// Proximal exact policy gradient: mirror descent toward the behavior policy (arXiv 2602.04663).
    Pepg(Pepg),
    /// Proximal advantage regression: least squares on the log-ratio (arXiv 2602.04663).
    Par(Par),
    /// Clipped surrogate of PPO and GRPO (arXiv 1707.06347, arXiv 2505.05470); DAPO's with two widths (arXiv 2503.14476).
    Grpo(Grpo),
    /// Clipped surrogate of a normalized ratio (GRPO-Guard, arXiv 2510.22319).
    GrpoGuard(GrpoGuard),
    /// Clipped surrogate of a geometric mean of ratios (GMPO, arXiv 2507.20673).
    Gmpo(Gmpo),
    /// Clipped importance weight (MiniMax-M1, arXiv 2506.13585).
    Cispo(Cispo),
    /// Smooth gate on the ratio (SAPO, arXiv 2511.20347).
    Sapo(Sapo),
    /// Clamped ratio (DPOK, arXiv 2305.16381).
    Dpok(Dpok),
    /// No step further away once the policies differ (Flow-DPPO, arXiv 2606.11025).
    FlowDppo(FlowDppo),
    /// A good and a bad policy around the behavior policy (DiffusionNFT, arXiv 2509.16117).
    Nft(NegativeAware),
    /// Regression on a tilted reference (reinforced adjoint matching, arXiv 2605.10759).
    Ram(Ram),
    /// Divergence to the behavior policy inside the reward (RPG, arXiv 2505.17508).
    Rpg(Rpg),
    /// Trajectory balance with a batch baseline (arXiv 2201.13259).
    TrajectoryBalance(TrajectoryBalance),
    /// The best image of a group preferred to its worst (online Diffusion-DPO, arXiv 2311.12908).
    Dpo(Dpo),
}

impl Default for ObjectiveKind {
    fn default() -> Self {
        Self::Pepg(Pepg::default())
    }
}

impl ObjectiveKind {
    /// The implementation.
    pub fn get(&self) -> &dyn Objective {
        match self {
            Self::Epg(o) => o,
            Self::Pepg(o) => o,
            Self::Par(o) => o,
            Self::Grpo(o) => o,
            Self::GrpoGuard(o) => o,
            Self::Gmpo(o) => o,
            Self::Cispo(o) => o,
            Self::Sapo(o) => o,
            Self::Dpok(o) => o,
            Self::FlowDppo(o) => o,
            Self::Nft(o) => o,
            Self::Ram(o) => o,
            Self::Rpg(o) => o,
            Self::TrajectoryBalance(o) => o,
            Self::Dpo(o) => o,
        }
    }
}

/// A complaint of the objective `name` unless Gaussian steps are scored, by their mean over dimensions.
fn of_steps(name: &str, setting: &Setting) -> Option<String> {
    let steps = matches!(
        setting.likelihood,
        LikelihoodKind::Trajectory(Trajectory { reduction: Reduction::Mean, density: Density::Gaussian, .. })
    );
    (!steps).then(|| {
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
