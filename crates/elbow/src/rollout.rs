//! What a collection draws with: the prompts of an epoch, the policy that draws, and the reward.

use crate::{
    advantage::{Advantage, History},
    batch::{Batch, Sample},
    draw::{Drawing, Judged, Seat},
    likelihood::Likelihood,
    missing::{self, Patience, Unsettled},
    noise::{Key, Purpose},
    observer::Observer,
    policy::{Conditioning, EncodeError, Policy, VelocityField},
    prompts::{Prompt, PromptSource},
    reward::{self, Reward, RewardError, Score},
    sampler::{Keep, Sampling},
    setting::{BatchSize, StartNoise},
};
use burn::tensor::Device;
use std::{
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// Why an epoch's samples could not be had.
#[derive(Debug, thiserror::Error)]
pub enum RolloutError {
    /// A prompt cannot be encoded.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// A reward was waited for, and whoever watches wants to wait no longer.
    #[error("stopped while waiting for reward `{name}` in epoch {epoch}")]
    Stopped {
        /// The reward.
        name: String,
        /// The epoch.
        epoch: u64,
    },
    /// Too many samples without a reward.
    #[error(
        "{missing} of {total} rewards `{name}` are missing in epoch {epoch} (max_missing = {limit}); the first: {first}"
    )]
    Missing {
        /// The reward.
        name: String,
        /// Samples without a score.
        missing: usize,
        /// Samples that were drawn.
        total: usize,
        /// The epoch.
        epoch: u64,
        /// The configured share.
        limit: f64,
        /// Why the first is missing.
        first: String,
    },
}

/// Everything that decides the samples of one epoch.
pub struct Rollout<'a> {
    /// The run's seed.
    pub seed: u64,
    /// The epoch.
    pub epoch: u64,
    /// Encodes prompts and decodes latents.
    pub policy: &'a dyn Policy,
    /// The field of the behavior weights, with guidance.
    pub field: &'a dyn VelocityField,
    /// Where prompts come from.
    pub prompts: &'a dyn PromptSource,
    /// What scores.
    pub reward: &'a dyn Reward,
    /// How samples are drawn.
    pub sampling: &'a Sampling,
    /// How log-probabilities are read off the network.
    pub likelihood: &'a dyn Likelihood,
    /// How samples of a group are compared.
    pub advantage: &'a dyn Advantage,
    /// Earlier rewards by prompt.
    pub history: &'a History,
    /// Samples an epoch, and how they are split.
    pub batch: BatchSize,
    /// Samples that are compared with each other.
    pub compared: usize,
    /// Which samples start from the same noise.
    pub start_noise: StartNoise,
    /// How far samples of one start noise start from it.
    pub start_spread: f64,
    /// What the likelihood needs of the walks.
    pub keep: Keep,
    /// How many rewards may be missing.
    pub patience: Patience,
    /// Forward passes side by side.
    pub in_flight: usize,
    /// Where tensors live.
    pub device: &'a Device,
    /// Is told of progress.
    pub observer: &'a dyn Observer,
    /// How long scoring has taken so far.
    pub reward_time: Mutex<Duration>,
}

