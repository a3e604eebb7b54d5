//! **Axis ii: how a log-probability is read off the network** (arXiv 2602.04663, §3.2), the choice that matters most.
//!
//! A likelihood says *where* to evaluate the network (points x, times t) and *how* to turn a velocity there into a
//! log-probability. Current, behavior and reference weights are asked at the same points, so their ratio compares weights
//! and nothing else, and is exactly 1 for equal weights.

mod elbo;
mod timesteps;
mod trajectory;

pub use elbo::{Draws, Elbo, Normalizer, Points, Weighting};
pub use timesteps::Timesteps;
pub use trajectory::{Density, StepWeights, Trajectory};

use crate::{
    noise::{Key, Purpose},
    policy::{Conditioning, VelocityField},
    sampler::Sampling,
    schedule::Schedule,
};
use burn::tensor::{Device, Int, Tensor, TensorData};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::iter;

/// Images drawn from the behavior policy, B of them.
#[derive(Clone, Debug)]
pub struct Rollout {
    /// Points `[B, C, H, W]` at every time of the grid, the images last; only the images if no likelihood asked for more.
    pub points: Vec<Tensor<4>>,
    /// One row an image.
    pub cond: Conditioning,
    /// Keys of the images: seed, epoch and number of the sample.
    pub keys: Vec<Key>,
    /// The same key for all images of a group: that of its first.
    pub group_keys: Vec<Key>,
    /// How much the objective's loss counts for each: 1, but for images of earlier weights.
    pub importance: Vec<f64>,
    /// How they were drawn.
    pub sampling: Sampling,
    /// The path they were drawn on.
    pub schedule: Schedule,
}

impl Rollout {
    /// The finished images `[B, C, H, W]`.
    pub fn images(&self) -> &Tensor<4> {
        self.points.last().expect("invariant: a rollout holds its images")
    }

    /// The rows of all parts, one after the other; they were drawn the same way.
    ///
    /// # Panics
    /// If there are none.
    #[must_use]
    pub fn cat(parts: &[Self]) -> Self {
        let first = parts.first().expect("invariant: at least one part");
        let point = |k: usize| Tensor::cat(parts.iter().map(|p| p.points[k].clone()).collect(), 0);
        Self {
            points: (0..first.points.len()).map(point).collect(),
            cond: Conditioning::cat(&parts.iter().map(|p| &p.cond).collect::<Vec<_>>()),
            keys: parts.iter().flat_map(|p| p.keys.iter().copied()).collect(),
            group_keys: parts.iter().flat_map(|p| p.group_keys.iter().copied()).collect(),
            importance: parts.iter().flat_map(|p| p.importance.iter().copied()).collect(),
            ..*first
        }
    }

    /// The given rows.
    #[must_use]
    pub fn select(&self, rows: &[usize]) -> Self {
        let indices: Vec<i32> = rows.iter().map(|&r| r as i32).collect();
        let indices = Tensor::<1, Int>::from_data(TensorData::new(indices, [rows.len()]), &self.images().device());
        Self {
            points: self.points.iter().map(|p| p.clone().select(0, indices.clone())).collect(),
            cond: self.cond.select(rows),
            keys: rows.iter().map(|&r| self.keys[r]).collect(),
            group_keys: rows.iter().map(|&r| self.group_keys[r]).collect(),
            importance: rows.iter().map(|&r| self.importance[r]).collect(),
            ..*self
        }
    }

    /// Rows `start .. start + len`.
    #[must_use]
    pub fn narrow(&self, start: usize, len: usize) -> Self {
        Self {
            points: self.points.iter().map(|p| p.clone().narrow(0, start, len)).collect(),
            cond: self.cond.narrow(start, len),
            keys: self.keys[start..start + len].to_vec(),
            group_keys: self.group_keys[start..start + len].to_vec(),
            importance: self.importance[start..start + len].to_vec(),
            ..*self
        }
    }
}

/// A velocity `[N, C, H, W]` at a query's points to log-probabilities `[N]`; the second one is that whose error normalizes, if
/// not the first's own.
type Score = Box<dyn Fn(Tensor<4>, Option<&Tensor<4>>) -> Tensor<1> + Send + Sync>;

/// Where to look, and how to score what is seen there. N = draws · B rows, draw after draw.
pub struct Query {
    /// `[N, C, H, W]`
    pub x: Tensor<4>,
    /// `[N]`
    pub t: Tensor<1>,
    /// N rows.
    pub cond: Conditioning,
    /// σ/Δ `[N]`: how far an error of the velocity moves the clean sample.
    pub gain: Tensor<1>,
    /// The velocity that the score compares with `[N, C, H, W]`, if it does.
    pub target: Option<Tensor<4>>,
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
    /// The velocity of `field` at the query's points, `[N, C, H, W]`.
    pub fn velocity(&self, field: &dyn VelocityField) -> Tensor<4> {
        field.velocity(self.x.clone(), self.t.clone(), &self.cond)
    }

    /// Log-probability of each of the B samples under that velocity, `[B]`, its own error being the normalizer.
    pub fn log_prob(&self, velocity: Tensor<4>) -> Tensor<1> {
        self.merge(self.row_log_prob(velocity, None))
    }

