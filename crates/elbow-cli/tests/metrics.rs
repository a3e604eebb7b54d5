//! docs/metrics.md describes every name of a record, and no other.

#![expect(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

mod common;

use common::{SMALL, elbow, records, sets, succeed};
use std::collections::BTreeSet;

/// Names of the page, in which `<…>` stands for anything.
fn described() -> BTreeSet<&'static str> {
    let rows = include_str!("../../../docs/metrics.md").lines().filter_map(|line| line.strip_prefix("| `"));
    rows.map(|row| row.split_once('`').unwrap().0).collect()
}

fn fits(name: &str, pattern: &str) -> bool {
    let Some((before, rest)) = pattern.split_once('<') else { return name == pattern };
    let after = rest.split_once('>').unwrap().1;
    let Some(rest) = name.strip_prefix(before) else { return false };
    (1..=rest.len()).any(|end| rest.is_char_boundary(end) && fits(&rest[end..], after))
}

#[test]
fn the_page_describes_every_name_of_a_record_and_no_other() {
    let root = tempfile::tempdir().unwrap();
    // Without a penalty and with one, and one of each collection.
    let recipes = [
        "nano-geneval",
        "nano-flow-grpo",
        "nano-dapo",
        "nano-sol-rl --set collection.steps=1",
        "nano-op-grpo --set collection.groups=1",
    ];
    let described = described();
    let mut met = BTreeSet::new();
    for recipe in recipes {
        let folder = root.path().join(recipe);
        let mut command = elbow(["train"].into_iter().chain(recipe.split(' ')));
        succeed(command.arg("--run").arg(&folder).args(sets(&SMALL)).args(sets(&["epochs=2", "batch.group_size=16"])));
        for name in records(&folder).iter().flat_map(|record| record.keys()) {
            // A name of its own comes before a pattern that it fits.
            let found = described.get(name.as_str()).or_else(|| described.iter().find(|pattern| fits(name, pattern)));
            assert!(found.is_some(), "{name} of {recipe} is not described");
            met.extend(described.iter().filter(|pattern| fits(name, pattern)));
        }
    }
    // Only a policy that cheats is taken back.
    let unmet: Vec<_> = described.difference(&met).filter(|name| **name != "rollback_to").collect();
    assert!(unmet.is_empty(), "no run has {unmet:?}");
}

#[test]
fn patterns_stand_for_one_part_of_a_name() {
    assert!(fits("reward_geneval_std", "reward_<name>_std") && !fits("reward_std", "reward_<name>_std"));
    assert!(!fits("reward_", "reward_<name>") && !fits("drawn", "drawn_samples"));
}
