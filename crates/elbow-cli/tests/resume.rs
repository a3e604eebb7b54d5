//! A run that was stopped, in whatever way and at whatever moment, ends with the bytes of one that was not.

#![expect(clippy::print_stdout, reason = "shown where a test fails")]

mod common;

use common::{
    assert_same, copy, elbow, files, finished, numbers, resume, sets, signal, succeed, text, train, wait_for,
};
use std::{
    fs,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Lines of the record so far.
fn lines(folder: &Path) -> usize {
    fs::read_to_string(folder.join("metrics.jsonl")).map_or(0, |text| text.lines().count())
}

#[test]
fn the_same_command_makes_the_same_bytes() {
    let root = tempfile::tempdir().unwrap();
    let again = root.path().join("again");
    succeed(&mut train(&again, 4));
    assert_same(finished(), &again);
    assert!(
        numbers(&again).iter().any(|r| r.get("grad_norm").is_some_and(|g| g.as_f64() > Some(0.0))),
        "nothing learned"
    );
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let root = tempfile::tempdir().unwrap();
    for threads in ["1", "2", "3"] {
        let folder = root.path().join(threads);
        succeed(train(&folder, 4).env("RAYON_NUM_THREADS", threads));
        assert_eq!(numbers(finished()), numbers(&folder), "{threads} threads");
        let last = |run: &Path| files(&run.join("checkpoints/checkpoint-4"));
        assert!(last(finished()) == last(&folder), "{threads} threads: the last checkpoint differs");
    }
}

#[test]
fn killed_at_any_moment_and_resumed_is_the_same_run() {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos();
    for attempt in 0..3u32 {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("run");
        let mut command = train(&folder, 4);
        for kill in 0..2u32 {
            // A record that must be there, and a time after it: somewhere in an update, an evaluation or a checkpoint.
            let (records, delay) = ((attempt + kill) as usize, (clock >> (4 * attempt + kill)) % 400);
            println!("attempt {attempt}: SIGKILL {delay} ms after {records} records");
            let mut process = command.spawn().unwrap();
            wait_for("a record", || folder.join("config.toml").exists() && lines(&folder) >= records);
            std::thread::sleep(Duration::from_millis(delay.into()));
            process.kill().unwrap();
            process.wait().unwrap();
            command = resume(&folder);
        }
        succeed(&mut command);
        assert_same(finished(), &folder);
    }
}

#[test]
fn what_a_kill_leaves_half_written_is_cleared_away() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("run");
    copy(finished(), &folder);
    let checkpoints = folder.join("checkpoints");
    // As if killed while checkpoint 4 was written: its record is there, the line after it torn.
    fs::rename(checkpoints.join("checkpoint-4"), checkpoints.join(".checkpoint-4.tmp")).unwrap();
    fs::remove_file(checkpoints.join(".checkpoint-4.tmp/manifest.json")).unwrap();
    let record = folder.join("metrics.jsonl");
    fs::write(&record, fs::read_to_string(&record).unwrap() + "{\"epoch\":5,\"rew").unwrap();
    assert!(succeed(&mut resume(&folder)).contains("4 epochs from 3"));
    assert_same(finished(), &folder);
}

#[test]
fn a_signal_finishes_the_epoch_and_saves_it() {
    for name in ["INT", "TERM", "HUP"] {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("run");
        let mut command = train(&folder, 4);
        let process = command.args(["--set", "keep.checkpoint_every=100"]).spawn().unwrap();
        wait_for("a record", || lines(&folder) >= 2);
        signal(name, process.id());
        let output = process.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{name}: {}", text(&output));
        let printed = String::from_utf8(output.stdout).unwrap();
        let line = printed.lines().last().unwrap();
        assert!(line.ends_with(&format!("go on with: elbow train --resume {}", folder.display())), "{name}: {printed}");
        assert!(String::from_utf8(output.stderr).unwrap().contains("a second Ctrl-C or signal stops at once"));
        let epoch = numbers(&folder).last().unwrap()["epoch"].as_u64().unwrap();
        assert!((1..4).contains(&epoch), "{name}: {epoch}");
        assert!(folder.join(format!("checkpoints/checkpoint-{epoch}/manifest.json")).exists());

        succeed(&mut resume(&folder));
        assert_eq!(numbers(finished()), numbers(&folder), "{name}");
        let last = |run: &Path| files(&run.join("checkpoints/checkpoint-4"));
        assert!(last(finished()) == last(&folder), "{name}: the last checkpoint differs");
    }
}

