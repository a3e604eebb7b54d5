//! What an epoch of a method evaluates, counted: its loop is run for three epochs on a policy of two numbers that counts what it is asked.
//!
//! How often the network is asked depends on the method and not on the network, so that the count is exact and takes no time. An image
//! that is not trained on, since its group agrees, is not counted in an update: a run's own record says how many were.

use burn::tensor::{Device, Tensor};
use elbow::{
    Policy, Prompt, Request, Reward, RewardError, Score,
    config::{Config, MicroBatch, Reuse},
    params::{Params, Tensors},
    policy::{Conditioning, Decoded, EncodeError, VelocityField},
    schedule::Schedule,
    train::{TrainError, Trainer},
};
use image::RgbImage;
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// Evaluations of an epoch, and the images that they are of.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Passes {
    /// Samples drawn in full.
    pub drawn: f64,
    /// Images decoded and scored: those drawn in full, and those of a prefilter.
    pub images: f64,
    /// Evaluations that drew them.
    pub draw: f64,
    /// Samples trained on.
    pub trained: f64,
    /// Evaluations of updates without gradient.
    pub forward: f64,
    /// Evaluations of updates with gradient.
    pub backward: f64,
}

impl Passes {
    /// All evaluations of the network.
    pub fn evaluations(&self) -> f64 {
        self.draw + self.forward + self.backward
    }

    /// Those of an epoch that drew and trained on so many samples.
    #[must_use]
    pub fn of(&self, drawn: f64, trained: f64) -> Self {
        let draws = if self.drawn == 0.0 { 0.0 } else { drawn / self.drawn };
        let updates = if self.trained == 0.0 { 0.0 } else { trained / self.trained };
        Self {
            drawn,
            images: self.images * draws,
            draw: self.draw * draws,
            trained,
            forward: self.forward * updates,
            backward: self.backward * updates,
        }
    }
}

/// Counts the third epoch of a method: behavior weights that lag have moved by then. Velocities of the rollout count as used again where
/// the configuration says so, or leaves it open and they can be.
pub fn count(config: &Config, schedule: Schedule) -> Result<Passes, TrainError> {
    let mut config = config.clone();
    config.epochs = config.epochs.max(3);
    config.batch.micro_batch = MicroBatch::Size(MicroBatch::MOST);
    if config.batch.reuse_velocities == Reuse::Auto && config.build(schedule)?.can_reuse_velocities() {
        config.batch.reuse_velocities = Reuse::Yes;
    }
    let method = config.build(schedule)?;
    let policy = Counting { schedule, counts: Arc::default() };
    let prompts: Vec<Prompt> = (0..256).map(|i| Prompt::from(format!("prompt {i}").as_str())).collect();
    let teachers = method.objective.teachers().len();
    let mut trainer = Trainer::new(method, &policy, &prompts, &Different, Device::flex())?;
    trainer.teachers = vec![policy.initial(); teachers];
    trainer.epoch(&())?;
    trainer.epoch(&())?;
    policy.counts.take();
    let drawn = trainer.collect(&())?.drawn as f64;
    let [images, draw, _] = policy.counts.take();
    let record = trainer.epoch(&())?.record;
    let [_, forward, backward] = policy.counts.take();
    let trained = record["trained_samples"].as_f64().unwrap_or(0.0);
    Ok(Passes { drawn, images, draw, trained, forward: forward - draw, backward })
}

/// Images, evaluations without and with gradient.
#[derive(Default)]
struct Counts([AtomicU64; 3]);

impl Counts {
    fn add(&self, which: usize, rows: usize) {
        self.0[which].fetch_add(rows as u64, Ordering::Relaxed);
    }

    /// The counts since the last call.
    fn take(&self) -> [f64; 3] {
        [0, 1, 2].map(|i| self.0[i].swap(0, Ordering::Relaxed) as f64)
    }
}

/// A policy of two numbers, v = w x, that counts.
struct Counting {
    schedule: Schedule,
    counts: Arc<Counts>,
}

struct Field {
    weight: Option<Tensor<2>>,
    counts: Arc<Counts>,
}

impl VelocityField for Field {
    fn velocity(&self, x: Tensor<2>, _: Tensor<1>, _: &Conditioning) -> Tensor<2> {
        let with_gradient = self.weight.as_ref().is_some_and(|weight| weight.device().is_autodiff());
        self.counts.add(if with_gradient { 2 } else { 1 }, x.dims()[0]);
        match &self.weight {
            Some(weight) => x * weight.clone(),
            None => x.zeros_like(),
        }
    }
}

impl Policy for Counting {
    fn schedule(&self) -> Schedule {
        self.schedule
    }

    fn dims(&self) -> usize {
        2
    }

    fn initial(&self) -> Params {
        Params::new([("w".into(), vec![1, 2], vec![0.0; 2])])
    }

    fn bind(&self, trained: Option<&Tensors>) -> Box<dyn VelocityField> {
        let weight = trained.map(|trained| trained.tensor("w"));
        Box::new(Field { weight, counts: Arc::clone(&self.counts) })
    }

    fn encode(&self, prompts: &[Prompt]) -> Result<Conditioning, EncodeError> {
        Ok(Conditioning { tokens: Tensor::zeros([prompts.len(), 1, 1], &Device::flex()), mask: None, pooled: None })
    }

    fn decode(&self, latents: Tensor<2>) -> Vec<Decoded> {
        let rows = latents.dims()[0];
        self.counts.add(0, rows);
        vec![RgbImage::new(1, 1).into(); rows]
    }
}

/// Rewards that differ within every group.
struct Different;

impl Reward for Different {
    fn name(&self) -> &'static str {
        "different"
    }

    fn score(&self, request: &Request<'_>) -> Vec<Result<Score, RewardError>> {
        (0..request.images.len()).map(|i| Ok((i as f32).into())).collect()
    }
}
