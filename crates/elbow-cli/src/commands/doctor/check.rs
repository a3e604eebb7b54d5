//! A line of `elbow doctor`.

use crate::{failure, output};
use anyhow::Result;

/// What was looked at, and what was found.
pub struct Check {
    name: String,
    found: Result<String>,
}

impl Check {
    /// A check of that name.
    pub fn new(name: impl Into<String>, found: Result<String>) -> Self {
        Self { name: name.into(), found }
    }

    fn text(&self) -> String {
        let indented = |text: String| text.replace('\n', &format!("\n{:21}", ""));
        let (mark, found) = match &self.found {
            Ok(text) => ("ok", text.clone()),
            Err(error) => ("FAIL", format!("{error:#}")),
        };
        let advice = self.found.as_ref().err().and_then(failure::advice);
        let advice = advice.map(|advice| format!("\n{:21}hint: {}", "", indented(advice))).unwrap_or_default();
        format!("{mark:<4}  {:<13}  {}{advice}", self.name, indented(found))
    }
}

/// Checks as they are made: each is shown at once, since some take a while.
#[derive(Default)]
pub struct Checks {
    /// Checks made.
    pub made: usize,
    /// Those that failed.
    pub failed: usize,
}

impl Checks {
    /// Counts and shows a check.
    pub fn add(&mut self, check: &Check) {
        self.made += 1;
        self.failed += usize::from(check.found.is_err());
        output::line(&check.text());
    }
}
