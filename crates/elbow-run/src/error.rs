//! What can go wrong with a run, and what to do about it.

use elbow::{
    eval::MeasureError, method::MethodError, params::WeightError, policy::EncodeError, prompts::PromptError,
    rollout::RolloutError, train::TrainError,
};
use elbow_models::{folder::FolderError, lora_file::LoraFileError, pipeline::SourceError};
use elbow_runlog::RunLogError;
use std::{error::Error as StdError, io};

/// The result of whatever can fail here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong: a message, its cause if there is one, and by [`Error::hint`] what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// What is wrong, with what to do about it.
    #[error("{message}")]
    Advised {
        /// What is wrong.
        message: String,
        /// What to do.
        hint: String,
    },
    /// Where, or at what, something went wrong.
    #[error("{place}")]
    At {
        /// The place.
        place: String,
        /// What went wrong there.
        source: Box<Error>,
    },
    /// A configuration cannot run.
    #[error(transparent)]
    Config(#[from] MethodError),
    /// Training stopped.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// A prompt cannot be encoded.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// A policy could not be measured.
    #[error(transparent)]
    Measure(#[from] MeasureError),
    /// A prompt file cannot be used.
    #[error(transparent)]
    Prompts(#[from] PromptError),
    /// Weights do not fit.
    #[error(transparent)]
    Weights(#[from] WeightError),
    /// A file of a model folder cannot be used.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// A model folder cannot be used.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A run folder cannot be read or written.
    #[error(transparent)]
    RunLog(#[from] RunLogError),
    /// A file cannot be read or written.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Another part failed.
    #[error(transparent)]
    Other(Box<dyn StdError + Send + Sync>),
}

impl Error {
    /// An error that says what is wrong and what to do.
    pub fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Advised { message: message.into(), hint: hint.into() }
    }

    /// Any other error.
    pub fn other(error: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::Other(error.into())
    }

    /// What to do about it, where it is known. The cause decides, not the place that wraps it.
    pub fn hint(&self) -> Option<String> {
        advice(self)
    }

    /// The message and its causes on one line.
    pub fn chain(&self) -> String {
        let mut texts = vec![self.to_string()];
        let mut cause = self.source();
        while let Some(error) = cause {
            texts.push(error.to_string());
            cause = error.source();
        }
        texts.join(": ")
    }
}

macro_rules! others {
    ($($error:ty),* $(,)?) => {
        $(impl From<$error> for Error {
            fn from(error: $error) -> Self {
                Self::other(error)
            }
        })*
    };
}

others![serde_json::Error, toml::ser::Error, toml::de::Error, safetensors::SafeTensorError, LoraFileError];

/// Says where an error happened.
pub trait At<T> {
    /// The error, with the place before it.
    fn at(self, place: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<Error>> At<T> for std::result::Result<T, E> {
    fn at(self, place: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| Error::At { place: place(), source: Box::new(error.into()) })
    }
}

/// What to do about an error: the first advice along its causes.
pub fn advice(error: &(dyn StdError + 'static)) -> Option<String> {
    let mut link = Some(error);
    while let Some(cause) = link {
        if let Some(hint) = hint(cause) {
            return Some(hint);
        }
        link = cause.source();
    }
    None
}

/// The advice for one link of the chain.
fn hint(cause: &(dyn StdError + 'static)) -> Option<String> {
    // What `Error::At` holds is seen with its box.
    if let Some(error) =
        cause.downcast_ref::<Error>().or_else(|| cause.downcast_ref::<Box<Error>>().map(|error| &**error))
    {
        return own(error);
    }
    if let Some(hint) = cause.downcast_ref::<RunLogError>().and_then(RunLogError::hint) {
        return Some(hint.to_owned());
    }
    if let Some(error) = cause.downcast_ref::<LoraFileError>() {
        return adapter(error);
    }
    if let Some(error) = cause.downcast_ref::<FolderError>() {
        return Some(folder(error));
    }
    if let Some(SourceError { faults }) = cause.downcast_ref::<SourceError>() {
        let mut hints: Vec<String> = faults.iter().map(folder).collect();
        hints.dedup();
        return Some(hints.join("; "));
    }
    let fixed = if cause.is::<MethodError>() {
        "change these fields in the recipe or with --set; `elbow config --explain` has their meaning"
    } else if cause.is::<WeightError>() {
        "give a complete file for this network, such as `elbow pretrain` writes, or leave model.weights out for the embedded model"
    } else if let Some(error) = cause.downcast_ref::<EncodeError>() {
        encoding(error)
    } else if matches!(cause.downcast_ref(), Some(PromptError::Read { .. })) {
        "a path is relative to the folder that the command runs in: check it, or give another by --set prompts.train and prompts.test"
    } else if cause.is::<PromptError>() {
        "a prompt file has one prompt a line: plain text in .txt, a JSON object with `prompt` in .jsonl"
    } else if cause.downcast_ref::<MeasureError>().is_some_and(|error| matches!(error, MeasureError::Stopped(_))) {
        "go on with --resume once the reward can be reached"
    } else if let Some(error) = cause.downcast_ref::<TrainError>() {
        return training(error);
    } else if cause.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::NotFound) {
        "check the path; it is relative to the folder that the command runs in"
    } else {
        return None;
    };
    Some(fixed.to_owned())
}

/// A transparent error stands for what it holds, and leaves the causes of that to the chain.
fn own(error: &Error) -> Option<String> {
    match error {
        Error::Advised { hint, .. } => Some(hint.clone()),
        Error::At { .. } => None,
        Error::Config(error) => hint(error),
        Error::Train(error) => hint(error),
        Error::Encode(error) => hint(error),
        Error::Measure(error) => hint(error),
        Error::Prompts(error) => hint(error),
        Error::Weights(error) => hint(error),
        Error::Folder(error) => hint(error),
        Error::Source(error) => hint(error),
        Error::RunLog(error) => hint(error),
        Error::Io(error) => hint(error),
        Error::Other(error) => hint(&**error),
    }
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
        TrainError::Rollout(RolloutError::Missing { .. }) => {
            "mend what the reward needs and go on with --resume, or start a new run with other prompts, a higher max_missing, or on_missing = \"wait\" or \"go-on\""
        }
        TrainError::Rollout(RolloutError::Stopped { .. }) => "go on with --resume once the reward can be reached",
        TrainError::NotFinite { .. } => "start a new run with a lower optimizer.learning_rate",
        TrainError::Teachers { .. } => "name as many teachers in the recipe as the objective asks for",
        TrainError::Method(error) => return hint(error),
        TrainError::Encode(error) | TrainError::Rollout(RolloutError::Encode(error)) => return hint(error),
    };
    Some(text.to_owned())
}

fn adapter(error: &LoraFileError) -> Option<String> {
    let text = match error {
        LoraFileError::OtherModel { .. } => "give the base that the adapter was trained on, in diffusers' names",
        LoraFileError::Unsupported { .. } => "save the adapter again without that, or use another one",
        LoraFileError::ChangedBase { .. } => {
            "have peft make plain LoRA of it: save_pretrained(FOLDER, path_initial_model_for_weight_conversion=START), where START is the adapter as it was saved before training"
        }
        LoraFileError::OtherKind { .. } => "merge it with the program that made it, or use a LoRA",
        LoraFileError::Unusable { .. } => {
            "a training that diverged or a tool damaged it: take an earlier file, or make it again"
        }
        LoraFileError::Empty { .. } => "give a file of low-rank factors, or a folder with adapter_model.safetensors",
        LoraFileError::NoAdapter { .. } => "give the file itself, or a folder with one adapter",
        LoraFileError::Format { hint, .. } => hint,
        LoraFileError::NotFinite { .. } => {
            "where values are beyond the type's largest, store them with --dtype bf16 or f32; a base that is not finite is damaged"
        }
        LoraFileError::Folder(error) => return Some(folder(error)),
        LoraFileError::Write(error) => return error.hint().map(str::to_owned),
    };
    Some(text.to_owned())
}

fn folder(error: &FolderError) -> String {
    let text = match error {
        FolderError::Foreign { hint, .. } => hint,
        FolderError::Config { source, .. } => source.hint(),
        FolderError::Dangling { .. } => "finish the download: what the link leads to is missing or was moved",
        FolderError::Read { .. } => "check the path; it is relative to the folder that the command runs in",
        FolderError::Write { .. } => "check that there is room on the disk and that you may write there",
        FolderError::Missing { .. } => "give a local folder as `diffusers` saves it, with all its files",
        FolderError::Json { .. } | FolderError::Damaged { .. } | FolderError::Tokenizer { .. } => {
            "download the file again, whole"
        }
        FolderError::Unsupported { .. } => "use a model that has what is named there",
        FolderError::Parts { .. } => "take all parts of the folder from the same model",
        FolderError::Mismatch { .. } => "download the weights again, or the config.json that belongs to them",
    };
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_gives_the_hint_wherever_it_is_wrapped() {
        let absent = || Err::<(), _>(io::Error::from(io::ErrorKind::NotFound)).at(|| "there".into());
        let error = absent().at(|| "here".into()).expect_err("an error");
        assert!(error.chain().starts_with("here: there: "), "{}", error.chain());
        assert!(error.hint().is_some_and(|hint| hint.starts_with("check the path")));
        let advised = Err::<(), _>(Error::new("wrong", "do this")).at(|| "here".into()).expect_err("an error");
        assert_eq!((advised.chain(), advised.hint()), ("here: wrong".to_owned(), Some("do this".to_owned())));
        let config = MethodError { problems: vec!["a".into()] };
        assert!(Error::from(TrainError::from(config)).hint().is_some_and(|hint| hint.contains("--explain")));
        assert_eq!(Error::other("no advice").hint(), None);
    }
}
