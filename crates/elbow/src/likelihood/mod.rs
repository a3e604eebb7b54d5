//! **Axis ii: how a log-probability is read off the network** (arXiv 2602.04663, §3.2), the choice that matters most.
//!
//! A likelihood says *where* to evaluate the network (points x, times t) and *how* to turn a velocity there into a
//! log-probability. Current, behavior and reference weights are asked at the same points, so their ratio compares weights
//! and nothing else, and is exactly 1 for equal weights.

mod timesteps;

pub use elbo::{Draws, Normalizer, Points, Weighting};
pub use timesteps::Timesteps;
pub use trajectory::{Choice, Density, StepWeights};

use crate::{
    axis::axis,
    batch::Batch,
    gaussian::rows,
    policy::{Conditioning, VelocityField},
    sampler::Step,
    schedule::Level,
    setting::{Scored, Setting},
};
use burn::tensor::{Device, Tensor, TensorData};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::iter;

/// A velocity `[N, D]` at a query's points to log-probabilities `[N]`; the second one is that whose error normalizes, if
/// not the first's own.
pub type Score = Box<dyn Fn(Tensor<2>, Option<&Tensor<2>>) -> Tensor<1> + Send + Sync>;

/// Where to look, and how to score what is seen there. N = draws · B rows, draw after draw.
pub struct Query {
    /// `[N, D]`
    pub x: Tensor<2>,
    /// `[N]`
    pub t: Tensor<1>,
    /// N rows.
    pub cond: Conditioning,
    /// σ/Δ `[N]`: how far an error of the velocity moves the clean sample.
    pub gain: Tensor<1>,
    /// α/(σΔ + 10⁻³) `[N]`: the weight of velocities in the divergence of paths.
    pub path_weight: Tensor<1>,
    /// What the guidance scale divides log-probabilities by; 1 if it does not.
    pub divisor: f64,
    /// The velocity that the weights which drew the samples had at these points `[N, D]`, where the rollout kept it.
    pub drawn: Option<Tensor<2>>,
    /// The velocity that the score compares with `[N, D]`, if it does.
    pub target: Option<Tensor<2>>,
    /// The steps that are scored, if steps are.
    pub transitions: Option<Transitions>,
    /// How much the objective's loss counts `[B]`; `None` is evenly.
    pub weight: Option<Tensor<1>>,
    /// Whether the error under the behavior weights normalizes that of all weights.
    pub shared: bool,
    score: Score,
    merge: Merge,
}

/// Gaussian steps x' ~ N(c + slope · v, std² I) over time −dt, one number a row of the query `[N]`.
#[derive(Clone, Debug)]
pub struct Transitions {
    /// How far the mean moves with the velocity.
    pub slope: Tensor<1>,
    /// Deviation of the step.
    pub std: Tensor<1>,
    /// Length of the step, positive.
    pub dt: Tensor<1>,
}

/// How several draws of one sample become one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Merge {
    /// One draw a query: nothing to merge.
    Single,
    /// Mean over this many draws.
    Mean(usize),
    /// Sum over this many draws.
    Sum(usize),
}

impl Query {
    /// One draw of each sample of `part`: at the points `x` `[N, D]` and times `t`, one a sample, where `score` reads log-probabilities
    /// `[N]` off a velocity `[N, D]`.
    pub fn new(x: Tensor<2>, t: &[f64], part: &Batch, score: Score) -> Self {
        let device = x.device();
        let numbers = |of_level: fn(Level) -> f64| {
            let values: Vec<f64> = t.iter().map(|&t| of_level(part.grid.schedule.level(t))).collect();
            rows(&values, &device)
        };
        Self {
            x,
            t: times(t, &device),
            cond: part.conditioning(),
            gain: numbers(Level::clean_gain),
            path_weight: numbers(Level::path_weight),
            divisor: 1.0,
            drawn: None,
            target: None,
            transitions: None,
            weight: None,
            shared: false,
            score,
            merge: Merge::Single,
        }
    }

    /// The same, comparing the velocity with this one `[N, D]`.
    #[must_use]
    pub fn with_target(self, target: Tensor<2>) -> Self {
        Self { target: Some(target), ..self }
    }

    /// The velocity of `field` at the query's points, `[N, D]`.
    pub fn velocity(&self, field: &dyn VelocityField) -> Tensor<2> {
        field.velocity(self.x.clone(), self.t.clone(), &self.cond)
    }

