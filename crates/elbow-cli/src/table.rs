//! Scores by task, as text.

use elbow::eval::{Measured, Summary};
use elbow_study::statistics::{LEVEL, normal};
use std::fmt::Write;

/// One column of a table: its title and, row by row, its numbers.
pub struct Column<'a> {
    /// Printed above.
    pub title: &'a str,
    /// Scores of one reward.
    pub summary: Summary,
}

/// `<name> base` and `<name> tuned` of each measure that there is; nothing if there is none.
pub fn comparison(names: &[&str], base: &Measured, tuned: &Measured) -> Option<String> {
    let named = |&name: &&str| {
        Some([(format!("{name} base"), base.summary(name)?), (format!("{name} tuned"), tuned.summary(name)?)])
    };
    let all: Vec<(String, Summary)> = names.iter().filter_map(named).flatten().collect();
    let columns: Vec<Column<'_>> = all.iter().map(|(title, s)| Column { title, summary: s.clone() }).collect();
    (!columns.is_empty()).then(|| scores(&columns))
}

/// Rows are tasks, then their mean with its interval over prompts; columns as given.
pub fn scores(columns: &[Column<'_>]) -> String {
    let mut out = String::new();
    let width = |c: &Column<'_>| c.title.len().max(6);
    let _ = write!(out, "{:<16}", "task");
    for column in columns {
        let _ = write!(out, "  {:>w$}", column.title, w = width(column));
    }
    let tags: Vec<&String> = columns.first().map(|c| c.summary.by_tag.keys().collect()).unwrap_or_default();
    for tag in tags {
        let _ = write!(out, "\n{tag:<16}");
        for column in columns {
            let value = column.summary.by_tag.get(tag).copied().unwrap_or(f64::NAN);
            let _ = write!(out, "  {value:>w$.3}", w = width(column));
        }
    }
    let _ = write!(out, "\n{:<16}", "mean");
    for column in columns {
        let _ = write!(out, "  {:>w$.3}", column.summary.mean, w = width(column));
    }
    if columns.iter().all(|column| column.summary.error.is_finite()) {
        let _ = write!(out, "\n{:<16}", "± (95 %)");
        for column in columns {
            let _ = write!(out, "  {:>w$.3}", normal(LEVEL) * column.summary.error, w = width(column));
        }
    }
    let missing: usize = columns.iter().map(|c| c.summary.missing).sum();
    if missing > 0 {
        let _ = write!(out, "\n({missing} scores are missing and left out of the means)");
    }
    out
}
