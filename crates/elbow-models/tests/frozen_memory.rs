//! Memory of a frozen base in half precision: what holding it takes, and what a step over it takes besides. The only test of
//! this program, since it counts every allocation.

#![expect(clippy::print_stdout, reason = "what was measured")]

#[path = "common/counting.rs"]
mod counting;
#[path = "diffusers/model_folder.rs"]
mod model_folder;
#[path = "diffusers/stored_as.rs"]
mod stored_as;

use burn::tensor::{Device, Tensor};
use counting::peak;
use elbow::{
    noise::{self, Key, Purpose},
    params::Params,
    policy::{Conditioning, Policy},
};
use elbow_models::{
    folder::FrozenWeights,
    linear::Precision,
    lora::LoraConfig,
    mmdit::MmditConfig,
    pipeline::{Options, Setup, Source},
    policy::{NetworkPolicy, Tuning},
    recompute::Checkpointing,
};
use safetensors::tensor::Dtype;
use std::{fs, path::Path};

/// The same layout, every value Gaussian: a fresh network is the identity, and its adapters learn nothing.
fn randomized(mut params: Params, stream: u64) -> Params {
    let mut normals = Vec::new();
    let key = Key::new(0, Purpose::Initialization, 0);
    key.sample(stream).extend_normals(params.values().len(), &mut normals);
    for (value, normal) in params.values_mut().iter_mut().zip(normals) {
        *value = 0.05 * normal;
    }
    params
}

/// The tiny folder of SD3 in bf16 with a network of some million parameters; its configuration.
fn enlarge(folder: &Path) -> MmditConfig {
    let place = folder.join("transformer");
    let text = fs::read_to_string(place.join("config.json")).expect("a configuration");
    let mut json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    for (key, value) in [("num_layers", 12), ("attention_head_dim", 64), ("num_attention_heads", 4)] {
        json[key] = value.into();
    }
    json["caption_projection_dim"] = 256.into();
    fs::write(place.join("config.json"), json.to_string()).expect("written");
    let config = MmditConfig::from_json(&json.to_string()).expect("a configuration");
    let weights = randomized(config.initial(Key::new(0, Purpose::Initialization, 0)), 1);
    fs::write(place.join("diffusion_pytorch_model.safetensors"), weights.to_safetensors(None)).expect("written");
    stored_as::store_as(Dtype::BF16, folder);
    config
}

/// The policy, and the most bytes that were held while it was loaded.
fn load(folder: &Path, frozen_weights: FrozenWeights, checkpointing: Checkpointing) -> (NetworkPolicy, usize) {
    let options = Options { variant: None, resolution: Some([32; 2]), text_length: 24, guidance: 3.5 };
    let setup = Setup {
        precision: Precision::F32,
        tuning: Tuning::Lora(LoraConfig { rank: 2, ..LoraConfig::default() }),
        checkpointing,
        frozen_weights,
        decode_slice: 1,
        cache: &folder.join("cache"),
        adapter: None,
        seed: 0,
    };
    let source = Source::open(folder, &options).expect("a model");
    let (policy, most) = peak(|| source.load(setup, &Device::flex()).expect("weights"));
    (policy, most)
}

/// Gradients of a step, and the most bytes it held beyond those held before.
fn step(policy: &NetworkPolicy) -> (Params, usize) {
    let device = Device::flex();
    let keys = |purpose| (0..2).map(move |sample| Key::new(1, purpose, 0).sample(sample));
    let (token, pooled) = policy.network.text_widths();
    let pooled = pooled.expect("SD3 pools its text");
    let x = noise::normal(keys(Purpose::Start), policy.dims(), &device);
    let cond = Conditioning {
        tokens: noise::normal(keys(Purpose::Draw), 4 * token, &device).reshape([2, 4, token]),
        mask: None,
        pooled: Some(noise::normal(keys(Purpose::Draw), pooled, &device)),
    };
    let t = Tensor::<1>::from_data([0.2, 0.8], &device);
    let trained = randomized(policy.initial(), 2);
    let leaves = trained.tensors(&device.autodiff());
    let pass = || policy.bind(Some(&leaves)).velocity(x, t, &cond).square().mean().backward();
    let (mut gradients, most) = peak(pass);
    let mut sum = trained.zeros_like();
    sum.add_gradients(&leaves, &mut gradients);
    (sum, most)
}

#[test]
fn a_base_in_half_precision_takes_half_and_is_never_copied() {
    let folder = model_folder::whole("sd3");
    let config = enlarge(folder.path());
    let layout = config.layout();
    let matrix =
        layout.shapes().filter(|(_, shape)| shape.len() == 2).map(|(_, shape)| 4 * shape.iter().product::<usize>());
    let (largest, all) = matrix.fold((0, 0), |(largest, sum), size| (largest.max(size), sum + size));
    for checkpointing in [Checkpointing::None, Checkpointing::Block] {
        let (wide, loading_wide) = load(folder.path(), FrozenWeights::F32, checkpointing);
        let (half, loading_half) = load(folder.path(), FrozenWeights::Stored, checkpointing);
        println!("loading: {loading_half} bytes as stored, {loading_wide} in f32");
        let share = loading_half as f64 / loading_wide as f64;
        assert!((0.48..0.54).contains(&share), "as stored {loading_half} bytes, in f32 {loading_wide}");
        let planned = FrozenWeights::Stored.bytes(layout.shapes().map(|(_, shape)| shape));
        assert!(
            (0.9..1.1).contains(&(planned as f64 / loading_half as f64)),
            "{loading_half} bytes, {planned} planned"
        );

        step(&wide); // what is allocated once
        let ((expected, step_wide), (gradients, step_half)) = (step(&wide), step(&half));
        println!("{checkpointing:?}: {step_half} bytes as stored, {step_wide} in f32, of {all} for the weights in f32");
        assert!(step_half < step_wide + 2 * largest, "as stored {step_half} bytes, in f32 {step_wide}");
        assert!(20 * largest < all, "copies of all weights would be seen");
        assert!(gradients == expected && gradients.norm() > 0.0, "the same gradients");
    }
}
