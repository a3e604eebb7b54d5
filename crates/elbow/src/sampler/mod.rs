//! **Axis iii: how a rollout draws images from a policy** (arXiv 2602.04663, §3.3).
//!
//! A sampler walks down a grid of times and knows, at each step, the distribution of the next point. One piece of code
//! therefore serves rollouts ([`Gaussian::sample`]) and re-scoring ([`Gaussian::log_prob`]), and with equal weights the
//! ratio of the two is exactly 1.

mod branch;
mod cps;
mod dance;
mod ddim;
mod dpm2;
mod euler;
mod flow_sde;
mod sa_solver;
mod unipc;
mod window;

pub use branch::Branch;
pub use cps::Cps;
pub use dance::Dance;
pub use ddim::Ddim;
pub use dpm2::Dpm2;
pub use euler::Euler;
pub use flow_sde::FlowSde;
pub use sa_solver::SaSolver;
pub use unipc::Unipc;
pub use window::{Sde, Strategy, Window};

use crate::{
    gaussian::Gaussian,
    noise::{self, Key},
    policy::{Conditioning, VelocityField},
    schedule::{Level, Schedule, grid},
};
use burn::tensor::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// One rule for stepping from `times[k]` to `times[k + 1]`.
pub trait Sampler: Send + Sync {
    /// The deviation of step `k`; 0 is a deterministic step, which has no density.
    fn std(&self, schedule: Schedule, times: &[f64], k: usize) -> f64 {
        let _ = (schedule, times, k);
        0.0
    }

    /// The distribution of the point at `times[k + 1]`.
    ///
    /// | Argument | Shape | |
    /// |---|---|---|
    /// | `times` | T + 1 | 1 = t₀ > … > t_T = 0 |
    /// | `x` | `[N, C, H, W]` | the point at `times[k]` |
    /// | `steps` | newest first | points and velocities at `times[k]`, `times[k − 1]`, … as far as they are kept |
    fn transition(&self, schedule: Schedule, times: &[f64], k: usize, steps: &[Step]) -> Gaussian;

    /// Whether a step with a density depends on velocities at earlier points too, which a likelihood of single steps cannot see.
    fn remembers(&self) -> bool {
        false
    }

    /// Why this sampler cannot take `steps` steps on `schedule`, if so.
    fn refuses(&self, schedule: Schedule, steps: usize) -> Option<String> {
        let _ = (schedule, steps);
        None
    }
}

/// A point of a trajectory and the velocity there, both `[N, C, H, W]`.
#[derive(Clone, Debug)]
pub struct Step {
    /// The point.
    pub x: Tensor<4>,
    /// dx/dt at it.
    pub velocity: Tensor<4>,
}

/// The sampler of a recipe.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum SamplerKind {
    /// First-order ODE (rectified flow, arXiv 2209.03003).
    Euler(Euler),
    /// DPM-Solver++, second-order multistep ODE (arXiv 2211.01095).
    Dpm2(Dpm2),
    /// UniPC: the same with a corrector (arXiv 2302.04867).
    Unipc(Unipc),
    /// Flow-GRPO's SDE (arXiv 2505.05470).
    FlowSde(FlowSde),
    /// DanceGRPO's SDE (arXiv 2505.07818).
    Dance(Dance),
    /// DDIM with a share of ancestral noise (arXiv 2010.02502): DDPO's sampler (arXiv 2305.13301).
    Ddim(Ddim),
    /// Coefficients-preserving sampling (Flow-CPS, arXiv 2509.05952).
    Cps(Cps),
    /// SA-Solver: stochastic Adams of first or second order (arXiv 2309.05019); AWM's.
    SaSolver(SaSolver),
    /// Stochastic inside a sliding window of steps, Euler outside (MixGRPO, arXiv 2507.21802).
    Window(Window),
    /// TempFlow-GRPO's: images that share a path up to one stochastic step (arXiv 2508.04324).
    Branch(Branch),
}

impl Default for SamplerKind {
    fn default() -> Self {
        Self::Dpm2(Dpm2 {})
    }
}

impl SamplerKind {
    /// The implementation.
    pub fn get(&self) -> &dyn Sampler {
        match self {
            Self::Euler(s) => s,
            Self::Dpm2(s) => s,
            Self::Unipc(s) => s,
            Self::FlowSde(s) => s,
            Self::Dance(s) => s,
            Self::Ddim(s) => s,
            Self::Cps(s) => s,
            Self::SaSolver(s) => s,
            Self::Window(s) => s,
            Self::Branch(s) => s,
        }
    }
}

/// How images are drawn: the rule, the steps and the guidance.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Sampling {
    /// The rule of a step.
    pub rule: SamplerKind,
    /// Network evaluations an image.
    pub steps: usize,
    /// SD3's time shift; 1 is none.
    pub shift: f64,
    /// Classifier-free guidance scale; 1 is off.
    pub guidance: f64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { rule: SamplerKind::default(), steps: 10, shift: 3.0, guidance: 1.0 }
    }
}

impl Sampling {
    /// The grid of times, `steps + 1` from 1 to 0.
    pub fn times(&self) -> Vec<f64> {
        grid(self.steps, self.shift)
    }

    /// The same in one epoch: where a window is follows from the seed and the epoch alone.
    #[must_use]
    pub fn at(self, seed: u64, epoch: u64) -> Self {
        match self.rule {
            SamplerKind::Window(window) => {
                Self { rule: SamplerKind::Window(window.at(self.steps, seed, epoch)), ..self }
            }
            _ => self,
        }
    }

