//! Names and shapes of every tensor of the published models, against what diffusers makes of the same `config.json`
//! (`fixtures/make/inventory.py`). No weights are allocated on either side.

mod common;

use elbow_models::{flux::FluxConfig, layout::Layout, mmdit::MmditConfig, unet::UnetConfig, vae::VaeConfig};
use serde_json::Value;
use std::collections::BTreeMap;

type Shapes = BTreeMap<String, Vec<usize>>;

/// `a.{0-2,5}.b` as the names it stands for.
fn expanded(name: &str) -> Vec<String> {
    let Some((before, rest)) = name.split_once('{') else { return vec![name.to_owned()] };
    let (numbers, after) = rest.split_once('}').expect("a closed brace");
    let bounds = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        first.parse::<usize>().expect("a number")..=last.parse().expect("a number")
    };
    numbers.split(',').flat_map(bounds).map(|n| format!("{before}{n}{after}")).collect()
}

/// Compares a layout to the inventory; the message of a failure lists every difference.
fn check(model: &str, layout: impl FnOnce(&str) -> Layout) {
    let file: Value = serde_json::from_slice(&common::read(&format!("inventory/{model}.json"))).expect("JSON");
    let mut expected = Shapes::new();
    for (name, shape) in file["tensors"].as_object().expect("tensors") {
        let shape: Vec<usize> = serde_json::from_value(shape.clone()).expect("a shape");
        expected.extend(expanded(name).into_iter().map(|name| (name, shape.clone())));
    }
    assert_eq!(expected.len() as u64, file["count"].as_u64().expect("a count"), "the inventory is whole");

    let layout = layout(&file["config"].to_string());
    let own: Shapes = layout.shapes().map(|(name, shape)| (name.to_owned(), shape.to_vec())).collect();
    assert_eq!(own.len(), layout.slots().len(), "no name occurs twice");
    let names = expected.keys().chain(own.keys().filter(|name| !expected.contains_key(*name)));
    let different: Vec<String> = names
        .filter(|name| expected.get(*name) != own.get(*name))
        .map(|name| format!("{name}: {:?} in diffusers, {:?} here", expected.get(name), own.get(name)))
        .collect();
    assert!(different.is_empty(), "{model}:\n{}", different.join("\n"));
    assert_eq!(layout.size() as u64, file["parameters"].as_u64().expect("a count"), "{model}");
}

fn mmdit(json: &str) -> Layout {
    MmditConfig::from_json(json).expect("a published configuration").layout()
}

fn flux(json: &str) -> Layout {
    FluxConfig::from_json(json).expect("a published configuration").layout()
}

fn unet(json: &str) -> Layout {
    UnetConfig::from_json(json).expect("a published configuration").layout()
}

fn vae(json: &str) -> Layout {
    VaeConfig::from_json(json).expect("a published configuration").layout()
}

#[test]
fn stable_diffusion_3_medium() {
    check("sd3-medium", mmdit);
}

#[test]
fn stable_diffusion_3_5_medium() {
    check("sd3.5-medium", mmdit);
}

#[test]
fn stable_diffusion_3_5_large() {
    check("sd3.5-large", mmdit);
}

#[test]
fn flux_1_dev() {
    check("flux.1-dev", flux);
}

#[test]
fn flux_1_schnell() {
    check("flux.1-schnell", flux);
}

#[test]
fn unet_of_stable_diffusion_1_5() {
    check("sd1.5-unet", unet);
}

#[test]
fn unet_of_stable_diffusion_2_1() {
    check("sd2.1-unet", unet);
}

#[test]
fn autoencoder_of_stable_diffusion_1_5() {
    check("sd1.5-vae", vae);
}

#[test]
fn autoencoder_of_stable_diffusion_3() {
    check("sd3-vae", vae);
}

#[test]
fn autoencoder_of_flux() {
    check("flux-vae", vae);
}
