//! DanceGRPO's stochastic sampler (arXiv 2505.07818): an SDE with the marginals of the rectified-flow ODE and constant
//! noise.
//!
//! dx = [v − (η²/2) ∇ ln p_t] dt + η dw run from t = 1 down to 0, ∇ ln p_t = −ε̂/t. With Δ = t′ − t < 0,
//!
//! x′ ~ N( x + v Δ − (η²/2) (−ε̂/t) Δ,  η² |Δ| I ).
//!
//! The last step goes to x̂₀ without noise, as the reference's images do; the reference also scores a noisy last step that no
//! image shows. Rectified flow only.

use super::{Mean, Sampler, Step, noise, rectified_flow_only};
use crate::schedule::Grid;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// First order, stochastic.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Dance {
    /// η, the noise of unit time; the paper's is 0.3.
    pub eta: f64,
}

impl Default for Dance {
    fn default() -> Self {
        Self { eta: 0.3 }
    }
}

impl Sampler for Dance {
    fn step(&self, grid: &Grid, k: usize) -> Step {
        let (t, dt) = (grid.times[k], grid.times[k + 1] - grid.times[k]);
        let std = if grid.is_last(k) { 0.0 } else { self.eta * (-dt).sqrt() };
        let euler = Mean::point(0) + Mean::velocity(0) * dt;
        // η² Δ = −std²
        Step { mean: euler - Mean::noise(grid, k, 0) * (std * std / (2.0 * t)), std }
    }

    fn validate(&self, grid: &Grid) -> Vec<String> {
        let mut problems = rectified_flow_only("dance", grid, "use `ddim` or `cps` on this schedule");
        problems.extend(noise("dance", "eta", self.eta));
        problems
    }
}
