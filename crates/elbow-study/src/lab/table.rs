//! Numbers with their errors, as Markdown and as JSON.

use crate::statistics::{mean, variance};
use serde::Serialize;
use std::fmt::Write;

/// Blocks of samples that a Monte-Carlo error comes from.
pub const BLOCKS: usize = 10;

/// A number and its Monte-Carlo standard error.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Measured {
    /// The number.
    pub value: f64,
    /// Its standard error.
    pub error: f64,
}

impl Measured {
    /// The mean of independent numbers.
    pub fn mean(values: &[f64]) -> Self {
        Self { value: mean(values), error: (variance(values) / values.len() as f64).sqrt() }
    }

    /// A statistic of all of `n` samples; its error is that of its values on [`BLOCKS`] blocks of them.
    pub fn of(n: usize, statistic: impl Fn(std::ops::Range<usize>) -> f64) -> Self {
        let size = n / BLOCKS;
        let blocks: Vec<f64> = (0..BLOCKS).map(|b| statistic(b * size..(b + 1) * size)).collect();
        Self { value: statistic(0..n), error: (variance(&blocks) / BLOCKS as f64).sqrt() }
    }

    /// A share of `n` trials.
    pub fn share(count: usize, n: usize) -> Self {
        let share = count as f64 / n as f64;
        Self { value: share, error: (share * (1.0 - share) / n as f64).sqrt() }
    }
}

/// A field of a table.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Cell {
    /// A word, or a number that is known.
    Text(String),
    /// A measured number.
    Number(Measured),
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<usize> for Cell {
    fn from(count: usize) -> Self {
        Self::Text(count.to_string())
    }
}

impl From<Measured> for Cell {
    fn from(measured: Measured) -> Self {
        Self::Number(measured)
    }
}

/// A number that is known, without error.
pub fn exact(value: f64) -> Cell {
    Cell::Text(significant(value, 4))
}

/// A table of a report.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Table {
    /// Its heading.
    pub title: String,
    /// What it shows and how it was measured.
    pub note: String,
    /// The names of its columns.
    pub columns: Vec<String>,
    /// Its rows, a field a column.
    pub rows: Vec<Vec<Cell>>,
}

impl Table {
    /// An empty table.
    pub fn new(title: &str, note: &str, columns: &[&str]) -> Self {
        let columns = columns.iter().map(|&column| column.to_owned()).collect();
        Self { title: title.into(), note: note.into(), columns, rows: Vec::new() }
    }

    /// The table in Markdown.
    pub fn markdown(&self) -> String {
        let mut out = format!(
            "### {}\n\n{}\n\n| {} |\n{}|\n",
            self.title,
            self.note,
            self.columns.join(" | "),
            "|---".repeat(self.columns.len())
        );
        for row in &self.rows {
            let cells: Vec<String> = row.iter().map(Cell::markdown).collect();
            let _ = writeln!(out, "| {} |", cells.join(" | "));
        }
        out
    }
}

impl Cell {
    fn markdown(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Number(Measured { value, error }) if !value.is_finite() => format!("– ± {}", significant(*error, 1)),
            Self::Number(Measured { value, error }) => {
                if *error > 0.0 && error.is_finite() {
                    let places = (1.0 - error.log10().floor()).clamp(0.0, 9.0) as usize;
                    format!("{value:.places$} ± {error:.places$}")
                } else {
                    significant(*value, 3)
                }
            }
        }
    }
}

/// A number with so many digits that count.
fn significant(value: f64, digits: i32) -> String {
    if value == 0.0 || !value.is_finite() {
        return if value.is_finite() { "0".into() } else { "–".into() };
    }
    let places = (f64::from(digits) - 1.0 - value.abs().log10().floor()).clamp(0.0, 12.0) as usize;
    format!("{value:.places$}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use elbow::noise::{Key, Purpose};

    #[test]
    fn numbers_have_the_digits_that_their_error_allows() {
        let text = |value, error| Cell::from(Measured { value, error }).markdown();
        assert_eq!(text(0.123_456, 0.0123), "0.123 ± 0.012");
        assert_eq!(text(1234.5, 67.0), "1234 ± 67");
        assert_eq!(text(0.5, 0.0), "0.500");
        assert_eq!(text(f64::NAN, f64::NAN), "– ± –");
        assert_eq!(exact(0.000_123_456), Cell::Text("0.0001235".into()));
    }

    /// The error of a mean by blocks is that of the mean by all values: √(Σ over blocks) agrees with σ/√n within its own noise.
    #[test]
    fn blocks_give_the_error_of_a_mean() {
        let mut normals = Vec::new();
        Key::new(0, Purpose::Resampling, 0).extend_normals(4000, &mut normals);
        let values: Vec<f64> = normals.into_iter().map(f64::from).collect();
        let blocks = Measured::of(values.len(), |range| mean(&values[range]));
        let direct = Measured::mean(&values);
        assert!((blocks.value - direct.value).abs() < 1e-9);
        assert!(blocks.error > 0.4 * direct.error && blocks.error < 2.0 * direct.error, "{blocks:?} {direct:?}");
        assert!((Measured::share(3, 12).error - 0.125).abs() < 1e-12);
    }
}
