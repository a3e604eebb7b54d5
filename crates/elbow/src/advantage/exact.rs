//! The advantage under which PEPG and PAR have the KL-regularized optimum (arXiv 2602.04663, §3.1).
//!
//! A = (η/β)(R − mean of the group)
//!
//! η is the size of a proximal step. Under a penalty w · KL(π ‖ π_ref) the optimum is π* ∝ π_ref e^{R/T} with the temperature
//! **T = w β/η**, for EPG, PEPG and PAR: at a fixed point the gradient of (η/β) R − w ln(π/π_ref) is zero. β is the temperature where
//! w = η, as in the paper's scripts, which use one number for both. w, η and β are those of one unit of L, a mean over dimensions.
//! No division by a deviation: that would weight prompts by how much their samples differ.

use super::{Advantage, History, Rewards};
use crate::{
    batch::Sample,
    setting::{positive_number, zero_or_positive},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Centered reward over temperature.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Exact {
    /// η, step size of the proximal iteration.
    pub eta: f64,
    /// β; the temperature is w β/η, w being `kl.weight`.
    pub beta: f64,
}

impl Default for Exact {
    fn default() -> Self {
        Self { eta: 1e-4, beta: 1e-3 }
    }
}

impl Advantage for Exact {
    fn advantages(&self, samples: &[Sample], _: &History) -> Vec<Option<f64>> {
        Rewards::of(samples).map(|reward, group| self.eta / self.beta * (reward - group.mean))
    }

    fn validate(&self) -> Vec<String> {
        let beta = positive_number("advantage.beta", self.beta);
        beta.into_iter().chain(zero_or_positive("advantage.eta", self.eta)).collect()
    }
}
