//! Which times an ELBO looks at (arXiv 2602.04663, appendix C.1; stratified: arXiv 2509.25050; logit-normal: arXiv 2403.03206,
//! eq. 19).

use super::{share, share_of};
use crate::noise::{Key, Purpose};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which times a sample is evaluated at: levels of the sampler's grid (its last, t = 0, excluded), or any.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Timesteps {
    /// A random permutation of the grid per sample, cut to this share, rounded down, at least one (arXiv 2602.04663).
    Permutation {
        /// 0.99 is 9 of 10, as in the reference.
        #[serde(default = "most")]
        fraction: f64,
    },
    /// One uniformly random time per sample (arXiv 2602.04663).
    One,
    /// Every time of the grid (arXiv 2602.04663).
    All,
    /// One random level of each of several equal parts of the grid: AWM's `discrete_wo_init` and `discrete_with_init` (arXiv 2509.25050).
    Stratified {
        /// Times per sample.
        count: usize,
        /// Whether t = 1 is one of them, always; otherwise it never is.
        #[serde(default)]
        first: bool,
        /// Share of the grid that is divided, from the first level on (rounded down).
        #[serde(default = "most")]
        fraction: f64,
    },
    /// Any times, with ln(t/(1 − t)) normal: SD3's training times (arXiv 2403.03206). A time shift s, as AWM's, adds ln s to the mean.
    LogitNormal {
        /// Times per sample.
        count: usize,
        /// Mean of ln(t/(1 − t)).
        #[serde(default)]
        mean: f64,
        /// Its deviation.
        #[serde(default = "one")]
        std: f64,
    },
}

fn most() -> f64 {
    0.99
}

fn one() -> f64 {
    1.0
}

impl Default for Timesteps {
    fn default() -> Self {
        Self::Permutation { fraction: most() }
    }
}

impl Timesteps {
    /// Times per sample on a grid of `steps`.
    pub fn count(self, steps: usize) -> usize {
        match self {
            Self::Permutation { fraction } => share_of(steps, fraction),
            Self::One => 1,
            Self::All => steps,
            Self::Stratified { count, .. } | Self::LogitNormal { count, .. } => count,
        }
    }

    /// The times of the sample of `key`.
    pub(super) fn draw(self, key: Key, grid: &[f64]) -> Vec<f64> {
        let (key, steps) = (Key { purpose: Purpose::Timestep, ..key }, grid.len() - 1);
        match self {
            Self::All => grid[..steps].to_vec(),
            Self::One | Self::Permutation { .. } => {
                key.permutation(steps).into_iter().take(self.count(steps)).map(|k| grid[k]).collect()
            }
            Self::Stratified { count, first, fraction } => {
                let (end, strata) = ((steps as f64 * fraction) as usize, count - usize::from(first));
                let edge = |j: usize| (1.0 + j as f64 * (end as f64 - 1.0) / strata as f64) as usize;
                let level = |(j, u): (usize, f64)| grid[edge(j) + (u * (edge(j + 1) - edge(j)) as f64) as usize];
                let levels = (0..strata).zip(key.uniforms()).map(level);
                first.then_some(grid[0]).into_iter().chain(levels).collect()
            }
            Self::LogitNormal { count, mean, std } => {
                let mut normals = Vec::new();
                key.extend_normals(count, &mut normals);
                normals.into_iter().map(|n| 1.0 / (1.0 + (-mean - std * f64::from(n)).exp())).collect()
            }
        }
    }

    /// Whether all times are levels of the grid.
    pub(super) fn on_grid(self) -> bool {
        !matches!(self, Self::LogitNormal { .. })
    }

    /// Why a grid of `steps` has no such times, one sentence each.
    pub(super) fn validate(self, steps: usize) -> Vec<String> {
        let mut problems = Vec::new();
        match self {
            Self::Stratified { count, first, fraction } => {
                problems.extend(share("likelihood.timesteps.fraction", fraction));
                let levels = ((steps as f64 * fraction) as usize).saturating_sub(1);
                let strata = count.saturating_sub(first.into());
                if count == 0 || strata > levels {
                    problems.push(format!(
                        "likelihood.timesteps.count = {count}: there are {levels} levels to divide after the first, of \
                         sampler.steps = {steps} and fraction = {fraction}"
                    ));
                }
            }
            Self::LogitNormal { count, mean, std } => {
                let fine = count > 0 && mean.is_finite() && std >= 0.0 && std.is_finite();
                if !fine {
                    problems.push(format!(
                        "likelihood.timesteps: count = {count}, mean = {mean}, std = {std}: count must be at least 1, mean a \
                         number, and std 0 or a positive number"
                    ));
                }
            }
            Self::Permutation { fraction } => problems.extend(share("likelihood.timesteps.fraction", fraction)),
            Self::One | Self::All => {}
        }
        problems
    }
}
