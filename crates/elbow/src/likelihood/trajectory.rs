//! Likelihood of the sampler's own path (arXiv 2305.13301, eq. 4; arXiv 2505.05470): each step is a Gaussian policy.
//!
//! ln π(x_{k+1} | x_k) = ln N(x_{k+1}; μ_θ(x_k), s_k² I),
//!
//! with μ and s of the stochastic sampler that drew the path. Every point of the path is kept.

use super::{Likelihood, Merge, Query, Ratio, Rollout, Transitions, rows, times};
use crate::{
    gaussian::{Gaussian, Reduction, wide},
    sampler::{Sampling, Step},
    schedule::Schedule,
};
use burn::tensor::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Transition densities along the rollout.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Trajectory {
    /// Share of the steps that are scored, from the first on (rounded down, at least one): 0.99 is 9 of 10.
    pub fraction: f64,
    /// What a ratio compares.
    pub ratio: Ratio,
    /// Mean or sum over latent dimensions.
    pub reduction: Reduction,
}

impl Default for Trajectory {
    fn default() -> Self {
        Self { fraction: 0.99, ratio: Ratio::PerDraw, reduction: Reduction::Mean }
    }
}

impl Likelihood for Trajectory {
    fn needs_trajectory(&self) -> bool {
        true
    }

    fn queries(&self, rollout: &Rollout) -> Vec<Query> {
        let steps = rollout.sampling.steps;
        let queries: Vec<Query> = (0..self.count(steps)).map(|k| self.step(rollout, k)).collect();
        match self.ratio {
            Ratio::PerDraw => queries,
            Ratio::PerSample => vec![Query::merged(queries, Merge::Sum)],
        }
    }

    fn refuses(&self, sampling: &Sampling, _: Schedule) -> Option<String> {
        (!sampling.rule.get().is_stochastic()).then(|| {
            "likelihood `trajectory` needs a stochastic sampler: an ODE step has no density. Use sampler `flow-sde` with \
             noise_level > 0, or likelihood `elbo`"
                .into()
        })
    }
}

impl Trajectory {
    /// Steps scored on a grid of `steps`.
    pub fn count(self, steps: usize) -> usize {
        ((steps as f64 * self.fraction) as usize).clamp(1, steps)
    }

    fn step(self, rollout: &Rollout, k: usize) -> Query {
        let (x, next) = (rollout.points[k].clone(), rollout.points[k + 1].clone());
        let (sampling, schedule, grid) = (rollout.sampling, rollout.schedule, rollout.sampling.times());
        let (time, dt) = (grid[k], grid[k] - grid[k + 1]);
        let t = times(&vec![time; rollout.keys.len()], &x.device());
        // What a velocity of 1 adds to the mean: every stochastic sampler is linear in it.
        let one = |value: f64| wide(Tensor::<4>::full([1, 1, 1, 1], value, &x.device()));
        let at_rest = Step { x: one(0.0), velocity: one(1.0) };
        let Gaussian { mean: slope, std } = sampling.rule.get().transition(schedule, &grid, k, &[at_rest]);
        let slope = slope.into_data().iter::<f64>().next().expect("invariant: one element");
        // Means of two weights differ by far less than an `f32` mean is rounded.
        let (point, next) = (wide(x.clone()), wide(next));
        let score = move |velocity| {
            let step = Step { x: point.clone(), velocity: wide(velocity) };
            sampling.rule.get().transition(schedule, &grid, k, &[step]).log_prob(next.clone(), self.reduction)
        };
        let (count, device) = (rollout.keys.len(), x.device());
        let number = |value: f64| rows(&vec![value; count], &device);
        Query {
            x,
            t,
            cond: rollout.cond.clone(),
            gain: number(schedule.level(time).clean_gain()),
            target: None,
            transitions: Some(Transitions { slope: number(slope), std: number(std), dt: number(dt) }),
            score: Box::new(score),
            merge: Merge::Single,
        }
    }
}
