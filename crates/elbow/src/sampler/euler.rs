//! Euler's rule for the probability-flow ODE; on rectified flow the same as DDIM with η = 0 and as first-order
//! DPM-Solver++ (arXiv 2211.01095).
//!
//! x' = x + (t' − t) v

use super::{Mean, Sampler, Step};
use crate::schedule::Grid;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// First order, deterministic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Euler {}

impl Sampler for Euler {
    fn step(&self, grid: &Grid, k: usize) -> Step {
        let dt = grid.times[k + 1] - grid.times[k];
        Step::deterministic(Mean::point(0) + Mean::velocity(0) * dt)
    }
}
