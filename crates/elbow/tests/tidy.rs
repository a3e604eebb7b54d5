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
fn models_never_import_objectives() {
    for (path, text) in sources(&crates().join("elbow-models/src")) {
        assert!(!text.contains("objective"), "{}", path.display());
    }
}

#[test]
fn every_variant_of_an_axis_cites_its_source() {
    for axis in ["objective", "likelihood", "sampler", "advantage"] {
        for (path, text) in sources(&crates().join("elbow/src").join(axis)) {
            let variant = ["Objective", "Likelihood", "Sampler", "Advantage"].map(|axis| format!("impl {axis} for"));
            if variant.iter().any(|implementation| text.contains(implementation)) {
                assert!(text.contains("arXiv"), "{} cites no paper", path.display());
            }
        }
    }
}
