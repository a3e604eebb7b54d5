//! `elbow report` on real runs.

mod common;

use common::{copy, elbow, files, finished, records, refused, succeed};
use std::fs;

#[test]
fn a_run_becomes_a_page_in_its_folder_and_a_table() {
    let root = tempfile::tempdir().unwrap();
    let run = root.path().join("run-1");
    copy(finished(), &run);
    let csv = root.path().join("curves.csv");
    let said = succeed(elbow(["report"]).arg(&run).arg("--csv").arg(&csv));
    assert!(said.contains("run-1/report.html (") && said.contains("curves.csv"), "{said}");

    let page = fs::read_to_string(run.join("report.html")).unwrap();
    let tuned: serde_json::Value = serde_json::from_slice(&fs::read(run.join("result.json")).unwrap()).unwrap();
    let tuned = format!("{:.3}", tuned["tuned"]["eval_reward_geneval"].as_f64().unwrap());
    for part in ["run-1", "nano-geneval", "Before and after", "By the strict rule", "prefers-color-scheme", &tuned] {
        assert!(page.contains(part), "{part} is not in the page");
    }
    assert!(page.matches("data:image/png;base64,").count() >= 12, "pictures of before and after");

    let table = fs::read_to_string(&csv).unwrap();
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split(',').collect()).collect();
    assert_eq!(rows[0], ["run", "step", "elapsed_hours", "reward", "reward_averaged"]);
    let recorded: Vec<f64> = records(&run).iter().filter_map(|record| record.get("reward_geneval")?.as_f64()).collect();
    assert_eq!((rows.len(), recorded.len()), (5, 4));
    for (row, reward) in rows[1..].iter().zip(recorded) {
        assert_eq!((row[0], row[3].parse::<f64>().unwrap()), ("run-1", reward));
        assert!(row[2].parse::<f64>().unwrap() > 0.0);
    }
}

#[test]
fn a_run_only_gains_its_report() {
    let root = tempfile::tempdir().unwrap();
    let run = root.path().join("run-1");
    copy(finished(), &run);
    let before = files(&run);
    succeed(elbow(["report"]).arg(&run));
    let mut after = files(&run);
    assert!(after.remove(std::path::Path::new("report.html")).is_some());
    assert!(before == after);
}

#[test]
fn what_cannot_be_reported_is_named_with_a_hint() {
    let root = tempfile::tempdir().unwrap();
    for (folder, file) in [("empty", None), ("begun", Some("config.toml")), ("broken", Some("config.toml"))] {
        fs::create_dir(root.path().join(folder)).unwrap();
        if let Some(file) = file {
            fs::write(root.path().join(folder).join(file), if folder == "broken" { "epochs = " } else { "epochs = 1" })
                .unwrap();
        }
    }
    copy(finished(), &root.path().join("run-1"));
    let cases: [(&[&str], &[&str]); 8] = [
        (&["absent"], &["cannot open the run folder absent", "No such file", "runs/<recipe>-<number>"]),
        (&["empty"], &["empty is not a run folder: it has no config.toml", "runs/<recipe>-<number>"]),
        (&["begun"], &["begun has no records", "elbow train --resume"]),
        (&["broken"], &["cannot understand broken/config.toml"]),
        (&["run-1", "./run-1"], &["./run-1 is named twice"]),
        (&["run-1", "--out", "page.txt"], &["--out page.txt", "ends in .html"]),
        (&["run-1", "--out", "no/page.html"], &["there is no folder no"]),
        (&["run-1", "--csv", "run-1"], &["--csv run-1", "ends in .csv"]),
    ];
    for (arguments, parts) in cases {
        refused(elbow(["report"]).args(arguments), root.path(), parts);
    }
}

#[test]
fn help_has_examples() {
    let help = succeed(&mut elbow(["report", "--help"]));
    assert!(help.matches("\n  elbow report runs/").count() >= 3, "{help}");
}
