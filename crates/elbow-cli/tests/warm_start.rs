//! Training that goes on with an adapter, `model.adapter`.

#![expect(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

mod common;

use common::{SMALL, assert_same, elbow, refused, resume, sets, succeed};
use std::{fs, path::Path, process::Command};

/// The nano model with a low-rank adapter, as `run` below `room`.
fn train(room: &Path, run: &str, changes: &[&str]) -> Command {
    let mut command = elbow(["train", "--run", run]);
    let lora = ["model.tuning.kind=lora", "optimizer.learning_rate=0.1", "reward.kind=jpeg", "eval.rewards=[]"];
    command.args(sets(&SMALL)).args(sets(&lora)).args(sets(changes)).current_dir(room);
    command
}

fn json(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// A first run of rank 3, whose adapter is `first.lora` as PEFT writes it.
fn first(room: &Path) {
    let lora = "model.tuning={kind=\"lora\", rank=3, alpha=7.0}";
    succeed(&mut train(room, "first", &["epochs=2", lora]));
    succeed(elbow(["export", "first", "--format", "peft", "--out", "first.lora"]).current_dir(room));
}

#[test]
fn training_goes_on_with_an_adapter() {
    let room = tempfile::tempdir().unwrap();
    let room = room.path();
    first(room);
    let start = ["model.adapter=first.lora", "kl.reference=adapter", "kl.weight=0.5"];
    succeed(&mut train(room, "straight", &[&start[..], &["epochs=2"]].concat()));

    // It starts where the first run ended, to the bit.
    let (before, after) = (json(&room.join("first/result.json")), json(&room.join("straight/result.json")));
    assert_eq!(before["tuned"], after["base"]);
    assert_ne!(after["base"], after["tuned"]);
    assert!(after["adapter_sha256"].is_string() && before["adapter_sha256"].is_null());
    let records = common::records(&room.join("straight"));
    assert_eq!(records[1]["kl_loss"], 0.0, "before the first update it is the adapter that it is held near");
    assert!(records[2]["kl_loss"].as_f64().unwrap() > 0.0);
    let config = fs::read_to_string(room.join("straight/config.toml")).unwrap();
    assert!(config.contains("rank = 3") && config.contains("alpha = 7.0"), "{config}");

    // Near the base it is far from its start.
    succeed(&mut train(room, "base", &["model.adapter=first.lora", "kl.weight=0.5", "epochs=1"]));
    assert!(common::records(&room.join("base"))[1]["kl_loss"].as_f64().unwrap() > 0.0);

    // Stopped, with the adapter elsewhere: the same run. Another adapter is none to go on with.
    succeed(&mut train(room, "resumed", &[&start[..], &["epochs=1"]].concat()));
    fs::rename(room.join("first.lora"), room.join("moved.lora")).unwrap();
    let more = ["epochs=2", "model.adapter=moved.lora"];
    succeed(resume(Path::new("resumed")).args(sets(&more)).current_dir(room));
    // But for the place, which is the recipe's.
    let config = fs::read_to_string(room.join("resumed/config.toml")).unwrap();
    fs::write(room.join("resumed/config.toml"), config.replace("moved.lora", "first.lora")).unwrap();
    assert_same(&room.join("straight"), &room.join("resumed"));
    fs::rename(room.join("moved.lora"), room.join("first.lora")).unwrap();
    succeed(elbow(["export", "straight", "--format", "peft", "--out", "other.lora"]).current_dir(room));
    let other = ["epochs=3", "model.adapter=other.lora"];
    refused(resume(Path::new("resumed")).args(sets(&other)), room, &["weights of the adapter differ"]);
}

/// An adapter teaches as the run that it was exported from does; one of a smaller rank teaches a larger one.
#[test]
fn an_adapter_teaches() {
    let room = tempfile::tempdir().unwrap();
    let room = room.path();
    first(room);
    let taught = |run: &str, teacher: &str, tuning: &str| {
        let teachers = format!("objective={{kind=\"distill\", teachers=[{{weights=\"{teacher}\"}}]}}");
        succeed(&mut train(room, run, &["epochs=1", &teachers, tuning]));
        common::records(&room.join(run))[1]["policy_loss"].as_f64().unwrap()
    };
    let same = "model.tuning={kind=\"lora\", rank=3, alpha=7.0}";
    let (run, file) = (taught("one", "first", same), taught("two", "first.lora", same));
    assert!(run.to_bits() == file.to_bits() && run > 0.0, "{run} {file}");
    let larger = taught("three", "first.lora", "model.tuning={kind=\"lora\", rank=5, alpha=2.0}");
    assert!((larger / run - 1.0).abs() < 1e-4, "{larger} {run}");
    let changes =
        ["objective={kind=\"distill\", teachers=[{weights=\"first.lora\"}]}", "model.tuning={kind=\"lora\", rank=2}"];
    refused(&mut train(room, "four", &changes), room, &["cannot use teacher first.lora", "rank 3", "model.lora"]);
}

#[test]
fn what_is_drawn_and_measured_without_training_is_the_adapters() {
    let room = tempfile::tempdir().unwrap();
    let room = room.path();
    first(room);
    let picture = |name: &str, args: &[&str]| {
        succeed(elbow(["sample", "a photo of a cat", "--images", "2", "--out", name]).args(args).current_dir(room));
        fs::read(room.join(name)).unwrap()
    };
    let steps = "eval.measure.sampler.steps=2";
    let adapter = sets(&["model.tuning.kind=lora", "model.adapter=first.lora", steps]);
    let (run, given, base) =
        (picture("run.png", &["--run", "first"]), picture("given.png", &adapter), picture("base.png", &sets(&[steps])));
    assert!(run == given && given != base);
}

#[test]
fn what_does_not_go_together_is_said_before_any_work() {
    let room = tempfile::tempdir().unwrap();
    let room = room.path();
    first(room);
    let refused = |changes: &[&str], parts: &[&str]| refused(&mut train(room, "wrong", changes), room, parts);
    refused(&["kl.reference=adapter"], &["kl.reference", "model.adapter"]);
    refused(&["model.adapter=first"], &["first", "a run of this program", "elbow export first --format peft"]);
    refused(&["model.adapter=absent"], &["cannot start from adapter absent"]);
    refused(
        &["model.adapter=first.lora", "model.tuning.rank=8"],
        &["rank 8", "rank 3", "leave out rank, alpha and target_modules"],
    );
    let full = ["model.tuning.kind=full", "model.adapter=first.lora"];
    refused(&full, &["every weight is trained", "model.tuning.kind"]);
    // A recipe may say what is so.
    let same = ["model.adapter=first.lora", "model.tuning.rank=3", "model.tuning.alpha=7.0", "epochs=1"];
    succeed(&mut train(room, "same", &same));
}
