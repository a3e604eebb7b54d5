//! Euler's rule for the probability-flow ODE; on rectified flow the same as DDIM with η = 0 and as first-order
//! DPM-Solver++ (arXiv 2211.01095).
//!
//! x' = x + (t' − t) v

use super::{Sampler, Step};
use crate::{gaussian::Gaussian, schedule::Schedule};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// First order, deterministic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Euler {}

impl Sampler for Euler {
    fn transition(&self, _: Schedule, times: &[f64], k: usize, steps: &[Step]) -> Gaussian {
        let Step { x, velocity } = &steps[0];
        Gaussian { mean: x.clone() + velocity.clone() * (times[k + 1] - times[k]), std: 0.0 }
    }
}
