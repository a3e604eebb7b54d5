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
    gaussian::Gaussian,
    noise::{Key, Purpose},
    schedule::Schedule,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
    /// The first step inside: not part of a recipe, see [`Window::at`].
    #[serde(skip)]
    pub first: usize,
}

impl Default for Window {
    fn default() -> Self {
        Self { sde: Sde::default(), size: 4, every: 25, stride: 1, strategy: Strategy::default(), first: 0 }
    }
}

impl Window {
    /// The same window where it is in an epoch, on a grid of `steps`.
    #[must_use]
    pub fn at(self, steps: usize, seed: u64, epoch: u64) -> Self {
        let (every, range) = (self.every.max(1), steps.saturating_sub(1).max(1));
        let last = range.saturating_sub(self.size);
        let stay = |position: usize| match self.strategy {
            Strategy::Decay => every - ((every - 1) * position as u64).div_ceil(range as u64),
            Strategy::Progressive | Strategy::Random => every,
        };
        let positions = || (0..=last).step_by(self.stride.max(1));
        let first = if self.strategy == Strategy::Random {
            let key = Key::new(seed, Purpose::Window, epoch / every);
            key.uniforms().next().map_or(0, |u| (u * (last + 1) as f64) as usize)
        } else {
            let mut rest = epoch % positions().map(stay).sum::<u64>();
            let here = |&position: &usize| {
                let inside = rest < stay(position);
                rest = rest.saturating_sub(stay(position));
                inside
            };
            positions().find(here).unwrap_or(0)
        };
        Self { first, ..self }
    }

    fn holds(&self, k: usize) -> bool {
        (self.first..self.first + self.size).contains(&k)
    }
}

impl Sampler for Window {
    fn std(&self, schedule: Schedule, times: &[f64], k: usize) -> f64 {
        if self.holds(k) { self.sde.get().std(schedule, times, k) } else { 0.0 }
    }

    fn transition(&self, schedule: Schedule, times: &[f64], k: usize, steps: &[Step]) -> Gaussian {
        let rule: &dyn Sampler = if self.holds(k) { self.sde.get() } else { &Euler {} };
        rule.transition(schedule, times, k, steps)
    }

    fn refuses(&self, schedule: Schedule, steps: usize) -> Option<String> {
        let Self { size, every, stride, .. } = *self;
        if size == 0 || size >= steps {
            return Some(format!(
                "sampler `window`: size = {size} of {steps} steps: a window has at least 1 step and never holds the last"
            ));
        }
        if every == 0 || stride == 0 {
            return Some(format!("sampler `window`: every = {every}, stride = {stride}: both must be at least 1"));
        }
        self.sde.get().refuses(schedule, steps)
    }
}