    /// Log-probability of each of the B samples under that velocity, `[B]`, its own error being the normalizer.
    pub fn log_prob(&self, velocity: Tensor<2>) -> Tensor<1> {
        self.merge(self.row_log_prob(velocity, None))
    }

    /// Log-probability of each draw under that velocity, `[N]`; `normalizer` is the velocity whose error normalizes, where that is
    /// not its own.
    pub fn row_log_prob(&self, velocity: Tensor<2>, normalizer: Option<&Tensor<2>>) -> Tensor<1> {
        (self.score)(velocity, normalizer)
    }

    /// Draws of each sample: N / B.
    pub fn draws(&self) -> usize {
        match self.merge {
            Merge::Single => 1,
            Merge::Mean(draws) | Merge::Sum(draws) => draws,
        }
    }

    /// Brings one number a row `[N]` to one a sample `[B]`, as log-probabilities are.
    pub fn merge(&self, rows: Tensor<1>) -> Tensor<1> {
        let (draws, scale) = match self.merge {
            Merge::Single => return rows,
            Merge::Mean(draws) => (draws, 1.0 / draws as f64),
            Merge::Sum(draws) => (draws, 1.0),
        };
        let samples = rows.dims()[0] / draws;
        let sum: Tensor<2> = rows.reshape([draws, samples]).sum_dim(0);
        sum.reshape([samples]) * scale
    }

    /// The objective's loss `[B]` by the weight of each sample.
    pub fn weighted(&self, loss: Tensor<1>) -> Tensor<1> {
        match &self.weight {
            None => loss,
            Some(weight) => loss * weight.clone(),
        }
    }

    /// Steps of a walk as queries: one each, or all in one that adds them up or averages them.
    fn of_steps<'a>(queries: impl ExactSizeIterator<Item = Self> + 'a, ratio: Ratio) -> Queries<'a> {
        match ratio {
            Ratio::PerDraw => Box::new(queries),
            Ratio::PerSample => Self::merged(queries, Merge::Sum),
            Ratio::PerSampleMean => Self::merged(queries, Merge::Mean),
        }
    }

    /// All draws of each sample in one query, which needs them all at once.
    fn merged<'a>(queries: impl ExactSizeIterator<Item = Self> + 'a, merge: fn(usize) -> Merge) -> Queries<'a> {
        let merge = merge(queries.len());
        Box::new(iter::once_with(move || Self { weight: None, ..Self::cat(queries.collect(), merge) }))
    }

    /// The rows of all queries, one after the other.
    fn cat(queries: Vec<Self>, merge: Merge) -> Self {
        let cat = |f: &dyn Fn(&Self) -> Tensor<2>| Tensor::cat(queries.iter().map(f).collect(), 0);
        let x = cat(&|q| q.x.clone());
        let numbers = |f: &dyn Fn(&Self) -> Tensor<1>| Tensor::cat(queries.iter().map(f).collect(), 0);
        let (t, gain) = (numbers(&|q| q.t.clone()), numbers(&|q| q.gain.clone()));
        let path_weight = numbers(&|q| q.path_weight.clone());
        let divisor = queries.first().map_or(1.0, |q| q.divisor);
        let all = |f: &dyn Fn(&Self) -> Option<Tensor<2>>| {
            queries.iter().map(f).collect::<Option<Vec<_>>>().map(|all| Tensor::cat(all, 0))
        };
        let (target, drawn) = (all(&|q| q.target.clone()), all(&|q| q.drawn.clone()));
        let weights: Option<Vec<Tensor<1>>> = queries.iter().map(|q| q.weight.clone()).collect();
        let steps: Option<Vec<&Transitions>> = queries.iter().map(|q| q.transitions.as_ref()).collect();
        let transitions = steps.map(|steps| {
            let numbers = |f: &dyn Fn(&Transitions) -> Tensor<1>| Tensor::cat(steps.iter().map(|s| f(s)).collect(), 0);
            Transitions {
                slope: numbers(&|s| s.slope.clone()),
                std: numbers(&|s| s.std.clone()),
                dt: numbers(&|s| s.dt.clone()),
            }
        });
        let cond = Conditioning::cat(&queries.iter().map(|q| &q.cond).collect::<Vec<_>>());
        let shared = queries.iter().any(|q| q.shared);
        let scores: Vec<(usize, Score)> = queries.into_iter().map(|q| (q.t.dims()[0], q.score)).collect();
        let score = move |velocity: Tensor<2>, normalizer: Option<&Tensor<2>>| {
            let mut start = 0;
            let part = |(rows, score): &(usize, Score)| {
                start += rows;
                let of = |all: &Tensor<2>| all.clone().narrow(0, start - rows, *rows);
                score(of(&velocity), normalizer.map(of).as_ref())
            };
            Tensor::cat(scores.iter().map(part).collect(), 0)
        };
        let weight = weights.map(|weights| Tensor::cat(weights, 0));
        Self {
            x,
            t,
            cond,
            gain,
            path_weight,
            divisor,
            drawn,
            target,
            transitions,
            weight,
            shared,
            score: Box::new(score),
            merge,
        }
    }
}

