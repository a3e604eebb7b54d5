//! Reading a `config.json` of `diffusers` or `transformers`.
//!
//! There are three kinds of fields: those that are needed, those of which one value is implemented, and those that make no difference here.
//! A field of none of them that holds nothing (null, false, 0, an empty text, list or object) is something that a newer version can do and
//! that is switched off: a warning. One that holds something may change what the weights mean, and is an error.

use serde::{Deserialize, Deserializer, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

/// Why a configuration cannot be used.
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
    /// Fields that are not known here, with values that may matter.
    #[error("fields that this version of Elbow does not know: {}", fields.join(", "))]
    Unknown {
        /// All of them, each with its value.
        fields: Vec<String>,
    },
    /// The weights are stored in fewer bits by a method that is not implemented here.
    #[error("quantization_config = {0}: quantized weights cannot be read")]
    Quantized(Value),
    /// Values that do not fit each other, or that are not implemented here: all of them, a line each.
    #[error("{}", problems.join("\n"))]
    Unsupported {
        /// One line each.
        problems: Vec<String>,
    },
}

impl ConfigError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Json(_) => "download the file again, whole",
            Self::Unknown { .. } => {
                "the file may be of a newer diffusers: look for a newer Elbow, or for the same model without what is named there"
            }
            Self::Quantized(_) => "take the model that it was made from, in f32, f16 or bf16",
            Self::Value { .. } | Self::Class { .. } | Self::Unsupported { .. } => {
                "use a model that has what is expected there; downloading this one again changes nothing"
            }
        }
    }
}

/// What was read, and what is worth a warning, a sentence each.
pub(crate) type Told<C> = (C, Vec<String>);

/// The fields beside the needed ones.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Others {
    /// A JSON object of fields of which one value is implemented, that one. Empty text is none.
    pub(crate) only: &'static str,
    /// Lists of fields that make no difference here.
    pub(crate) ignored: &'static [&'static [&'static str]],
}

/// The fields of a file. Python writes NaN, Infinity and −Infinity into JSON; they become texts, which no number is read from.
pub(crate) fn fields(json: &str) -> Result<Map<String, Value>, ConfigError> {
    Ok(serde_json::from_str(&plain(json))?)
}

/// JSON of Python as JSON of the standard.
pub(crate) fn plain(json: &str) -> String {
    let (mut plain, mut rest, mut quoted) = (String::with_capacity(json.len()), json, false);
    while let Some(c) = rest.chars().next() {
        let word = ["-Infinity", "Infinity", "NaN"].into_iter().find(|word| !quoted && rest.starts_with(word));
        let taken = match (word, c) {
            (Some(word), _) => {
                plain.extend(["\"", word, "\""]);
                rest = &rest[word.len()..];
                continue;
            }
            // What is escaped ends no text.
            (None, '\\') if quoted => c.len_utf8() + rest[1..].chars().next().map_or(0, char::len_utf8),
            (None, _) => c.len_utf8(),
        };
        quoted ^= c == '"';
        plain.push_str(&rest[..taken]);
        rest = &rest[taken..];
    }
    plain
}

/// Reads the needed fields, those of `C`, from the file of a class; names that start with `_` are notes of the program that wrote it.
pub(crate) fn read<C: DeserializeOwned + Serialize>(
    json: &str,
    class: &'static str,
    others: Others,
) -> Result<Told<C>, ConfigError> {
    let fields = fields(json)?;
    if let Some(Value::String(found)) = fields.get("_class_name")
        && found != class
    {
        return Err(ConfigError::Class { found: found.clone(), expected: class });
    }
    read_fields(fields, others)
}

