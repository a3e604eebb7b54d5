//! What helps to choose: the list of methods, recipes by name, and the cost of a recipe.

mod common;

use common::{SMALL, elbow, finished, records, sets, succeed, text};

#[test]
fn every_choice_is_listed_with_a_line_of_its_own() {
    let listing = succeed(&mut elbow(["methods"]));
    let reference = succeed(&mut elbow(["config", "--explain"]));
    for axis in ["objective", "likelihood", "sampler.rule", "advantage", "collection"] {
        let kinds = reference.lines().filter_map(|line| line.strip_prefix(&format!("### `[{axis}]` with `kind = \"")));
        let kinds: Vec<&str> = kinds.map(|rest| rest.trim_end_matches("\"`")).collect();
        assert!(kinds.len() >= 2, "{axis}: {kinds:?}");
        for kind in kinds {
            let line = listing.lines().find(|line| line.trim_start().starts_with(&format!("{kind} ")));
            assert!(line.is_some_and(|line| line.trim().len() > kind.len() + 10), "{axis}.kind = {kind}: {listing}");
        }
    }
    assert!(listing.contains("\n  nano-diffusion-nft "), "{listing}");
}

#[test]
fn every_choice_names_its_paper() {
    let listing = succeed(&mut elbow(["methods"]));
    let mut lines = 0;
    for line in listing.lines().filter(|line| line.starts_with("  ")) {
        let ids = line.match_indices("arXiv ").filter(|(at, _)| {
            let id: Vec<char> = line[at + 6..].chars().take(10).collect();
            id.len() == 10 && id.iter().enumerate().all(|(i, c)| if i == 4 { *c == '.' } else { c.is_ascii_digit() })
        });
        assert!(ids.count() >= 1, "{line}");
        lines += 1;
    }
    assert!(lines > 70, "{listing}");
}

#[test]
fn a_sum_of_rewards_reports_each_by_its_name() {
    let root = tempfile::tempdir().expect("a folder");
    let run = root.path().join("run");
    let small = [&SMALL[..], &["batch.groups=4", "epochs=2"]].concat();
    succeed(elbow(["train", "nano-gdpo", "--run"]).arg(&run).args(sets(&small)));
    for record in &records(&run)[1..] {
        let number = |key: &str| record[key].as_f64().unwrap_or_else(|| panic!("{key}: {record:?}"));
        assert!((number("reward_sum") - number("reward_dense") - number("reward_strict")).abs() < 1e-6, "{record:?}");
    }
    let refused = |parts: &str, words: &[&str]| {
        let output = elbow(["config", "nano-gdpo", "--set", &format!("reward.parts={parts}")]).output().expect("runs");
        let told = text(&output);
        assert!(!output.status.success() && words.iter().all(|word| told.contains(word)), "{parts}: {told}");
    };
    let part = |name: &str, more: &str| format!("{{ name = \"{name}\", reward = {{ kind = \"jpeg\" }}{more} }}");
    refused("3", &["reward.parts", "list of sections"]);
    refused("[]", &["at least one reward"]);
    refused(&format!("[{}, {}]", part("a", ""), part("a", "")), &["reward.parts[1].name", "name of its own"]);
    refused(&format!("[{}]", part("a b", ", weight = inf")), &["lower-case letters", "weight = inf"]);
    refused("[{ name = \"a\", reward = { kind = \"jpg\" } }]", &["`reward", "jpg"]);
    refused(
        &format!("[{{ name = \"a\", reward = {{ kind = \"sum\", parts = [{}] }} }}]", part("b", "")),
        &["is a sum"],
    );
}

#[test]
fn a_recipe_runs_by_its_name_from_any_folder() {
    let root = tempfile::tempdir().expect("a folder");
    let config = |name: &str| succeed(elbow(["config", name]).current_dir(root.path()));
    // This one extends a second, which extends a third.
    let cispo = config("nano-cispo");
    assert!(cispo.contains("kind = \"cispo\"") && cispo.contains("deviation = \"group\""), "{cispo}");
    assert_eq!(cispo, config("nano-cispo.toml"));
    // A file of that name comes first.
    std::fs::write(root.path().join("nano-cispo.toml"), "extends = \"nano-geneval.toml\"\nseed = 7").expect("written");
    assert!(config("nano-cispo.toml").contains("seed = 7"));
}

#[test]
fn a_plan_says_passes_seconds_and_memory() {
    let plan = |changes: &[&str]| {
        let small = ["batch.groups=4", "batch.group_size=6", "batch.micro_batch=2", "sampler.steps=2", "epochs=10"];
        succeed(elbow(["plan"]).args(sets(&small)).args(sets(changes)))
    };
    let plain = plan(&["kl.weight=0"]);
    assert!(plain.contains("4 prompts × 6 images, 1 update(s)"), "{plain}");
    assert!(plain.contains("2 forward passes to draw it; 1 × 1 forward and 1 × 1 backward to train on it"), "{plain}");
    let guided = plan(&["sampler.guidance=2", "kl.weight=1", "batch.updates=2"]);
    assert!(guided.contains("4 forward passes to draw it; 1 × 6 forward and 1 × 2 backward"), "{guided}");
    assert!(!plain.contains("prefilter"), "{plain}");
    let drafted = plan(&["collection={kind='prefilter', count=9, steps=1}"]);
    assert!(drafted.contains("prefilter       9 a prompt, 1 forward passes and a reward each"), "{drafted}");
    // Both compare with the reference, and trajectory balance sees whole groups before.
    for (objective, forward) in [("ram", 2), ("trajectory-balance", 3)] {
        let text = plan(&["kl.weight=0", &format!("objective.kind={objective}")]);
        assert!(text.contains(&format!("1 × {forward} forward and 1 × 1 backward")), "{objective}: {text}");
    }
    for line in ["time an epoch", "time in all", "10 epochs, and 2 evaluations", "MiB at the peak"] {
        assert!(plain.contains(line), "{line}: {plain}");
    }
}

#[test]
fn a_run_is_compared_with_its_plan() {
    let compared = succeed(elbow(["plan", "--run"]).arg(finished()));
    assert!(compared.contains("s an epoch, the median of 4: the plan is"), "{compared}");
}
