//! Reading a `config.json` of `diffusers`: everything it says is understood, or it is refused.

use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

/// Why a `config.json` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not JSON, or a field is missing.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// A value is of another kind than expected.
    #[error("{field}: {source}")]
    Value {
        /// Where it stands.
        field: String,
        /// What it is, and what was expected.
        source: serde_json::Error,
    },
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
    read_only(json, class, "{}")
}

/// The same, with `only`: a JSON object of fields that `C` does not have because one value of them is implemented, that one.
pub(crate) fn read_only<C: DeserializeOwned + Serialize>(
    json: &str,
    class: &'static str,
    only: &str,
) -> Result<C, ConfigError> {
    let mut fields: Map<String, Value> = serde_json::from_str(json)?;
    if let Some(Value::String(found)) = fields.get("_class_name")
        && found != class
    {
        return Err(ConfigError::Class { found: found.clone(), expected: class });
    }
    fields.retain(|name, _| !name.starts_with('_'));
    take_only(&mut fields, only)?;
    let config: C = serde_path_to_error::deserialize(Value::Object(fields.clone())).map_err(|error| {
        let field = error.path().to_string();
        let source = error.into_inner();
        if field == "." { ConfigError::Json(source) } else { ConfigError::Value { field, source } }
    })?;
    let known = serde_json::to_value(&config)?;
    let names: Vec<String> = fields.keys().filter(|name| known.get(name.as_str()).is_none()).cloned().collect();
    if names.is_empty() { Ok(config) } else { Err(ConfigError::Unknown { names }) }
}

/// Removes the fields of `only`, which must have the values that it gives.
fn take_only(fields: &mut Map<String, Value>, only: &str) -> Result<(), ConfigError> {
    let only: Map<String, Value> = serde_json::from_str(only).expect("invariant: `only` is a JSON object");
    // Python writes whole numbers with and without a point.
    let equal = |a: &Value, b: &Value| a == b || (a.is_number() && b.is_number() && a.as_f64() == b.as_f64());
    let problem = |(name, value): (&String, &Value)| {
        let found = fields.get(name).filter(|found| !equal(found, value))?;
        Some(format!("{name} = {found}: only {value} is implemented here"))
    };
    let problems = only.iter().filter_map(problem).collect();
    fields.retain(|name, _| !only.contains_key(name));
    checked((), problems)
}

/// `config` if it has no problems.
pub(crate) fn checked<C>(config: C, problems: Vec<String>) -> Result<C, ConfigError> {
    if problems.is_empty() { Ok(config) } else { Err(ConfigError::Unsupported { problems }) }
}
/// Why a network with that many output channels is no velocity field.
pub(crate) fn other_channels(out: usize, channels: usize) -> Option<String> {
    (out != channels).then(|| {
        format!(
            "out_channels = {out} with in_channels = {channels}: a velocity has the shape of its latent; models that are \
             conditioned on images are not supported"
        )
    })
}
