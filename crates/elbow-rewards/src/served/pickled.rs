//! What the servers of the field that speak pickle have in common: a dict with the pictures as JPEG files, and a dict with a
//! number a picture in answer.

use super::{Sample, Scores, failed, http::Http};
use crate::pickle::{self, Value};
use elbow::{RewardError, Score};

/// The answer to a dict: the pictures as `images`, and what else the protocol asks for. `key` names what has to be in it.
pub(super) fn ask(
    http: &Http,
    samples: &[Sample<'_>],
    rest: Vec<(&str, Value)>,
    key: &str,
) -> Result<Value, RewardError> {
    let images = samples.iter().map(|sample| Value::Bytes(sample.picture.clone())).collect();
    let fields = std::iter::once(("images", Value::List(images))).chain(rest);
    let body = Value::Dict(fields.map(|(key, value)| (Value::Text(key.to_owned()), value)).collect());
    let read = |bytes: &[u8]| {
        let answer = pickle::read(bytes).map_err(|error| error.to_string())?;
        if answer.get(key).is_none() && answer.get("error").is_none() {
            return Err(format!("there is no `{key}`"));
        }
        Ok(answer)
    };
    let answer = http.post("", "application/octet-stream", &pickle::write(&body), read)?;
    match answer.get("error") {
        Some(Value::Text(error)) => Err(failed(http, error)),
        Some(other) if *other != Value::None => Err(failed(http, &format!("{other:?}"))),
        _ => Ok(answer),
    }
}

/// The numbers under a key of an answer.
pub(super) fn numbers(http: &Http, answer: &Value, key: &str) -> Result<Scores, RewardError> {
    Ok(list(http, answer, key)?.iter().map(|value| number(http, value)).collect())
}

/// The list under a key of an answer.
pub(super) fn list<'a>(http: &Http, answer: &'a Value, key: &str) -> Result<&'a [Value], RewardError> {
    let list = answer.get(key).and_then(Value::as_list);
    list.ok_or_else(|| failed(http, &format!("`{key}` is not a list")))
}

/// A number of an answer.
pub(super) fn number(http: &Http, value: &Value) -> Result<Score, RewardError> {
    let number = value.as_f64().filter(|number| number.is_finite());
    number.map(Score::from).ok_or_else(|| failed(http, &format!("the score is not a number but {value:?}")))
}

/// What a JSON value is in Python.
pub(super) fn python(value: &serde_json::Value) -> Value {
    match value {
        serde_json::Value::Null => Value::None,
        serde_json::Value::Bool(value) => Value::Bool(*value),
        serde_json::Value::Number(number) => {
            number.as_i64().map_or_else(|| Value::Float(number.as_f64().unwrap_or(f64::NAN)), Value::Int)
        }
        serde_json::Value::String(text) => Value::Text(text.clone()),
        serde_json::Value::Array(values) => Value::List(values.iter().map(python).collect()),
        serde_json::Value::Object(object) => dict(object),
    }
}

/// A JSON object as a dict.
pub(super) fn dict(object: &serde_json::Map<String, serde_json::Value>) -> Value {
    Value::Dict(object.iter().map(|(key, value)| (Value::Text(key.clone()), python(value))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_becomes_what_python_would_read() {
        let json = serde_json::json!({"a": [1, -2.5, true, null, u64::MAX], "é": {"b": "c"}});
        let text = |text: &str| Value::Text(text.into());
        let list = vec![Value::Int(1), Value::Float(-2.5), Value::Bool(true), Value::None, Value::Float(2f64.powi(64))];
        let inner = Value::Dict(vec![(text("b"), text("c"))]);
        assert_eq!(python(&json), Value::Dict(vec![(text("a"), Value::List(list)), (text("é"), inner)]));
    }
}
