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

/// GenEval, and with half as much weight again the size of the file: the policy learns some of both.
const BOTH: [&str; 9] = [
    "reward={kind=\"sum\", parts=[{name=\"scene\", reward={kind=\"geneval\"}}, {name=\"size\", weight=1.5, reward={kind=\"jpeg\", aim=\"incompress\"}}]}",
    "batch={groups=12, group_size=8, micro_batch=16}",
    "kl.weight=0.02",
    "optimizer.learning_rate=1e-3",
    "eval={prompts_per_task=10, measure={images_per_prompt=3, every=2, sampler={steps=10}}}",
    "keep={checkpoints=1, images_every=0, samples=false}",
    "epochs=24",
    "radar.action=rollback",
    "radar.rollbacks=3",
];

/// What a rollback is for: on held-out prompts that chose nothing, the weights at the end score as those of the best evaluation do, within the
/// 95 % interval of that score; where the radar only warns, the same run is shown beside it.
#[test]
#[ignore = "takes minutes a seed: .ci/release"]
#[expect(clippy::print_stdout, reason = "what was measured")]
fn after_rollbacks_the_score_on_prompts_that_chose_nothing_is_that_of_the_best() {
    let room = tempfile::tempdir().unwrap();
    let chose = elbow_world::prompts::benchmark(10);
    let mut fresh = elbow_world::prompts::benchmark(60);
    fresh.retain(|record| !chose.contains(record));
    // Tasks of few records repeat theirs.
    fresh.sort_by(|a, b| a.prompt.cmp(&b.prompt));
    fresh.dedup();
    elbow_world::prompts::write_jsonl(&fresh, &mut fs::File::create(room.path().join("fresh.jsonl")).unwrap()).unwrap();
    println!("{} fresh prompts; strict score and judge, with 95 % intervals over prompts", fresh.len());
    for seed in ["seed=0", "seed=1", "seed=2"] {
        let train = |name: &str, changes: &[&str]| -> PathBuf {
            let mut command = elbow(["train", "--run", name]);
            succeed(command.args(sets(&BOTH)).args(sets(&[seed])).args(sets(changes)).current_dir(room.path()));
            room.path().join(name)
        };
        let run = train(&format!("back-{seed}"), &[]);
        let warned = train(&format!("warn-{seed}"), &["radar.action=warn"]);
        let (best, back) = (result(&run)["best_epoch"].as_u64().unwrap(), rollbacks(&run));
        let end = scores(room.path(), &run, None);
        let best_scores = scores(room.path(), &run, Some(best));
        let warned = scores(room.path(), &warned, None);
        println!(
            "{seed}: best epoch {best} {best_scores:.3?}; end, after rollbacks at {back:?}, {end:.3?}; where it only warns {warned:.3?}"
        );
        assert!(!back.is_empty(), "nothing was found");
        for (end, best) in end.iter().zip(&best_scores) {
            assert!(end[0] >= best[0] - best[1], "{end:?} is not within {best:?}");
        }
    }
}

/// Epochs after which a run went back.
fn rollbacks(run: &Path) -> Vec<u64> {
    let back = records(run).into_iter().filter(|record| record.contains_key("rollback_to"));
    back.map(|record| record["epoch"].as_u64().unwrap()).collect()
}

/// Strict score and judge on fresh prompts, each with half its interval; epoch 0 is the base.
fn scores(room: &Path, run: &Path, epoch: Option<u64>) -> [[f64; 2]; 2] {
    let mut command = elbow(["eval", "--json", "scores.json"]);
    match epoch {
        Some(0) => {}
        Some(epoch) => {
            command.arg("--run").arg(run).args(["--epoch", &epoch.to_string()]);
        }
        None => {
            command.arg("--run").arg(run);
        }
    }
    let fresh = [
        "prompts={kind=\"files\", train=\"fresh.jsonl\", test=\"fresh.jsonl\"}",
        "eval={measure={images_per_prompt=3, sampler={steps=10}}}",
    ];
    succeed(command.args(sets(&fresh)).current_dir(room));
    let row: serde_json::Value = serde_json::from_slice(&fs::read(room.join("scores.json")).unwrap()).unwrap();
    ["geneval", "judge"].map(|name| ["mean", "error"].map(|part| row[name][part].as_f64().unwrap()))
}

fn result(run: &Path) -> serde_json::Value {
    serde_json::from_slice(&fs::read(run.join("result.json")).unwrap()).unwrap()
}
