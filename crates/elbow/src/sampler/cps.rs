//! Coefficients-preserving sampling (Flow-CPS, arXiv 2509.05952; Flow-GRPO's later code): a fixed share of the noise of each
//! point is drawn anew, and signal and noise keep the coefficients they have on the path.
//!
//! With x̂₀ and ε̂ predicted at t,
//!
//! x′ ~ N( α′ x̂₀ + √(σ′² − s²) ε̂,  s² I ),   s = σ′ sin(η π/2).
//!
//! The same form as [`super::Ddim`] with another s, which does not shrink with the step: marginals are kept where x̂₀ is
//! exact, and otherwise samples move toward the mean as steps get many. The last step has no noise: σ′ = 0. Its density in
//! the reference leaves out 1/(2s²): that is `likelihood.density = "squared-error"`.

use super::{Sampler, Step, share};
use crate::schedule::Grid;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// First order, stochastic.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Cps {
    /// η, from 0 (no noise) to 1 (all noise drawn anew).
    pub eta: f64,
}

impl Default for Cps {
    fn default() -> Self {
        Self { eta: 0.8 }
    }
}

impl Sampler for Cps {
    fn step(&self, grid: &Grid, k: usize) -> Step {
        let redrawn = (self.eta * std::f64::consts::FRAC_PI_2).sin();
        let std = if grid.is_last(k) { 0.0 } else { grid.level(k + 1).sigma * redrawn };
        Step::redrawn(grid, k, std)
    }

    fn validate(&self, _: &Grid) -> Vec<String> {
        share("cps", "eta", self.eta)
    }
}
