//! How an error reaches the user: what is wrong, why, and what to do about it.

use elbow::{config::ConfigError, params::WeightError, policy::EncodeError, prompts::PromptError, train::TrainError};
use elbow_models::{folder::FolderError, lora_file::LoraFileError, pipeline::SourceError};
use elbow_runlog::RunLogError;
use std::{error::Error, io};

/// An error with advice.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Hint {
    message: String,
    hint: String,
}

impl Hint {
    /// An error that says what is wrong and what to do.
    pub fn error(message: impl Into<String>, hint: impl Into<String>) -> anyhow::Error {
        Self { message: message.into(), hint: hint.into() }.into()
    }
}

/// Prints `error:`, its causes, and `hint:` where one is known.
#[expect(clippy::print_stderr, reason = "this is where errors reach the user")]
pub fn complain(error: &anyhow::Error) {
    eprintln!("error: {error}");
    for cause in error.chain().skip(1) {
        eprintln!("  caused by: {cause}");
    }
    if let Some(hint) = advice(error) {
        eprintln!("hint: {hint}");
    }
}

/// What to do about an error, where it is known.
pub fn advice(error: &anyhow::Error) -> Option<String> {
    error.chain().find_map(hint)
}

/// The advice for one link of the chain.
fn hint(cause: &(dyn Error + 'static)) -> Option<String> {
    if let Some(error) = cause.downcast_ref::<Hint>() {
        return Some(error.hint.clone());
    }
    if let Some(hint) = cause.downcast_ref::<RunLogError>().and_then(RunLogError::hint) {
        return Some(hint.to_owned());
    }
    if let Some(error) = cause.downcast_ref::<LoraFileError>() {
        return adapter(error);
    }
    if let Some(error) = cause.downcast_ref::<FolderError>() {
        return Some(folder(error).to_owned());
    }
    let fixed = if cause.is::<ConfigError>() {
        "change these fields in the recipe or with --set; `elbow config --explain` has their meaning"
    } else if cause.is::<WeightError>() {
        "give a complete file for this network, such as `elbow pretrain` writes, or leave model.weights out for the embedded model"
    } else if let Some(error) = cause.downcast_ref::<EncodeError>() {
        encoding(error)
    } else if cause.is::<SourceError>() {
        "the model must be whole, as diffusers saves it: download again what is named above, or choose another model"
    } else if cause.is::<PromptError>() {
        "a prompt file has one prompt a line: plain text in .txt, a JSON object with `prompt` in .jsonl"
    } else if let Some(error) = cause.downcast_ref::<TrainError>() {
        return training(error);
    } else if cause.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::NotFound) {
        "check the path; it is relative to the folder that the command runs in"
    } else {
        return None;
    };
    Some(fixed.to_owned())
}

fn encoding(error: &EncodeError) -> &'static str {
    if error.reason.contains("word") {
        "write the prompt with the words of the embedded scenes, for example \"a photo of a red car left of a cat\""
    } else {
        "the text encoders of the model must stay whole, and model.cache must be a folder that can be written to"
    }
}

fn training(error: &TrainError) -> Option<String> {
    let text = match error {
        TrainError::Missing { .. } => {
            "mend what the reward needs and go on with --resume, or start a new run with other prompts or a higher max_missing"
        }
        TrainError::NotFinite { .. } => "start a new run with a lower optimizer.learning_rate",
        TrainError::Config(error) => return hint(error),
        TrainError::Encode(error) => return hint(error),
    };
    Some(text.to_owned())
}

fn adapter(error: &LoraFileError) -> Option<String> {
    let text = match error {
        LoraFileError::OtherModel { .. } => "give the base that the adapter was trained on, in diffusers' names",
        LoraFileError::Unsupported { .. } => "save the adapter again without that, or use another one",
        LoraFileError::Empty { .. } => "give a file of low-rank factors, or a folder with adapter_model.safetensors",
        LoraFileError::Folder(error) => folder(error),
        LoraFileError::Write(error) => return error.hint().map(str::to_owned),
    };
    Some(text.to_owned())
}

fn folder(error: &FolderError) -> &'static str {
    match error {
        FolderError::Read { .. } => "check the path; it is relative to the folder that the command runs in",
        FolderError::Write { .. } => "check that there is room on the disk and that you may write there",
        FolderError::Missing { .. } => "give a local folder as `diffusers` saves it, with all its files",
        FolderError::Json { .. } | FolderError::Damaged { .. } | FolderError::Tokenizer { .. } => {
            "download the file again, whole"
        }
        FolderError::Unsupported { .. } => "use a model that has what is named there",
        FolderError::Parts { .. } => "take all parts of the folder from the same model",
        FolderError::Mismatch { .. } => "download the weights again, or the config.json that belongs to them",
    }
}
