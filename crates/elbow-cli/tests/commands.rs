//! What each command prints and leaves.

#![expect(clippy::print_stdout, reason = "shown where a test fails")]

mod common;

use common::{elbow, files, finished, records, sets, signal, succeed, text, wait_for};
use serde_json::Value;
use std::{collections::BTreeSet, fs, path::Path};

#[test]
fn every_command_shows_examples() {
    for command in [
        &[][..],
        &["train"],
        &["sample"],
        &["eval"],
        &["pretrain"],
        &["config"],
        &["bench"],
        &["plan"],
        &["methods"],
        &["export"],
        &["merge"],
        &["doctor"],
    ] {
        let help = succeed(elbow(command).arg("--help"));
        let examples = help.split("Examples:\n").nth(1).unwrap_or_else(|| panic!("{command:?} has no examples"));
        let line = format!("  elbow {}", command.first().unwrap_or(&"train"));
        assert!(examples.lines().filter(|l| l.starts_with(&line)).count() >= 2, "{help}");
    }
    assert!(succeed(&mut elbow(["--version"])).starts_with("elbow "));
}

#[test]
fn a_configuration_written_out_is_read_back_as_itself() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("written.toml");
    for changes in [
        &[][..],
        &["model.weights=w.safetensors"],
        &["objective.kind=grpo", "objective.clip=inf", "sampler.rule.kind=flow-sde", "likelihood.kind=trajectory"],
        &["prompts.kind=files", "prompts.train=a.jsonl", "prompts.test=b.jsonl", "model.tuning={kind='lora', rank=4}"],
        &["eval.measure.sampler.guidance=3", "kl={kind='k3', weight=1}", "model.schedule.kind=variance-preserving"],
        &["sampler.rule={kind='window', sde={kind='cps', eta=0.5}, strategy='random'}", "likelihood.kind=trajectory"],
        &[
            "sampler.rule.kind=window",
            "sampler.rule.sde.kind=dance",
            "likelihood={kind='trajectory', density='squared-error'}",
        ],
        &["likelihood.weighting=ghuber", "likelihood.timesteps={kind='stratified', count=6}", "sampler.rule.kind=ddim"],
    ] {
        let written = succeed(elbow(["config"]).args(sets(changes)));
        fs::write(&path, &written).unwrap();
        assert_eq!(succeed(elbow(["config"]).arg(&path)), written, "{changes:?}");
    }
    let guided = succeed(elbow(["config"]).args(sets(&["eval.measure.sampler.guidance=3"])));
    let base = succeed(&mut elbow(["config"]));
    let changed: Vec<_> = guided.lines().zip(base.lines()).filter(|(a, b)| a != b).collect();
    assert_eq!(changed, [("guidance = 3.0", "guidance = 1.0")], "one field was asked for");
}

#[test]
fn order_of_changes_does_not_matter() {
    let one = succeed(elbow(["config"]).args(sets(&["objective.kind=grpo", "objective.clip=0.25"])));
    let other = succeed(elbow(["config"]).args(sets(&["objective.clip=0.25", "objective.kind=grpo"])));
    assert_eq!(one, other);
    assert!(one.contains("kind = \"grpo\"\nclip = 0.25\n"), "{one}");
}

