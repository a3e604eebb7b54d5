//! DanceGRPO's stochastic sampler (arXiv 2505.07818): an SDE with the marginals of the rectified-flow ODE and constant
//! noise.
//!
//! dx = [v − (η²/2) ∇ ln p_t] dt + η dw run from t = 1 down to 0, ∇ ln p_t = −ε̂/t. With Δ = t′ − t < 0,
//!
//! x′ ~ N( x + v Δ − (η²/2) (−ε̂/t) Δ,  η² |Δ| I ).
//!
//! The last step goes to x̂₀ without noise, as the reference's images do; the reference also scores a noisy last step that no
//! image shows. Rectified flow only.

use super::{Sampler, Step};
use crate::{gaussian::Gaussian, schedule::Schedule};
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
    fn std(&self, _: Schedule, times: &[f64], k: usize) -> f64 {
        if k + 2 == times.len() { 0.0 } else { self.eta * (times[k] - times[k + 1]).sqrt() }
    }

    fn transition(&self, schedule: Schedule, times: &[f64], k: usize, steps: &[Step]) -> Gaussian {
        let (t, std) = (times[k], self.std(schedule, times, k));
        let Step { x, velocity } = &steps[0];
        let euler = x.clone() + velocity.clone() * (times[k + 1] - t);
        // η² Δ = −std²
        Gaussian { mean: euler - schedule.noise(x.clone(), velocity.clone(), t) * (std * std / (2.0 * t)), std }
    }

    fn refuses(&self, schedule: Schedule, _: usize) -> Option<String> {
        if schedule != Schedule::RectifiedFlow {
            return Some("sampler `dance` is defined on rectified flow; use `ddim` or `cps` on this schedule".into());
        }
        let fine = self.eta >= 0.0 && self.eta.is_finite();
        (!fine).then(|| format!("sampler `dance`: eta = {}: must be 0 (an ODE) or a positive number", self.eta))
    }
}
