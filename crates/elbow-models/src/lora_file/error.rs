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
    /// Its layers are not those of the model.
    #[error("{} is an adapter for another model, or for other layers of it:\n{}", path.display(), listed(problems))]
    OtherModel {
        /// The file.
        path: PathBuf,
        /// One line a tensor.
        problems: Vec<String>,
    },
    /// Nothing in the file is an adapter's factor.
    #[error("{}: no low-rank factor in it (lora_A and lora_B, or lora_down and lora_up)", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
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
