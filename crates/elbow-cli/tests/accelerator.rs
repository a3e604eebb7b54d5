//! The program on an accelerator, in builds that reach one.

#![cfg(feature = "wgpu")]
#![expect(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

mod common;

use common::{assert_same, elbow, numbers, resume, sets, succeed};
use std::path::Path;

/// Adapters, blocks recomputed, guidance: what a large model would be trained with.
const CHANGES: [&str; 11] = [
    "reward.kind=jpeg",
    "eval.rewards=[]",
    "batch.groups=1",
    "batch.group_size=4",
    "batch.micro_batch=4",
    "sampler.steps=2",
    "model.tuning.kind=lora",
    "model.checkpointing=block",
    "eval.prompts_per_task=1",
    "eval.measure.images_per_prompt=1",
    "eval.measure.sampler.steps=2",
    "keep.checkpoint_every=1",
];

fn train(device: &str, folder: &Path, epochs: &str) {
    let mut command = elbow(["train", "--device", device, "--run"]);
    succeed(command.arg(folder).args(sets(&CHANGES)).args(["--set", epochs]));
}

#[test]
fn a_run_stops_goes_on_and_is_that_of_the_cpu() {
    let root = tempfile::tempdir().unwrap();
    let [whole, parts, cpu] = ["whole", "parts", "cpu"].map(|name| root.path().join(name));
    train("wgpu", &whole, "epochs=2");
    train("wgpu", &parts, "epochs=1");
    succeed(resume(&parts).args(["--device", "wgpu", "--set", "epochs=2"]));
    assert_same(&whole, &parts);

    // How close the numbers are is for the tests of elbow-models; a pixel that is rounded the other way changes a file's size.
    train("cpu", &cpu, "epochs=2");
    let norm = |run: &Path| numbers(run).iter().find_map(|record| record.get("grad_norm")?.as_f64()).unwrap();
    let (there, here) = (norm(&whole), norm(&cpu));
    assert!(here > 0.0 && (there - here).abs() <= 0.1 * here, "{there} there, {here} here");
}
