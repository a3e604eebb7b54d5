//! `elbow study` as a user runs it: what is finished stays finished, however it was stopped, and ends in the same tables.

#![expect(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]
#![expect(clippy::print_stdout, reason = "shown where a test fails")]

mod common;

use common::{elbow, files, refused, signal, succeed, text, wait_for};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tempfile::TempDir;

/// Two methods, two seeds, two trials each: seconds.
const TINY: &str = "name = 'tiny'
about = 'Nothing to learn from.'
seeds = [0, 1]
budget = { samples = 18 }
points = 2
threshold = 0.3
[set]
batch = { groups = 2, group_size = 3, micro_batch = 4 }
sampler.steps = 2
eval = { prompts_per_task = 1, measure = { images_per_prompt = 1, sampler = { steps = 2 } } }
keep.checkpoint_every = 1
[[method]]
name = 'pepg'
[[method]]
name = 'nft'
recipe = 'nano-diffusion-nft'
[tune]
fields = { 'optimizer.learning_rate' = [1e-3] }
budget = 2
share = 0.7
[cost]
forward = 1e-3
backward = 3e-3
from = 'a guess'
";

fn study(folder: &Path) -> Command {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("tiny.toml"), TINY).unwrap();
    let mut command = elbow(["study", "tiny.toml"]);
    command.current_dir(folder);
    command
}

/// Finished cells by their names.
fn cells(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut cells = files(&folder.join("docs/studies/tiny/cells"));
    cells.retain(|name, _| name.extension().is_some_and(|end| end == "json"));
    cells
}

/// A study that was never stopped, and what it printed.
fn straight() -> &'static (TempDir, String) {
    static STUDY: OnceLock<(TempDir, String)> = OnceLock::new();
    STUDY.get_or_init(|| {
        let root = tempfile::tempdir().unwrap();
        let printed = succeed(&mut study(root.path()));
        (root, printed)
    })
}

/// Asserts that a study has the cells and tables of the one that was never stopped.
fn assert_same(folder: &Path) {
    let (one, _) = straight();
    let [one, other] = [one.path(), folder].map(|root| files(&root.join("docs/studies/tiny")));
    assert_eq!(one.keys().collect::<Vec<_>>(), other.keys().collect::<Vec<_>>());
    for (name, bytes) in &one {
        assert!(*bytes == other[name], "{}:\n{}", name.display(), String::from_utf8_lossy(&other[name]));
    }
}

#[test]
fn a_study_leaves_cells_and_tables() {
    let (root, printed) = straight();
    for part in [
        "\n1 of at most 12: pepg, as in the recipe, seed 0, 3 epochs\n",
        "nft, trial 2, seed 1000, 2 epochs",
        "cells finished now\n",
    ] {
        assert!(printed.contains(part), "{part:?} is not in\n{printed}");
    }
    let out = root.path().join("docs/studies/tiny");
    let report = fs::read_to_string(out.join("report.md")).unwrap();
    for part in [
        "# Study tiny",
        "Nothing to learn from.",
        "Every method has 2 trials",
        "## Methods, tuned",
        "| pepg | 2 of 2 | 3 | 18 |",
        "fewer than five seeds",
    ] {
        assert!(report.contains(part), "{part:?} is not in\n{report}");
    }
    assert_eq!(fs::read_to_string(out.join("seeds.csv")).unwrap().lines().count(), 1 + 8);
    // As published, trials, and tuned where the recipe's own values were not chosen.
    assert!((8..=12).contains(&cells(root.path()).len()));
    for bytes in cells(root.path()).values() {
        assert!(bytes.len() < 10_000, "small enough to commit");
    }
    // Nothing is left: nothing runs, and the tables stay.
    let again = root.path().join("again");
    common::copy(&root.path().join("docs"), &again.join("docs"));
    let printed = succeed(&mut study(&again));
    assert!(printed.starts_with("0 cells finished now\n"), "{printed}");
    assert!(!again.join("runs").exists());
    assert_same(&again);
}

