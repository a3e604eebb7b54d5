//! **Axis iii: how a rollout draws images from a policy** (arXiv 2602.04663, §3.3).
//!
//! A sampler walks down a grid of times and says, at each step, the distribution of the next point as a table of numbers
//! ([`Step`]). One piece of code draws from every table and one scores every table, and with equal weights the ratio of two
//! scores is exactly 1.

mod branch;
mod cps;
mod dance;
mod ddim;
mod dpm2;
mod euler;
mod flow_sde;
mod sa_solver;
mod step;
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
pub use step::{HISTORY, Mean, Step, Visit, mean, scaled};
pub use unipc::Unipc;
pub use window::{Sde, Strategy, Window};

use crate::{
    noise::{self, Key},
    policy::{Conditioning, VelocityField},
    schedule::{Grid, Schedule, grid},
};
use burn::tensor::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A rule for walking from noise to data.
pub trait Sampler: Send + Sync {
    /// Step `k` from `grid.times[k]` to `grid.times[k + 1]`; of a rule that is stochastic at some steps only, were it so at all.
    fn step(&self, grid: &Grid, k: usize) -> Step;

    /// The T steps of the sample of `key`: [`step`](Self::step) for each, unless they depend on the sample or the epoch.
    fn walk(&self, grid: &Grid, key: Key) -> Vec<Step> {
        let _ = key;
        (0..grid.steps()).map(|k| self.step(grid, k)).collect()
    }

    /// Images of a prompt that differ by the same steps; `None` if all do.
    fn explorations(&self) -> Option<usize> {
        None
    }

    /// Why this sampler cannot walk this grid, one sentence each.
    fn validate(&self, grid: &Grid) -> Vec<String> {
        let _ = grid;
        Vec::new()
    }
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

    /// The grid on a path.
    pub fn grid(&self, schedule: Schedule) -> Grid {
        Grid::new(schedule, self.times())
    }

    /// Images of a prompt that differ by the same steps; `None` if all do.
    pub fn explorations(&self) -> Option<usize> {
        self.rule.get().explorations()
    }

    /// The deviation of every step but the last, were the whole walk stochastic.
    pub fn noise(&self, schedule: Schedule) -> Vec<f64> {
        let grid = self.grid(schedule);
        (0..self.steps.saturating_sub(1).max(1)).map(|k| self.rule.get().step(&grid, k).std).collect()
    }

    /// The steps that have a density, of the sample of `key`.
    pub fn stochastic_steps(&self, schedule: Schedule, key: Key) -> Vec<usize> {
        let walk = self.rule.get().walk(&self.grid(schedule), key);
        (0..walk.len()).filter(|&k| walk[k].std > 0.0).collect()
    }

    /// Whether a step with a density depends on velocities at earlier points too, which a likelihood of single steps cannot see.
    pub fn remembers(&self, schedule: Schedule, key: Key) -> bool {
        let walk = self.rule.get().walk(&self.grid(schedule), key);
        walk.iter().any(|step| step.std > 0.0 && step.mean.remembers())
    }

    /// Why nothing can be drawn this way on `schedule`, one sentence each.
    pub fn validate(&self, schedule: Schedule) -> Vec<String> {
        self.rule.get().validate(&self.grid(schedule))
    }
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

/// Draws one image per row of `cond`.
///
/// `start` `[N, C, H, W]` is the point at t = 1; `keys` (one a row) give each row's steps and the noise of stochastic ones.
/// Returns the points at all times, the final image last; only that one if `trajectory` is not asked for.
pub fn sample(
    field: &dyn VelocityField,
    sampling: &Sampling,
    schedule: Schedule,
    start: Tensor<4>,
    cond: &Conditioning,
    keys: &[Key],
    trajectory: bool,
) -> Vec<Tensor<4>> {
    let (grid, device) = (sampling.grid(schedule), start.device());
    let walks: Vec<Vec<Step>> = keys.iter().map(|&key| sampling.rule.get().walk(&grid, key)).collect();
    let [n, c, h, w] = start.dims();
    let mut x = start;
    let mut kept = Vec::new();
    let mut visits: Vec<Visit> = Vec::new();
    for k in 0..grid.steps() {
        let t = Tensor::full([n], grid.times[k], &device);
        let velocity = field.velocity(x.clone(), t, cond);
        visits.insert(0, Visit { x: x.clone(), velocity });
        visits.truncate(HISTORY);
        if trajectory {
            kept.push(x);
        }
        let steps: Vec<Step> = walks.iter().map(|walk| walk[k]).collect();
        x = step::mean(&steps, &visits);
        if steps.iter().any(|step| step.std > 0.0) {
            let noise = noise::normal(keys.iter().map(|key| key.draw(k as u32)), [c, h, w], &device);
            x = x + step::scaled(noise, steps.iter().map(|step| step.std)).expect("invariant: some deviation is not 0");
        }
    }
    kept.push(x);
    kept
}

#[cfg(test)]
mod tests;