#[test]
fn the_reference_has_every_field_and_the_one_in_docs_is_fresh() {
    let reference = succeed(&mut elbow(["config", "--explain"]));
    for changes in [
        &[][..],
        &[
            "objective.kind=grpo",
            "advantage.kind=nft",
            "model.tuning.kind=lora",
            "model.schedule.kind=variance-preserving",
        ],
        &["model.weights=w", "sampler.rule.kind=flow-sde", "likelihood.kind=trajectory", "advantage.kind=standard"],
        &["prompts.kind=files", "prompts.train=a", "prompts.test=b", "model.kind=diffusers", "model.path=x"],
        &["sampler.rule.kind=window", "likelihood.timesteps={kind='logit-normal', count=2}"],
    ] {
        let written: toml::Table = succeed(elbow(["config"]).args(sets(changes))).parse().unwrap();
        let mut keys = BTreeSet::new();
        collect("", &written, &mut keys);
        assert!(keys.len() > 40);
        for key in keys {
            assert!(reference.contains(&format!("`{key}`")), "{key} is not explained");
        }
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/config.md");
    let kept = fs::read_to_string(path).unwrap_or_default();
    assert!(kept == reference, "docs/config.md is old; write it with: elbow config --explain > docs/config.md");
}

fn collect(path: &str, table: &toml::Table, keys: &mut BTreeSet<String>) {
    for (key, value) in table {
        let key = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        if let Some(inner) = value.as_table() {
            collect(&key, inner, keys);
        }
        keys.insert(key);
    }
}

#[test]
fn sample_draws_a_grid() {
    let root = tempfile::tempdir().unwrap();
    let (base, tuned) = (root.path().join("base.png"), root.path().join("tuned.png"));
    let fast = sets(&["eval.measure.sampler.steps=2"]);
    let prompts = ["a photo of a cat", "a photo of two cars"];
    let sample = |out: &Path, more: &[&str]| {
        succeed(elbow(["sample", "--images", "3", "--out"]).arg(out).args(prompts).args(&fast).args(more))
    };
    assert!(sample(&base, &[]).starts_with("6 images in "));
    sample(&tuned, &["--run", finished().to_str().unwrap(), "--seed", "7"]);
    let [base, tuned] = [base, tuned].map(|path| image::open(path).unwrap().to_rgb8());
    // Three columns and two rows of 32 × 32 pixels, six times as large, with gaps and captions.
    let (width, height) = base.dimensions();
    assert!(
        (3 * 192..3 * 192 + 80).contains(&width) && (2 * 192..2 * 192 + 200).contains(&height),
        "{width} × {height}"
    );
    assert_eq!(base.dimensions(), tuned.dimensions());
    assert!(base != tuned);
}

#[test]
fn eval_prints_a_table_and_writes_its_numbers() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("scores.json");
    let small = sets(&["eval.prompts_per_task=1", "eval.measure.images_per_prompt=1", "eval.measure.sampler.steps=2"]);
    let printed =
        succeed(elbow(["eval", "--json"]).arg(&path).args(&small).args(["--run", finished().to_str().unwrap()]));
    assert!(printed.starts_with("6 held-out prompts × 1 images, 2 steps, guidance 1, seed 42\n"), "{printed}");
    let scores: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let tasks = ["color_attr", "colors", "counting", "position", "single_object", "two_object"];
    for name in ["geneval", "judge", "geneval_dense"] {
        let by_tag = scores[name]["by_tag"].as_object().unwrap();
        assert!(by_tag.keys().eq(tasks), "{by_tag:?}");
        let lowest = if name == "geneval_dense" { -4.0 } else { 0.0 };
        for value in by_tag.values().chain([&scores[name]["mean"]]) {
            assert!((lowest..=1.0).contains(&value.as_f64().unwrap()), "{name}: {scores}");
        }
    }
    assert_eq!(scores["protocol"]["prompts"], 6);
    assert_eq!(scores["protocol"]["sampler"]["steps"], 2);
    assert!(scores["protocol"]["rewards"]["geneval"]["is"].is_object(), "{scores}");
    for (part, name) in [("protocol", "prompts_sha256"), ("model", "base_sha256"), ("model", "weights_sha256")] {
        assert_eq!(scores[part][name].as_str().unwrap().len(), 64, "{name}");
    }
    // The run measured the same weights at its end.
    let result: Value = serde_json::from_slice(&fs::read(finished().join("result.json")).unwrap()).unwrap();
    assert_eq!(scores["judge"]["mean"], result["tuned"]["eval_reward_judge"]);
    assert_eq!(scores["geneval_dense"]["mean"], result["tuned"]["eval_reward_geneval_dense"]);
}

