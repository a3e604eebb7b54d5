//! An epoch of the nano model's training on every device: rollout, reward, gradient and optimizer step agree with the CPU's.

#![cfg(feature = "wgpu")]

mod common;

use burn::tensor::Device;
use common::devices;
use elbow::{
    Prompt, Request, Reward, RewardError, RgbImage, Score,
    advantage::{AdvantageKind, Standard},
    config::{BatchConfig, Config, MicroBatch},
    likelihood::{LikelihoodKind, Trajectory},
    noise::{self, Key, Purpose},
    policy::{Conditioning, EncodeError, TextEncoder},
    prediction::Prediction,
    sampler::{FlowSde, SamplerConfig},
    schedule::Schedule,
    train::Trainer,
};
use elbow_models::{
    linear::Precision,
    lora::LoraConfig,
    mmdit::MmditConfig,
    policy::{Decoder, Network, NetworkPolicy, Tuning},
    recompute::Checkpointing,
};

const NANO: &[u8] = include_bytes!("../../../assets/nano.safetensors");

/// Some embedding for every prompt.
struct Codes(Device, MmditConfig);

impl TextEncoder for Codes {
    fn encode(&self, prompts: &[Prompt]) -> Result<Conditioning, EncodeError> {
        let keys = || prompts.iter().map(|p| Key::new(0, Purpose::Draw, 0).sample(p.text.len() as u64));
        let (n, width, pooled) = (prompts.len(), self.1.joint_attention_dim, self.1.pooled_projection_dim);
        Ok(Conditioning {
            tokens: noise::normal(keys(), 8 * width, &self.0).reshape([n, 8, width]),
            mask: None,
            pooled: Some(noise::normal(keys(), pooled, &self.0)),
        })
    }
}

/// Mean of the red channel.
struct Red;

impl Reward for Red {
    fn name(&self) -> &'static str {
        "red"
    }

    fn score(&self, request: &Request<'_>) -> Vec<Result<Score, RewardError>> {
        let red = |image: &RgbImage| image.pixels().map(|p| f32::from(p.0[0]) / 255.0).sum::<f32>();
        request.images.iter().map(|image| Ok((red(image) / (image.width() * image.height()) as f32).into())).collect()
    }
}

/// Everything a device computes in an epoch: the images' latents, the losses, the gradient and the weights after it.
struct Seen {
    latents: Vec<f32>,
    losses: Vec<f64>,
    gradient: Vec<f32>,
    weights: Vec<f32>,
}

fn epoch(config: Config, device: &Device) -> Seen {
    let network = MmditConfig::default();
    let base =
        network.initial(Key::new(0, Purpose::Initialization, 0)).with_values_of(NANO).expect("the embedded weights");
    let policy = NetworkPolicy {
        latent: network.latent(),
        schedule: Schedule::RectifiedFlow,
        prediction: Prediction::Velocity,
        text: Box::new(Codes(device.clone(), network.clone())),
        tuning: Tuning::Lora(LoraConfig { rank: 4, alpha: 8.0, ..LoraConfig::default() }).of(&network.clone().into()),
        network: Network::from(network),
        base: base.tensors(device),
        precision: Precision::F32,
        checkpointing: Checkpointing::Block,
        decoder: Decoder::Pixels,
        adapter: None,
        seed: 0,
    };
    let method = config.build(policy.schedule).expect("valid");
    let prompts: Vec<Prompt> = ["one", "three"].into_iter().map(Prompt::from).collect();
    let mut trainer = Trainer::new(method, &policy, &prompts, &Red, device.clone()).expect("valid");
    // B of a fresh adapter is zero, and with it the gradient of A.
    let mut noise = Vec::new();
    Key::new(5, Purpose::Initialization, 0).extend_normals(trainer.state.current.values().len(), &mut noise);
    trainer.state.current.values_mut().iter_mut().zip(noise).for_each(|(w, z)| *w += 0.02 * z);
    trainer.state.behavior = trainer.state.current.clone();
    let batch = trainer.collect(&()).expect("a rollout").batch;
    let outcome = trainer.update(&batch, &()).expect("an update");
    Seen {
        latents: batch.clean().clone().into_data().iter::<f32>().collect(),
        losses: outcome.policy_losses,
        gradient: trainer.state.optimizer.first.values().to_vec(),
        weights: trainer.state.current.values().to_vec(),
    }
}

/// Largest difference by the largest value.
fn off(got: &[f32], expected: &[f32]) -> f64 {
    let size = expected.iter().fold(0.0, |m: f64, v| m.max(f64::from(v.abs())));
    got.iter().zip(expected).fold(0.0, |m: f64, (a, b)| m.max(f64::from((a - b).abs()))) / size
}

#[test]
#[expect(clippy::print_stderr, reason = "seen with --nocapture")]
fn an_epoch_on_a_device_is_that_on_the_cpu() {
    let batch = BatchConfig {
        groups: 2,
        group_size: 4,
        updates: 1,
        micro_batch: MicroBatch::Size(4),
        ..BatchConfig::default()
    };
    let advantage = AdvantageKind::Standard(Standard::default());
    let elbo = Config {
        batch,
        advantage,
        sampler: SamplerConfig { steps: 3, ..SamplerConfig::default() },
        ..Config::default()
    };
    let sde = Config {
        sampler: SamplerConfig { rule: FlowSde::default().into(), steps: 3, ..SamplerConfig::default() },
        likelihood: LikelihoodKind::Trajectory(Trajectory::default()),
        ..elbo.clone()
    };
    for config in [elbo, sde] {
        let cpu = epoch(config.clone(), &Device::flex());
        assert!(cpu.gradient.iter().any(|g| g.abs() > 0.0));
        for device in devices().into_iter().skip(1) {
            let seen = epoch(config.clone(), &device);
            let losses = seen.losses.iter().zip(&cpu.losses).fold(0.0, |m: f64, (a, b)| m.max((a - b).abs()));
            let [latents, gradient, weights] = [
                off(&seen.latents, &cpu.latents),
                off(&seen.gradient, &cpu.gradient),
                off(&seen.weights, &cpu.weights),
            ];
            eprintln!(
                "{device:?}: latents {latents:.1e}, losses {losses:.1e}, gradient {gradient:.1e}, weights {weights:.1e}"
            );
            assert!(
                latents < 1e-4 && losses < 1e-4 && gradient < 1e-3,
                "{device:?}: {latents:e} {losses:e} {gradient:e}"
            );
            assert!(weights < 1e-3, "{device:?}: {weights:e}");
        }
    }
}
