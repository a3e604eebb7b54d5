//! One line a check, and a status that says whether all passed.

#![expect(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

mod common;
#[path = "../../elbow-models/tests/diffusers/model_folder.rs"]
mod model_folder;

use common::{elbow, sets, succeed, text};
use model_folder::whole;
use std::fs;

/// What `elbow doctor` prints when it must fail.
#[track_caller]
fn failing(args: &[&str]) -> String {
    let output = elbow(["doctor"]).args(args).output().unwrap();
    let told = text(&output);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("\nFAIL  ") && told.contains("checks failed\nhint: "), "{told}");
    told
}

#[test]
fn the_default_recipe_passes() {
    let root = tempfile::tempdir().unwrap();
    let told = succeed(elbow(["doctor"]).current_dir(root.path()));
    assert!(!told.contains("FAIL"), "{told}");
    for part in [
        "ok    build          elbow ",
        "ok    devices        this build reaches cpu",
        "GB available",
        "GB free in ",
        "ok    recipe         nano-geneval: ",
        "ok    reward         geneval: 1 for a picture of \"a photo of ",
        "ok    training step  log-ratio 0 under equal weights, loss ",
        "all 9 checks passed",
    ] {
        assert!(told.contains(part), "{part:?} is not in\n{told}");
    }
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0, "nothing is written");
}

#[test]
fn every_reward_of_a_sum_is_checked_and_other_recipes_pass() {
    let sum = "reward={kind='sum', parts=[{name='a', reward={kind='geneval'}}, {name='b', reward={kind='jpeg'}}]}";
    for (recipe, changes, lines) in [
        ("nano-geneval", &[sum][..], &["reward         a: 1 ", "reward         b: -0.64"][..]),
        ("nano-flow-grpo", &["sampler.guidance=2"], &["log-ratio 0 under equal weights"]),
        ("nano-mix-grpo", &["model.tuning.kind=lora"], &["log-ratio 0 under equal weights"]),
        ("nano-op-grpo", &[], &["log-ratio 0 under equal weights"]),
    ] {
        let told = succeed(elbow(["doctor", recipe]).args(sets(changes)));
        for line in lines {
            assert!(told.contains(line), "{line:?} is not in\n{told}");
        }
    }
}

#[test]
fn a_model_folder_is_checked_alone_and_with_a_recipe() {
    let (model, room) = (whole("sd3"), tempfile::tempdir().unwrap());
    fs::write(room.path().join("prompts.txt"), "a red cat\nhorse\n").unwrap();
    let path = model.path().to_str().unwrap();
    let recipe = || {
        let mut command = elbow(["doctor", "sd3.5-geneval", "--model", path]);
        let files = ["prompts.train=prompts.txt", "prompts.test=prompts.txt", "model.cache=cache"];
        command
            .args(sets(&files))
            .args(sets(&["model.resolution=32", "reward.kind=jpeg", "eval.rewards=[]"]))
            .current_dir(room.path());
        command
    };
    let told = succeed(&mut recipe());
    assert!(told.contains("ok    model          ") && told.contains("latents of "), "{told}");
    assert!(told.contains("training step  log-ratio 0 under"), "{told}");

    let network = model.path().join("transformer/diffusion_pytorch_model.safetensors");
    let bytes = fs::read(&network).unwrap();
    fs::write(&network, &bytes[..bytes.len() - 5]).unwrap();
    fs::remove_file(model.path().join("vae/config.json")).unwrap();
    let told = failing(&["--model", path]);
    for part in ["bytes, in tensor `", "vae/config.json", "hint: download the file again", "2 of 7 checks failed"] {
        assert!(told.contains(part), "{part:?} is not in\n{told}");
    }
    let output = recipe().output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("FAIL  model") && !text(&output).contains("training step"), "{}", text(&output));
}

#[test]
fn a_recipe_that_cannot_run_fails_with_the_reason() {
    let told = failing(&["--set", "batch.group_size=1"]);
    assert!(told.contains("FAIL  recipe") && told.contains("batch.group_size = 1"), "{told}");
    let told = failing(&["--set", "model.weights=absent.safetensors"]);
    assert!(told.contains("FAIL  components") && told.contains("absent.safetensors"), "{told}");
    assert!(failing(&["--model", "absent"]).contains("absent has none of: model_index.json"));
}
