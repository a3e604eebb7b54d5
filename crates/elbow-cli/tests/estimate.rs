//! `elbow plan --config-only`: costs of a published model from its configurations alone.

#![expect(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

mod common;

use common::{elbow, sets, succeed, text};
use serde_json::Value;
use std::{fs, path::Path};
use tempfile::TempDir;

/// A folder with the configurations of a published network and of its autoencoder.
fn folder(network: &str, component: &str, vae: &str) -> TempDir {
    let room = tempfile::tempdir().unwrap();
    for (name, component) in [(network, component), (vae, "vae")] {
        let inventory = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../fixtures/inventory/{name}.json"));
        let file: Value = serde_json::from_slice(&fs::read(inventory).unwrap()).unwrap();
        fs::create_dir(room.path().join(component)).unwrap();
        fs::write(room.path().join(component).join("config.json"), file["config"].to_string()).unwrap();
    }
    room
}

/// The first number on the line that begins so.
#[track_caller]
fn number(text: &str, line: &str) -> f64 {
    let line = text.lines().find_map(|l| l.strip_prefix(line)).unwrap_or_else(|| panic!("no {line:?} in\n{text}"));
    let mut numbers = line.split(|c: char| !c.is_ascii_digit() && c != '.').filter_map(|part| part.parse().ok());
    numbers.next().unwrap()
}

fn plan(recipe: &str, folder: &TempDir, more: &[&str]) -> String {
    succeed(elbow(["plan", recipe, "--config-only"]).arg(folder.path()).args(more))
}

#[test]
fn published_models_are_planned_from_their_configurations() {
    let sd35 = folder("sd3.5-medium", "transformer", "sd3-vae");
    let told = plan("sd3.5-geneval", &sd35, &[]);
    assert!(told.starts_with("network           2.24 billion parameters, 18.8 million trained\n"), "{told}");
    assert!(told.contains("on one h100: 989 TFLOP/s") && told.contains("1152 images"), "{told}");
    // With the table of positions, 384 × 384 of width 1536.
    let gib = (2.243e9 + 384.0 * 384.0 * 1536.0) * 4.0 / f64::from(1 << 30);
    let held_wide = sets(&["model.frozen_weights=f32"]);
    let wide = plan("sd3.5-geneval", &sd35, &held_wide);
    let base = |told: &str| number(told, "  base");
    assert!((base(&told) - gib / 2.0).abs() < 0.02 && (base(&wide) - gib).abs() < 0.02, "{told}\n{wide}");
    assert!(told.contains("as stored, in half precision\n") && wide.contains("frozen weights in f32\n"));

    // A device of half the speed takes twice as long, and so does half the share.
    let seconds = |more: &[&str]| number(&plan("sd3.5-geneval", &sd35, more), "time");
    let (full, half) = (seconds(&["--gpu", "1e15"]), seconds(&["--gpu", "5e14"]));
    assert!((half / full - 2.0).abs() < 0.01, "{full} s and {half} s");
    assert!((seconds(&["--gpu", "1e15", "--utilization", "0.2"]) / full - 2.0).abs() < 0.01);

    // More memory, more rows; guidance takes twice as many.
    let rows = |more: &[&str]| number(&plan("sd3.5-geneval", &sd35, more), "micro-batch       up to");
    let (large, small) = (rows(&["--gpu", "h100"]), rows(&["--gpu", "l40s"]));
    assert!(large > small && small > 0.0 && rows(&["--gpu", "h100", "--memory", "48"]).to_bits() == small.to_bits());
    assert!(rows(&["--gpu", "4090"]) > rows(&[&["--gpu", "4090"], &held_wide[..]].concat()));
    let guided = rows(&["--gpu", "h100", "--set", "sampler.guidance=4.5"]);
    assert!((large / guided - 2.0).abs() < 0.2, "{large} and {guided}");

    let told = plan("flux-dance-grpo", &folder("flux.1-dev", "transformer", "flux-vae"), &["--gpu", "a100"]);
    assert!(told.starts_with("network           11.90 billion parameters"), "{told}");
    let told = plan("sd1.5-ddpo-compressibility", &folder("sd1.5-unet", "unet", "sd1.5-vae"), &["--gpu", "4090"]);
    assert!(
        told.starts_with("network           859.5 million parameters") && told.contains("recomputed    none"),
        "{told}"
    );
}

#[test]
fn folders_and_devices_that_cannot_be_planned_are_refused() {
    let told = |folder: &Path, more: &[&str]| {
        let output = elbow(["plan", "sd3.5-geneval", "--config-only"]).arg(folder).args(more).output().unwrap();
        assert!(!output.status.success());
        text(&output)
    };
    let whole = folder("sd3.5-medium", "transformer", "sd3-vae");
    let path = whole.path();
    let message = told(Path::new("absent"), &[]);
    assert!(message.contains("neither transformer/config.json nor unet/config.json") && message.contains("hint: "));
    assert!(told(path, &["--gpu", "h1000"]).contains("expected h100, a100, 4090, l40s"));
    assert!(told(path, &["--utilization", "40"]).contains("--utilization 40: must be a share"));
    let layers = sets(&["model.lora.target_modules=['nothing']"]);
    assert!(told(path, &layers).contains("no dense layer of this network ends so"));
    fs::write(path.join("vae/config.json"), "{").unwrap();
    assert!(told(path, &[]).contains("vae/config.json"));
    fs::write(path.join("transformer/config.json"), r#"{"_class_name": "Other"}"#).unwrap();
    let message = told(path, &[]);
    assert!(message.contains("`_class_name` is Other") && message.contains("hint: "), "{message}");
}