#[test]
fn killed_and_started_again_it_repeats_no_cell_and_ends_in_the_same_tables() {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos();
    let root = tempfile::tempdir().unwrap();
    let mut before = BTreeMap::new();
    for (kill, count) in [0, 2, 5].into_iter().enumerate() {
        let delay = Duration::from_millis(u64::from(clock >> (5 * kill)) % 1500);
        println!("SIGKILL {delay:?} after {count} cells");
        let mut process = study(root.path()).spawn().unwrap();
        wait_for("cells", || cells(root.path()).len() >= count);
        std::thread::sleep(delay);
        process.kill().unwrap();
        let printed = process.wait_with_output().unwrap();
        assert_untouched(&before, root.path());
        assert_not_repeated(&before, &text(&printed));
        before = times(root.path());
    }
    assert!(!before.is_empty());
    let printed = succeed(&mut study(root.path()));
    assert_untouched(&before, root.path());
    assert_not_repeated(&before, &printed);
    assert_same(root.path());
}

/// When each cell was written.
fn times(folder: &Path) -> BTreeMap<PathBuf, SystemTime> {
    let place = folder.join("docs/studies/tiny/cells");
    cells(folder)
        .into_keys()
        .map(|name| (name.clone(), fs::metadata(place.join(name)).unwrap().modified().unwrap()))
        .collect()
}

fn assert_untouched(before: &BTreeMap<PathBuf, SystemTime>, folder: &Path) {
    let now = times(folder);
    assert!(before.iter().all(|(name, time)| now.get(name) == Some(time)), "a finished cell was written again");
}

/// The cells that a study said to begin.
fn begun(printed: &str) -> BTreeSet<&str> {
    let lines = printed.lines().filter(|line| line.contains(" of at most "));
    lines.filter_map(|line| Some(line.split_once(": ")?.1)).collect()
}

/// No more cells begin than were not finished before.
fn assert_not_repeated(before: &BTreeMap<PathBuf, SystemTime>, printed: &str) {
    let (_, straight) = straight();
    assert!(
        begun(printed).len() + before.len() <= begun(straight).len(),
        "{} cells were there\n{printed}",
        before.len()
    );
}

#[test]
fn a_signal_saves_the_epoch_and_the_study_goes_on() {
    let root = tempfile::tempdir().unwrap();
    let process = study(root.path()).spawn().unwrap();
    wait_for("cells", || !cells(root.path()).is_empty());
    signal("INT", process.id());
    let output = process.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(printed.contains("left: go on with the same command"), "{printed}");
    succeed(&mut study(root.path()));
    assert_same(root.path());
}

#[test]
fn two_processes_share_a_study() {
    let root = tempfile::tempdir().unwrap();
    let both: Vec<_> = (0..2).map(|_| study(root.path()).spawn().unwrap()).collect();
    let printed: Vec<String> = both
        .into_iter()
        .map(|process| {
            let output = process.wait_with_output().unwrap();
            assert!(output.status.success(), "{}", text(&output));
            String::from_utf8(output.stdout).unwrap()
        })
        .collect();
    let all = [begun(&printed[0]), begun(&printed[1])];
    assert!(all.iter().all(|begun| !begun.is_empty()), "{printed:?}");
    assert!(all[0].is_disjoint(&all[1]), "both ran a cell: {printed:?}");
    // What one left to the other is there when both are through.
    succeed(&mut study(root.path()));
    assert_same(root.path());
}

