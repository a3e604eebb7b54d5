//! What is measured: a trainer as `elbow train` makes it, its prompts and rewards, and a batch to take a step on.

use super::{
    args::{Args, PrecisionName, TuningName},
    operations::{Loop, STEPS},
};
use anyhow::{Context, Result};
use burn::tensor::Device;
use elbow::{
    Prompt, Request, Reward, RewardError, RgbImage, Score,
    batch::{Batch, Sample},
    behavior::BehaviorLag,
    config::{BatchConfig, Config, MicroBatch},
    kl::Kl,
    likelihood::{Elbo, Timesteps},
    noise::{self, Key, Purpose},
    optimizer::OptimizerConfig,
    params::Params,
    policy::Policy,
    sampler::SamplerConfig,
    train::{Outcome, Trainer},
};
use elbow_models::{
    linear::Precision,
    lora::LoraConfig,
    mmdit::MmditConfig,
    policy::{NetworkPolicy, Tuning},
};
use elbow_run::model;
use std::sync::{Arc, LazyLock};

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

    fn score(&self, request: &Request<'_>) -> Vec<Result<Score, RewardError>> {
        let mean = |image: &RgbImage| image.iter().map(|&v| f32::from(v)).sum::<f32>() / image.len() as f32;
        request.images.iter().map(|image| Ok(mean(image).into())).collect()
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
    pub batch: Batch,
}

impl<'a> Workload<'a> {
    /// Behavior weights near the current ones but not equal, as in training off the policy: equal ones would save a forward
    /// pass.
    pub fn new(args: &Args, policy: &'a NetworkPolicy, device: &Device) -> Result<Self> {
        let config = Config {
            batch: BatchConfig {
                groups: args.batch / GROUP,
                group_size: GROUP,
                updates: 1,
                micro_batch: MicroBatch::Size(args.rows),
                ..BatchConfig::default()
            },
            sampler: SamplerConfig { steps: STEPS, ..SamplerConfig::default() },
            likelihood: Elbo { timesteps: Timesteps::One, ..Elbo::default() }.into(),
            kl: Kl { weight: 0.0, ..Kl::default() },
            behavior: BehaviorLag { start: 0, rate: 1.0, max: 0.5, on_policy: false },
            optimizer: OptimizerConfig { learning_rate: 1e-6, ..OptimizerConfig::default() },
            ..Config::default()
        };
        let method = config.build(policy.schedule())?;
        let mut trainer = Trainer::new(method, policy, &*PROMPTS, &Brightness, device.clone())?;
        trainer.state.current = jittered(&trainer.state.current, 0.1, 2);
        trainer.state.behavior = jittered(&trainer.state.current, 0.02, 3);
        trainer.state.ema = trainer.state.current.clone();
        let batch = drawn(args.batch, &trainer, policy, device)?;
        Ok(Self { trainer, batch })
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
    pub fn rollout(&self) -> Result<Batch> {
        Ok(self.trainer.collect(&())?.batch)
    }

    /// One optimizer step.
    pub fn step(&mut self) -> Result<Outcome> {
        Ok(self.trainer.update(&self.batch, &())?)
    }

    /// Text tokens a sample.
    pub fn text_tokens(&self) -> usize {
        self.batch.prompts.tokens.dims()[1]
    }
}

/// As many images as if drawn, with rewards that differ.
fn drawn(count: usize, trainer: &Trainer<'_>, policy: &NetworkPolicy, device: &Device) -> Result<Batch> {
    let prompts: Vec<Prompt> = PROMPTS.iter().cycle().take(count / GROUP).cloned().collect();
    let grid = Arc::new(trainer.method().sampler.grid(policy.schedule()));
    let key = |i: usize| Key::new(1, Purpose::Step, 0).sample(i as u64);
    let rewards = Key::new(2, Purpose::Draw, 0).uniforms();
    let sample = |(i, reward): (usize, f64)| {
        let (row, key, shared_key) = (i / GROUP, key(i), key(i / GROUP * GROUP));
        let walk = trainer.method().sampler.rule.walk(&grid, key).into();
        let prompt = Arc::new(prompts[row].clone());
        Sample { row, group: row, shared_key, walk, reward: Ok(reward.into()), ..Sample::new(prompt, key) }
    };
    let samples: Vec<Sample> = rewards.take(count).enumerate().map(sample).collect();
    let clean = samples.iter().map(|sample| Key { purpose: Purpose::Start, ..sample.key });
    let points = vec![noise::normal(clean, policy.dims(), device) * 0.5];
    let stds = vec![0.0; grid.steps()].into();
    Ok(Batch { samples, prompts: policy.encode(&prompts)?, points, velocities: Vec::new(), stds, guidance: 1.0, grid })
}
