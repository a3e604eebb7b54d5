//! Runs that are killed at random moments, by SIGKILL, SIGTERM and SIGHUP, and resumed end with the bytes of runs that were not.
//!
//! Six kills with the other tests, and as many as wanted by
//!
//! ```sh
//! ELBOW_SOAK_KILLS=50 ELBOW_SOAK_SEED=0 cargo test --release --workspace --test soak -- --ignored --nocapture
//! ```

#![expect(clippy::print_stdout, reason = "its log")]
#![expect(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

mod common;

use common::{assert_same, elbow, resume, sets, signal, succeed, text};
use std::{
    collections::BTreeMap,
    fs,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output},
    thread,
    time::{Duration, Instant},
};
use tempfile::TempDir;

const EPOCHS: u64 = 8;

/// `--set` of every run; as many epochs as above.
const SMALL: [&str; 13] = [
    "epochs=8",
    "batch.groups=4",
    "batch.group_size=4",
    "batch.micro_batch=8",
    "sampler.steps=4",
    "eval.prompts_per_task=1",
    "eval.measure.images_per_prompt=1",
    "eval.measure.sampler.steps=2",
    "eval.measure.every=3",
    "keep.checkpoint_every=3",
    "keep.images_every=2",
    "keep.pictures=true",
    "keep.checkpoints=2",
];

/// Recipes that carry much, little and nothing from epoch to epoch, and what an epoch is granted after SIGTERM or SIGHUP: nothing, about
/// what it takes, and more.
const KINDS: [(&str, &[&str]); 3] = [
    ("nano-geneval", &["keep.grace_seconds=0"]),
    ("nano-op-grpo", &["keep.grace_seconds=1", "collection.prompts=4", "collection.groups=1", LORA]),
    ("nano-ddpo-is", &["keep.grace_seconds=20", LORA]),
];

/// Small checkpoints.
const LORA: &str = "model.tuning={kind='lora', rank=4}";

/// Kills of one run before it may go on to its end.
const KILLS_OF_A_RUN: usize = 5;

#[test]
fn six_kills_change_nothing() {
    soak(6, 1);
}

#[test]
#[ignore = "takes minutes"]
fn many_kills_change_nothing() {
    let number = |name: &str, default| std::env::var(name).map_or(default, |value| value.parse().unwrap());
    soak(number("ELBOW_SOAK_KILLS", 50) as usize, number("ELBOW_SOAK_SEED", 0));
}

/// A recipe, what it comes to when nobody disturbs it, and how long that takes.
struct Straight {
    recipe: &'static str,
    changes: &'static [&'static str],
    folder: PathBuf,
    took: Duration,
}

fn soak(kills: usize, seed: u64) {
    let room = tempfile::tempdir().unwrap();
    let straight = KINDS.map(|(recipe, changes)| {
        let folder = room.path().join(recipe);
        let start = Instant::now();
        succeed(&mut train(recipe, changes, &folder));
        let took = start.elapsed();
        println!("{recipe} {}: {:.1} s undisturbed", changes.join(" "), took.as_secs_f64());
        Straight { recipe, changes, folder, took }
    });
    let mut random = fastrand::Rng::with_seed(seed);
    let mut counts = BTreeMap::new();
    let (mut done, mut lost, mut runs) = (0, 0, 0);
    println!("seed {seed}");
    while done < kills {
        let of = &straight[runs % straight.len()];
        let wanted = KILLS_OF_A_RUN.min(kills.div_ceil(straight.len())).min(kills - done);
        for Kill { signal, phase, lost: epochs } in killed_and_resumed(of, &room, runs, wanted, &mut random) {
            *counts.entry((signal, phase)).or_insert(0) += 1;
            lost += epochs;
            done += 1;
        }
        runs += 1;
    }
    for ((signal, phase), count) in counts {
        println!("{count:>3} SIG{signal} in {phase}");
    }
    println!(
        "{done} kills of {runs} runs; SIGKILL cost {lost} finished epochs, SIGTERM and SIGHUP none; all ended with the same bytes"
    );
}

fn train(recipe: &str, changes: &[&str], folder: &Path) -> Command {
    let mut command = elbow(["train", recipe, "--run"]);
    command.arg(folder).args(sets(&SMALL)).args(sets(changes));
    command
}

