//! The training loop: rollout → reward → advantage → update, once an epoch, whatever the algorithm.
//!
//! Every random number is keyed by the epoch, so the state between two epochs is a handful of parameter vectors and
//! counters: saving those and loading them continues a run bit for bit.

mod record;
mod replay;
mod rollout;
mod state;
mod top_up;
mod update;

pub use record::{EpochReport, Sample};
pub use replay::{Kept, Replay};
pub use rollout::Drawn;
pub use state::{State, StateError};
pub use top_up::{Extra, TopUp};
pub use update::Outcome;

use crate::{
    advantage::Grouped,
    config::{Config, ConfigError},
    guidance::Guided,
    likelihood::Rollout,
    params::Params,
    policy::{Conditioning, EncodeError, Policy, VelocityField},
    prompts::PromptSource,
    reward::Reward,
};
use burn::tensor::Device;
use std::time::Instant;

/// Why training stopped.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The configuration cannot run.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A prompt cannot be encoded.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// Too many images without a reward.
    #[error(
        "{missing} of {total} rewards `{name}` are missing in epoch {epoch} (max_missing = {limit}); the first: {first}"
    )]
    Missing {
        /// The reward.
        name: String,
        /// Images without a score.
        missing: usize,
        /// Images of the epoch.
        total: usize,
        /// The epoch.
        epoch: u64,
        /// The configured share.
        limit: f64,
        /// Why the first is missing.
        first: String,
    },
    /// The gradient was not finite several times in a row.
    #[error(
        "the gradient was not finite in {updates} updates in a row, last in epoch {epoch}; weights are unchanged since. \
             Start a new run with a lower optimizer.learning_rate or optimizer.max_grad_norm"
    )]
    NotFinite {
        /// The epoch.
        epoch: u64,
        /// Updates in a row.
        updates: u32,
    },
}

/// What a long-running phase tells whoever watches.
pub trait Observer: Sync {
    /// `done` of `total` images have passed `phase` ("rollout" or "update").
    fn progress(&self, phase: &'static str, done: usize, total: usize);
}

/// Watches nothing.
impl Observer for () {
    fn progress(&self, _: &'static str, _: usize, _: usize) {}
}

/// A policy being trained on a reward.
pub struct Trainer<'a> {
    config: Config,
    policy: &'a dyn Policy,
    prompts: &'a dyn PromptSource,
    reward: &'a dyn Reward,
    device: Device,
    unconditional: Conditioning,
    /// Everything a checkpoint holds.
    pub state: State,
}

/// Updates in a row that may fail before the run stops.
const MAX_NOT_FINITE: u32 = 3;

impl<'a> Trainer<'a> {
    /// Checks the configuration and starts from the policy's initial parameters.
    pub fn new(
        config: Config,
        policy: &'a dyn Policy,
        prompts: &'a dyn PromptSource,
        reward: &'a dyn Reward,
        device: Device,
    ) -> Result<Self, TrainError> {
        config.validate()?;
        let unconditional = policy.encode(&["".into()])?;
        let state = State::new(policy.initial());
        Ok(Self { config, policy, prompts, reward, device, unconditional, state })
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// One epoch. On error the state is that before the epoch.
    pub fn epoch(&mut self, observer: &dyn Observer) -> Result<EpochReport, TrainError> {
        let before = self.state.clone();
        let result = self.run_epoch(observer);
        if result.is_err() {
            self.state = before;
        }
        result
    }

    /// The first half of an epoch: draws its images from the behavior weights and scores them.
    pub fn draw(&self, observer: &dyn Observer) -> Result<Drawn, TrainError> {
        top_up::draw(self, observer)
    }

    /// The second half: the epoch's optimizer steps on what was drawn, then the move of the behavior weights.
    pub fn update(
        &mut self,
        rollout: &Rollout,
        rewards: &Grouped,
        observer: &dyn Observer,
    ) -> Result<Outcome, TrainError> {
        update::run(self, rollout, rewards, observer)
    }

    fn run_epoch(&mut self, observer: &dyn Observer) -> Result<EpochReport, TrainError> {
        let start = Instant::now();
        let drawn = self.draw(observer)?;
        let rolled = Instant::now();
        let kept = replay::kept(self, &drawn);
        let outcome = self.update(&drawn.rollout, &drawn.rewards, observer)?;
        self.remember(&drawn);
        self.state.kept = kept;
        self.state.epoch += 1;
        let timing = record::Timing { rollout: rolled - start, reward: drawn.reward_time, update: rolled.elapsed() };
        Ok(record::report(self, &drawn, &outcome, timing))
    }

    /// Adds the epoch's rewards to the history of their prompts, if the advantage looks at it.
    fn remember(&mut self, drawn: &Drawn) {
        let memory = self.config.advantage.get().memory();
        if memory == 0 {
            return;
        }
        for (rewards, prompt) in drawn.rewards.rewards.chunks(self.config.batch.group_size).zip(&drawn.prompts) {
            self.state.history.extend(&prompt.text, rewards.iter().flatten().copied(), memory);
        }
    }

    /// The weights that draw rollouts.
    fn drawing(&self) -> &Params {
        if self.config.behavior.on_policy { &self.state.current } else { &self.state.behavior }
    }

    /// The field under the given parameters (`None`: the reference), with the recipe's guidance and without gradients.
    pub fn field(&self, params: Option<&Params>) -> Box<dyn VelocityField + 'a> {
        let tensors = params.map(|p| p.tensors(&self.device));
        self.guided(self.policy.bind(tensors.as_ref()))
    }

    /// A field of the policy with the recipe's guidance.
    pub fn guided(&self, field: Box<dyn VelocityField>) -> Box<dyn VelocityField + 'a> {
        let (scale, unconditional) = (self.config.sampler.guidance, self.unconditional.clone());
        Box::new(Guided { field, scale, unconditional })
    }
}
