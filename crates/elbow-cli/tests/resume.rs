//! A run that was stopped, in whatever way and at whatever moment, ends with the bytes of one that was not.

#![expect(clippy::print_stdout, reason = "shown where a test fails")]

mod common;

use common::{assert_same, copy, files, finished, interrupt, numbers, resume, succeed, text, train, wait_for};
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
fn ctrl_c_finishes_the_epoch_and_saves_it() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("run");
    let mut command = train(&folder, 4);
    let process = command.args(["--set", "keep.checkpoint_every=100"]).spawn().unwrap();
    wait_for("a record", || lines(&folder) >= 2);
    interrupt(process.id());
    let output = process.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let printed = String::from_utf8(output.stdout).unwrap();
    let line = printed.lines().last().unwrap();
    assert!(line.ends_with(&format!("go on with: elbow train --resume {}", folder.display())), "{printed}");
    assert!(String::from_utf8(output.stderr).unwrap().contains("press Ctrl-C again"));
    let epoch = numbers(&folder).last().unwrap()["epoch"].as_u64().unwrap();
    assert!((1..4).contains(&epoch), "{epoch}");
    assert!(folder.join(format!("checkpoints/checkpoint-{epoch}/manifest.json")).exists());

    succeed(&mut resume(&folder));
    assert_eq!(numbers(finished()), numbers(&folder));
    let last = |run: &Path| files(&run.join("checkpoints/checkpoint-4"));
    assert!(last(finished()) == last(&folder), "the last checkpoint differs");
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
