//! Variance-preserving diffusion beside rectified flow: its own base, and rewards that need no prompt.

mod common;

use common::{SMALL, elbow, records, sets, succeed, text};
use std::path::Path;

fn train(recipe: &str, changes: &[&str], run: &Path) -> std::process::Command {
    let mut command = elbow(["train", recipe, "--run"]);
    command.arg(run).args(sets(&SMALL)).args(sets(changes));
    command
}

#[test]
fn the_size_of_files_is_trained_on_and_shown_beside_what_is_lost() {
    let root = tempfile::tempdir().unwrap();
    for (recipe, sign) in [("nano-ddpo-compressibility", -1.0), ("nano-rwr-incompressibility", 1.0)] {
        let run = root.path().join(recipe);
        let printed = succeed(&mut train(recipe, &["epochs=2", "batch.groups=4"], &run));
        for column in ["geneval base", "judge tuned", "jpeg base", "jpeg tuned"] {
            assert!(printed.contains(column), "{column}: {printed}");
        }
        let records = records(&run);
        let sizes: Vec<f64> = records.iter().filter_map(|r| r.get("reward_jpeg")?.as_f64()).collect();
        assert_eq!(sizes.len(), 2);
        // A plain image of this size has 0.64 kB, noise 1.8 kB.
        assert!(sizes.iter().all(|kb| (0.6..2.0).contains(&(kb * sign))), "{sizes:?}");
        assert!(records[0]["eval_reward_jpeg"].as_f64().unwrap() * sign > 0.6);
    }
}

#[test]
fn weights_are_refused_on_another_path_than_theirs() {
    let root = tempfile::tempdir().unwrap();
    let weights = root.path().join("vp.safetensors");
    succeed(elbow(["pretrain", "--schedule", "vp", "--steps", "2", "--batch", "2", "--out"]).arg(&weights));
    let with = format!("model.weights={}", weights.display());
    let run = root.path().join("run");
    let output = train("nano-geneval", &[&with], &run).output().unwrap();
    let told = text(&output);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(
        told.contains("made for {\"kind\":\"variance-preserving\"") && told.contains("hint: set model.schedule"),
        "{told}"
    );
    assert!(!run.exists());
    succeed(&mut train("nano-geneval", &[&with, "model.schedule.kind=variance-preserving", "epochs=1"], &run));
}
