//! ELBO of the final image alone (arXiv 2602.04663, §3.2 and eqs. 13–15): no trajectory is kept, any sampler will do.
//!
//! ln π(x₀) ≥ C(x₀) − E_{t,ε}[ w(t) ‖v_θ(x_t, t) − u‖² ],  x_t = α x₀ + σ ε,  u = α′ x₀ + σ′ ε.
//!
//! C does not depend on θ and cancels in ratios. With e = v_θ − u, d = x̂₀ − x₀ = −(σ/Δ) e (rectified flow: −t e) and
//! G the guidance scale, a draw's log-probability is
//!
//! | weighting | log-probability |
//! |---|---|
//! | adaptive | −mean d² / sg(mean ∣d∣) / G |
//! | simple | −mean e² / G² |
//! | path-kl | −(1 − t)/(t + 10⁻³) mean e² |
//! | t | −mean d² |
//!
//! path-kl is Girsanov's exact weight (g² = 2t/(1 − t)); adaptive makes the gradient independent of the residual's scale.
//! Departures from the reference code: sums in f64; adaptive's normalizer floor 10⁻⁵ is the same.

use super::{Likelihood, Merge, Query, Ratio, Rollout, Score, rows, times};
use crate::{
    gaussian::{Reduction, reduce, wide},
    noise::{self, Key, Purpose},
    sampler::Sampling,
    schedule::Schedule,
};
use burn::tensor::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Weight of the error at each time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Weighting {
    /// Normalized by the error's own mean magnitude: the paper's default.
    #[default]
    Adaptive,
    /// Velocity error, weight 1.
    Simple,
    /// The exact path-KL weight (1 − t)/t; unstable in practice.
    PathKl,
    /// Clean-sample error: t² times the velocity error on rectified flow.
    T,
}

/// Which times a sample is evaluated at, all from the sampler's grid (its last, t = 0, excluded).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Timesteps {
    /// A random permutation of the grid per sample, cut to this share (rounded down, at least one).
    Permutation {
        /// 0.99 is 9 of 10, as in the reference.
        fraction: f64,
    },
    /// One uniformly random time per sample.
    One,
    /// Every time of the grid.
    All,
}

impl Default for Timesteps {
    fn default() -> Self {
        Self::Permutation { fraction: 0.99 }
    }
}

impl Timesteps {
    /// Draws per sample on a grid of `steps`.
    pub fn count(self, steps: usize) -> usize {
        match self {
            Self::Permutation { fraction } => ((steps as f64 * fraction) as usize).clamp(1, steps),
            Self::One => 1,
            Self::All => steps,
        }
    }

    /// Indices into the grid for the sample of `key`.
    fn of(self, key: Key, steps: usize) -> Vec<usize> {
        let key = Key { purpose: Purpose::Timestep, ..key };
        match self {
            Self::All => (0..steps).collect(),
            Self::One | Self::Permutation { .. } => {
                let mut order = key.permutation(steps);
                order.truncate(self.count(steps));
                order
            }
        }
    }
}

/// Which images share their draws of (t, ε).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Draws {
    /// Each image has its own: the reference's.
    #[default]
    PerSample,
    /// All images of a group share them (V-GRPO, arXiv 2604.23380). Advantages of a group add up to zero, so what its images
    /// have in common at a point cancels in the gradient instead of adding to its variance.
    PerGroup,
}

/// ELBO from the final image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Elbo {
    /// Weight of the error at each time.
    pub weighting: Weighting,
    /// Which times each sample is evaluated at.
    pub timesteps: Timesteps,
    /// Which images share their draws.
    pub draws: Draws,
    /// What a ratio compares.
    pub ratio: Ratio,
    /// Mean or sum over latent dimensions.
    pub reduction: Reduction,
}

impl Likelihood for Elbo {
    fn needs_trajectory(&self) -> bool {
        false
    }

    fn queries(&self, rollout: &Rollout) -> Vec<Query> {
        let (grid, steps) = (rollout.sampling.times(), rollout.sampling.steps);
        let chosen: Vec<Vec<usize>> = self.keys(rollout).iter().map(|&k| self.timesteps.of(k, steps)).collect();
        let draw = |i: usize| {
            let t: Vec<f64> = chosen.iter().map(|order| grid[order[i]]).collect();
            self.draw(rollout, i as u32, &t)
        };
        let queries: Vec<Query> = (0..self.timesteps.count(steps)).map(draw).collect();
        match self.ratio {
            Ratio::PerDraw => queries,
            Ratio::PerSample => vec![Query::merged(queries, Merge::Mean)],
        }
    }

    fn refuses(&self, _: &Sampling, schedule: Schedule) -> Option<String> {
        (self.weighting == Weighting::PathKl && schedule != Schedule::RectifiedFlow).then(|| {
            "likelihood weighting `path-kl` is derived for rectified flow; use `simple` or `adaptive` here".into()
        })
    }
}

impl Elbo {
    /// What decides the draws of each image.
    fn keys(self, rollout: &Rollout) -> &[Key] {
        match self.draws {
            Draws::PerSample => &rollout.keys,
            Draws::PerGroup => &rollout.group_keys,
        }
    }

    /// The query of one draw: fresh noise for every sample or group, at one time each.
    fn draw(&self, rollout: &Rollout, draw: u32, t: &[f64]) -> Query {
        let (clean, schedule) = (rollout.images().clone(), rollout.schedule);
        let ([_, c, h, w], device) = (clean.dims(), clean.device());
        let keys = self.keys(rollout).iter().map(|&k| Key { purpose: Purpose::Draw, ..k }.draw(draw));
        let noise = noise::normal(keys, [c, h, w], &device);
        let gains: Vec<f64> = t.iter().map(|&t| schedule.level(t).clean_gain()).collect();
        let (gain, target) = (rows(&gains, &device), schedule.target(clean.clone(), noise.clone(), t));
        Query {
            x: schedule.mix(clean, noise, t),
            t: times(t, &device),
            cond: rollout.cond.clone(),
            score: self.score(target.clone(), gain.clone(), rollout.sampling.guidance, t),
            gain,
            target: Some(target),
            transitions: None,
            merge: Merge::Single,
        }
    }

    fn score(self, target: Tensor<4>, gain: Tensor<1>, guidance: f64, t: &[f64]) -> Score {
        let path_kl: Vec<f64> = t.iter().map(|&t| (1.0 - t) / (t + 1e-3)).collect();
        let path_kl = rows(&path_kl, &target.device());
        // Widened before subtracting: an `f32` difference of O(1) numbers would lose what log-ratios of 1e-5 are made of.
        let target = wide(target);
        Box::new(move |velocity| {
            let error = wide(velocity) - target.clone();
            let square = reduce(error.clone().square(), self.reduction);
            match self.weighting {
                Weighting::Adaptive => {
                    let size = (reduce(error.detach().abs(), Reduction::Mean) * gain.clone()).clamp_min(1e-5);
                    square * gain.clone().square() / size / -guidance
                }
                Weighting::Simple => square / -(guidance * guidance),
                Weighting::PathKl => -square * path_kl.clone(),
                Weighting::T => -square * gain.clone().square(),
            }
        })
    }
}
