//! Pre-training: how a base model is made.
//!
//! A network that predicts velocity minimizes E‖v_θ(x_t, t) − (α′ x₀ + σ′ ε)‖² over data x₀, noise ε and logit-normal times
//! (arXiv 2403.03206, §3.1); one that predicts noise E‖ε_θ(x_t, t) − ε‖² over uniform times (arXiv 2006.11239, eq. 14).

use crate::{
    gradient::Gradient,
    lanes,
    noise::{self, Key, Purpose},
    optimizer::{Optimizer, OptimizerConfig},
    params::{Params, Tensors},
    policy::{Conditioning, Policy},
    prediction::Prediction,
    schedule::{self, Schedule},
};
use burn::tensor::{Device, Tensor, TensorData};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Sizes and rates of pre-training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PretrainConfig {
    /// The path from data to noise; it decides what the network predicts ([`Prediction::customary`]).
    pub schedule: Schedule,
    /// Optimizer steps.
    pub steps: u64,
    /// Images a step.
    pub batch: usize,
    /// Decay of the averaged weights, which are what is written.
    pub ema_decay: f64,
    /// Share of images whose caption is dropped, for classifier-free guidance.
    pub caption_dropout: f64,
    /// AdamW; the learning rate falls linearly to zero over the last third of the steps.
    pub optimizer: OptimizerConfig,
}

impl Default for PretrainConfig {
    fn default() -> Self {
        let optimizer = OptimizerConfig {
            learning_rate: 1e-3,
            warmup_steps: 200,
            weight_decay: 0.01,
            max_grad_norm: 1.0,
            ..OptimizerConfig::default()
        };
        Self {
            schedule: Schedule::default(),
            steps: 10_000,
            batch: 64,
            ema_decay: 0.999,
            caption_dropout: 0.1,
            optimizer,
        }
    }
}

/// Data to pre-train on: latents `[N, D]` and their captions, decided by the keys alone.
pub trait Data: Sync {
    /// One image and caption per key; where `drop` is set, the caption is the empty one.
    fn batch(&self, keys: &[Key], drop: &[bool]) -> (Tensor<2>, Conditioning);
}

/// Images of one forward pass; the bits of a gradient depend on it.
const PART: usize = 32;

/// Where pre-training stands.
pub struct Pretraining {
    /// Trained weights.
    pub params: Params,
    /// Their moving average.
    pub ema: Params,
    /// AdamW's moments and the step count.
    pub optimizer: Optimizer,
}

impl Pretraining {
    /// Before the first step.
    pub fn new(policy: &dyn Policy) -> Self {
        let params = policy.initial();
        Self { ema: params.clone(), optimizer: Optimizer::new(&params), params }
    }

    /// Takes one step and returns its loss.
    pub fn step(
        &mut self,
        policy: &dyn Policy,
        data: &dyn Data,
        config: &PretrainConfig,
        seed: u64,
        device: &Device,
    ) -> f32 {
        let key = Key::new(seed, Purpose::Pretraining, self.optimizer.step);
        let keys: Vec<Key> = (0..config.batch as u64).map(|i| key.sample(i)).collect();
        let parts: Vec<&[Key]> = keys.chunks(PART).collect();
        let weights = self.params.tensors(&device.clone().without_autodiff());
        let compute = |i: usize| self.gradient(policy, data, config, parts[i], &weights.leaves());
        let (mut gradient, mut loss) = (self.params.zeros_like(), 0.0);
        lanes::in_order(lanes::count(device), parts.len(), compute, |(part, part_loss): (Gradient, f32)| {
            part.add_to(&mut gradient);
            loss += part_loss;
        });
        let mut optimizer = config.optimizer.clone();
        let left = config.steps.saturating_sub(self.optimizer.step) as f64;
        optimizer.learning_rate *= (3.0 * left / config.steps as f64).min(1.0);
        self.optimizer.step(&optimizer, config.steps, &mut self.params, &mut gradient);
        let step = self.optimizer.step as f64;
        self.ema.decay_toward(&self.params, config.ema_decay.min((1.0 + step) / (10.0 + step)));
        loss
    }

    /// What some images of a batch add to the gradient of its mean loss, and to the loss.
    fn gradient(
        &self,
        policy: &dyn Policy,
        data: &dyn Data,
        config: &PretrainConfig,
        keys: &[Key],
        leaves: &Tensors,
    ) -> (Gradient, f32) {
        let uniforms = |draw| keys.iter().map(move |k| k.draw(draw).uniforms().next().expect("invariant: endless"));
        let drop: Vec<bool> = uniforms(1).map(|u| u < config.caption_dropout).collect();
        let schedule = config.schedule;
        let prediction = Prediction::customary(schedule);
        let times: Vec<f64> = keys.iter().map(|k| time(prediction, k.draw(2))).collect();
        let (clean, cond) = data.batch(keys, &drop);
        let device = &clean.device();
        let noise = noise::normal(keys.iter().map(|k| k.draw(3)), policy.dims(), device);
        let x = schedule.mix(clean.clone(), noise.clone(), &times);
        let t: Vec<f32> = times.iter().map(|&t| t as f32).collect();
        let t = Tensor::from_data(TensorData::new(t, [keys.len()]), device);
        let error = policy.bind(Some(leaves)).velocity(x, t, &cond) - schedule.target(clean, noise, &times);
        let error = error * schedule::per_row(&times, device, |t| prediction.gain(schedule.level(t)));
        let loss = error.square().mean() * (keys.len() as f64 / config.batch as f64);
        let gradient = Gradient::take(&self.params, leaves, &mut loss.backward());
        (gradient, loss.inner().into_scalar::<f32>())
    }
}

/// Times for velocities are logistic functions of standard normal numbers, dense in the middle, where learning is hardest;
/// times for noise are uniform above the smallest training level.
fn time(prediction: Prediction, key: Key) -> f64 {
    if prediction == Prediction::Noise {
        return 1e-3 + (1.0 - 1e-3) * key.uniforms().next().expect("invariant: endless");
    }
    let mut z = Vec::with_capacity(1);
    key.extend_normals(1, &mut z);
    1.0 / (1.0 + (-f64::from(z[0])).exp())
}
