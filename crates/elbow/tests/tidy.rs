//! Invariants of the source tree itself (see ARCHITECTURE.md).

use std::{
    fs,
    path::{Path, PathBuf},
};

fn crates() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
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
fn no_file_is_longer_than_400_lines() {
    let long: Vec<_> =
        sources(&crates()).into_iter().filter(|(_, text)| text.lines().count() > 400).map(|f| f.0).collect();
    assert!(long.is_empty(), "split these: {long:?}");
}

/// Functions are measured from their `fn` line to the brace that closes at the same indentation.
#[test]
fn no_function_is_longer_than_60_lines() {
    let mut long = Vec::new();
    for (path, text) in sources(&crates()) {
        let lines: Vec<&str> = text.lines().collect();
        for (start, line) in lines.iter().enumerate() {
            let code = line.trim_start();
            let indent = line.len() - code.len();
            let is_function =
                ["fn ", "pub fn ", "pub(crate) fn ", "pub(super) fn ", "const fn ", "pub const fn ", "unsafe fn "]
                    .iter()
                    .any(|p| code.starts_with(p));
            let closing = format!("{}}}", " ".repeat(indent));
            let Some(length) = lines[start..].iter().position(|l| *l == closing).filter(|_| is_function) else {
                continue;
            };
            if length + 1 > 60 && !code.ends_with('}') {
                long.push(format!("{}:{} has {} lines", path.display(), start + 1, length + 1));
            }
        }
    }
    assert!(long.is_empty(), "split these: {long:#?}");
}

#[test]
fn the_axes_know_neither_the_loop_nor_the_configuration_nor_files() {
    for axis in ["objective", "likelihood", "sampler", "advantage"] {
        for (path, text) in sources(&crates().join("elbow/src").join(axis)) {
            for forbidden in ["train::", "config::", "std::fs", "std::io"] {
                assert!(!text.contains(forbidden), "{} uses {forbidden}", path.display());
            }
        }
    }
}

#[test]
fn the_training_loop_names_no_algorithm() {
    for (path, text) in sources(&crates().join("elbow/src/train")) {
        let text = text.to_lowercase();
        for name in ["grpo", "nft", "awm", "ppo", "epg", "ddpo"] {
            assert!(!text.contains(name), "{} names {name}", path.display());
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
    for axis in ["objective", "likelihood", "sampler", "advantage"] {
        for (path, text) in sources(&crates().join("elbow/src").join(axis)) {
            let name = path.file_name().and_then(|n| n.to_str()).expect("a name");
            let test = path.components().any(|part| part.as_os_str() == "tests") || name == "tests.rs";
            if name != "mod.rs" && !test {
                assert!(text.contains("arXiv"), "{} cites no paper", path.display());
            }
        }
    }
}
