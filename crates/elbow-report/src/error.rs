//! The one error type of the crate.

use elbow_runlog::RunLogError;
use std::path::PathBuf;

/// Why there is no report. The message says what and where; [`ReportError::hint`] says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReportError {
    /// A folder that cannot be opened as a run.
    #[error(transparent)]
    RunLog(#[from] RunLogError),
    /// A run whose configuration cannot be read.
    #[error("cannot understand {}: {reason}", path.display())]
    Config {
        /// The configuration.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A run of which nothing was recorded yet.
    #[error("{} has no records", path.display())]
    NoRecords {
        /// The run folder.
        path: PathBuf,
    },
    /// A run that was named more than once.
    #[error("the run {} is named twice", path.display())]
    Twice {
        /// The run folder.
        path: PathBuf,
    },
    /// No run was named.
    #[error("there is no run to report on")]
    Nothing,
    /// A table that could not be written.
    #[error("cannot write the table of curves")]
    Csv(#[from] csv::Error),
}

impl ReportError {
    /// What the user can do about it, where there is something.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::RunLog(RunLogError::Io { action: "open the run folder", .. } | RunLogError::NotARun { .. }) => {
                Some("name the folder of a run, as `elbow train` prints it when it starts: runs/<recipe>-<number>")
            }
            Self::RunLog(error) => error.hint(),
            Self::Config { .. } => Some("restore the file: every run leaves it as it was started with"),
            Self::NoRecords { .. } => Some("let it measure its base first: `elbow train --resume` goes on with it"),
            Self::Twice { .. } => Some("name each run once: an interval over seeds counts every run"),
            Self::Nothing => Some("name the folder of a run"),
            Self::Csv(_) => None,
        }
    }
}