impl Rollout<'_> {
    /// How long scoring has taken so far.
    pub fn reward_time(&self) -> Duration {
        *self.reward_time.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Draws and scores groups of the epoch, which are numbered: the same number, the same group.
    pub fn groups(&self, numbers: Range<usize>) -> Result<Batch, RolloutError> {
        let prompts = self.new_prompts(numbers.start, numbers.len());
        let seats = self.seats(&prompts, numbers.start);
        self.draw("rollout", self.sampling, &prompts, seats, self.keep)
    }

    /// New prompts for groups from the number `first` on.
    pub fn new_prompts(&self, first: usize, count: usize) -> Vec<Arc<Prompt>> {
        let key = Key::new(self.seed, Purpose::Prompt, self.epoch).sample(first as u64);
        self.prompts.draw(key, count).into_iter().map(Arc::new).collect()
    }

    /// The samples to draw for prompts whose groups are numbered from `first` on, prompt after prompt.
    pub fn seats(&self, prompts: &[Arc<Prompt>], first: usize) -> Vec<Seat> {
        let size = self.batch.group_size;
        let seat = |i: usize| {
            let number = first * size + i;
            let sample = self.sample(prompts, first, i);
            match self.start_noise {
                StartNoise::PerSample => Seat::new(sample, self.start(number)),
                StartNoise::PerGroup => {
                    let apart = (self.start_spread > 0.0).then(|| (self.start(number).draw(1), self.start_spread));
                    Seat { apart, ..Seat::new(sample, self.start(number / size * size)) }
                }
            }
        };
        (0..prompts.len() * size).map(seat).collect()
    }

    /// Sample `i` of prompts whose groups are numbered from `first` on.
    pub fn sample(&self, prompts: &[Arc<Prompt>], first: usize, i: usize) -> Sample {
        let size = self.batch.group_size;
        let key = self.key(first * size + i);
        Sample {
            row: i / size,
            group: i / self.compared,
            shared_key: self.key((first + i / size) * size),
            ..Sample::new(Arc::clone(&prompts[i / size]), key)
        }
    }

    /// The key of the steps of a sample of the epoch, by its number.
    pub fn key(&self, number: usize) -> Key {
        Key::new(self.seed, Purpose::Step, self.epoch).sample(number as u64)
    }

    /// The key of a start noise of the epoch, by its number.
    pub fn start(&self, number: usize) -> Key {
        Key { purpose: Purpose::Start, ..self.key(number) }
    }

    /// Encodes prompts, one row each.
    pub fn encode(&self, prompts: &[Arc<Prompt>]) -> Result<Conditioning, EncodeError> {
        let prompts: Vec<Prompt> = prompts.iter().map(|prompt| Prompt::clone(prompt)).collect();
        self.policy.encode(&prompts)
    }

    /// Draws samples of the given prompts and scores them.
    pub fn draw(
        &self,
        phase: &'static str,
        sampling: &Sampling,
        prompts: &[Arc<Prompt>],
        seats: Vec<Seat>,
        keep: Keep,
    ) -> Result<Batch, RolloutError> {
        let drawing = self.drawing(phase, sampling, keep);
        let drawn = drawing.draw(seats, self.encode(prompts)?, |request| reward::ask(self.reward, request));
        let Judged { mut batch, mut verdicts, time } = drawn;
        *self.reward_time.lock().unwrap_or_else(PoisonError::into_inner) += time;
        self.settle(&batch, &mut verdicts)?;
        for (sample, score) in batch.samples.iter_mut().zip(verdicts) {
            sample.reward = score;
        }
        Ok(batch)
    }

    /// Makes of what samples scored what may be used, or says why nothing may.
    fn settle(&self, batch: &Batch, scores: &mut [Result<Score, RewardError>]) -> Result<(), RolloutError> {
        let (name, epoch) = (|| self.reward.name().to_owned(), self.epoch);
        missing::settle(self.reward, batch, &missing::broken(batch), scores, self.patience, self.observer).map_err(
            |error| match error {
                Unsettled::Stopped => RolloutError::Stopped { name: name(), epoch },
                Unsettled::Missing { missing, first } => RolloutError::Missing {
                    name: name(),
                    missing,
                    total: batch.len(),
                    epoch,
                    limit: self.patience.most,
                    first,
                },
            },
        )
    }

    /// Draws samples of the given prompts and does not score them.
    pub fn unscored(
        &self,
        phase: &'static str,
        prompts: &[Arc<Prompt>],
        seats: Vec<Seat>,
    ) -> Result<Batch, RolloutError> {
        let drawing = self.drawing(phase, self.sampling, self.keep);
        Ok(drawing.draw(seats, self.encode(prompts)?, |request| vec![(); request.images.len()]).batch)
    }

    fn drawing<'b>(&'b self, phase: &'static str, sampling: &'b Sampling, keep: Keep) -> Drawing<'b> {
        Drawing {
            policy: self.policy,
            field: self.field,
            sampling,
            keep,
            micro_batch: self.batch.micro_batch,
            in_flight: self.in_flight,
            needs: self.reward.needs(),
            device: self.device,
            phase,
            observer: self.observer,
        }
    }
}
