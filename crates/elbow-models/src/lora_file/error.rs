//! What can be wrong with an adapter's file.

use crate::folder::FolderError;
use std::path::PathBuf;

/// An adapter that cannot be read, written or used with this model.
#[derive(Debug, thiserror::Error)]
pub enum LoraFileError {
    /// A file is missing, damaged, or no JSON.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The adapter uses something that is not implemented.
    #[error("{}: `{field}` is {value}: {accepted}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The field or tensor.
        field: String,
        /// What it says.
        value: String,
        /// What can be used.
        accepted: String,
    },
    /// The base weights were changed before training began, and the file does not say how.
    #[error(
        "{}: `init_lora_weights` is {start:?}: its training began by changing the base weights, and the file does not hold what was taken from them",
        path.display()
    )]
    ChangedBase {
        /// The configuration.
        path: PathBuf,
        /// How the factors started.
        start: String,
    },
    /// An adapter of a kind that is not supported.
    #[error("{}: {kind} (`{tensor}`); LoRA, DoRA, LoHa, LoKr and differences of weights are read", path.display())]
    OtherKind {
        /// The file.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
        /// The tensor that shows it.
        tensor: String,
    },
    /// Its layers are not those of the model.
    #[error("{} is an adapter for another model, or for other layers of it:\n{}", path.display(), listed(problems))]
    OtherModel {
        /// The file.
        path: PathBuf,
        /// One line a tensor.
        problems: Vec<String>,
    },
    /// Factors that are missing, empty or not finite.
    #[error("{} cannot be used as an adapter:\n{}", path.display(), listed(problems))]
    Unusable {
        /// The file.
        path: PathBuf,
        /// One line a tensor.
        problems: Vec<String>,
    },
    /// Nothing in the file is an adapter of the network.
    #[error("{}: no adapter of the network in it{left_out}", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
        /// What is in it, or nothing.
        left_out: String,
    },
    /// A folder without an adapter, or with several.
    #[error("{} {problem}", folder.display())]
    NoAdapter {
        /// The folder.
        folder: PathBuf,
        /// What is in it.
        problem: String,
    },
    /// A file that is no safetensors file.
    #[error("{}: {what}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What it is.
        what: &'static str,
        /// What to do.
        hint: &'static str,
    },
    /// Merged weights that are NaN or infinite.
    #[error("the merged weights are not finite:\n{}", listed(problems))]
    NotFinite {
        /// One line a tensor.
        problems: Vec<String>,
    },
    /// The files could not be put in place.
    #[error(transparent)]
    Write(#[from] elbow_runlog::RunLogError),
}

/// The first lines, and how many more there are: an adapter for another model is wrong in hundreds of tensors.
fn listed(problems: &[String]) -> String {
    let (shown, rest) = problems.split_at(problems.len().min(10));
    let more = if rest.is_empty() { String::new() } else { format!("\n  and {} more", rest.len()) };
    shown.join("\n") + &more
}
