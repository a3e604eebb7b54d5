//! Runs of one recipe, which differ in nothing but their seeds.

use crate::{interval::Interval, recipe::differences, run::Run};
use std::collections::BTreeSet;

/// Runs of one recipe.
#[derive(Debug)]
pub(crate) struct Group<'a> {
    /// What tells it from the others.
    pub(crate) label: String,
    pub(crate) runs: Vec<&'a Run>,
}

impl<'a> Group<'a> {
    /// Groups in the order of their first runs.
    pub(crate) fn all(runs: &'a [Run]) -> Vec<Self> {
        let mut groups: Vec<Self> = Vec::new();
        for run in runs {
            match groups.iter_mut().find(|group| group.first().recipe.same_but_seed(&run.recipe)) {
                Some(group) => group.runs.push(run),
                None => groups.push(Self { label: run.recipe.name.clone(), runs: vec![run] }),
            }
        }
        tell_apart(&mut groups);
        groups
    }

    /// The first run.
    pub(crate) fn first(&self) -> &'a Run {
        self.runs[0]
    }

    /// Whether this very run is one of it.
    pub(crate) fn has(&self, run: &Run) -> bool {
        self.runs.iter().any(|other| std::ptr::eq(*other, run))
    }

    /// One run a seed: a second one of the same seed says nothing of how seeds differ.
    pub(crate) fn seeds(&self) -> Vec<&'a Run> {
        let mut seen = BTreeSet::new();
        self.runs.iter().filter(|run| run.seed().is_none_or(|seed| seen.insert(seed.to_owned()))).copied().collect()
    }

    /// The mean over seeds of what there is of a number.
    pub(crate) fn interval(&self, of: impl Fn(&Run) -> Option<f64>) -> Option<Interval> {
        Interval::of(&self.seeds().into_iter().filter_map(of).collect::<Vec<_>>())
    }
}

/// Groups whose recipes have the same name are told apart by their fields, or else by their first runs.
fn tell_apart(groups: &mut [Group<'_>]) {
    let names: Vec<String> = groups.iter().map(|group| group.label.clone()).collect();
    for (index, name) in names.iter().enumerate() {
        let same: Vec<usize> = (0..names.len()).filter(|&other| names[other] == *name).collect();
        if same.len() < 2 {
            continue;
        }
        let recipes: Vec<_> = same.iter().map(|&other| &groups[other].first().recipe).collect();
        let place = same.iter().position(|&other| other == index).unwrap_or(0);
        let told: Vec<String> = differences(&recipes)
            .into_iter()
            .filter(|(path, _)| !path.ends_with("_sha256"))
            .filter_map(|(path, mut values)| Some(format!("{path} = {}", values.swap_remove(place)?)))
            .collect();
        groups[index].label = match &told[..] {
            [] => format!("{name} ({})", groups[index].first().name),
            [one] => format!("{name}, {one}"),
            [one, ..] => format!("{name}, {one}, …"),
        };
    }
    let labels: Vec<String> = groups.iter().map(|group| group.label.clone()).collect();
    for group in groups {
        if labels.iter().filter(|label| **label == group.label).count() > 1 {
            group.label = format!("{} ({})", group.label, group.first().name);
        }
    }
}
