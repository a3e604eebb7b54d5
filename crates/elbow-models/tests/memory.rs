//! Peak memory of a training step at depth 24, with the values inside blocks kept and recomputed. The only test of this
//! program, since it counts every allocation.

#![expect(clippy::print_stdout, reason = "how near the estimate comes")]

#[path = "common/counting.rs"]
mod counting;

use burn::tensor::{Device, Tensor};
use counting::peak;
use elbow::{
    noise::{self, Key, Purpose},
    params::{Params, Tensors},
    policy::Conditioning,
};
use elbow_models::{
    cost::{Row, activations},
    linear::{Precision, Weights},
    lora::LoraConfig,
    mmdit::MmditConfig,
    policy::{Network, Tuning},
    recompute::Checkpointing,
};
fn random(values: usize, stream: u64) -> Vec<f32> {
    let mut made = Vec::new();
    Key::new(0, Purpose::Initialization, 0).sample(stream).extend_normals(values, &mut made);
    made
}

/// The same layout, every value Gaussian.
fn randomized(params: &Params, deviation: f32, stream: u64) -> Params {
    let mut made = params.clone();
    for (value, normal) in made.values_mut().iter_mut().zip(random(params.values().len(), stream)) {
        *value = deviation * normal;
    }
    made
}

/// Gradients of a step, and the most bytes it held beyond those held before.
fn step(network: &Network, base: &Tensors, lora: (&Params, f64), checkpointing: Checkpointing) -> (Params, usize) {
    let device = Device::flex();
    let keys = |purpose| (0..4).map(move |sample| Key::new(1, purpose, 0).sample(sample));
    let x = noise::normal(keys(Purpose::Start), 4 * 16 * 16, &device);
    let cond = Conditioning {
        tokens: noise::normal(keys(Purpose::Draw), 16 * 32, &device).reshape([4, 16, 32]),
        mask: None,
        pooled: Some(noise::normal(keys(Purpose::Draw), 32, &device)),
    };
    let t = Tensor::<1>::from_data([0.2, 0.4, 0.6, 0.8], &device);
    let leaves = lora.0.tensors(&device.clone().autodiff());
    let weights = Weights { base, adapter: Some((&leaves, lora.1)), precision: Precision::F32 };
    let pass = || network.bind(weights, checkpointing, [4, 16, 16]).velocity(x, t, &cond).square().mean().backward();
    let (mut gradients, peak) = peak(pass);
    let mut sum = lora.0.zeros_like();
    sum.add_gradients(&leaves, &mut gradients);
    (sum, peak)
}

#[test]
fn recomputed_blocks_need_a_fraction_of_the_memory_at_depth_24() {
    let config = MmditConfig {
        sample_size: 16,
        patch_size: 2,
        in_channels: 4,
        num_layers: 24,
        attention_head_dim: 16,
        joint_attention_dim: 32,
        pooled_projection_dim: 32,
        ..MmditConfig::default()
    };
    let lora = LoraConfig { rank: 4, alpha: 8.0, ..LoraConfig::default() }.with_usual(&config.layout().usual_targets());
    let factors = lora.initial(config.layout().shapes(), Key::new(0, Purpose::Initialization, 1));
    let factors = randomized(&factors, 0.2, 1);
    let base = randomized(&config.initial(Key::new(0, Purpose::Initialization, 0)), 0.1, 2).tensors(&Device::flex());
    let network = Network::from(config);
    let run = |checkpointing| step(&network, &base, (&factors, lora.scale()), checkpointing);
    run(Checkpointing::None); // what is allocated once
    let [(kept, most), (recomputed, least)] = [Checkpointing::None, Checkpointing::Block].map(run);
    let bits = |params: &Params| params.values().iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    assert!(kept.norm() > 0.0 && bits(&kept) == bits(&recomputed), "the same gradients");
    assert!(5 * least < most, "kept: {most} bytes; recomputed: {least}");

    let row = Row { latent: [4, 16, 16], text: 16 };
    for (checkpointing, measured) in [(Checkpointing::None, most), (Checkpointing::Block, least)] {
        let planned = 4.0 * 4.0 * activations(&network, row, &Tuning::Lora(lora.clone()), checkpointing);
        println!("{checkpointing:?}: {measured} bytes, {planned:.0} planned, {:.2}", planned / measured as f64);
        assert!(
            (planned / measured as f64 - 1.0).abs() < 0.25,
            "{checkpointing:?}: {measured} bytes, {planned} planned"
        );
    }
}