#[test]
fn train_leaves_what_the_field_expects() {
    let folder = finished();
    let found = files(folder);
    let parts = ["weights", "behavior", "ema", "adam_first", "adam_second"].map(|n| format!("{n}.safetensors"));
    let mut expected: Vec<String> =
        ["config.toml", "manifest.json", "metrics.jsonl", "result.json", "images/before-after.png"]
            .map(str::to_owned)
            .into();
    expected.extend((1..=4).map(|epoch| format!("samples/epoch-{epoch:05}.jsonl")));
    for epoch in [3, 4] {
        let names = parts.iter().map(String::as_str).chain(["manifest.json"]);
        expected.extend(names.map(|name| format!("checkpoints/checkpoint-{epoch}/{name}")));
    }
    for name in &expected {
        assert!(found.contains_key(Path::new(name)), "{name} is not there");
    }
    let more: Vec<_> = found.keys().filter(|k| !expected.iter().any(|e| Path::new(e) == *k)).collect();
    assert!(more.len() == 1 && more[0].to_str().unwrap().starts_with("events.out.tfevents."), "{more:?}");

    let records = records(folder);
    assert_eq!(records.iter().map(|r| r["epoch"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    let names = "epoch step reward_geneval reward_geneval_std reward_std_mean reward_missing zero_std_ratio trained_samples \
                 policy_loss kl_loss approx_kl logratio_std logratio_max logratio_abs ratio_mean clipfrac clipfrac_high clipfrac_low grad_norm time_rollout time_reward \
                 time_update time_per_image_rollout time_per_image_reward time_per_image_update images_per_second";
    for record in &records[1..] {
        for name in names.split(' ') {
            assert!(record.contains_key(name), "{name} is not in {record:?}");
        }
    }
    // The first epoch says how long others should take.
    let planned = |r: &serde_json::Map<String, Value>| r.contains_key("time_planned");
    assert_eq!(records.iter().map(planned).collect::<Vec<_>>(), [false, false, true, true, true]);
    let measured = |r: &serde_json::Map<String, Value>| r.contains_key("eval_reward_judge_counting");
    assert_eq!(records.iter().map(measured).collect::<Vec<_>>(), [true, false, true, false, true]);
    let manifest: Value = serde_json::from_slice(&found[Path::new("manifest.json")]).unwrap();
    for name in
        ["version", "commit", "cpu", "threads", "os", "arch", "seed", "base_sha256", "prompts_sha256", "arguments"]
    {
        assert!(!manifest[name].is_null(), "{name}: {manifest}");
    }
}

#[test]
fn train_keeps_pictures_and_a_default_folder_and_prints_where() {
    let root = tempfile::tempdir().unwrap();
    let mut command = elbow(["train"]);
    command.args(sets(&common::SMALL)).args(sets(&["epochs=1", "keep.images_every=1"])).current_dir(&root);
    for number in 1..=2 {
        let printed = succeed(&mut command);
        let folder = format!("runs/nano-geneval-{number}");
        assert!(printed.contains(&format!("run folder: {folder}")), "{printed}");
        assert!(printed.contains("\nepoch    1/1  reward "), "{printed}");
        let picture = image::open(root.path().join(folder).join("images/epoch-00001.png")).unwrap();
        assert!(picture.width() > 2 * 32);
    }
}

#[test]
fn output_may_close() {
    let mut process = elbow(["config", "--explain"]).spawn().unwrap();
    drop(process.stdout.take());
    assert!(process.wait().unwrap().success());
}

#[test]
fn pre_training_stopped_in_any_way_is_the_same() {
    let root = tempfile::tempdir().unwrap();
    let pretrain = |out: &str, steps: &str, more: &[&str]| {
        let mut command = elbow(["pretrain", "--batch", "2", "--steps", steps, "--out", out]);
        command.args(more).current_dir(&root);
        command
    };
    let bytes = |out: &str| fs::read(root.path().join(out)).unwrap();
    succeed(&mut pretrain("straight.safetensors", "4", &[]));
    succeed(&mut pretrain("parts.safetensors", "4", &["--until", "2"]));
    assert!(bytes("parts.safetensors") != bytes("straight.safetensors"));
    succeed(&mut pretrain("parts.safetensors", "4", &[]));
    assert!(bytes("parts.safetensors") == bytes("straight.safetensors"), "continued after --until");
    succeed(&mut pretrain("parts.safetensors", "4", &[]));
    assert!(bytes("parts.safetensors") == bytes("straight.safetensors"), "repeated when done");

    // From other weights: captions are right before the step that is named, and wrong from it on.
    let noisy = |out: &str, from: &str| {
        let more = ["--from", "straight.safetensors", "--caption-noise", "0.9", "--noisy-from", from];
        succeed(&mut pretrain(out, "2", &more));
        bytes(out)
    };
    let (late, never) = (noisy("late.safetensors", "2"), noisy("never.safetensors", "2"));
    assert!(late == never && late != noisy("early.safetensors", "1"), "noise begins with its step");

    // Interrupted somewhere in a longer one; the weights of step 40 are those of a run that stopped there by itself.
    let process = pretrain("broken.safetensors", "40", &[]).spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(900));
    signal("INT", process.id());
    let output = process.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    wait_for("progress", || root.path().join("broken.progress").exists());
    println!("{}", text(&output));
    succeed(&mut pretrain("broken.safetensors", "40", &[]));
    succeed(&mut pretrain("whole.safetensors", "40", &[]));
    assert!(bytes("broken.safetensors") == bytes("whole.safetensors"), "continued after Ctrl-C");
}
