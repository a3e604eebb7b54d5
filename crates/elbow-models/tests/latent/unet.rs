//! `UNet2DConditionModel`: output, gradients of weights, and gradients of PEFT's factors.

use super::{
    Named, close,
    common::{self, Tolerance, check, devices, differentiate, factors, under},
    named, read, tensor, text, values,
};
use burn::tensor::{Device, Tensor, TensorData};
use elbow::{
    noise::{Key, Purpose},
    params::Params,
    policy::Conditioning,
    prediction::Prediction,
    schedule::Schedule,
};
use elbow_models::{
    linear::Weights,
    policy::Network,
    recompute::Checkpointing,
    unet::{Unet, UnetConfig},
};

/// Relative to the largest value of the reference, which computes the frequencies of time in float32, off by up to 7 units
/// in the last place, and multiplies them by up to 999.
const TOLERANCE: Tolerance = Tolerance { output: 1e-4, gradient: 5e-4 };
/// The same on an accelerator: gradients were off by up to 1.1e-3 on a software driver of Vulkan.
const ACCELERATOR: Tolerance = Tolerance { gradient: 2e-3, ..TOLERANCE };

/// A network of diffusers, its weights in this crate's layout, and what it computed.
struct Golden {
    config: UnetConfig,
    weights: Params,
    reference: Named,
}

impl Golden {
    fn new(variant: &str) -> Self {
        let config = UnetConfig::from_json(&text(&format!("unet/{variant}.json"))).expect("diffusers' configuration");
        let fresh = config.initial(Key::new(0, Purpose::Initialization, 0));
        let weights =
            fresh.with_values_of(&read(&format!("unet/{variant}.weights.safetensors"))).expect("diffusers' names");
        Self { config, weights, reference: named(&format!("unet/{variant}.reference.safetensors")) }
    }

    /// Compares the output of a case and the gradients it holds, all of them with respect to tensors of `trained`.
    fn check(&self, case: &str, trained: &Params, adapter: Option<f64>) {
        let inputs = under(&self.reference, &format!("{case}."));
        for device in devices() {
            let run = |weights: Weights<'_>| {
                let input = |name| common::tensor::<4>(&inputs, name, &device);
                let text = common::tensor::<3>(&inputs, "tokens", &device);
                let timestep = common::tensor(&inputs, "timestep", &device);
                let y = Unet::new(&self.config, &weights.into()).forward(input("latent"), timestep, &text);
                let loss = (y.clone() * input("direction")).sum();
                (values(y), loss)
            };
            let got = differentiate(&device, &self.weights, (trained, adapter), run);
            let tolerance = if device == Device::flex() { TOLERANCE } else { ACCELERATOR };
            check(&format!("{device:?}"), case, &self.reference, &got, tolerance);
        }
    }

    fn check_all(&self) {
        self.check("square", &self.weights, None);
        self.check("narrow", &self.weights, None);
        let (factors, scale) = factors(&self.reference, &self.config.layout(), &["to_q", "to_k", "to_v", "to_out.0"]);
        self.check("lora", &factors, Some(scale));
    }
}

#[test]
fn stable_diffusion_1() {
    Golden::new("sd1").check_all();
}

#[test]
fn stable_diffusion_2() {
    Golden::new("sd2").check_all();
}

/// v = α′ x₀ + σ′ ε for the ε that the network predicts at the timestep and the x₀ that follows from it.
#[test]
fn predicted_noise_becomes_velocity() {
    let golden = Golden::new("sd1");
    let (inputs, base) = (under(&golden.reference, "square."), golden.weights.tensors(&Device::flex()));
    let schedule = Schedule::ScaledLinear { beta_start: 0.00085, beta_end: 0.012 };
    let shape = &inputs["latent"].0;
    let latent = [shape[1], shape[2], shape[3]];
    let network = Network::from(golden.config.clone()).bind(Weights::plain(&base), Checkpointing::None, latent);
    let field = Prediction::Noise.field(schedule, network);
    let timesteps = &inputs["timestep"].1;
    let t: Vec<f32> = timesteps.iter().map(|k| (k + 1.0) / 1000.0).collect();
    let mut expected = Vec::new();
    let pixels = inputs["latent"].1.len() / t.len();
    for (i, (x, noise)) in inputs["latent"].1.iter().zip(&inputs["output"].1).enumerate() {
        let level = schedule.level((f64::from(timesteps[i / pixels]) + 1.0) / 1000.0);
        let clean = (f64::from(*x) - level.sigma * f64::from(*noise)) / level.alpha;
        expected.push((level.d_alpha * clean + level.d_sigma * f64::from(*noise)) as f32);
    }
    let cond = Conditioning { tokens: tensor(&inputs, "tokens"), mask: None, pooled: None };
    let x = tensor::<4>(&inputs, "latent").reshape([t.len() as i32, -1]);
    let t = Tensor::from_data(TensorData::new(t.clone(), [t.len()]), &Device::flex());
    // Times in float32 are off by a ten-thousandth of a timestep.
    close("velocity", &values(field.velocity(x, t, &cond)), &expected, 1e-3);
}
