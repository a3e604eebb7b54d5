//! The one error type of the crate.

use std::io;
use std::path::{Path, PathBuf};

use crate::lock::Holder;

/// What can go wrong with the files of a run. The message says what and where; [`RunLogError::hint`] says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunLogError {
    /// The operating system refused an operation on a file or folder.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried, as a verb: `write`, `rename`.
        action: &'static str,
        /// The file or folder concerned.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// A new run was to be written over something that exists.
    #[error("the run folder {} exists and is not empty", path.display())]
    NotEmpty {
        /// The folder.
        path: PathBuf,
    },
    /// A folder was opened as a run and holds none.
    #[error("{} is not a run folder: it has no {missing}", path.display())]
    NotARun {
        /// The folder.
        path: PathBuf,
        /// The file that every run has and this folder lacks.
        missing: &'static str,
    },
    /// Another process writes to the run folder.
    #[error("process {} on host {} works in the run folder {} since {}", holder.process, holder.host, folder.display(), holder.since)]
    Locked {
        /// The folder.
        folder: PathBuf,
        /// The process.
        holder: Holder,
    },
    /// A process of another host took the run folder, and whether it still runs cannot be seen from here.
    #[error(
        "process {} on host {} took the run folder {} at {}; from here it cannot be seen whether it still runs",
        holder.process, holder.host, folder.display(), holder.since
    )]
    LockedElsewhere {
        /// The folder.
        folder: PathBuf,
        /// The process.
        holder: Holder,
    },
    /// A name that cannot stand for a file inside a checkpoint.
    #[error("`{name}` cannot name a file of a checkpoint: {reason}")]
    FileName {
        /// The name as given.
        name: String,
        /// Why it was refused.
        reason: &'static str,
    },
    /// A checkpoint folder without a manifest: it was never completed.
    #[error("the checkpoint {} has no manifest.json", path.display())]
    Incomplete {
        /// The checkpoint folder.
        path: PathBuf,
    },
    /// A manifest that is not one.
    #[error("cannot understand {}: {reason}", path.display())]
    Manifest {
        /// The manifest file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file that the manifest lists is not there.
    #[error("{} is missing from its checkpoint", path.display())]
    Missing {
        /// The absent file.
        path: PathBuf,
    },
    /// A file has another length than its manifest says.
    #[error("{} has {found} bytes where its manifest says {expected}", path.display())]
    Length {
        /// The damaged file.
        path: PathBuf,
        /// Bytes that were written.
        expected: u64,
        /// Bytes that are there.
        found: u64,
    },
    /// A file has the right length and other content than was written.
    #[error("{} is corrupt: its SHA-256 is {found} where its manifest says {expected}", path.display())]
    Corrupt {
        /// The damaged file.
        path: PathBuf,
        /// Hash of what was written.
        expected: String,
        /// Hash of what is there.
        found: String,
    },
    /// A line of a record file that is not a record.
    #[error("{}, line {line}: {reason}", path.display())]
    Line {
        /// The record file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// A record to be written has no epoch, and could not be found again on resume.
    #[error("a record needs an `epoch` that is a non-negative integer")]
    NoEpoch,
    /// A contact sheet that cannot be read back.
    #[error("cannot read the pictures of {}: {reason}", path.display())]
    Sheet {
        /// The sheet.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// An image could not be encoded.
    #[error("cannot encode an image as PNG")]
    Image(#[from] image::ImageError),
}

impl RunLogError {
    /// What the user can do about it, where there is something.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                    Some("choose a folder that you may write to with `--run`")
                }
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    Some("free some space, or keep fewer checkpoints, then go on with `--resume`")
                }
                io::ErrorKind::NotADirectory => Some("a part of this path is a file: choose another `--run`"),
                _ => None,
            },
            Self::NotEmpty { .. } => Some("choose another `--run`, or go on with this one by `--resume`"),
            Self::Locked { .. } => Some("let that process end or stop it, or choose another `--run`"),
            Self::LockedElsewhere { .. } => Some(
                "if that process is gone, remove its lock.json from the run folder and try again; otherwise let it end",
            ),
            Self::NotARun { .. } => Some("give the folder that `--run` named when the run was started"),
            Self::Incomplete { .. }
            | Self::Manifest { .. }
            | Self::Missing { .. }
            | Self::Length { .. }
            | Self::Corrupt { .. } => Some("delete this checkpoint folder to go on from the one before it"),
            Self::Line { .. } => Some("correct or delete this line"),
            Self::FileName { .. } | Self::NoEpoch | Self::Sheet { .. } | Self::Image(_) => None,
        }
    }

    /// An adapter for `map_err`: names the operation and the path.
    pub fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { action, path, source }
    }
}
