//! Prompts and where they come from: `.txt` (one a line) or `.jsonl` (`prompt` plus any metadata, GenEval records included).

use crate::{
    noise::Key,
    text::{self, TextError},
};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// A prompt and what the reward may want to know about it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Prompt {
    /// What the model is conditioned on.
    #[serde(rename = "prompt")]
    pub text: String,
    /// Every other key of the JSONL line (for GenEval: `tag`, `include`, `exclude`); empty for a `.txt` file.
    #[serde(flatten)]
    pub metadata: serde_json::Map<String, serde_json::Value>,
}

impl Prompt {
    /// The GenEval task or any other `tag` of the prompt, used to break scores down in reports.
    pub fn tag(&self) -> Option<&str> {
        self.metadata.get("tag").and_then(serde_json::Value::as_str)
    }
}

impl From<&str> for Prompt {
    fn from(text: &str) -> Self {
        Self { text: text.to_owned(), metadata: serde_json::Map::new() }
    }
}

/// Where an epoch's prompts come from, decided by the key alone.
pub trait PromptSource: Send + Sync {
    /// One prompt per group.
    fn draw(&self, key: Key, groups: usize) -> Vec<Prompt>;
}

/// Without replacement within an epoch, as far as the list reaches.
impl PromptSource for Vec<Prompt> {
    fn draw(&self, key: Key, groups: usize) -> Vec<Prompt> {
        let order = key.permutation(self.len());
        order.iter().cycle().take(groups).map(|&i| self[i].clone()).collect()
    }
}

/// A prompt file that cannot be used, with the place.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    /// The file cannot be opened.
    #[error("cannot read prompt file {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is no text.
    #[error("{path}: {source}")]
    Text {
        /// The file.
        path: PathBuf,
        /// Where, and what to do.
        source: TextError,
    },
    /// A `.jsonl` line is not an object with a string `prompt`.
    #[error("{path}:{line}: {source}: each line of a .jsonl file is an object with a string `prompt`")]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What the parser said.
        source: serde_json::Error,
    },
    /// Nothing but blank lines.
    #[error("{path}: no prompt in the file: write one prompt a line")]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// Neither `.txt` nor `.jsonl`.
    #[error("{path}: a prompt file ends in .txt (one prompt a line) or .jsonl (one object a line)")]
    Kind {
        /// The file.
        path: PathBuf,
    },
}

/// Reads a prompt file in UTF-8, or UTF-16 with its mark; blank lines are skipped, order is kept.
pub fn read(path: &Path) -> Result<Vec<Prompt>, PromptError> {
    let owned = || path.to_path_buf();
    let jsonl = match path.extension().and_then(|e| e.to_str()) {
        Some("txt") => false,
        Some("jsonl") => true,
        _ => return Err(PromptError::Kind { path: owned() }),
    };
    let bytes = std::fs::read(path).map_err(|source| PromptError::Read { path: owned(), source })?;
    let text = text::decode(&bytes).map_err(|source| PromptError::Text { path: owned(), source })?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let prompts = lines
        .map(|(i, line)| {
            if !jsonl {
                return Ok(Prompt::from(line.trim()));
            }
            serde_json::from_str(line).map_err(|source| PromptError::Line { path: owned(), line: i + 1, source })
        })
        .collect::<Result<Vec<_>, _>>()?;
    if prompts.is_empty() { Err(PromptError::Empty { path: owned() }) } else { Ok(prompts) }
}