#[test]
fn runs_that_start_together_take_a_name_each() {
    let root = tempfile::tempdir().unwrap();
    let start = |seed: u32| {
        let mut command = elbow(["train"]);
        command.args(sets(&common::SMALL)).args(["--set", "epochs=1", "--set", &format!("seed={seed}")]);
        command.current_dir(root.path()).spawn().unwrap()
    };
    let running: Vec<_> = (0..3).map(start).collect();
    for process in running {
        let output = process.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
    }
    let seeds: std::collections::BTreeSet<u64> = (1..=3)
        .map(|number| {
            let manifest = fs::read(root.path().join(format!("runs/nano-geneval-{number}/manifest.json"))).unwrap();
            serde_json::from_slice::<serde_json::Value>(&manifest).unwrap()["seed"].as_u64().unwrap()
        })
        .collect();
    assert_eq!(seeds, [0, 1, 2].into());
    // A name is free again if its run cannot start.
    let mut command = elbow(["train", "--set", "reward.kind=python", "--set", "reward.file=absent.py"]);
    assert!(!command.current_dir(root.path()).output().unwrap().status.success());
    assert!(!root.path().join("runs/nano-geneval-4").exists());
}

#[test]
fn a_run_goes_on_where_its_files_were_moved_to() {
    let root = tempfile::tempdir().unwrap();
    let place = |name: &str| root.path().join(name);
    for folder in ["here", "there"] {
        fs::create_dir(place(folder)).unwrap();
        fs::write(place(folder).join("prompts.txt"), "a photo of a cat\na photo of a bird\n").unwrap();
    }
    fs::write(place("there").join("others.txt"), "a photo of a boat\n").unwrap();
    let files = ["prompts.kind=files", "prompts.train=prompts.txt", "prompts.test=prompts.txt", "reward.kind=jpeg"];
    let run = |name: &str, epochs: u64| {
        let mut command = train(&place("here").join(name), epochs);
        command.args(sets(&files)).current_dir(place("here"));
        command
    };
    succeed(&mut run("straight", 2));
    succeed(&mut run("moved", 1));
    fs::rename(place("here/moved"), place("there/moved")).unwrap();
    fs::rename(place("there/prompts.txt"), place("there/p.txt")).unwrap();
    let go_on = |prompts: &str| {
        let mut command = resume(Path::new("moved"));
        let (train, test) = (format!("prompts.train={prompts}"), format!("prompts.test={prompts}"));
        command.args(sets(&[&train, &test, "epochs=2"])).current_dir(place("there"));
        command
    };
    let refused = go_on("others.txt").output().unwrap();
    assert!(!refused.status.success() && text(&refused).contains("prompts differ"), "{}", text(&refused));
    succeed(&mut go_on("p.txt"));
    assert_eq!(numbers(&place("here/straight")), numbers(&place("there/moved")));
}

#[test]
fn another_configuration_is_refused_and_nothing_is_touched() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("run");
    copy(finished(), &folder);
    let before = files(&folder);
    for (change, part) in [
        ("objective.kind=grpo", "objective.kind: \"pepg\" → \"grpo\""),
        ("seed=1", "seed: 0 → 1"),
        ("model.tuning.kind=lora", "model.tuning.rank: nothing → 32"),
        ("epochs=2", "has finished 4 epochs already, and epochs = 2"),
    ] {
        let output = resume(&folder).args(["--set", change]).output().unwrap();
        let text = text(&output);
        assert_eq!(output.status.code(), Some(1), "{change}: {text}");
        assert!(text.contains(part) && text.contains("hint: "), "{change}: {text}");
        assert!(before == files(&folder), "{change}: something was written");
    }
}

#[test]
fn a_finished_run_trains_on() {
    let root = tempfile::tempdir().unwrap();
    let (straight, longer) = (root.path().join("straight"), root.path().join("longer"));
    copy(finished(), &longer);
    succeed(&mut train(&straight, 6));
    succeed(resume(&longer).args(["--set", "epochs=6"]));
    assert_same(&straight, &longer);
    assert!(fs::read_to_string(longer.join("config.toml")).unwrap().contains("\nepochs = 6\n"));
}
