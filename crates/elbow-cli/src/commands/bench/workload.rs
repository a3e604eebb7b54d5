//! What is measured: a trainer as `elbow train` makes it, its prompts and rewards, and a batch to take a step on.

use super::{Args, Loop, PrecisionName, TuningName};
use crate::model;
use anyhow::{Context, Result};
use burn::tensor::Device;
use elbow::{
    Prompt, Reward, RewardError, RgbImage,
    advantage::Grouped,
    behavior::BehaviorLag,
    config::{Batch, Config},
    kl::Kl,
    likelihood::{Elbo, LikelihoodKind, Rollout, Timesteps},
    noise::{self, Key, Purpose},
    optimizer::OptimizerConfig,
    params::Params,
    policy::Policy,
    sampler::Sampling,
    train::{Drawn, Outcome, Trainer},
};
use elbow_models::{
    linear::Precision,
    lora::LoraConfig,
    mmdit::MmditConfig,
    policy::{NetworkPolicy, Tuning},
};
use std::sync::LazyLock;

/// Steps from noise to image.
pub const STEPS: usize = 10;
/// Images that share a prompt.
const GROUP: usize = 2;

/// Held-out prompts of the scenes.
static PROMPTS: LazyLock<Vec<Prompt>> =
    LazyLock::new(|| elbow_world::prompts::benchmark(8).iter().map(Prompt::from).collect());

/// A reward that costs next to nothing.
struct Brightness;

impl Reward for Brightness {
    fn name(&self) -> &'static str {
        "brightness"
    }

    fn score(&self, images: &[RgbImage], _: &[Prompt]) -> Vec<Result<f32, RewardError>> {
        let mean = |image: &RgbImage| image.iter().map(|&v| f32::from(v)).sum::<f32>() / image.len() as f32;
        images.iter().map(|image| Ok(mean(image))).collect()
    }
}

/// The network's sizes.
pub fn network(args: &Args) -> MmditConfig {
    MmditConfig {
        num_layers: args.layers,
        attention_head_dim: args.hidden / args.heads,
        num_attention_heads: args.heads,
        ..MmditConfig::default()
    }
}

/// The network and what of it is trained.
pub fn policy(args: &Args, device: &Device) -> Result<NetworkPolicy> {
    let network = network(args);
    let mut base = network.initial(Key::new(0, Purpose::Initialization, 0));
    if let Some(path) = &args.weights {
        let bytes = std::fs::read(path).with_context(|| format!("cannot read weights {}", path.display()))?;
        base = base.with_values_of(&bytes).with_context(|| format!("cannot use weights {}", path.display()))?;
    } else {
        // Fresh weights have zeros, behind which gradients vanish.
        base = jittered(&base, 0.5, 1);
    }
    let tuning = match args.tuning {
        TuningName::Full => Tuning::Full,
        TuningName::Lora => Tuning::Lora(LoraConfig::default()),
    };
    let precision = match args.precision {
        PrecisionName::F32 => Precision::F32,
        PrecisionName::Bf16 => Precision::Bf16,
    };
    Ok(NetworkPolicy { precision, ..model::pixels(network, base, tuning, 0, device) })
}

/// The parameters, each matrix moved by Gaussian noise of deviation `size / √inputs` and each vector by a fifth of `size`.
fn jittered(params: &Params, size: f32, stream: u64) -> Params {
    let key = Key::new(stream, Purpose::Initialization, 2);
    let mut moved = params.clone();
    for (i, entry) in params.entries().iter().enumerate() {
        let inputs: usize = entry.shape[1..].iter().product();
        let deviation = if entry.shape.len() > 1 { size / (inputs as f32).sqrt() } else { size / 5.0 };
        let mut noise = Vec::new();
        key.sample(i as u64).extend_normals(entry.range.len(), &mut noise);
        for (value, noise) in moved.values_mut()[entry.range.clone()].iter_mut().zip(noise) {
            *value += deviation * noise;
        }
    }
    moved
}

/// A trainer between two epochs, and a batch as if drawn.
pub struct Workload<'a> {
    /// The trainer; its epoch never ends, so each rollout draws the same images.
    pub trainer: Trainer<'a>,
    /// Images to take steps on.
    pub batch: Rollout,
    /// Their rewards.
    pub rewards: Grouped,
}

impl<'a> Workload<'a> {
    /// Behavior weights near the current ones but not equal, as in training off the policy: equal ones would save a forward
    /// pass.
    pub fn new(args: &Args, policy: &'a NetworkPolicy, device: &Device) -> Result<Self> {
        let config = Config {
            batch: Batch { groups: args.batch / GROUP, group_size: GROUP, updates: 1, rows: args.rows },
            sampler: Sampling { steps: STEPS, ..Sampling::default() },
            likelihood: LikelihoodKind::Elbo(Elbo { timesteps: Timesteps::One, ..Elbo::default() }),
            kl: Kl { weight: 0.0, ..Kl::default() },
            behavior: BehaviorLag { start: 0, rate: 1.0, max: 0.5, on_policy: false },
            optimizer: OptimizerConfig { learning_rate: 1e-6, ..OptimizerConfig::default() },
            ..Config::default()
        };
        let (sampling, schedule) = (config.sampler, config.schedule);
        let mut trainer = Trainer::new(config, policy, &*PROMPTS, &Brightness, device.clone())?;
        trainer.state.current = jittered(&trainer.state.current, 0.1, 2);
        trainer.state.behavior = jittered(&trainer.state.current, 0.02, 3);
        trainer.state.ema = trainer.state.current.clone();
        let groups: Vec<usize> = (0..args.batch).map(|i| i / GROUP).collect();
        let prompts: Vec<Prompt> = PROMPTS.iter().cycle().take(args.batch / GROUP).cloned().collect();
        let key = |i: usize| Key::new(1, Purpose::Step, 0).sample(i as u64);
        let keys: Vec<Key> = (0..args.batch).map(key).collect();
        let clean = keys.iter().map(|&k| Key { purpose: Purpose::Start, ..k });
        let batch = Rollout {
            points: vec![noise::normal(clean, policy.latent_shape(), device) * 0.5],
            cond: policy.encode(&prompts)?.select(&groups),
            group_keys: groups.iter().map(|&g| key(g * GROUP)).collect(),
            importance: vec![1.0; groups.len()],
            keys,
            sampling,
            schedule,
        };
        let rewards = Key::new(2, Purpose::Draw, 0).uniforms().take(args.batch).map(Some).collect();
        Ok(Self { trainer, batch, rewards: Grouped { rewards, groups, ..Grouped::default() } })
    }

    /// One run of a loop.
    pub fn run(&mut self, which: Loop) -> Result<()> {
        match which {
            Loop::Rollout => drop(self.rollout()?),
            Loop::Step => drop(self.step()?),
        }
        Ok(())
    }

    /// Images from noise.
    pub fn rollout(&self) -> Result<Drawn> {
        Ok(self.trainer.draw(&())?)
    }

    /// One optimizer step.
    pub fn step(&mut self) -> Result<Outcome> {
        Ok(self.trainer.update(&self.batch, &self.rewards, &())?)
    }

    /// Text tokens a sample.
    pub fn text_tokens(&self) -> usize {
        self.batch.cond.tokens.dims()[1]
    }
}
