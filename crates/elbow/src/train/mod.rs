//! The training loop: rollout → reward → advantage → update, once an epoch, whatever the algorithm.
//!
//! Every random number is keyed by the epoch, so the state between two epochs is a handful of parameter vectors and
//! counters: saving those and loading them continues a run bit for bit.

mod record;
mod state;
mod update;

pub use record::{EpochReport, Logged, depends_on_machine};
pub use state::{State, StateError};
pub use update::Outcome;

use crate::{
    batch::{Batch, Sample},
    collection::Collected,
    guidance::GuidedField,
    kl::Anchor,
    lanes,
    method::{Method, MethodError},
    observer::Observer,
    params::Params,
    policy::{Conditioning, EncodeError, Policy, VelocityField},
    prompts::PromptSource,
    reward::Reward,
    rollout::{Rollout, RolloutError},
    sampler::Keep,
};
use burn::tensor::{Device, Tensor};
use std::{sync::Mutex, time::Instant};

/// Why training stopped.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The method cannot run.
    #[error(transparent)]
    Method(#[from] MethodError),
    /// A prompt cannot be encoded.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The samples of an epoch could not be had.
    #[error(transparent)]
    Rollout(#[from] RolloutError),
    /// The objective asks for teachers that the trainer does not have.
    #[error("the objective needs {needed} teachers and there are {there}: set `Trainer::teachers`")]
    Teachers {
        /// By the objective.
        needed: usize,
        /// In the trainer.
        there: usize,
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

/// A policy being trained on a reward.
pub struct Trainer<'a> {
    method: Method,
    policy: &'a dyn Policy,
    prompts: &'a dyn PromptSource,
    reward: &'a dyn Reward,
    device: Device,
    unconditional: Conditioning,
    /// Everything a checkpoint holds.
    pub state: State,
    /// Further weights over the same base that an objective may ask about, as [`Weights::Teacher`](crate::evaluation::Weights).
    pub teachers: Vec<Params>,
    /// What stands for [`Weights::Reference`](crate::evaluation::Weights): without it the base.
    pub reference: Option<Params>,
    /// Whether the log tells how far the policy is from the reference where no penalty measures it: `kl_reference`, the mean ‖v − v_ref‖² of
    /// one micro-batch an epoch at three of its points. Nothing is trained by it.
    pub watch_reference: bool,
    /// Micro-batches side by side; results do not depend on it.
    pub in_flight: usize,
}

impl<'a> Trainer<'a> {
    /// Checks the method and starts from the policy's initial parameters.
    pub fn new(
        method: Method,
        policy: &'a dyn Policy,
        prompts: &'a dyn PromptSource,
        reward: &'a dyn Reward,
        device: Device,
    ) -> Result<Self, TrainError> {
        method.validate(policy.schedule())?;
        let unconditional = policy.encode(&["".into()])?;
        let state = State::new(policy.initial());
        let reference = (method.kl.reference == Anchor::Adapter).then(|| state.current.clone());
        let (teachers, in_flight) = (Vec::new(), lanes::count(&device));
        Ok(Self {
            method,
            policy,
            prompts,
            reward,
            device,
            unconditional,
            state,
            teachers,
            reference,
            watch_reference: false,
            in_flight,
        })
    }

    /// What it trains by.
    pub fn method(&self) -> &Method {
        &self.method
    }

    /// One epoch. On error the state is that before the epoch.
    pub fn epoch(&mut self, observer: &dyn Observer) -> Result<EpochReport, TrainError> {
        let (needed, there) = (self.method.objective.teachers().len(), self.teachers.len());
        if there < needed {
            return Err(TrainError::Teachers { needed, there });
        }
        let start = Instant::now();
        let field = self.field(Some(self.drawing()));
        let rollout = self.rollout(&*field, observer);
        self.reward.wake();
        let collected = self.method.collection.collect(&rollout, &self.state.memory);
        self.reward.sleep();
        let collected = collected?;
        let reward = rollout.reward_time();
        let rolled = start.elapsed();

        let updating = Instant::now();
        let before = self.state.clone();
        let outcome = match update::run(self, &collected.batch, observer) {
            Ok(outcome) => outcome,
            Err(error) => {
                self.state = before;
                return Err(error);
            }
        };
        self.remember(&collected.batch.samples);
        self.state.memory = collected.memory.clone();
        self.state.epoch += 1;
        let timing = record::Timing { rollout: rolled, reward, update: updating.elapsed() };
        Ok(record::report(self, &collected, &outcome, &timing))
    }

    /// Goes back to the weights, moments and memory of an earlier state. The epoch stays, so that new samples are drawn; learning rates are
    /// `factor` times those of now.
    pub fn roll_back(&mut self, to: State, factor: f64) {
        let (epoch, rate_factor) = (self.state.epoch, factor * self.state.optimizer.rate_factor);
        self.state = State { epoch, ..to };
        self.state.optimizer.rate_factor = rate_factor;
    }

    /// The first half of an epoch alone: draws its samples from the behavior weights and scores them.
    pub fn collect(&self, observer: &dyn Observer) -> Result<Collected, TrainError> {
        let field = self.field(Some(self.drawing()));
        Ok(self.method.collection.collect(&self.rollout(&*field, observer), &self.state.memory)?)
    }

    /// The second half alone: the epoch's optimizer steps on what was drawn, then the move of the behavior weights.
    pub fn update(&mut self, batch: &Batch, observer: &dyn Observer) -> Result<Outcome, TrainError> {
        update::run(self, batch, observer)
    }

    /// The weights that draw.
    fn drawing(&self) -> &Params {
        if self.method.behavior.on_policy { &self.state.current } else { &self.state.behavior }
    }

    /// What a collection draws with: `field` is that of the weights that draw.
    fn rollout<'b>(&'b self, field: &'b dyn VelocityField, observer: &'b dyn Observer) -> Rollout<'b> {
        let method = &self.method;
        Rollout {
            seed: method.seed,
            epoch: self.state.epoch,
            policy: self.policy,
            field,
            prompts: self.prompts,
            reward: self.reward,
            sampling: &method.sampler,
            likelihood: &*method.likelihood,
            advantage: &*method.advantage,
            history: &self.state.history,
            batch: method.batch,
            compared: method.compared(),
            start_noise: method.start_noise,
            start_spread: method.start_spread,
            keep: Keep {
                points: method.likelihood.needs_path(),
                velocities: method.batch.reuse_velocities && method.can_reuse_velocities(),
            },
            patience: method.patience,
            in_flight: self.in_flight,
            device: &self.device,
            observer,
            reward_time: Mutex::default(),
        }
    }

    /// Whether a micro-batch of an update gives the bits that the rollout gave: one is drawn, and the velocities at the likelihood's first,
    /// middle and last query are computed again with a graph, of all its samples and of two thirds of them.
    pub fn reproduces(&self) -> Result<bool, TrainError> {
        let field = self.field(Some(self.drawing()));
        let rollout = Rollout { keep: Keep { points: true, velocities: true }, ..self.rollout(&*field, &()) };
        let groups = self.method.batch.micro_batch.div_ceil(self.method.batch.group_size);
        let prompts = rollout.new_prompts(0, groups);
        let mut seats = rollout.seats(&prompts, 0);
        seats.truncate(self.method.batch.micro_batch);
        let batch = rollout.unscored("calibration", &prompts, seats)?;
        let leaves = self.drawing().tensors(&self.device.clone().without_autodiff()).leaves();
        let trained = self.guided(self.policy.bind(Some(&leaves)));
        let all: Vec<usize> = (0..batch.len()).collect();
        let some: Vec<usize> = all.iter().copied().filter(|row| row % 3 != 1).collect();
        let equal = |rows: &[usize]| {
            let part = batch.select(rows);
            let queries = self.method.likelihood.queries(&part, &batch);
            let last = queries.len().saturating_sub(1);
            let mut looked_at = queries.enumerate().filter(|(i, _)| [0, last / 2, last].contains(i));
            looked_at.all(|(_, query)| {
                let drawn = query.drawn.as_ref().map(|drawn| bits(drawn.clone()));
                drawn == Some(bits(query.velocity(&*trained).inner()))
            })
        };
        Ok(equal(&all) && equal(&some))
    }

    /// Adds the epoch's rewards to the history of their prompts, if the advantage looks at it.
    fn remember(&mut self, samples: &[Sample]) {
        let memory = self.method.advantage.memory();
        if memory > 0 {
            for sample in &*self.method.standardize_parts.of(samples) {
                self.state.history.extend(&sample.prompt.text, sample.value().into_iter(), memory);
            }
        }
    }

    /// The field under the given parameters (`None`: the base), with the recipe's guidance and without gradients.
    pub fn field(&self, params: Option<&Params>) -> Box<dyn VelocityField + 'a> {
        let tensors = params.map(|params| params.tensors(&self.device));
        self.guided(self.policy.bind(tensors.as_ref()))
    }

    /// A field of the policy with the recipe's guidance.
    pub fn guided(&self, field: Box<dyn VelocityField>) -> Box<dyn VelocityField + 'a> {
        let scale = self.method.sampler.guidance;
        if scale.to_bits() == 1f64.to_bits() {
            return field;
        }
        self.guided_by(scale, field)
    }

    fn guided_by(&self, scale: f64, field: Box<dyn VelocityField>) -> Box<dyn VelocityField + 'a> {
        let detach = self.method.sampler.detach_unconditional;
        Box::new(GuidedField { field, scale, detach, unconditional: self.unconditional.clone() })
    }

    /// The reference under a guidance of its own, if the penalty wants it.
    fn guided_reference(&self) -> Option<Box<dyn VelocityField + 'a>> {
        let scale = self.method.kl.guidance.filter(|_| self.method.kl.weight != 0.0)?;
        let tensors = self.reference.as_ref().map(|params| params.tensors(&self.device));
        Some(self.guided_by(scale, self.policy.bind(tensors.as_ref())))
    }
}

fn bits(values: Tensor<2>) -> Vec<u32> {
    values.into_data().iter::<f32>().map(f32::to_bits).collect()
}
