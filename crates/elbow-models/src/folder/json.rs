//! The small files of a model folder.

use super::error::FolderError;
use serde::de::DeserializeOwned;
use std::{fs, path::Path};

/// Reads a JSON file; the error names the field.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, FolderError> {
    let text = fs::read(path).map_err(FolderError::read(path))?;
    let mut json = serde_json::Deserializer::from_slice(&text);
    serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let field = error.path().to_string();
        let reason = if field == "." { error.inner().to_string() } else { format!("`{field}`: {}", error.inner()) };
        FolderError::Json { path: path.into(), reason }
    })
}