/// What a signal met, and the finished epochs that it cost.
struct Kill {
    signal: &'static str,
    phase: &'static str,
    lost: u64,
}

/// A run that is killed up to `wanted` times and then left in peace, compared with one that was left in peace from the start.
fn killed_and_resumed(
    of: &Straight,
    room: &TempDir,
    number: usize,
    wanted: usize,
    random: &mut fastrand::Rng,
) -> Vec<Kill> {
    let folder = room.path().join(format!("{number}"));
    // Before there is a recipe in its folder, a run has not begun.
    let command = || {
        let begun = folder.join("config.toml").exists();
        if begun { resume(&folder) } else { train(of.recipe, of.changes, &folder) }
    };
    let mut kills = Vec::new();
    while kills.len() < wanted {
        let name = ["KILL", "TERM", "HUP"][(number + kills.len()) % 3];
        // A number of epochs that must be finished, and a time after that: somewhere in loading, a rollout, an update, an evaluation, or
        // while something is written.
        let before = saved(&folder);
        let (until, delay) = (random.u64(before..=EPOCHS), of.took.mul_f64(random.f64() / EPOCHS as f64));
        let sessions = event_files(&folder);
        let mut process = command().spawn().unwrap();
        // It has an event file of its own once its folder says what its checkpoint says.
        let loaded = || event_files(&folder) > sessions;
        while until > before && !(loaded() && recorded(&folder) >= until) && process.try_wait().unwrap().is_none() {
            thread::sleep(Duration::from_millis(5));
        }
        thread::sleep(delay);
        if process.try_wait().unwrap().is_some() {
            println!("{} {number}: ended before SIG{name}", of.recipe);
            break;
        }
        let loaded = loaded();
        let finished = if loaded { recorded(&folder) } else { before };
        let phase = match finished {
            _ if !loaded => "loading",
            EPOCHS => "the last evaluation",
            finished if finished == before => "the first epoch",
            _ => "later epochs",
        };
        signal(name, process.id());
        let output = ended(process);
        let saved = saved(&folder);
        let status = output.status;
        println!("{} {number}: SIG{name} in {phase}, {finished} epochs finished; {status}, {saved} saved", of.recipe);
        check(name, phase, &folder, &output);
        if name != "KILL" {
            assert!(saved >= finished, "SIG{name} cost {} finished epochs", finished - saved);
        }
        kills.push(Kill { signal: name, phase, lost: finished.saturating_sub(saved) });
    }
    succeed(&mut command());
    assert_same(&of.folder, &folder);
    fs::remove_dir_all(&folder).unwrap();
    kills
}

/// Asserts that a process ended as a signal asks for.
fn check(name: &str, phase: &str, folder: &Path, output: &Output) {
    let (code, number) = (
        output.status.code(),
        match name {
            "KILL" => 9,
            "TERM" => 15,
            _ => 1,
        },
    );
    let by_default = output.status.signal() == Some(number);
    if name == "KILL" {
        assert!(by_default, "{}", text(output));
        return;
    }
    // Before it listens, a signal ends it as any program.
    if by_default && phase == "loading" {
        return;
    }
    assert!(code == Some(0) || code == Some(128 + number), "{}", text(output));
    assert!(!folder.join("lock.json").exists(), "the folder is not given back");
}

fn ended(process: Child) -> Output {
    process.wait_with_output().unwrap()
}

/// The last epoch in the record; 0 if there is none.
fn recorded(folder: &Path) -> u64 {
    let text = fs::read_to_string(folder.join("metrics.jsonl")).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let epoch = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["epoch"].as_u64().unwrap();
    whole.lines().last().map_or(0, epoch)
}

/// The last epoch that has a checkpoint; 0 if none has.
fn saved(folder: &Path) -> u64 {
    elbow_runlog::checkpoint::latest(&folder.join("checkpoints")).unwrap().map_or(0, |(epoch, _)| epoch)
}

/// How many event files there are.
fn event_files(folder: &Path) -> usize {
    let names = fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().file_name());
    names.filter(|name| name.to_string_lossy().starts_with("events.out.")).count()
}
