//! One page about training runs, for somebody who has never seen the project: `elbow report`.
//!
//! [`Report::read`] reads run folders and writes nothing. [`Report::html`] makes a page that is one file: figures are SVG, pictures are PNG
//! in data URLs, and a policy in its head forbids it any network. Runs of one recipe that differ in their seeds become one curve with a
//! band, runs of different recipes several curves and a table of what differs. [`Report::csv`] is the curves as a table.
//!
//! Every text of a run folder (prompts, names, recipes) is escaped where it is spliced in, and the policy lets no script run but the
//! page's own, by its hash.
//!
//! ```text
//! run.rs        a folder as it is, with notes on what is damaged     measure.rs    which keys are measures, which their tags
//! recipe.rs     the resolved recipe, and differences                 group.rs      runs of one recipe
//! series.rs     curves: averages, bands, thinning                    interval.rs   means over seeds
//! chart.rs      curves as SVG                                        bars.rs       bars in a table
//! pictures.rs   pairs and galleries, from files and from sheets      table.rs      the curves as CSV
//! document/     head, style and script of any page                   page/         the page about runs, a file a section
//! ```
//!
//! [`document`], [`chart`] and [`bars`] know nothing of runs: the page about a study is made of them too.

pub mod bars;
pub mod chart;
pub mod document;
mod error;
mod group;
mod interval;
mod measure;
pub mod number;
mod page;
mod pictures;
mod recipe;
mod run;
mod series;
mod table;

pub use error::ReportError;
pub use series::averaged;

use run::Run;
use std::{collections::BTreeSet, fs, path::Path};

/// What is known of some runs.
#[derive(Debug)]
pub struct Report {
    runs: Vec<Run>,
    /// A name for each run that no other has.
    names: Vec<String>,
}

impl Report {
    /// Reads run folders. A folder that is no run, a run without records, and one that is named twice are errors; what is damaged or
    /// missing in a run is noted on the page.
    pub fn read<P: AsRef<Path>>(paths: &[P]) -> Result<Self, ReportError> {
        let mut seen = BTreeSet::new();
        for path in paths.iter().map(AsRef::as_ref) {
            if !seen.insert(fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf())) {
                return Err(ReportError::Twice { path: path.to_path_buf() });
            }
        }
        let runs = paths.iter().map(|path| Run::open(path.as_ref())).collect::<Result<Vec<_>, _>>()?;
        if runs.is_empty() {
            return Err(ReportError::Nothing);
        }
        let alone = |name: &str| runs.iter().filter(|run| run.name == name).count() == 1;
        let name = |(run, path): (&Run, &P)| {
            if alone(&run.name) { run.name.clone() } else { path.as_ref().display().to_string() }
        };
        let names = runs.iter().zip(paths).map(name).collect();
        Ok(Self { runs, names })
    }

    /// The page.
    pub fn html(&self) -> String {
        page::page(&self.runs, &self.names)
    }

    /// The training curves as CSV: `run,step,elapsed_hours,reward,reward_averaged`, a row an epoch and run.
    pub fn csv(&self) -> Result<String, ReportError> {
        table::csv(&self.runs, &self.names)
    }
}
