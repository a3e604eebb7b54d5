//! MixGRPO's sliding window (arXiv 2507.21802): an SDE inside a window of consecutive steps, Euler's ODE outside.
//!
//! Only steps inside the window have a density, and only they enter a trajectory's likelihood. Windows lie among all steps
//! but the last, T − 1 of them. With m epochs a position,
//!
//! | strategy | position of the window's first step |
//! |---|---|
//! | progressive | 0, stride, 2 stride, … with m = every, then from 0 again |
//! | random | uniform, drawn anew every `every` epochs |
//! | decay | as progressive, with m = ⌊every − (every − 1) p⌋ at p = position/(T − 1) |
//!
//! It depends on the epoch and the seed alone. Departures from the reference: there, windows leave out the last two steps and
//! are cut short at the end; random ones move every epoch, which is `every = 1` here.

use super::{Cps, Dance, Ddim, Euler, FlowSde, Sampler, Step};
use crate::{
    noise::{Key, Purpose},
    schedule::Grid,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// The sampler inside a window.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Sde {
    /// Flow-GRPO's SDE.
    FlowSde(FlowSde),
    /// DanceGRPO's SDE.
    Dance(Dance),
    /// Coefficients-preserving sampling.
    Cps(Cps),
    /// DDIM with noise.
    Ddim(Ddim),
}

impl Default for Sde {
    fn default() -> Self {
        Self::FlowSde(FlowSde::default())
    }
}

impl Sde {
    /// The implementation.
    pub(super) fn get(&self) -> &dyn Sampler {
        match self {
            Self::FlowSde(s) => s,
            Self::Dance(s) => s,
            Self::Cps(s) => s,
            Self::Ddim(s) => s,
        }
    }

    /// A walk that is stochastic at the steps `inside` and Euler's elsewhere.
    pub(super) fn at(&self, grid: &Grid, inside: &Range<usize>) -> Vec<Step> {
        let step = |k| if inside.contains(&k) { self.get().step(grid, k) } else { Euler {}.step(grid, k) };
        (0..grid.steps()).map(step).collect()
    }
}

/// How a window moves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// From noise to data, the same number of epochs at each position.
    #[default]
    Progressive,
    /// Anywhere.
    Random,
    /// From noise to data, ever fewer epochs at a position.
    Decay,
}

/// Stochastic inside a window of steps, Euler's rule outside.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Window {
    /// The rule inside.
    pub sde: Sde,
    /// Steps inside.
    pub size: usize,
    /// Epochs at one position; of `decay`, at the first.
    pub every: u64,
    /// Steps from one position to the next.
    pub stride: usize,
    /// How it moves.
    pub strategy: Strategy,
}

impl Default for Window {
    fn default() -> Self {
        Self { sde: Sde::default(), size: 4, every: 25, stride: 1, strategy: Strategy::default() }
    }
}

impl Window {
    /// The window's first step in an epoch, on a grid of `steps`.
    pub fn first(&self, steps: usize, seed: u64, epoch: u64) -> usize {
        let (every, range) = (self.every.max(1), steps.saturating_sub(1).max(1));
        let last = range.saturating_sub(self.size);
        if self.strategy == Strategy::Random {
            let key = Key::new(seed, Purpose::Window, epoch / every);
            return key.uniforms().next().map_or(0, |u| (u * (last + 1) as f64) as usize);
        }
        let epochs_at = |position: usize| match self.strategy {
            Strategy::Decay => every - ((every - 1) * position as u64).div_ceil(range as u64),
            Strategy::Progressive | Strategy::Random => every,
        };
        let positions = || (0..=last).step_by(self.stride.max(1));
        let mut rest = epoch % positions().map(epochs_at).sum::<u64>();
        for position in positions() {
            if rest < epochs_at(position) {
                return position;
            }
            rest -= epochs_at(position);
        }
        0
    }
}

impl Sampler for Window {
    fn step(&self, grid: &Grid, k: usize) -> Step {
        self.sde.get().step(grid, k)
    }

    fn walk(&self, grid: &Grid, key: Key) -> Vec<Step> {
        let first = self.first(grid.steps(), key.seed, key.epoch);
        self.sde.at(grid, &(first..first + self.size))
    }

    fn moves(&self) -> bool {
        true
    }

    fn validate(&self, grid: &Grid) -> Vec<String> {
        let (Self { size, every, stride, .. }, steps) = (*self, grid.steps());
        let mut problems = Vec::new();
        if size == 0 || size >= steps {
            problems.push(format!(
                "sampler `window`: size = {size} of {steps} steps: a window has at least 1 step and never holds the last"
            ));
        }
        if every == 0 || stride == 0 {
            problems.push(format!("sampler `window`: every = {every}, stride = {stride}: both must be at least 1"));
        }
        problems.extend(self.sde.get().validate(grid));
        problems
    }
}
