//! TempFlow-GRPO's branching (arXiv 2508.04324): the images of a prompt share a deterministic path up to one step, which is
//! stochastic, and are deterministic again after it, so that their rewards differ by that step alone.
//!
//! A group is `points × explorations` images with one start noise. The first `explorations` of them branch at one step, the
//! next at another, and so on; an advantage compares those that branch together. Of T steps the first T − 1 may branch; they are
//! split into `points` parts as even as can be, and each epoch draws one step of each. That depends on the seed, the epoch and
//! the number of the sample alone. With `points` = T − 1 every step has its explorations in every epoch, as in the reference
//! code; with fewer, every step has its turn.

use super::{Branches, Sampler, Sde, Step};
use crate::{
    noise::{Key, Purpose},
    schedule::Grid,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Stochastic at one step, which depends on the sample, and Euler's rule elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Branch {
    /// The rule of the step that branches.
    pub sde: Sde,
    /// Steps of an epoch at which images of a prompt branch.
    pub points: usize,
    /// Images of a prompt that branch at the same step.
    pub explorations: usize,
}

impl Default for Branch {
    fn default() -> Self {
        Self { sde: Sde::default(), points: 4, explorations: 6 }
    }
}

impl Branch {
    /// The step at which a sample branches, on a grid of `steps`.
    pub fn step_of(&self, steps: usize, key: Key) -> usize {
        let (points, range) = (self.points.max(1), steps.saturating_sub(1).max(1));
        let point = (key.sample / self.explorations.max(1) as u64) as usize % points;
        let (from, to) = (point * range / points, ((point + 1) * range / points).max(1));
        let key = Key { purpose: Purpose::Window, sample: 0, ..key }.draw(point as u32);
        let inside = key.uniforms().next().map_or(0, |u| (u * to.saturating_sub(from) as f64) as usize);
        from + inside
    }
}

impl Sampler for Branch {
    fn step(&self, grid: &Grid, k: usize) -> Step {
        self.sde.get().step(grid, k)
    }

    fn walk(&self, grid: &Grid, key: Key) -> Vec<Step> {
        let at = self.step_of(grid.steps(), key);
        self.sde.at(grid, &(at..at + 1))
    }

    fn moves(&self) -> bool {
        true
    }

    fn branches(&self) -> Option<Branches> {
        Some(Branches { points: self.points, explorations: self.explorations })
    }

    fn validate(&self, grid: &Grid) -> Vec<String> {
        let (Self { sde, points, explorations }, steps) = (*self, grid.steps());
        let mut problems = Vec::new();
        if points == 0 || points >= steps {
            problems.push(format!(
                "sampler `branch`: points = {points} of {steps} steps: at least 1, and fewer than there are steps"
            ));
        }
        if explorations < 2 {
            problems.push(format!("sampler `branch`: explorations = {explorations}: at least 2 are compared"));
        }
        problems.extend(sde.get().validate(grid));
        problems
    }
}
