//! TensorBoard itself reads what a run wrote, and W&B's reader where it is asked for.

#![expect(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]
#![expect(clippy::print_stdout, reason = "says what was compared")]

mod common;
#[path = "../../elbow-rewards/tests/common/mod.rs"]
mod interpreter;

use common::{copy, files, records, resume, sets, succeed, text, train};
use interpreter::python;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Event files of a run, the oldest first.
fn event_files(run: &Path) -> Vec<PathBuf> {
    let names = files(run).into_keys().filter(|name| name.to_string_lossy().starts_with("events.out.tfevents."));
    names.map(|name| run.join(name)).collect()
}

/// A run of five epochs that was killed after its fourth, in the middle of a record, and goes on from its second: epochs 3 and 4 are made twice.
/// Beside it, as `watched`, is what a program has of it that was looking on.
fn interrupted(root: &Path) -> PathBuf {
    let run = root.join("run");
    succeed(train(&run, 4).args(sets(&["keep.images_every=1", "keep.checkpoints=3"])));
    for lost in [3, 4] {
        fs::remove_dir_all(run.join(format!("checkpoints/checkpoint-{lost}"))).unwrap();
    }
    let first = event_files(&run).remove(0);
    let watched = fs::read(&first).unwrap();
    fs::write(&first, [&watched[..], &watched[..20]].concat()).unwrap();
    succeed(resume(&run).args(sets(&["epochs=5"])));
    let after = event_files(&run);
    assert_eq!(after.len(), 2, "{after:?}");
    let kept = fs::read(&first).unwrap();
    assert!(kept.len() < watched.len() && watched.starts_with(&kept), "what the run discarded is still there");
    assert!(records(&run).iter().any(|record| record.values().any(serde_json::Value::is_null)), "nothing is null");
    copy(&run, &root.join("watched"));
    fs::write(root.join("watched").join(first.file_name().unwrap()), watched).unwrap();
    run
}

/// Runs a script of fixtures/check on a run.
fn check(python: &str, script: &str, arguments: &[&Path]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/check").join(script);
    let output = Command::new(python).arg(path).args(arguments).output().unwrap();
    assert!(output.status.success(), "{script}: {}", text(&output));
    println!("{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn tensorboard_shows_what_the_record_says() {
    let Some(python) = python() else { return };
    let root = tempfile::tempdir().unwrap();
    let run = interrupted(root.path());
    check(&python, "event_files.py", &[&run, &root.path().join("watched")]);
}

#[test]
#[ignore = "needs the Python package wandb: .ci/wandb"]
fn wandb_sync_shows_what_the_record_says() {
    let Some(python) = python() else { return };
    let root = tempfile::tempdir().unwrap();
    check(&python, "wandb_sync.py", &[&interrupted(root.path())]);
}
