//! **Axis i: how advantages and log-probabilities become a loss** (arXiv 2602.04663, §3.1).
//!
//! Notation: L, L_b log-probabilities under current and behavior weights at the same points, ρ = exp(L − L_b),
//! A the advantage, sg stop-gradient. Losses are minimized.

mod cispo;
mod dpok;
mod epg;
mod grpo;
mod par;
mod pepg;
mod sapo;

pub use cispo::Cispo;
pub use dpok::Dpok;
pub use epg::Epg;
pub use grpo::Grpo;
pub use par::Par;
pub use pepg::Pepg;
pub use sapo::Sapo;

use crate::evaluation::Evaluation;
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
}

/// The objective of a recipe.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum ObjectiveKind {
    /// Exact policy gradient.
    Epg(Epg),
    /// Proximal exact policy gradient.
    Pepg(Pepg),
    /// Proximal advantage regression.
    Par(Par),
    /// Clipped surrogate.
    Grpo(Grpo),
    /// Clipped importance weight.
    Cispo(Cispo),
    /// Soft gate on the ratio.
    Sapo(Sapo),
    /// Clamped ratio.
    Dpok(Dpok),
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
            Self::Cispo(o) => o,
            Self::Sapo(o) => o,
            Self::Dpok(o) => o,
        }
    }
}

/// Serde's default for the leading importance ratio.
fn with_ratio() -> bool {
    true
}

#[cfg(test)]
mod tests;
