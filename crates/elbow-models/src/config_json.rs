//! Reading a `config.json` of `diffusers`: everything it says is understood, or it is refused.

use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

/// Why a `config.json` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not JSON, a field is missing, or a value is of another kind than expected.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// The folder holds another network.
    #[error("`_class_name` is `{found}`: expected `{expected}`")]
    Class {
        /// What the file says.
        found: String,
        /// What was asked for.
        expected: &'static str,
    },
    /// Fields of an architecture that is not implemented here.
    #[error("fields of an architecture that is not implemented here: {}", names.join(", "))]
    Unknown {
        /// All of them.
        names: Vec<String>,
    },
    /// Values that do not fit each other, or that are not implemented here: all of them, a line each.
    #[error("{}", problems.join("\n"))]
    Unsupported {
        /// One line each.
        problems: Vec<String>,
    },
}

/// Reads the fields of `C`; names that start with `_` are notes of the program that wrote the file.
pub(crate) fn read<C: DeserializeOwned + Serialize>(json: &str, class: &'static str) -> Result<C, ConfigError> {
    let mut fields: Map<String, Value> = serde_json::from_str(json)?;
    if let Some(Value::String(found)) = fields.get("_class_name")
        && found != class
    {
        return Err(ConfigError::Class { found: found.clone(), expected: class });
    }
    fields.retain(|name, _| !name.starts_with('_'));
    let config: C = serde_json::from_value(Value::Object(fields.clone()))?;
    let known = serde_json::to_value(&config)?;
    let names: Vec<String> = fields.keys().filter(|name| known.get(name.as_str()).is_none()).cloned().collect();
    if names.is_empty() { Ok(config) } else { Err(ConfigError::Unknown { names }) }
}

/// `config` if it has no problems.
pub(crate) fn checked<C>(config: C, problems: Vec<String>) -> Result<C, ConfigError> {
    if problems.is_empty() { Ok(config) } else { Err(ConfigError::Unsupported { problems }) }
}
