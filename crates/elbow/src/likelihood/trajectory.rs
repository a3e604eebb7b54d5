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
//! Where the mean moves with the velocity by `slope`, a change δ of the velocity moves ln π by (slope/s)² δ²/2. A step that ends at almost
//! no noise has a slope/s a hundred times that of others and then dominates the gradient ([`Likelihood::step_weights`]): DDIM's last noisy
//! step on diffusers' grid is one.
//!
//! With `weights = "noise"` the objective's loss of step k counts s_k over the mean of s.

use super::{Likelihood, Queries, Query, Ratio, Score, Transitions, gather, share, share_of};
use crate::{
    batch::{Batch, Sample},
    gaussian::{Reduction, log_density, reduce, rows, to_f64},
    noise::{Key, Purpose},
    sampler::{self, Step, Visit},
    setting::{Scored, Setting},
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

/// Which steps are scored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Choice {
    /// The first ones.
    #[default]
    First,
    /// Others for each image, by a random permutation (DanceGRPO, arXiv 2505.07818).
    Random,
}

/// Transition densities along the rollout.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Trajectory {
    /// Share of the steps that are scored, rounded down: 0.99 is 9 of 10. Those without a density are left out; at least one is scored.
    /// With `choice = "random"` it is a share of those that have a density.
    pub fraction: f64,
    /// Which of them.
    pub choice: Choice,
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
            choice: Choice::First,
            density: Density::Gaussian,
            ratio: Ratio::PerDraw,
            reduction: Reduction::Mean,
            weights: StepWeights::Even,
        }
    }
}

impl Likelihood for Trajectory {
    fn needs_path(&self) -> bool {
        true
    }

    fn scored(&self) -> Scored {
        let gaussian_means = self.density == Density::Gaussian && self.reduction == Reduction::Mean;
        Scored::Steps { gaussian_means }
    }

    fn step_weights(&self, walk: &[Step]) -> Vec<(usize, f64)> {
        // Random choices come to every step that may be chosen.
        let all = match self.choice {
            Choice::First => self.first(walk),
            Choice::Random => sampler::stochastic(walk),
        };
        let size = |step: Step| match self.density {
            Density::Gaussian => step.mean.v[0] / step.std,
            Density::SquaredError => step.mean.v[0],
        };
        all.into_iter().map(|k| (k, size(walk[k]).powi(2))).collect()
    }

    fn means_over_dimensions(&self) -> bool {
        self.reduction == Reduction::Mean
    }

    fn count(&self, walk: &[Step]) -> usize {
        match self.choice {
            Choice::First => self.first(walk).len(),
            Choice::Random => share_of(sampler::stochastic(walk).len(), self.fraction),
        }
    }

    fn queries<'a>(&self, part: &'a Batch, _: &'a Batch) -> Queries<'a> {
        let trajectory = *self;
        let places: Vec<Vec<usize>> = part.samples.iter().map(|sample| trajectory.places(sample)).collect();
        let count = places.iter().map(Vec::len).min().unwrap_or(0);
        let queries = (0..count).map(move |i| {
            let places: Vec<usize> = places.iter().map(|places| places[i]).collect();
            trajectory.query(part, &places)
        });
        Query::of_steps(queries, self.ratio)
    }

    fn validate(&self, setting: &Setting) -> Vec<String> {
        let mut problems: Vec<String> = share("likelihood.fraction", self.fraction).into_iter().collect();
        if setting.stochastic_steps == 0 {
            problems.push(
                "likelihood `trajectory` needs a stochastic sampler: an ODE step has no density. Use sampler `flow-sde` with \
                 noise_level > 0, or `dance`, `ddim` or `cps` with eta > 0 and at least 2 steps, or likelihood `elbo`"
                    .into(),
            );
        }
        if setting.stochastic_steps > 0 && setting.remembers {
            problems.push(
                "likelihood `trajectory` looks at one velocity a step, and the steps of this sampler depend on earlier ones too: \
                 use order = 1, or likelihood `elbo`"
                    .into(),
            );
        }
        if self.weights == StepWeights::Noise && self.ratio != Ratio::PerDraw {
            problems.push(
                "likelihood.weights = \"noise\" weighs single steps, and a ratio per sample brings them together: use ratio = \"per-draw\""
                    .into(),
            );
        }
        problems
    }
}

impl Trajectory {
    /// The steps of a sample's walk that are scored.
    pub(super) fn places(self, sample: &Sample) -> Vec<usize> {
        if self.choice == Choice::First {
            return self.first(&sample.walk);
        }
        let stochastic = sampler::stochastic(&sample.walk);
        let key = Key { purpose: Purpose::Timestep, ..sample.key };
        let chosen = key.permutation(stochastic.len()).into_iter().take(share_of(stochastic.len(), self.fraction));
        chosen.map(|i| stochastic[i]).collect()
    }

    /// Of the steps that have a density, those within the fraction.
    fn first(self, walk: &[Step]) -> Vec<usize> {
        let mut stochastic = sampler::stochastic(walk);
        let end = (walk.len() as f64 * self.fraction) as usize;
        stochastic.truncate(stochastic.partition_point(|&k| k < end).max(1));
        stochastic
    }

    /// One step of each sample, by its place in the sample's walk.
    fn query(self, batch: &Batch, places: &[usize]) -> Query {
        let grid = &batch.grid;
        let steps: Vec<Step> = batch.samples.iter().zip(places).map(|(sample, &k)| sample.walk[k]).collect();
        let after: Vec<usize> = places.iter().map(|k| k + 1).collect();
        let (x, next) = (gather(&batch.points, places), gather(&batch.points, &after));
        let device = x.device();
        let numbers = |values: Vec<f64>| rows(&values, &device);
        let weight = (self.weights == StepWeights::Noise).then(|| {
            // The last step is left out: most rules have no noise there.
            let all = &batch.stds[..batch.stds.len().saturating_sub(1).max(1)];
            let mean = all.iter().sum::<f64>() / all.len() as f64;
            numbers(steps.iter().map(|step| step.std / mean).collect())
        });
        let transitions = Transitions {
            slope: numbers(steps.iter().map(|step| step.mean.v[0]).collect()),
            std: numbers(steps.iter().map(|step| step.std).collect()),
            dt: numbers(places.iter().map(|&k| grid.times[k] - grid.times[k + 1]).collect()),
        };
        let t: Vec<f64> = places.iter().map(|&k| grid.times[k]).collect();
        let score = self.score(x.clone(), next, steps);
        let drawn = (!batch.velocities.is_empty()).then(|| gather(&batch.velocities, places));
        Query { weight, drawn, transitions: Some(transitions), ..Query::new(x, &t, batch, score) }
    }

    /// Log-probability `[N]` of the points `next` after `x` (both `[N, D]`), by one step a row.
    fn score(self, x: Tensor<2>, next: Tensor<2>, steps: Vec<Step>) -> Score {
        // Means of two weights differ by far less than an `f32` mean is rounded.
        let (x, next) = (to_f64(x), to_f64(next));
        let stds: Vec<f64> = steps.iter().map(|step| step.std).collect();
        Box::new(move |velocity, _: Option<&Tensor<2>>| {
            let visit = Visit { x: x.clone(), velocity: to_f64(velocity) };
            let off = next.clone() - sampler::mean(&steps, &[visit]);
            match self.density {
                Density::SquaredError => -reduce(off.square(), self.reduction),
                Density::Gaussian => log_density(off, &stds, self.reduction),
            }
        })
    }
}
