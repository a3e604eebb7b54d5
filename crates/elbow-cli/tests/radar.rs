//! A reward that can be cheated: the radar tells, ends the run, or goes back.

#![expect(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

mod common;

use common::{assert_same, elbow, records, resume, sets};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// GenEval, and with more weight the size of the file: noise pays.
const SETS: [&str; 11] = [
    "reward={kind=\"sum\", parts=[{name=\"scene\", reward={kind=\"geneval\"}}, {name=\"size\", weight=4.0, reward={kind=\"jpeg\", aim=\"incompress\"}}]}",
    "batch.groups=4",
    "batch.group_size=12",
    "sampler.steps=4",
    "kl.weight=0.0",
    "optimizer.learning_rate=2e-3",
    "eval.prompts_per_task=4",
    "eval.measure.images_per_prompt=2",
    "eval.measure.sampler.steps=6",
    "eval.measure.every=1",
    "keep.checkpoints=1",
];

fn cheat(room: &Path, run: &str, epochs: u64, changes: &[&str]) -> (PathBuf, String) {
    let epochs = format!("epochs={epochs}");
    let mut command = elbow(["train", "--run", run]);
    command.args(sets(&SETS)).args(sets(&[&epochs])).args(sets(changes)).current_dir(room);
    (room.join(run), succeed(&mut command))
}

fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", common::text(&output));
    common::text(&output)
}

#[test]
fn a_reward_that_is_cheated_is_told_with_the_epoch() {
    let room = tempfile::tempdir().unwrap();
    let (run, said) = cheat(room.path(), "run", 2, &[]);
    assert!(said.contains("reward `sum` has risen by") && said.contains("(reward hacking)"), "{said}");
    assert_eq!(result(&run)["best_epoch"], 0);
    let last = &records(&run)[2];
    assert!(last["radar_gap_judge"].as_f64().unwrap() > 1.0 && last["radar_brightness"].is_number(), "{last:?}");
    let (run, said) = cheat(room.path(), "off", 1, &["radar.action=off"]);
    assert!(!said.contains("reward hacking") && result(&run)["best_epoch"].is_null(), "{said}");
}

#[test]
fn a_run_ends_there_and_goes_on_where_the_radar_only_warns() {
    let room = tempfile::tempdir().unwrap();
    let (run, said) = cheat(room.path(), "run", 8, &["radar.action=stop"]);
    let halted = &result(&run)["halted"];
    let epoch = halted["epoch"].as_u64().unwrap();
    assert!(epoch <= 2 && halted["why"].as_str().unwrap().contains("reward hacking"), "{halted}");
    assert!(said.contains("the radar ended the run after epoch") && records(&run).len() as u64 == epoch + 1, "{said}");
    let more = [&format!("epochs={}", epoch + 1), "radar.action=warn"];
    succeed(resume(&run).args(sets(&more)));
    assert_eq!(records(&run).len() as u64, epoch + 2);
    assert!(result(&run)["halted"].is_null());
}

/// It goes back to the best weights with half the rate, and ends with them when that does not help; stopped and resumed it is the same run.
#[test]
fn a_run_goes_back_and_is_the_same_after_a_stop() {
    let room = tempfile::tempdir().unwrap();
    let back = ["radar.action=rollback", "radar.rollbacks=1", "keep.checkpoint_every=5"];
    let (straight, said) = cheat(room.path(), "straight", 9, &back);
    let found = records(&straight);
    let rolled: Vec<usize> = (1..found.len()).filter(|&i| found[i].contains_key("rollback_to")).collect();
    assert!(rolled.len() == 2 && rolled.iter().all(|&i| found[i]["rollback_to"] == 0), "{rolled:?}\n{said}");
    assert!(said.contains("with 0.5 times the learning rate (rollback 1 of 1)"), "{said}");
    assert!(said.contains("back to the weights of epoch 0; after 1 of 1 rollbacks the run ends"), "{said}");
    let end = result(&straight)["halted"]["epoch"].as_u64().unwrap();
    assert!(end < 9 && end as usize == rolled[1] && found.len() == rolled[1] + 1, "{end} {rolled:?}");
    assert_eq!(result(&straight)["tuned"], result(&straight)["base"], "the best weights are those of the base");

    let (resumed, _) = cheat(room.path(), "resumed", rolled[0] as u64, &back);
    succeed(resume(&resumed).args(sets(&["epochs=9"])));
    assert_same(&straight, &resumed);
}

/// A run without evaluations between is looked at when it ends, and is left with the weights that were best.
#[test]
fn a_run_that_is_found_out_at_its_end_goes_back() {
    let room = tempfile::tempdir().unwrap();
    let (run, said) = cheat(
        room.path(),
        "run",
        2,
        &["radar.action=rollback", "radar.shift=100", "radar.diversity=0", "eval.measure.every=0"],
    );
    let end = result(&run);
    assert!(end["rollback_to"] == 0 && end["tuned"] == end["base"] && end["halted"].is_null(), "{end}\n{said}");
    // What is kept is what was measured: a run that is finished again says the same.
    succeed(&mut resume(&run));
    assert_eq!(result(&run)["tuned"], end["base"]);
}

#[test]
fn a_run_that_learns_raises_no_flag() {
    let room = tempfile::tempdir().unwrap();
    let honest = ["reward={kind=\"geneval\"}", "optimizer.learning_rate=3e-4", "kl.weight=0.15"];
    let (run, said) = cheat(room.path(), "run", 3, &honest);
    assert!(!said.contains("warning: epoch"), "{said}");
    assert!(records(&run)[3]["radar_diversity"].as_f64().unwrap() > 0.1);
}

fn result(run: &Path) -> serde_json::Value {
    serde_json::from_slice(&fs::read(run.join("result.json")).unwrap()).unwrap()
}
