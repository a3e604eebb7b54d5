//! **Axis iii: how a rollout draws images from a policy** (arXiv 2602.04663, §3.3).
//!
//! A sampler walks down a grid of times and says, at each step, the distribution of the next point as a table of numbers
//! ([`Step`]). One piece of code draws from every table and one scores every table, and with equal weights the ratio of two
//! scores is exactly 1.

mod step;

pub use step::{HISTORY, Mean, Step, Visit, mean, scaled};
pub use window::{Sde, Strategy};

use crate::{
    axis::axis,
    noise::{self, Key},
    policy::{Conditioning, VelocityField, rows_of},
    schedule::{Grid, Schedule, Spacing},
    setting::positive_number,
};
use burn::tensor::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A prompt's samples, split: `points × explorations`, of which those of one point differ by the same step alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Branches {
    /// Steps at which samples of a prompt branch.
    pub points: usize,
    /// Samples that branch at the same step.
    pub explorations: usize,
}

/// A rule for walking from noise to data.
pub trait Sampler: Send + Sync {
    /// Step `k` from `grid.times[k]` to `grid.times[k + 1]`; of a rule that is stochastic at some steps only, were it so at all.
    fn step(&self, grid: &Grid, k: usize) -> Step;

    /// The T steps of the sample of `key`: [`step`](Self::step) for each, unless they depend on the sample or the epoch.
    fn walk(&self, grid: &Grid, key: Key) -> Vec<Step> {
        let _ = key;
        (0..grid.steps()).map(|k| self.step(grid, k)).collect()
    }

    /// Whether the steps depend on the sample or the epoch.
    fn moves(&self) -> bool {
        false
    }

    /// How the samples of a prompt are split into those that differ by the same steps; `None` if all do.
    fn branches(&self) -> Option<Branches> {
        None
    }

    /// Why this sampler cannot walk this grid, one sentence each.
    fn validate(&self, grid: &Grid) -> Vec<String> {
        let _ = grid;
        Vec::new()
    }
}

axis! {
    /// The sampler of a recipe.
    SamplerKind: Sampler, default Dpm2;
    /// First-order ODE (rectified flow, arXiv 2209.03003).
    euler::Euler,
    /// DPM-Solver++, second-order multistep ODE (arXiv 2211.01095).
    dpm2::Dpm2,
    /// UniPC: the same with a corrector (arXiv 2302.04867).
    unipc::Unipc,
    /// Flow-GRPO's SDE (arXiv 2505.05470).
    flow_sde::FlowSde,
    /// DanceGRPO's SDE (arXiv 2505.07818).
    dance::Dance,
    /// DDIM with a share of ancestral noise (arXiv 2010.02502): DDPO's sampler (arXiv 2305.13301).
    ddim::Ddim,
    /// Coefficients-preserving sampling (Flow-CPS, arXiv 2509.05952).
    cps::Cps,
    /// SA-Solver: stochastic Adams of first or second order (arXiv 2309.05019); AWM's.
    sa_solver::SaSolver,
    /// Stochastic inside a sliding window of steps, Euler outside (MixGRPO, arXiv 2507.21802).
    window::Window,
    /// TempFlow-GRPO's: samples that share a path up to one stochastic step (arXiv 2508.04324).
    branch::Branch,
}

/// How a recipe says that samples are drawn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SamplerConfig {
    /// The rule of a step.
    pub rule: SamplerKind,
    /// Network evaluations a sample.
    pub steps: usize,
    /// The times that a walk stops at: `"diffusers"` (its flow matching scheduler's), `"uniform"` (evenly, then shifted; also
    /// `"pipeline"`, FLUX's), `"leading"` (Stable Diffusion 1's), or a list of as many falling times as there are steps.
    pub grid: Spacing,
    /// SD3's time shift; 1 is none. Without it the model's own: what a folder's scheduler says, dynamic shifting included, and 1 for
    /// the nano model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shift: Option<f64>,
    /// Classifier-free guidance scale; 1 is off.
    pub guidance: f64,
    /// Whether training takes the unconditional branch of guidance as a constant, without a gradient (Flow-GRPO's code).
    pub detach_unconditional: bool,
}

/// SD3's shift, for samplers that are built without a model that says one.
const SHIFT: f64 = 3.0;

impl Default for SamplerConfig {
    fn default() -> Self {
        Self {
            rule: SamplerKind::default(),
            steps: 10,
            grid: Spacing::default(),
            shift: None,
            guidance: 1.0,
            detach_unconditional: false,
        }
    }
}

impl SamplerConfig {
    /// What draws; without a shift, by SD3's, 3.
    pub fn build(&self) -> Sampling {
        Sampling {
            rule: self.rule.build().into(),
            steps: self.steps,
            spacing: self.grid.clone(),
            shift: self.shift.unwrap_or(SHIFT),
            guidance: self.guidance,
            detach_unconditional: self.detach_unconditional,
        }
    }
}

/// How samples are drawn: the rule, the steps and the guidance.
#[derive(Clone)]
pub struct Sampling {
    /// The rule of a step.
    pub rule: Arc<dyn Sampler>,
    /// Network evaluations a sample.
    pub steps: usize,
    /// The times that a walk stops at.
    pub spacing: Spacing,
    /// SD3's time shift; 1 is none.
    pub shift: f64,
    /// Classifier-free guidance scale; 1 is off.
    pub guidance: f64,
    /// Whether the unconditional branch of guidance has no gradient.
    pub detach_unconditional: bool,
}

impl Sampling {
    /// By a rule, in so many steps of diffusers' grid, without shift or guidance.
    pub fn plain(rule: Arc<dyn Sampler>, steps: usize) -> Self {
        Self { rule, steps, spacing: Spacing::default(), shift: 1.0, guidance: 1.0, detach_unconditional: false }
    }

