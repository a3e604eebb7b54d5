//! `AutoencoderKL` both ways.

use super::{Named, close, named, read, tensor, text, values};
use burn::tensor::Device;
use elbow::noise::{Key, Purpose};
use elbow_models::{
    linear::Weights,
    vae::{Vae, VaeConfig, pixels},
};

/// Relative to the largest value of the reference.
const TOLERANCE: f64 = 1e-5;

fn load(variant: &str) -> (Vae, Named) {
    let config = VaeConfig::from_json(&text(&format!("vae/{variant}.json"))).expect("diffusers' configuration");
    let fresh = config.initial(Key::new(0, Purpose::Initialization, 0));
    let weights = fresh.with_values_of(&read(&format!("vae/{variant}.weights.safetensors"))).expect("diffusers' names");
    let tensors = weights.tensors(&Device::flex());
    let vae = Vae::new(&config, &Weights::plain(&tensors).into());
    (vae, named(&format!("vae/{variant}.reference.safetensors")))
}

fn check(variant: &str) {
    let (vae, reference) = load(variant);
    let expected = |name: &str| &reference[name].1;
    let latent = tensor::<4>(&reference, "latent");
    close("decoded", &values(vae.decode(latent.clone())), expected("decoded"), TOLERANCE);
    let encoded = vae.encode(tensor(&reference, "image"));
    close("mean", &values(encoded.mean.clone()), expected("mean"), TOLERANCE);
    close("std", &values(encoded.std.clone()), expected("std"), TOLERANCE);
    let noise = encoded.mean.ones_like() * 0.5;
    let sample = values(encoded.sample(noise));
    let half_above = expected("mean").iter().zip(expected("std")).map(|(m, s)| m + 0.5 * s);
    close("sample", &sample, &half_above.collect::<Vec<f32>>(), TOLERANCE);

    let whole = vae.pictures(latent.clone(), 3);
    assert!(whole.iter().all(|decoded| decoded.finite));
    let bytes: Vec<u8> = whole.iter().flat_map(|decoded| decoded.picture.iter().copied()).collect();
    let off = bytes.iter().zip(expected("pictures")).filter(|(a, b)| (f32::from(**a) - **b).abs() > 0.0).count();
    assert!(bytes.len() == expected("pictures").len() && off * 1000 <= bytes.len(), "{off} of {} bytes", bytes.len());
    for slice in [0, 1, 2] {
        assert_eq!(vae.pictures(latent.clone(), slice), whole, "slices of {slice}");
    }
}

#[test]
fn four_channels_and_quantization() {
    check("sd1");
}

#[test]
fn sixteen_channels_and_a_shift() {
    check("sd3");
}

#[test]
fn pictures_survive_the_way_to_numbers() {
    let (vae, reference) = load("sd1");
    let pictures = vae.pictures(tensor(&reference, "latent"), 3);
    let pictures: Vec<_> = pictures.into_iter().map(|decoded| decoded.picture).collect();
    let numbers = pixels(&pictures, &Device::flex());
    assert_eq!(numbers.dims(), [3, 3, 16, 24]);
    let clamped = tensor::<4>(&reference, "decoded").clamp(-1.0, 1.0);
    // Half a step of 8 bits.
    close("numbers", &values(numbers), &values(clamped), 0.502 / 127.5);
}

/// Latents that are finite, in a decoder whose values leave float32: only the picture knows.
#[test]
fn a_decoder_that_overflows_says_so_of_its_picture() {
    let (mut config, reference) =
        (VaeConfig::from_json(&text("vae/sd1.json")).expect("diffusers' configuration"), load("sd1").1);
    config.scaling_factor = 1e-38;
    let fresh = config.initial(Key::new(0, Purpose::Initialization, 0));
    let weights = fresh.with_values_of(&read("vae/sd1.weights.safetensors")).expect("diffusers' names");
    let tensors = weights.tensors(&Device::flex());
    let vae = Vae::new(&config, &Weights::plain(&tensors).into());
    let latent = tensor::<4>(&reference, "latent");
    let scales = [1e-38, 10.0, 1e-38].map(|scale| scale as f32);
    let scaled = latent * burn::tensor::Tensor::<1>::from_floats(scales, &Device::flex()).reshape([3, 1, 1, 1]);
    assert!(values(scaled.clone()).iter().all(|value| value.is_finite()));
    let finite: Vec<bool> = vae.pictures(scaled, 2).into_iter().map(|decoded| decoded.finite).collect();
    assert_eq!(finite, [true, false, true]);
}
