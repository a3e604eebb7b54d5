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
//!
//! With `weights = "noise"` the objective's loss of step k counts s_k over the mean of s.

use super::{Likelihood, Merge, Queries, Query, Ratio, Rollout, Transitions, rows, times};
use crate::{
    gaussian::{Gaussian, Reduction, reduce, wide},
    sampler::{Sampling, Step},
    schedule::Schedule,
};
use burn::tensor::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::ops::Range;

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

/// How much the objective's loss counts at a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum StepWeights {
    /// The same everywhere.
    #[default]
    Even,
    /// By the deviation s_k of the step, over its mean over all steps but the last (TempFlow-GRPO, arXiv 2508.04324): a step
    /// counts by how much its noise can change. The authors' factor, 2.25 s_k, is this one on their grid of 10 steps.
    Noise,
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
    /// How much the objective's loss counts at a step.
    pub weights: StepWeights,
}

impl Default for Trajectory {
    fn default() -> Self {
        Self {
            fraction: 0.99,
            density: Density::Gaussian,
            ratio: Ratio::PerDraw,
            reduction: Reduction::Mean,
            weights: StepWeights::Even,
        }
    }
}

impl Likelihood for Trajectory {
    fn needs_trajectory(&self) -> bool {
        true
    }

    fn queries<'a>(&self, rollout: &'a Rollout) -> Queries<'a> {
        let trajectory = *self;
        let of = |(rows, sampling): (Range<usize>, Sampling)| {
            let part = Rollout { sampling, ..rollout.narrow(rows.start, rows.len()) };
            (trajectory.scored(&sampling, rollout.schedule), part)
        };
        let parts: Vec<(Vec<usize>, Rollout)> = rollout.sampling.runs(&rollout.keys).into_iter().map(of).collect();
        let count = parts.iter().map(|(steps, _)| steps.len()).min().unwrap_or(0);
        let queries = (0..count)
            .map(move |i| Query::beside(parts.iter().map(|(steps, part)| trajectory.step(part, steps[i])).collect()));
        match self.ratio {
            Ratio::PerDraw => Box::new(queries),
            Ratio::PerSample => Query::merged(queries, Merge::Sum),
            Ratio::PerSampleMean => Query::merged(queries, Merge::Mean),
        }
    }

    fn refuses(&self, sampling: &Sampling, schedule: Schedule) -> Option<String> {
        if sampling.stochastic_steps(schedule).is_empty() {
            return Some(
                "likelihood `trajectory` needs a stochastic sampler: an ODE step has no density. Use sampler `flow-sde` with \
                 noise_level > 0, or `dance`, `ddim` or `cps` with eta > 0 and at least 2 steps, or likelihood `elbo`"
                    .into(),
            );
        }
        if sampling.rule.get().remembers() {
            return Some(
                "likelihood `trajectory` looks at one velocity a step, and the steps of this sampler depend on earlier ones too: \
                 use order = 1, or likelihood `elbo`"
                    .into(),
            );
        }
        let merged = self.weights == StepWeights::Noise && self.ratio == Ratio::PerSample;
        merged.then(|| {
            "likelihood.weights = \"noise\" weighs single steps, and ratio = \"per-sample\" adds them up: use \"per-draw\"".into()
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
        let noise = (self.weights == StepWeights::Noise).then(|| sampling.noise(schedule));
        let weight = noise.map(|all| number(std * all.len() as f64 / all.iter().sum::<f64>()));
        Query {
            x,
            t,
            cond: rollout.cond.clone(),
            gain: number(schedule.level(time).clean_gain()),
            target: None,
            transitions: Some(Transitions { slope: number(slope), std: number(std), dt: number(dt) }),
            weight,
            shared: false,
            score: Box::new(score),
            merge: Merge::Single,
        }
    }
}
