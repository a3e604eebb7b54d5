//! Names and shapes of every tensor of the published models, against what diffusers makes of the same `config.json`. No
//! weights are allocated on either side.

use super::text;
use elbow_models::{layout::Layout, unet::UnetConfig, vae::VaeConfig};
use std::collections::BTreeSet;

/// Compares a layout to the inventory; the message of a failure lists every difference.
fn check(model: &str, layout: impl FnOnce(&str) -> Layout) {
    let layout = layout(&text(&format!("inventory/{model}.json")));
    let line = |(name, shape): (&str, &[usize])| {
        let sizes: Vec<String> = shape.iter().map(usize::to_string).collect();
        format!("{name} {}", sizes.join("x"))
    };
    let own: BTreeSet<String> = layout.shapes().map(line).collect();
    assert_eq!(own.len(), layout.slots().len(), "no name occurs twice");
    let expected: BTreeSet<String> = text(&format!("inventory/{model}.txt")).lines().map(str::to_owned).collect();
    let only = |a: &BTreeSet<String>, b: &BTreeSet<String>| a.difference(b).cloned().collect::<Vec<_>>().join("\n  ");
    let (ours, theirs) = (only(&own, &expected), only(&expected, &own));
    assert!(own == expected, "{model}\nonly here:\n  {ours}\nonly in diffusers:\n  {theirs}");
}

fn unet(json: &str) -> Layout {
    UnetConfig::from_json(json).expect("a published configuration").layout()
}

fn vae(json: &str) -> Layout {
    VaeConfig::from_json(json).expect("a published configuration").layout()
}

#[test]
fn unets_of_stable_diffusion() {
    check("sd1.5-unet", unet);
    check("sd2.1-unet", unet);
}

#[test]
fn autoencoders() {
    for model in ["sd1.5-vae", "sd3-vae", "flux-vae"] {
        check(model, vae);
    }
}
