//! Flow-GRPO's stochastic sampler (arXiv 2505.05470, eq. 9): the SDE with the marginals of the rectified-flow ODE.
//!
//! With s = a √(t/(1 − t)) and Δ = t' − t < 0,
//!
//! x' ~ N( x (1 + s²Δ/(2t)) + v (1 + s²(1 − t)/(2t)) Δ,  s² |Δ| I ).
//!
//! At t = 1 the denominator 1 − t takes the second time of the grid, as in the reference. Rectified flow only.

use super::{Mean, Sampler, Step, noise, rectified_flow_only};
use crate::schedule::Grid;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// First order, stochastic.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct FlowSde {
    /// a, the noise level; the paper's best is 0.7.
    pub noise_level: f64,
}

impl Default for FlowSde {
    fn default() -> Self {
        Self { noise_level: 0.7 }
    }
}

impl Sampler for FlowSde {
    fn step(&self, grid: &Grid, k: usize) -> Step {
        let (t, dt) = (grid.times[k], grid.times[k + 1] - grid.times[k]);
        let diffusion = self.noise_level * (t / (1.0 - t.min(grid.times[1]))).sqrt();
        let half = diffusion * diffusion / (2.0 * t);
        let mean = Mean::point(0) * (1.0 + half * dt) + Mean::velocity(0) * ((1.0 + half * (1.0 - t)) * dt);
        Step { mean, std: diffusion * (-dt).sqrt() }
    }

    fn validate(&self, grid: &Grid) -> Vec<String> {
        let mut problems = rectified_flow_only("flow-sde", grid, "use `ddim`, `euler` or `dpm2` on this schedule");
        problems.extend(noise("flow-sde", "noise_level", self.noise_level));
        problems
    }
}
