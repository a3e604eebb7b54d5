//! Invariants of the source tree itself (see ARCHITECTURE.md).

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Each axis: its folder in the core, and its trait.
const AXES: [(&str, &str); 5] = [
    ("objective", "Objective"),
    ("likelihood", "Likelihood"),
    ("sampler", "Sampler"),
    ("advantage", "Advantage"),
    ("collection", "Collection"),
];

fn crates() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn core() -> PathBuf {
    crates().join("elbow/src")
}

fn sources(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push((path.clone(), fs::read_to_string(path).expect("UTF-8")));
        }
    }
    found
}

#[test]
fn the_axes_know_neither_the_loop_nor_the_configuration_nor_files() {
    for (axis, _) in AXES {
        for (path, text) in sources(&core().join(axis)) {
            // A unit test may train.
            if path.ends_with("tests.rs") {
                continue;
            }
            for forbidden in ["train::", "config::", "std::fs", "std::io"] {
                assert!(!text.contains(forbidden), "{} uses {forbidden}", path.display());
            }
        }
    }
}

#[test]
fn models_never_import_objectives() {
    for (path, text) in sources(&crates().join("elbow-models/src")) {
        assert!(!text.contains("objective"), "{}", path.display());
    }
}

#[test]
fn every_variant_of_an_axis_cites_its_source() {
    for (folder, axis) in AXES {
        let mut variants = 0;
        for (path, text) in sources(&core().join(folder)) {
            if text.contains(&format!("impl {axis} for")) {
                assert!(text.contains("arXiv"), "{} cites no paper", path.display());
                variants += 1;
            }
        }
        assert!(variants >= 2, "{folder} has variants");
    }
}

/// A method may be made of anybody's variants: the loop, and what it is made of, neither names nor matches on one.
#[test]
fn the_loop_names_no_variant() {
    let variants: Vec<String> = AXES.iter().flat_map(|(folder, axis)| variants(folder, axis)).collect();
    assert!(variants.len() > 30 && variants.iter().any(|name| name == "TrajectoryBalance"), "{variants:?}");
    let mut loop_files = sources(&core().join("train"));
    for file in ["method.rs", "rollout.rs", "draw.rs", "batch.rs", "evaluation.rs", "setting.rs"] {
        let path = core().join(file);
        loop_files.push((path.clone(), fs::read_to_string(path).expect("UTF-8")));
    }
    for (path, text) in loop_files.iter().filter(|(path, _)| !path.ends_with("tests.rs")) {
        for line in code(text) {
            let names = line.split(|c: char| !c.is_alphanumeric() && c != '_');
            for name in names {
                let kind = AXES.iter().any(|(_, axis)| name == format!("{axis}Kind"));
                assert!(!kind && !variants.iter().any(|v| v == name), "{} names {name}: {line}", path.display());
            }
        }
    }
}

/// The names of an axis's variants.
fn variants(folder: &str, axis: &str) -> Vec<String> {
    let implementation = format!("impl {axis} for ");
    let files = sources(&core().join(folder)).into_iter().filter(|(path, _)| !path.to_string_lossy().contains("tests"));
    let lines: Vec<String> = files.flat_map(|(_, text)| code(&text).map(str::to_owned).collect::<Vec<_>>()).collect();
    let name = |line: &String| Some(line.strip_prefix(&implementation)?.split(' ').next()?.to_owned());
    lines.iter().filter_map(name).collect()
}

/// Lines without comments, up to the tests of a file.
fn code(text: &str) -> impl Iterator<Item = &str> {
    let lines = text.lines().take_while(|line| line.trim() != "#[cfg(test)]");
    lines.map(|line| line.split("//").next().unwrap_or(line))
}