    /// Log-probability of each draw under that velocity, `[N]`; `normalizer` is the velocity whose error normalizes, where that is
    /// not its own.
    pub fn row_log_prob(&self, velocity: Tensor<4>, normalizer: Option<&Tensor<4>>) -> Tensor<1> {
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

    /// All draws of each sample in one query, which needs them all at once.
    fn merged<'a>(queries: impl ExactSizeIterator<Item = Self> + 'a, merge: fn(usize) -> Merge) -> Queries<'a> {
        let merge = merge(queries.len());
        Box::new(iter::once_with(move || Self { weight: None, ..Self::cat(queries.collect(), merge) }))
    }

    /// The rows of all queries, one after the other.
    fn cat(queries: Vec<Self>, merge: Merge) -> Self {
        let cat = |f: &dyn Fn(&Self) -> Tensor<4>| Tensor::cat(queries.iter().map(f).collect(), 0);
        let x = cat(&|q| q.x.clone());
        let numbers = |f: &dyn Fn(&Self) -> Tensor<1>| Tensor::cat(queries.iter().map(f).collect(), 0);
        let (t, gain) = (numbers(&|q| q.t.clone()), numbers(&|q| q.gain.clone()));
        let all = |f: &dyn Fn(&Self) -> Option<Tensor<4>>| queries.iter().map(f).collect::<Option<Vec<_>>>();
        let target = all(&|q| q.target.clone()).map(|targets| Tensor::cat(targets, 0));
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
        let score = move |velocity: Tensor<4>, normalizer: Option<&Tensor<4>>| {
            let mut start = 0;
            let part = |(rows, score): &(usize, Score)| {
                start += rows;
                let of = |all: &Tensor<4>| all.clone().narrow(0, start - rows, *rows);
                score(of(&velocity), normalizer.map(of).as_ref())
            };
            Tensor::cat(scores.iter().map(part).collect(), 0)
        };
        let weight = weights.map(|weights| Tensor::cat(weights, 0));
        Self { x, t, cond, gain, target, transitions, weight, shared, score: Box::new(score), merge }
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
    /// Whether rollouts must keep every point of the trajectory.
    fn needs_trajectory(&self) -> bool;

    /// The queries for all rows of `rollout`, the same number whatever the rows, made one by one. Where a ratio compares whole
    /// samples ([`Ratio::PerSample`], [`Ratio::PerSampleMean`]) there is one, of all points.
    fn queries<'a>(&self, rollout: &'a Rollout) -> Queries<'a>;

    /// Why this likelihood cannot score what `sampling` draws, if so.
    fn refuses(&self, sampling: &Sampling, schedule: Schedule) -> Option<String>;
}

/// The likelihood of a recipe.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum LikelihoodKind {
    /// ELBO from the final image alone (arXiv 2602.04663).
    Elbo(Elbo),
    /// The sampler's own transition densities (DDPO, arXiv 2305.13301; Flow-GRPO, arXiv 2505.05470).
    Trajectory(Trajectory),
}

impl Default for LikelihoodKind {
    fn default() -> Self {
        Self::Elbo(Elbo::default())
    }
}

impl LikelihoodKind {
    /// The share of the grid that is looked at.
    pub fn fraction(&self) -> f64 {
        match self {
            Self::Elbo(Elbo {
                timesteps: Timesteps::Permutation { fraction } | Timesteps::Stratified { fraction, .. },
                ..
            }) => *fraction,
            Self::Elbo(_) => 1.0,
            Self::Trajectory(l) => l.fraction,
        }
    }

    /// Points each sample is evaluated at.
    pub fn count(&self, sampling: &Sampling, schedule: Schedule) -> usize {
        match self {
            Self::Elbo(l) => l.count(sampling.steps),
            Self::Trajectory(l) => {
                let key = Key::new(0, Purpose::Step, 0);
                l.scored(&sampling.rule.get().walk(&sampling.grid(schedule), key)).len()
            }
        }
    }

    /// The implementation.
    pub fn get(&self) -> &dyn Likelihood {
        match self {
            Self::Elbo(l) => l,
            Self::Trajectory(l) => l,
        }
    }
}

/// Row r of point `places[r]`, for each row `[N, C, H, W]`.
fn gather(points: &[Tensor<4>], places: &[usize]) -> Tensor<4> {
    let mut start = 0;
    let run = |run: &[usize]| {
        start += run.len();
        points[run[0]].clone().narrow(0, start - run.len(), run.len())
    };
    let mut runs: Vec<Tensor<4>> = places.chunk_by(|a, b| a == b).map(run).collect();
    if runs.len() == 1 { runs.remove(0) } else { Tensor::cat(runs, 0) }
}

/// Times as the network takes them, `[N]` in `f32`.
fn times(values: &[f64], device: &Device) -> Tensor<1> {
    let values: Vec<f32> = values.iter().map(|&t| t as f32).collect();
    Tensor::from_data(TensorData::new(values.clone(), [values.len()]), device)
}

#[cfg(test)]
mod tests;
