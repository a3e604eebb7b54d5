//! Flow-GRPO's stochastic sampler (arXiv 2505.05470, eq. 9): the SDE with the marginals of the rectified-flow ODE.
//!
//! With s = a √(t/(1 − t)) and Δ = t' − t < 0,
//!
//! x' ~ N( x (1 + s²Δ/(2t)) + v (1 + s²(1 − t)/(2t)) Δ,  s² |Δ| I ).
//!
//! At t = 1 the denominator 1 − t takes the second time of the grid, as in the reference. Rectified flow only.

use super::{Sampler, Step};
use crate::{gaussian::Gaussian, schedule::Schedule};
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

impl FlowSde {
    /// s at step `k` of the grid.
    fn diffusion(self, times: &[f64], k: usize) -> f64 {
        let t = times[k];
        self.noise_level * (t / (1.0 - t.min(times[1]))).sqrt()
    }
}

impl Sampler for FlowSde {
    fn std(&self, _: Schedule, times: &[f64], k: usize) -> f64 {
        self.diffusion(times, k) * (times[k] - times[k + 1]).sqrt()
    }

    fn transition(&self, schedule: Schedule, times: &[f64], k: usize, steps: &[Step]) -> Gaussian {
        let (t, dt) = (times[k], times[k + 1] - times[k]);
        let Step { x, velocity } = &steps[0];
        let half = self.diffusion(times, k).powi(2) / (2.0 * t);
        let mean = x.clone() * (1.0 + half * dt) + velocity.clone() * ((1.0 + half * (1.0 - t)) * dt);
        Gaussian { mean, std: self.std(schedule, times, k) }
    }

    fn refuses(&self, schedule: Schedule, _: usize) -> Option<String> {
        if schedule != Schedule::RectifiedFlow {
            return Some(
                "sampler `flow-sde` is defined on rectified flow; use `ddim`, `euler` or `dpm2` on this schedule"
                    .into(),
            );
        }
        let fine = self.noise_level >= 0.0 && self.noise_level.is_finite();
        (!fine).then(|| {
            format!("sampler `flow-sde`: noise_level = {}: must be 0 (an ODE) or a positive number", self.noise_level)
        })
    }
}
