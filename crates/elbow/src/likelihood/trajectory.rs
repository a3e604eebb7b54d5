//! Likelihood of the sampler's own path (arXiv 2305.13301, eq. 4; arXiv 2505.05470): each step is a Gaussian policy.
//!
//! ln π(x_{k+1} | x_k) = ln N(x_{k+1}; μ_θ(x_k), s_k² I),
//!
//! with μ and s of the stochastic sampler that drew the path. Steps without noise (s = 0) have no density and are left out.
//! Every point of the path is kept.
//!
//! | density | log-probability of a step, reduced over dimensions |
//! |---|---|
//! | gaussian | −(x_{k+1} − μ)²/(2s²) − ln s − ½ ln 2π |
//! | squared-error | −(x_{k+1} − μ)², as with coefficients-preserving sampling (arXiv 2509.05952) |

use super::{Likelihood, Merge, Query, Ratio, Rollout, Transitions, rows, times};
use crate::{
    gaussian::{Gaussian, Reduction, reduce, wide},
    sampler::{Sampling, Step},
    schedule::Schedule,
};
use burn::tensor::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a step's log-probability is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Density {
    /// The density of the step.
    #[default]
    Gaussian,
    /// The squared distance from the step's mean alone, every step weighing the same (Flow-CPS, arXiv 2509.05952).
    SquaredError,
}

/// Transition densities along the rollout.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Trajectory {
    /// Share of the steps that are scored, from the first on (rounded down): 0.99 is 9 of 10. Those without a density are left
    /// out; at least one is scored.
    pub fraction: f64,
    /// What a step's log-probability is.
    pub density: Density,
    /// What a ratio compares.
    pub ratio: Ratio,
    /// Mean or sum over latent dimensions.
    pub reduction: Reduction,
}

impl Default for Trajectory {
    fn default() -> Self {
        Self { fraction: 0.99, density: Density::Gaussian, ratio: Ratio::PerDraw, reduction: Reduction::Mean }
    }
}

impl Likelihood for Trajectory {
    fn needs_trajectory(&self) -> bool {
        true
    }

    fn queries(&self, rollout: &Rollout) -> Vec<Query> {
        let scored = self.scored(&rollout.sampling, rollout.schedule);
        let queries: Vec<Query> = scored.into_iter().map(|k| self.step(rollout, k)).collect();
        match self.ratio {
            Ratio::PerDraw => queries,
            Ratio::PerSample => vec![Query::merged(queries, Merge::Sum)],
            Ratio::PerSampleMean => vec![Query::merged(queries, Merge::Mean)],
        }
    }

    fn refuses(&self, sampling: &Sampling, schedule: Schedule) -> Option<String> {
        sampling.stochastic_steps(schedule).is_empty().then(|| {
            "likelihood `trajectory` needs a stochastic sampler: an ODE step has no density. Use sampler `flow-sde` with \
             noise_level > 0, or `dance`, `ddim` or `cps` with eta > 0 and at least 2 steps, or likelihood `elbo`"
                .into()
        })
    }
}

impl Trajectory {
    /// The steps that are scored: of those that have a density, the ones within the fraction.
    pub(super) fn scored(self, sampling: &Sampling, schedule: Schedule) -> Vec<usize> {
        let mut stochastic = sampling.stochastic_steps(schedule);
        let end = (sampling.steps as f64 * self.fraction) as usize;
        stochastic.truncate(stochastic.partition_point(|&k| k < end).max(1));
        stochastic
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
        let score = move |velocity, _: Option<&Tensor<4>>| {
            let step = Step { x: point.clone(), velocity: wide(velocity) };
            let transition = sampling.rule.get().transition(schedule, &grid, k, &[step]);
            match self.density {
                Density::Gaussian => transition.log_prob(next.clone(), self.reduction),
                Density::SquaredError => -reduce((next.clone() - transition.mean).square(), self.reduction),
            }
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
            shared: false,
            score: Box::new(score),
            merge: Merge::Single,
        }
    }
}
