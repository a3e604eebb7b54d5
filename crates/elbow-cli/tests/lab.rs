//! `elbow lab`, and the report that is committed.

mod common;

use common::{elbow, refused};
use serde_json::Value;
use std::{fs, path::Path};

#[test]
fn a_file_that_is_not_meant_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path();
    let lab = |file: &str| {
        let mut command = elbow(["lab", "--quick", "--out"]);
        command.arg(folder.join(file));
        command
    };
    refused(&mut lab("notes.txt"), folder, &["--out", "notes.txt", "ends in .md", "hint: for example --out lab.md"]);
    refused(&mut lab("absent/lab.md"), folder, &["there is no folder", "absent", "hint: make it first"]);
}

/// Text and numbers of the committed report are of one run: every table has its rows, and says how many samples it is of.
#[test]
fn the_committed_report_is_whole() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    let text = fs::read_to_string(docs.join("lab.md")).unwrap();
    let numbers: Value = serde_json::from_str(&fs::read_to_string(docs.join("lab.json")).unwrap()).unwrap();
    let tables = numbers["tables"].as_array().unwrap();
    assert!(text.contains(include_str!("../../elbow-study/src/lab/found.md").trim()));
    assert!(tables.len() >= 12 && text.contains("Made by `elbow lab"), "{} tables", tables.len());
    for table in tables {
        let (title, note) = (table["title"].as_str().unwrap(), table["note"].as_str().unwrap());
        let (_, part) = text.split_once(&format!("### {title}\n")).unwrap_or_else(|| panic!("{title} is missing"));
        let part = part.split("\n### ").next().unwrap();
        assert!(part.contains(note), "{title}");
        let rows = part.lines().filter(|line| line.starts_with("| ")).count() - 1;
        assert_eq!(rows, table["rows"].as_array().unwrap().len(), "{title}");
    }
}
