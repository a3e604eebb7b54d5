//! Checkpoints through every kind of crash and damage.

#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::fs;
use std::path::{Path, PathBuf};

use elbow_runlog::{RunLogError, checkpoint};
use proptest::prelude::*;
use serde_json::json;
use tempfile::TempDir;

const ADAPTER: &str = "lora/adapter_model.safetensors";

/// A root with checkpoints of steps 20 and 100 (which sort the other way as text).
fn two_checkpoints() -> (TempDir, PathBuf) {
    let root = tempfile::tempdir().unwrap();
    let mut last = PathBuf::new();
    for step in [20, 100] {
        last = write(root.path(), step, b"weights");
    }
    (root, last)
}

fn write(root: &Path, step: u64, weights: &[u8]) -> PathBuf {
    let files = [(ADAPTER, weights), ("optimizer.bin", b"moments".as_slice()), ("empty", b"")];
    checkpoint::write(root, step, &files, &json!({ "epoch": step / 2, "seed": 7 })).unwrap()
}

fn names(root: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(root).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn what_was_written_is_read() {
    let (root, path) = two_checkpoints();
    assert_eq!(checkpoint::latest(root.path()).unwrap(), Some((100, path.clone())));
    let found = checkpoint::read(&path).unwrap();
    assert_eq!((found.step, &found.state), (100, &json!({ "epoch": 50, "seed": 7 })));
    assert_eq!(found.files.keys().collect::<Vec<_>>(), ["empty", ADAPTER, "optimizer.bin"]);
    assert_eq!(found.files[ADAPTER], b"weights");
    assert_eq!(names(root.path()), ["checkpoint-100", "checkpoint-20"]);
}

#[test]
fn an_absent_or_empty_root_has_none() {
    let root = tempfile::tempdir().unwrap();
    assert_eq!(checkpoint::latest(root.path()).unwrap(), None);
    assert_eq!(checkpoint::recover(&root.path().join("absent")).unwrap(), None);
}

#[test]
fn a_leftover_of_a_kill_is_ignored_then_removed() {
    let (root, path) = two_checkpoints();
    let leftover = root.path().join(".checkpoint-120.tmp");
    fs::create_dir_all(leftover.join("lora")).unwrap();
    fs::write(leftover.join(ADAPTER), "wei").unwrap();
    fs::create_dir(root.path().join(".mine.tmp")).unwrap();

    assert_eq!(checkpoint::latest(root.path()).unwrap(), Some((100, path.clone())));
    assert!(leftover.exists(), "looking changes nothing");
    assert_eq!(checkpoint::recover(root.path()).unwrap(), Some((100, path)));
    assert_eq!(names(root.path()), [".mine.tmp", "checkpoint-100", "checkpoint-20"]);

    fs::create_dir_all(&leftover).unwrap();
    fs::write(leftover.join("stale"), "").unwrap();
    assert!(!write(root.path(), 120, b"weights").join("stale").exists());
}

#[test]
fn a_folder_without_manifest_is_skipped_and_reading_it_says_so() {
    let (root, path) = two_checkpoints();
    fs::remove_file(path.join("manifest.json")).unwrap();
    fs::create_dir(root.path().join("checkpoint-final")).unwrap();
    assert_eq!(checkpoint::latest(root.path()).unwrap().unwrap().0, 20);
    let error = checkpoint::read(&path).unwrap_err();
    assert!(matches!(error, RunLogError::Incomplete { .. }), "{error}");
    assert!(error.hint().unwrap().contains("delete"));
}

#[test]
fn damage_is_named() {
    let (_root, path) = two_checkpoints();
    let adapter = path.join(ADAPTER);

    fs::write(&adapter, "weighty").unwrap();
    let error = checkpoint::read(&path).unwrap_err();
    assert!(matches!(&error, RunLogError::Corrupt { path, .. } if *path == adapter), "{error}");

    fs::write(&adapter, "weig").unwrap();
    let error = checkpoint::read(&path).unwrap_err();
    assert!(error.to_string().ends_with("adapter_model.safetensors has 4 bytes where its manifest says 7"), "{error}");

    fs::remove_file(&adapter).unwrap();
    let error = checkpoint::read(&path).unwrap_err();
    assert!(matches!(&error, RunLogError::Missing { path } if *path == adapter), "{error}");

    for bad in ["", "{}", "{\"format\": \"elbow-checkpoint/9\"}", "{\"format\": \"elbow-checkpoint/1\", \"step\": 1}"] {
        fs::write(path.join("manifest.json"), bad).unwrap();
        let error = checkpoint::read(&path).unwrap_err();
        assert!(matches!(error, RunLogError::Manifest { .. }), "{error}");
    }
    assert!(matches!(checkpoint::read(&path.join("absent")).unwrap_err(), RunLogError::Io { .. }));
}

#[test]
fn a_step_written_again_replaces_the_first() {
    let (root, path) = two_checkpoints();
    assert_eq!(write(root.path(), 100, b"newer"), path);
    assert_eq!(checkpoint::read(&path).unwrap().files[ADAPTER], b"newer");
    assert_eq!(names(root.path()), ["checkpoint-100", "checkpoint-20"]);
}

#[test]
fn a_kill_between_the_two_renames_loses_nothing() {
    let (root, path) = two_checkpoints();
    let aside = root.path().join(".checkpoint-100.old");
    fs::rename(&path, &aside).unwrap();
    assert_eq!(checkpoint::recover(root.path()).unwrap(), Some((100, path.clone())));
    assert_eq!(checkpoint::read(&path).unwrap().files[ADAPTER], b"weights");

    // Killed after the second rename: the new one counts.
    fs::create_dir(&aside).unwrap();
    checkpoint::recover(root.path()).unwrap();
    assert_eq!(names(root.path()), ["checkpoint-100", "checkpoint-20"]);
}

#[test]
fn only_the_last_are_kept() {
    let (root, _) = two_checkpoints();
    write(root.path(), 3, b"weights");
    fs::create_dir(root.path().join("checkpoint-1000")).unwrap();
    checkpoint::keep_last(root.path(), 2).unwrap();
    assert_eq!(names(root.path()), ["checkpoint-100", "checkpoint-1000", "checkpoint-20"]);
    checkpoint::keep_regular(root.path(), 1, Some(20), |_| true).unwrap();
    assert_eq!(names(root.path()), ["checkpoint-100", "checkpoint-1000", "checkpoint-20"]);
    checkpoint::keep_last(root.path(), 0).unwrap();
    assert_eq!(checkpoint::latest(root.path()).unwrap().unwrap().0, 100);
    assert_eq!(names(root.path()), ["checkpoint-100", "checkpoint-1000"]);
}

#[test]
fn one_out_of_turn_takes_no_place_and_goes_with_the_next() {
    let root = tempfile::tempdir().unwrap();
    let every_three = |step: u64| step.is_multiple_of(3);
    let mut then = |step| {
        write(root.path(), step, b"weights");
        checkpoint::keep_regular(root.path(), 2, None, every_three).unwrap();
        names(root.path()).concat().replace("checkpoint-", " ")
    };
    let seen = [3, 6, 7, 8, 9, 10].map(&mut then);
    assert_eq!(seen, [" 3", " 3 6", " 3 6 7", " 3 6 8", " 6 9", " 10 6 9"]);
    // Beside one out of turn there is one in turn.
    checkpoint::keep_regular(root.path(), 0, None, every_three).unwrap();
    assert_eq!(names(root.path()), ["checkpoint-10", "checkpoint-9"]);
}

#[test]
fn names_stay_inside_the_folder() {
    let root = tempfile::tempdir().unwrap();
    for name in ["", "../out", "/etc/out", "lora/../../out", "lora/", "a\\b", "manifest.json"] {
        let error = checkpoint::write(root.path(), 1, &[(name, b"")], &json!({})).unwrap_err();
        assert!(matches!(error, RunLogError::FileName { .. }), "{error}");
    }
    let twice = checkpoint::write(root.path(), 1, &[("a", b""), ("a", b"")], &json!({})).unwrap_err();
    assert!(twice.to_string().contains("twice"), "{twice}");
    assert!(names(root.path()).is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(32) })]

    /// One flipped bit anywhere in a file is found, and the file is named.
    #[test]
    fn any_flipped_bit_is_found(
        bytes in proptest::collection::vec(any::<u8>(), 1..200),
        at in any::<proptest::sample::Index>(),
        bit in 0..8u32,
    ) {
        let root = tempfile::tempdir().unwrap();
        let path = write(root.path(), 1, &bytes);
        prop_assert_eq!(&checkpoint::read(&path).unwrap().files[ADAPTER], &bytes);
        let mut flipped = bytes.clone();
        flipped[at.index(bytes.len())] ^= 1u8 << bit;
        fs::write(path.join(ADAPTER), flipped).unwrap();
        let error = checkpoint::read(&path).unwrap_err();
        prop_assert!(error.to_string().contains("adapter_model.safetensors is corrupt"), "{}", error);
    }
}