/// The same of fields whose class is known.
pub(crate) fn read_fields<C: DeserializeOwned + Serialize>(
    mut fields: Map<String, Value>,
    others: Others,
) -> Result<Told<C>, ConfigError> {
    if let Some(quantized) = fields.get("quantization_config").filter(|value| !is_nothing(value)) {
        return Err(ConfigError::Quantized(quantized.clone()));
    }
    fields.retain(|name, _| !name.starts_with('_') && !others.ignored.iter().any(|list| list.contains(&name.as_str())));
    take_only(&mut fields, others.only)?;
    let config: C = serde_path_to_error::deserialize(Value::Object(fields.clone())).map_err(|error| {
        let field = error.path().to_string();
        let source = error.into_inner();
        if field == "." { ConfigError::Json(source) } else { ConfigError::Value { field, source } }
    })?;
    let known = serde_json::to_value(&config)?;
    fields.retain(|name, _| known.get(name.as_str()).is_none());
    let (nothing, something): (Vec<_>, Vec<_>) = fields.iter().partition(|(_, value)| is_nothing(value));
    if !something.is_empty() {
        let fields = something.into_iter().map(|(name, value)| format!("{name} = {value}")).collect();
        return Err(ConfigError::Unknown { fields });
    }
    let warning = |(name, value)| {
        format!("{name} = {value}: this version of Elbow does not know the field, and goes on without it")
    };
    Ok((config, nothing.into_iter().map(warning).collect()))
}

/// Whether a value says that something is not used.
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Bool(true) => false,
    }
}

/// Removes the fields of `only`, which must have the values that it gives.
fn take_only(fields: &mut Map<String, Value>, only: &str) -> Result<(), ConfigError> {
    let only: Map<String, Value> = match only {
        "" => Map::new(),
        only => serde_json::from_str(only).expect("invariant: `only` is a JSON object"),
    };
    let problem = |(name, value): (&String, &Value)| {
        let found = fields.get(name).filter(|found| !means(found, value))?;
        Some(format!("{name} = {found}: only {value} is implemented here"))
    };
    let problems = only.iter().filter_map(problem).collect();
    fields.retain(|name, _| !only.contains_key(name));
    checked((), problems)
}

/// Whether `found` means `value`: Python writes whole numbers with and without a point, null where something is off, and one value a level
/// where all levels have the same.
fn means(found: &Value, value: &Value) -> bool {
    let off = |value: &Value| matches!(value, Value::Null | Value::Bool(false));
    match found {
        Value::Array(list) if !value.is_array() => !list.is_empty() && list.iter().all(|found| means(found, value)),
        _ => {
            found == value
                || found.is_number() && value.is_number() && found.as_f64() == value.as_f64()
                || off(found) && off(value)
        }
    }
}

/// A number, or a list that has it for every level: `diffusers` takes both.
pub(crate) fn same_for_all<'de, D: Deserializer<'de>>(from: D) -> Result<usize, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected an integer of at least 0, or a list of equal ones")]
    enum Given {
        One(usize),
        Each(Vec<usize>),
    }
    match Given::deserialize(from)? {
        Given::One(number) => Ok(number),
        Given::Each(list) => match list.first() {
            Some(first) if list.iter().all(|number| number == first) => Ok(*first),
            _ => Err(serde::de::Error::custom(format!("{list:?}: only one number for all levels is implemented here"))),
        },
    }
}

/// `config` if it has no problems.
pub(crate) fn checked<C>(config: C, problems: Vec<String>) -> Result<C, ConfigError> {
    if problems.is_empty() { Ok(config) } else { Err(ConfigError::Unsupported { problems }) }
}

