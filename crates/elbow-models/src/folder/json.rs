//! The small files of a model folder.

use super::{error::FolderError, recognize};
use crate::config_json::plain;
use elbow::text;
use serde::de::DeserializeOwned;
use std::{fs, path::Path};

/// The text of a small file, as editors and Python write it.
pub fn read_text(path: &Path) -> Result<String, FolderError> {
    let bytes = fs::read(path).map_err(FolderError::read(path))?;
    if let Some(foreign) = recognize::bytes(&bytes) {
        return Err(foreign.at(path));
    }
    text::decode(&bytes).map_err(|error| FolderError::Json { path: path.into(), reason: error.to_string() })
}

/// Reads a JSON file; the error names the field.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, FolderError> {
    let text = plain(&read_text(path)?);
    let mut json = serde_json::Deserializer::from_str(&text);
    serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let field = error.path().to_string();
        let reason = if field == "." { error.inner().to_string() } else { format!("`{field}`: {}", error.inner()) };
        FolderError::Json { path: path.into(), reason }
    })
}