    /// The grid of times, `steps + 1` of them, on a path.
    pub fn grid(&self, schedule: Schedule) -> Grid {
        Grid::new(schedule, self.spacing.times(self.steps, self.shift))
    }

    /// Why nothing can be drawn this way on `schedule`, one sentence each; `place` is where a recipe says it.
    pub fn validate(&self, place: &str, schedule: Schedule) -> Vec<String> {
        let mut problems = Vec::new();
        for (name, value) in [("shift", self.shift), ("guidance", self.guidance)] {
            problems.extend(positive_number(&format!("{place}.{name}"), value));
        }
        if self.steps == 0 {
            problems.push(format!("{place}.steps = 0: at least one step from noise to sample"));
            return problems;
        }
        let wrong = self.spacing.validate(place, self.steps);
        if !wrong.is_empty() {
            problems.extend(wrong);
            return problems;
        }
        problems.extend(self.rule.validate(&self.grid(schedule)));
        problems
    }
}

/// The numbers of the steps that have a density.
pub fn stochastic(walk: &[Step]) -> Vec<usize> {
    (0..walk.len()).filter(|&k| walk[k].std > 0.0).collect()
}

/// What is wrong with a share of noise, if anything.
fn share(sampler: &str, name: &str, value: f64) -> Vec<String> {
    let told = format!("sampler `{sampler}`: {name} = {value}: must lie between 0 and 1");
    (!(0.0..=1.0).contains(&value)).then_some(told).into_iter().collect()
}

/// What is wrong with an amount of noise, if anything.
fn noise(sampler: &str, name: &str, value: f64) -> Option<String> {
    let fine = value >= 0.0 && value.is_finite();
    (!fine).then(|| format!("sampler `{sampler}`: {name} = {value}: must be 0 (an ODE) or a positive number"))
}

/// A complaint on any other path.
fn rectified_flow_only(sampler: &str, grid: &Grid, instead: &str) -> Vec<String> {
    let told = format!("sampler `{sampler}` is defined on rectified flow; {instead}");
    (grid.schedule != Schedule::RectifiedFlow).then_some(told).into_iter().collect()
}

/// What is kept of a walk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keep {
    /// Every point, in place of the clean samples alone.
    pub points: bool,
    /// The velocity at every point but the last.
    pub velocities: bool,
}

/// A walk that was made. N rows, D dimensions, T steps.
pub struct Path {
    /// T + 1 points `[N, D]`, or the clean samples alone.
    pub points: Vec<Tensor<2>>,
    /// T velocities `[N, D]`, or none.
    pub velocities: Vec<Tensor<2>>,
}

/// Walks from the points `start` `[N, D]` to data, one row a walk.
///
/// `walks` gives each row's steps and the key of their noise. `alike` has for each row the first row with the same start and the same
/// conditioning (its own number if there is none before): as long as their steps are the same and have no noise, the field is asked once
/// for all of them.
pub fn walk(
    field: &dyn VelocityField,
    grid: &Grid,
    start: Tensor<2>,
    cond: &Conditioning,
    walks: &[(Key, &[Step])],
    mut alike: Vec<usize>,
    keep: Keep,
) -> Path {
    let (dims, device) = (start.dims()[1], start.device());
    let mut x = start;
    let mut path = Path { points: Vec::new(), velocities: Vec::new() };
    let mut visits: Vec<Visit> = Vec::new();
    for k in 0..grid.steps() {
        let velocity = once_for_all(field, x.clone(), grid.times[k], cond, &alike);
        if keep.velocities {
            path.velocities.push(velocity.clone());
        }
        visits.insert(0, Visit { x: x.clone(), velocity });
        visits.truncate(HISTORY);
        if keep.points {
            path.points.push(x);
        }
        let steps: Vec<Step> = walks.iter().map(|(_, walk)| walk[k]).collect();
        alike = still_alike(&alike, &steps);
        x = mean(&steps, &visits);
        if steps.iter().any(|step| step.std > 0.0) {
            let noise = noise::normal(walks.iter().map(|(key, _)| key.draw(k as u32)), dims, &device);
            let noise = scaled(noise, steps.iter().map(|step| step.std));
            x = x + noise.expect("invariant: some deviation is not 0");
        }
    }
    path.points.push(x);
    path
}

/// The velocity at `x` `[N, D]`, where rows that are alike are asked for once.
fn once_for_all(field: &dyn VelocityField, x: Tensor<2>, t: f64, cond: &Conditioning, alike: &[usize]) -> Tensor<2> {
    let device = x.device();
    let firsts: Vec<usize> = (0..alike.len()).filter(|&row| alike[row] == row).collect();
    let times = |rows: usize| Tensor::full([rows], t, &device);
    if firsts.len() == alike.len() {
        return field.velocity(x, times(alike.len()), cond);
    }
    let few = field.velocity(rows_of(&x, &firsts), times(firsts.len()), &cond.select(&firsts));
    let places: Vec<usize> = alike.iter().map(|first| firsts.partition_point(|row| row < first)).collect();
    rows_of(&few, &places)
}

/// The first row that each stands at the same point with after these steps.
fn still_alike(alike: &[usize], steps: &[Step]) -> Vec<usize> {
    let together = |a: usize, b: usize| alike[a] == alike[b] && steps[a] == steps[b] && steps[a].std <= 0.0;
    (0..alike.len()).map(|row| (0..row).find(|&before| together(before, row)).unwrap_or(row)).collect()
}

#[cfg(test)]
mod tests;
