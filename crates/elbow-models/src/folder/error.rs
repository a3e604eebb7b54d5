//! What can be wrong with a model folder.

use super::recognize::dangling;
use crate::config_json::ConfigError;
use std::path::{Path, PathBuf};

/// A model folder, or a file of it, that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// The system refuses.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The system refuses.
    #[error("cannot write {}: {reason}", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// What went wrong.
        reason: String,
    },
    /// The folder lacks files it must have.
    #[error("{} has none of: {}{hint}", folder.display(), files.join(", "))]
    Missing {
        /// Where they should be.
        folder: PathBuf,
        /// Any of these would do.
        files: Vec<String>,
        /// What to do, or nothing.
        hint: String,
    },
    /// A dangling link, such as that of a file in the hub's cache whose download did not finish.
    #[error("{} is a link to {}, which does not exist", link.display(), target.display())]
    Dangling {
        /// The link.
        link: PathBuf,
        /// Where it leads.
        target: PathBuf,
    },
    /// A file is something else than it is taken for.
    #[error("{}: this is {what}", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What it is.
        what: String,
        /// What to do.
        hint: String,
    },
    /// A configuration of a model that cannot be used here.
    #[error("{}: {source}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: ConfigError,
    },
    /// JSON that does not say what it must.
    #[error("{}: {reason}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// The field, and what is wrong with it.
        reason: String,
    },
    /// A field of a configuration with a value that is not implemented.
    #[error("{}: `{field}` is {value}: {accepted}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The field.
        field: &'static str,
        /// What it says.
        value: String,
        /// What can be used.
        accepted: String,
    },
    /// Not a complete safetensors file.
    #[error("{}: not a complete safetensors file: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where it ends, or what is wrong with its header.
        reason: String,
    },
    /// Tensors that are missing, unknown, of another shape or of a type that is not read: all of them.
    #[error("the weights in {} do not fit the network:\n{}", folder.display(), listed(problems))]
    Mismatch {
        /// The folder, or the only file.
        folder: PathBuf,
        /// One line a tensor, with its file where it has one.
        problems: Vec<String>,
    },
    /// Parts that are good one by one and do not fit each other.
    #[error("the parts of {} do not fit each other:\n{}", folder.display(), problems.join("\n"))]
    Parts {
        /// The model folder.
        folder: PathBuf,
        /// One line each.
        problems: Vec<String>,
    },
    /// A tokenizer's files do not make a tokenizer.
    #[error("{}: not a tokenizer that can be used: {reason}", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

impl FolderError {
    /// For `map_err` of operations on `path`.
    pub(crate) fn read(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| match dangling(path) {
            Some((link, target)) => Self::Dangling { link, target },
            None => Self::Read { path: path.to_path_buf(), source },
        }
    }

    /// For `map_err` of operations on `path`.
    pub(crate) fn write<E: ToString>(path: &Path) -> impl FnOnce(E) -> Self {
        move |error| Self::Write { path: path.to_path_buf(), reason: error.to_string() }
    }

    /// A field of `path` that holds `value`, of which only `accepted` is implemented.
    pub(crate) fn unsupported(path: &Path, field: &'static str, value: impl ToString, accepted: &str) -> Self {
        Self::Unsupported {
            path: path.to_path_buf(),
            field,
            value: value.to_string(),
            accepted: format!("this version reads {accepted}"),
        }
    }
}

/// The first lines, and how many more there are: the weights of another network are wrong in hundreds of tensors.
fn listed(problems: &[String]) -> String {
    let (shown, rest) = problems.split_at(problems.len().min(20));
    let more = if rest.is_empty() { String::new() } else { format!("\n  and {} more", rest.len()) };
    shown.join("\n") + &more
}