    /// Rows that are drawn alike, one run after the other: all of them, unless they branch at steps of their own.
    pub fn runs(&self, keys: &[Key]) -> Vec<(Range<usize>, Self)> {
        let SamplerKind::Branch(branch) = self.rule else { return vec![(0..keys.len(), *self)] };
        let mut end = 0;
        let run = |run: &[Key]| {
            end += run.len();
            let rule = SamplerKind::Window(branch.window(self.steps, run[0]));
            (end - run.len()..end, Self { rule, ..*self })
        };
        keys.chunk_by(|&a, &b| branch.point(a) == branch.point(b)).map(run).collect()
    }

    /// Images of a prompt that differ by the same steps; `None` if all do.
    pub fn explorations(&self) -> Option<usize> {
        if let SamplerKind::Branch(Branch { explorations, .. }) = self.rule { Some(explorations) } else { None }
    }

    /// The deviation of every step but the last, were the whole path stochastic.
    pub fn noise(&self, schedule: Schedule) -> Vec<f64> {
        let rule = match &self.rule {
            SamplerKind::Window(Window { sde, .. }) | SamplerKind::Branch(Branch { sde, .. }) => sde.get(),
            rule => rule.get(),
        };
        let times = self.times();
        (0..self.steps.saturating_sub(1).max(1)).map(|k| rule.std(schedule, &times, k)).collect()
    }

    /// The steps that have a density.
    pub fn stochastic_steps(&self, schedule: Schedule) -> Vec<usize> {
        let (times, rule) = (self.times(), self.rule.get());
        (0..self.steps).filter(|&k| rule.std(schedule, &times, k) > 0.0).collect()
    }

    /// Why nothing can be drawn this way on `schedule`, if so.
    pub fn refuses(&self, schedule: Schedule) -> Option<String> {
        self.rule.get().refuses(schedule, self.steps)
    }
}

/// The path through what `step` predicts, with noise of deviation `std` drawn anew at the next time:
/// N( α′ x̂₀ + √(σ′² − std²) ε̂, std² I ).
fn redrawn(schedule: Schedule, times: &[f64], k: usize, step: &Step, std: f64) -> Gaussian {
    let (t, to) = (times[k], schedule.level(times[k + 1]));
    let clean = schedule.clean(step.x.clone(), step.velocity.clone(), t);
    let noise = schedule.noise(step.x.clone(), step.velocity.clone(), t);
    let kept = (to.sigma * to.sigma - std * std).max(0.0).sqrt();
    Gaussian { mean: clean * to.alpha + noise * kept, std }
}

/// What is wrong with a share of noise, if anything.
fn share(sampler: &str, name: &str, value: f64) -> Option<String> {
    (!(0.0..=1.0).contains(&value)).then(|| format!("sampler `{sampler}`: {name} = {value}: must lie between 0 and 1"))
}

/// Step `k` in λ = ln(α/σ): its length h, infinite from pure noise and to data, and e^{−h}, which is finite everywhere.
fn span(schedule: Schedule, times: &[f64], k: usize) -> (f64, f64) {
    let (from, to) = (schedule.level(times[k]), schedule.level(times[k + 1]));
    let lambda = |level: Level| (level.alpha / level.sigma).ln();
    (lambda(to) - lambda(from), (from.alpha * to.sigma) / (from.sigma * to.alpha))
}

/// Points kept while sampling: enough to correct a second-order step.
const HISTORY: usize = 3;

/// Draws one image per row of `cond`.
///
/// `start` `[N, C, H, W]` is the point at t = 1; `keys` (one a row) give the noise of stochastic steps. Returns the points at
/// all `times`, the final image last; only that one if `trajectory` is not asked for.
pub fn sample(
    field: &dyn VelocityField,
    sampling: &Sampling,
    schedule: Schedule,
    start: Tensor<4>,
    cond: &Conditioning,
    keys: &[Key],
    trajectory: bool,
) -> Vec<Tensor<4>> {
    let runs = sampling.runs(keys);
    let [(_, sampling)] = runs[..] else {
        let part = |(rows, sampling): (Range<usize>, Sampling)| {
            let (start, cond) = (start.clone().narrow(0, rows.start, rows.len()), cond.narrow(rows.start, rows.len()));
            sample(field, &sampling, schedule, start, &cond, &keys[rows], trajectory)
        };
        let beside = |all: Vec<Tensor<4>>, part: Vec<Tensor<4>>| {
            all.into_iter().zip(part).map(|(rows, more)| Tensor::cat(vec![rows, more], 0)).collect()
        };
        return runs.into_iter().map(part).reduce(beside).unwrap_or_default();
    };
    let (times, rule, device) = (sampling.times(), sampling.rule.get(), start.device());
    let [n, c, h, w] = start.dims();
    let mut x = start;
    let mut kept = Vec::new();
    let mut steps: Vec<Step> = Vec::new();
    for k in 0..times.len() - 1 {
        let t = Tensor::full([n], times[k], &device);
        let velocity = field.velocity(x.clone(), t, cond);
        steps.insert(0, Step { x: x.clone(), velocity });
        steps.truncate(HISTORY);
        if trajectory {
            kept.push(x);
        }
        let next = rule.transition(schedule, &times, k, &steps);
        x = if next.std > 0.0 {
            let noise = noise::normal(keys.iter().map(|key| key.draw(k as u32)), [c, h, w], &device);
            next.sample(noise)
        } else {
            next.mean
        };
    }
    kept.push(x);
    kept
}

#[cfg(test)]
mod tests;