/// The queries of some rows. Each is made when it is asked for and owns its tensors, so that one that is dropped before the
/// next costs no memory: a loop over them needs that of one, however many there are.
pub type Queries<'a> = Box<dyn ExactSizeIterator<Item = Query> + 'a>;

/// What a ratio of probabilities compares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Ratio {
    /// One ratio per (sample, draw): the reference's.
    #[default]
    PerDraw,
    /// One ratio per sample, after averaging (ELBO) or summing (trajectory) its log-probabilities. All draws of a
    /// micro-batch are then in memory at once.
    PerSample,
    /// The same, with the mean over the steps of a trajectory too: GSPO's ratio (arXiv 2507.18071), the geometric mean of
    /// those of the steps.
    PerSampleMean,
}

/// Where to evaluate a policy, given what it drew.
pub trait Likelihood: Send + Sync {
    /// Whether rollouts must keep every point of the path.
    fn needs_path(&self) -> bool;

    /// What log-probabilities are read off.
    fn scored(&self) -> Scored;

    /// Whether a log-probability is a mean over latent dimensions, so that log-ratios are small by their nature.
    fn means_over_dimensions(&self) -> bool {
        false
    }

    /// How much a change of the velocity counts in the log-probability of each step of a walk that is scored, (slope/std)² of a Gaussian
    /// step, and its place in the walk. Empty if no steps are scored.
    fn step_weights(&self, walk: &[Step]) -> Vec<(usize, f64)> {
        let _ = walk;
        Vec::new()
    }

    /// Points that a sample of this walk is evaluated at.
    fn count(&self, walk: &[Step]) -> usize;

    /// The queries for all samples of `part`, the same number whatever the samples, made one by one. `whole` is the batch that they
    /// are of, for likelihoods that compare a sample with its group. Where a ratio compares whole samples ([`Ratio::PerSample`],
    /// [`Ratio::PerSampleMean`]) there is one query, of all points.
    fn queries<'a>(&self, part: &'a Batch, whole: &'a Batch) -> Queries<'a>;

    /// What keeps it from scoring in `setting`, one sentence each.
    fn validate(&self, setting: &Setting) -> Vec<String>;
}

axis! {
    /// The likelihood of a recipe.
    LikelihoodKind: Likelihood, default Elbo;
    /// ELBO from the final sample alone (arXiv 2602.04663).
    elbo::Elbo,
    /// The sampler's own transition densities (DDPO, arXiv 2305.13301; Flow-GRPO, arXiv 2505.05470).
    trajectory::Trajectory,
    /// Which of a group's points a deterministic step goes to (Neighbor GRPO, arXiv 2511.16955).
    neighbor::Neighbor,
}

/// What is wrong with a share of the grid, if anything.
fn share(name: &str, value: f64) -> Option<String> {
    (!(0.0..=1.0).contains(&value)).then(|| format!("{name} = {value}: must lie between 0 and 1"))
}

/// How many of `steps` a share is, rounded down; at least one.
fn share_of(steps: usize, fraction: f64) -> usize {
    ((steps as f64 * fraction) as usize).clamp(1, steps.max(1))
}

/// Row r of point `places[r]`, for each row `[N, D]`.
fn gather(points: &[Tensor<2>], places: &[usize]) -> Tensor<2> {
    let mut start = 0;
    let run = |run: &[usize]| {
        start += run.len();
        points[run[0]].clone().narrow(0, start - run.len(), run.len())
    };
    let mut runs: Vec<Tensor<2>> = places.chunk_by(|a, b| a == b).map(run).collect();
    if runs.len() == 1 { runs.remove(0) } else { Tensor::cat(runs, 0) }
}

/// Times as the network takes them, `[N]` in `f32`.
fn times(values: &[f64], device: &Device) -> Tensor<1> {
    let values: Vec<f32> = values.iter().map(|&t| t as f32).collect();
    Tensor::from_data(TensorData::new(values.clone(), [values.len()]), device)
}

#[cfg(test)]
mod tests;