/// Why a network with that many output channels is no velocity field.
pub(crate) fn other_channels(out: usize, channels: usize) -> Option<String> {
    let kind = match (channels, out) {
        (9, 4) => " (9 channels are those of inpainting: latent, mask and masked picture)",
        (8, 4) => " (8 channels are those of editing by instructions: latent and picture)",
        (7, 4) => " (7 channels are those of an upscaler: latent and small picture)",
        (5, 4) => " (5 channels are those of models that see depth)",
        (384, 64) => " (384 channels are those of FLUX.1 Fill: latent, masked picture and mask)",
        (128, 64) => " (128 channels are those of FLUX.1 Depth and Canny: latent and picture)",
        _ => "",
    };
    (out != channels).then(|| {
        format!(
            "out_channels = {out} with in_channels = {channels}{kind}: a velocity has the shape of its latent; models that are \
             conditioned on images are not supported"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Small {
        width: f64,
        #[serde(default, deserialize_with = "same_for_all")]
        layers: usize,
    }

    const OTHERS: Others = Others { only: r#"{"act": "silu", "concat": false, "scale": 1}"#, ignored: &[&["dropout"]] };

    fn small(json: &str) -> Result<Told<Small>, ConfigError> {
        read(json, "Small", OTHERS)
    }

    #[test]
    fn fields_are_needed_or_have_one_value_or_make_no_difference() {
        let json = r#"{"_class_name": "Small", "_note": 1, "width": 2, "layers": [3, 3], "act": "silu", "concat": null, "scale": 1.0,
            "dropout": 0.3}"#;
        assert_eq!(small(json).expect("reads"), (Small { width: 2.0, layers: 3 }, Vec::new()));
        assert_eq!(small(r#"{"width": 2, "concat": [false, false], "scale": [1, 1]}"#).expect("reads").1, [""; 0]);
        assert!(small("{}").expect_err("needed").to_string().contains("missing field `width`"));
        let error =
            small(r#"{"width": 1, "act": "gelu", "concat": true, "scale": [1, 2]}"#).expect_err("another").to_string();
        for part in [r#"act = "gelu": only "silu""#, "concat = true: only false", "scale = [1,2]: only 1"] {
            assert!(error.contains(part), "{error}");
        }
        let error = small(r#"{"width": 1, "layers": [1, 2]}"#).expect_err("by level").to_string();
        assert!(error.starts_with("layers: [1, 2]: only one number"), "{error}");
        let error = small(r#"{"width": 1, "layers": "many"}"#).expect_err("no number").to_string();
        assert!(error.starts_with("layers: expected an integer"), "{error}");
    }

    #[test]
    fn an_unknown_field_that_holds_nothing_is_a_warning_and_another_an_error() {
        for nothing in ["null", "false", "0", "0.0", "\"\"", "[]", "{}"] {
            let (_, warnings) = small(&format!(r#"{{"width": 1, "new": {nothing}}}"#)).expect(nothing);
            assert!(warnings.len() == 1 && warnings[0].starts_with(&format!("new = {nothing}: this")), "{warnings:?}");
        }
        for something in ["true", "1", "0.5", "\"a\"", "[0]", r#"{"a":null}"#, "NaN"] {
            let error = small(&format!(r#"{{"width": 1, "new": {something}, "newer": 2}}"#)).expect_err(something);
            let value = something.replace("NaN", "\"NaN\"");
            assert!(error.to_string().ends_with(&format!("does not know: new = {value}, newer = 2")), "{error}");
            assert!(error.hint().contains("newer Elbow") && !error.hint().contains("again"), "{}", error.hint());
        }
        let quantized = r#"{"width": 1, "quantization_config": {"load_in_4bit": true}}"#;
        let error = small(quantized).expect_err("quantized");
        assert!(error.to_string().contains("quantized weights") && error.hint().contains("bf16"), "{error}");
        assert_eq!(small(r#"{"width": 1, "quantization_config": null}"#).expect("none").1.len(), 1);
    }

    #[test]
    fn json_of_python_is_read() {
        let (config, warnings) = small(
            r#"{"width": 1, "dropout": -Infinity, "_a": "NaN \" Infinity \\", "_b": [NaN, Infinity], "ä": null}"#,
        )
        .expect("reads");
        assert_eq!((config.width, warnings.len()), (1.0, 1));
        assert_eq!(plain(r#"{"a": "-Infinity\\", "b": -Infinity}"#), r#"{"a": "-Infinity\\", "b": "-Infinity"}"#);
        assert!(small(r#"{"width": NaN}"#).expect_err("no number").to_string().starts_with("width: "));
        for cut in ["", "{", "{\"width", "{\"width\\", "\\"] {
            assert!(matches!(small(cut), Err(ConfigError::Json(_))), "{cut}");
        }
    }
}
