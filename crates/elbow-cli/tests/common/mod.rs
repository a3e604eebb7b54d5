//! The binary, and a run small enough to repeat many times.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part")]
#![expect(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use elbow::train::depends_on_machine;
use serde_json::{Map, Value};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// `--set` of the small run, apart from `epochs`.
pub const SMALL: [&str; 9] = [
    "batch.groups=2",
    "batch.group_size=3",
    "batch.micro_batch=4",
    "sampler.steps=2",
    "eval.prompts_per_task=1",
    "eval.measure.images_per_prompt=1",
    "eval.measure.sampler.steps=2",
    "eval.measure.every=2",
    "keep.checkpoint_every=1",
];

/// `elbow` with arguments; its output is captured, and it hears every signal.
pub fn elbow<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_elbow"));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    #[cfg(unix)]
    hear_signals(&mut command);
    command
}

/// What these tests were started with may ignore signals, as `nohup` and the background of a script do, and what is ignored stays so.
#[cfg(unix)]
#[expect(unsafe_code, reason = "runs between fork and exec, where resetting signals is allowed")]
fn hear_signals(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    let reset = || {
        for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGTERM] {
            // SAFETY: `signal` is safe between fork and exec, and installs no handler of ours.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        Ok(())
    };
    // SAFETY: the closure calls nothing else.
    unsafe { command.pre_exec(reset) };
}

/// `--set a=b` of each.
pub fn sets<'a>(changes: &[&'a str]) -> Vec<&'a str> {
    changes.iter().flat_map(|change| ["--set", change]).collect()
}

/// The small run of `epochs` epochs, writing to `folder`.
pub fn train(folder: &Path, epochs: u64) -> Command {
    let mut command = elbow(["train", "--run"]);
    command.arg(folder).args(sets(&SMALL)).args(["--set", &format!("epochs={epochs}")]);
    command
}

/// `elbow train --resume folder`.
pub fn resume(folder: &Path) -> Command {
    let mut command = elbow(["train", "--resume"]);
    command.arg(folder);
    command
}

/// Runs to the end, which must be a success, and returns what it printed.
pub fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}\n{}", text(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// Both streams, for messages.
pub fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Runs a command that must fail with all `parts` in its message, in a folder that must stay as it is.
#[track_caller]
pub fn refused(command: &mut Command, folder: &Path, parts: &[&str]) {
    let before = files(folder);
    let output = command.current_dir(folder).output().unwrap();
    let text = text(&output);
    assert_eq!(output.status.code(), Some(1), "{command:?}\n{text}");
    assert!(text.starts_with("error: "), "{text}");
    assert!(text.lines().last().unwrap().starts_with("hint: "), "no hint: {text}");
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    let after = files(folder);
    assert!(before == after, "files changed: {:?} became {:?}", before.keys(), after.keys());
}

/// A finished small run of 4 epochs that all tests of a file share. It must not be written to.
pub fn finished() -> &'static Path {
    static RUN: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let (_, folder) = RUN.get_or_init(|| {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("run");
        succeed(&mut train(&folder, 4));
        (root, folder)
    });
    folder
}

/// Copies a folder with all it holds.
pub fn copy(from: &Path, to: &Path) {
    for (name, bytes) in files(from) {
        let path = to.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

/// Every file below a folder, by relative path; nothing if the folder is not there.
pub fn files(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let (mut found, mut folders) = (BTreeMap::new(), vec![root.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.insert(path.strip_prefix(root).unwrap().to_owned(), fs::read(&path).unwrap());
            }
        }
    }
    found
}

/// Every record of a run.
pub fn records(folder: &Path) -> Vec<Map<String, Value>> {
    let text = fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The records without what depends on the machine's speed.
pub fn numbers(folder: &Path) -> Vec<Map<String, Value>> {
    let mut records = records(folder);
    for record in &mut records {
        record.retain(|key, _| !depends_on_machine(key));
    }
    records
}

/// Asserts that two runs made the same numbers, checkpoints, pictures, samples and results.
pub fn assert_same(one: &Path, other: &Path) {
    assert_eq!(numbers(one), numbers(other), "records");
    for part in ["checkpoints", "images", "samples"] {
        let (one, other) = (files(&one.join(part)), files(&other.join(part)));
        assert!(one.keys().eq(other.keys()), "{part}: {:?} and {:?}", one.keys(), other.keys());
        for (name, bytes) in &one {
            assert!(bytes == &other[name], "{part}/{} differs", name.display());
        }
        assert!(!one.is_empty(), "{part}: nothing to compare");
    }
    assert_eq!(shown_steps(one), shown_steps(other), "what TensorBoard shows");
    for file in ["result.json", "config.toml"] {
        assert_eq!(
            fs::read_to_string(one.join(file)).unwrap(),
            fs::read_to_string(other.join(file)).unwrap(),
            "{file}"
        );
    }
}

/// The step of everything that TensorBoard shows of a run, in order: records of its event files, of which a session's START drops what
/// earlier ones say of its step and later.
pub fn shown_steps(run: &Path) -> Vec<u64> {
    let mut shown = Vec::new();
    for (name, bytes) in files(run) {
        if !name.to_str().unwrap().starts_with("events.out.tfevents.") {
            continue;
        }
        let mut rest = &bytes[..];
        // A frame is a length, its checksum, an event and its checksum. A kill may cut the last one off.
        while let Some((length, tail)) = rest.split_first_chunk::<8>() {
            let length = u64::from_le_bytes(*length) as usize;
            let Some(event) = tail.get(4..4 + length) else { break };
            let (step, starts, shows) = event_of(event);
            shown.retain(|&earlier| !starts || earlier < step);
            shown.extend(shows.then_some(step));
            rest = tail.get(4 + length + 4..).unwrap_or_default();
        }
    }
    shown.sort_unstable();
    shown
}

/// Step of an event, whether a session starts with it, and whether it holds a summary (fields 2, 7 and 5; field 1 is the time).
fn event_of(mut event: &[u8]) -> (u64, bool, bool) {
    let varint = |bytes: &mut &[u8]| {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let (byte, rest) = bytes.split_first().unwrap();
            *bytes = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                break;
            }
        }
        value
    };
    let (mut step, mut starts, mut shows) = (0, false, false);
    while !event.is_empty() {
        let key = varint(&mut event);
        match (key >> 3, key & 7) {
            (_, 1) => event = &event[8..],
            (2, 0) => step = varint(&mut event),
            (field, 2) => {
                let length = varint(&mut event) as usize;
                (starts, shows) = (starts || field == 7, shows || field == 5);
                event = &event[length..];
            }
            other => panic!("field {other:?}"),
        }
    }
    (step, starts, shows)
}

/// Waits until `done`; a minute is too long.
pub fn wait_for(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_mins(1), "waited a minute for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Sends a signal: `INT` is Ctrl-C.
pub fn signal(name: &str, process: u32) {
    let status = Command::new("kill").args([&format!("-{name}"), &process.to_string()]).status().unwrap();
    assert!(status.success());
}
