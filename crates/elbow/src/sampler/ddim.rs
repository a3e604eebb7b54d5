//! DDIM with a share η of ancestral noise (arXiv 2010.02502, eqs. 12 and 16): η = 1 is DDPM's ancestral step, which DDPO
//! (arXiv 2305.13301) scores; η = 0 is deterministic and, on rectified flow, Euler's rule.
//!
//! With x̂₀ and ε̂ predicted at t,
//!
//! x′ ~ N( α′ x̂₀ + √(σ′² − ρ²) ε̂,  ρ² I ),   ρ² = η² σ′² [1 − σ′²α²/(σ²α′²)].
//!
//! On a variance-preserving path, with ᾱ = α², this is the paper's ρ² = η² (1 − ᾱ′)/(1 − ᾱ) (1 − ᾱ/ᾱ′); the form above
//! holds on any path, rectified flow's α = 0 at t = 1 included. The last step has no noise: σ′ = 0.

use super::{Sampler, Step, share};
use crate::schedule::Grid;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// First order, stochastic.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Ddim {
    /// η, from 0 (no noise) to 1 (as much as an ancestral step).
    pub eta: f64,
}

impl Default for Ddim {
    fn default() -> Self {
        Self { eta: 1.0 }
    }
}

impl Sampler for Ddim {
    fn step(&self, grid: &Grid, k: usize) -> Step {
        let (from, to) = (grid.level(k), grid.level(k + 1));
        let kept = (to.sigma * from.alpha) / (from.sigma * to.alpha);
        let std = if grid.is_last(k) { 0.0 } else { self.eta * to.sigma * (1.0 - kept * kept).sqrt() };
        Step::redrawn(grid, k, std)
    }

    fn validate(&self, _: &Grid) -> Vec<String> {
        share("ddim", "eta", self.eta)
    }
}