#[test]
fn a_plan_tells_the_hours_and_writes_nothing() {
    let root = tempfile::tempdir().unwrap();
    let printed = succeed(study(root.path()).arg("--plan"));
    for part in [
        "pepg, as in the recipe",
        "nft, trials",
        "pepg, tuned",
        "hours in all",
        "1.00 ms an evaluation, 3.00 ms one with its gradient",
        "(a guess)",
    ] {
        assert!(printed.contains(part), "{part:?} is not in\n{printed}");
    }
    assert_eq!(files(root.path()).len(), 1, "the study file alone");
    // 18 images of two steps, and their updates, by hand: see the count of passes in the library's tests.
    let line = printed.lines().find(|line| line.ends_with("pepg, as in the recipe")).unwrap();
    let numbers: Vec<&str> = line.split_whitespace().take(5).collect();
    assert_eq!(numbers[..4], ["2", "2", "3", "18"], "{line}");

    let finished = succeed(straight_copy(root.path()).arg("--plan"));
    assert!(finished.contains(", 0.0 left"), "{finished}");
}

/// The hours at the head of every study of the repository are those that it plans.
#[test]
fn studies_say_their_hours() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../studies");
    let root = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let printed = succeed(elbow(["study", "--plan"]).arg(&path).current_dir(root.path()));
        let hours = printed.lines().find_map(|line| line.split_once(" hours in all")).unwrap().0;
        let study = fs::read_to_string(&path).unwrap();
        let told = format!("# Hours     {hours} on two idle cores, by --plan\n");
        assert!(study.contains(&told), "{}: {told}", path.display());
    }
}

/// The finished study in another folder.
fn straight_copy(root: &Path) -> Command {
    let folder = root.join("finished");
    common::copy(&straight().0.path().join("docs"), &folder.join("docs"));
    study(&folder)
}

#[test]
fn so_many_cells_and_no_more() {
    let root = tempfile::tempdir().unwrap();
    let printed = succeed(study(root.path()).args(["--cells", "1"]));
    assert!(printed.contains("1 cell finished now, "), "{printed}");
    assert_eq!(cells(root.path()).len(), 1);
}

#[test]
fn costs_are_measured_as_a_section() {
    let root = tempfile::tempdir().unwrap();
    let printed = succeed(study(root.path()).arg("--measure"));
    let table: toml::Table = toml::from_str(&printed).unwrap();
    let cost = table["cost"].as_table().unwrap();
    let [forward, backward] = ["forward", "backward"].map(|name| cost[name].as_float().unwrap());
    assert!(0.0 < forward && forward < backward, "{printed}");
    assert!(cost["from"].as_str().unwrap().contains("at a load of"), "{printed}");
}

#[test]
fn mistakes_are_refused_before_anything_runs() {
    let root = tempfile::tempdir().unwrap();
    refused(&mut elbow(["study", "absent.toml"]), root.path(), &["cannot read study absent.toml", "No such file"]);
    for (name, change, parts) in [
        ("typo", TINY.replace("seeds = [0, 1]", "sedes = [0, 1]"), &["study typo.toml", "unknown field `sedes`"][..]),
        ("field", TINY.replace("sampler.steps", "sampler.step"), &["method `pepg`", "unknown field `sampler.step`"]),
        ("measure", TINY.replace("points = 2", "measure = 'ocr'"), &["measure = \"ocr\"", "geneval, judge"]),
        ("small", TINY.replace("samples = 18", "samples = 5"), &["method `pepg`", "an epoch takes 6 samples"]),
        ("trial", TINY.replace("share = 0.7", "share = 0.2"), &["method `pepg`", "an epoch takes 6 samples"]),
    ] {
        fs::write(root.path().join(format!("{name}.toml")), change).unwrap();
        refused(&mut elbow(["study", &format!("{name}.toml")]), root.path(), parts);
    }
    fs::write(root.path().join("tiny.toml"), TINY).unwrap();
    let cell = cells(straight().0.path()).into_keys().next().unwrap();
    let place = root.path().join("docs/studies/tiny/cells");
    fs::create_dir_all(&place).unwrap();
    fs::write(place.join(&cell), "{").unwrap();
    refused(&mut elbow(["study", "tiny.toml"]), root.path(), &["is damaged"]);
}
