//! JSON as Python writes it.

use serde_json::Value;

/// Parses JSON. Python's own encoder writes numbers that JSON lacks as `NaN`, `Infinity` and `-Infinity`: these become null.
pub(super) fn parse(bytes: &[u8]) -> Result<Value, String> {
    serde_json::from_slice(bytes).or_else(|error| {
        let text = std::str::from_utf8(bytes).map_err(|_| error.to_string())?;
        serde_json::from_str(&without_nan(text)).map_err(|_| error.to_string())
    })
}

/// A field of an object, taken out; null where there is none.
pub(super) fn take(value: &mut Value, key: &str) -> Value {
    value.get_mut(key).map_or(Value::Null, Value::take)
}

/// The same text with null where, outside of strings, Python wrote a number that JSON lacks.
fn without_nan(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for (k, part) in strings_apart(text).into_iter().enumerate() {
        // Strings are every other part.
        if k % 2 == 1 {
            out += part;
        } else {
            out += &part.replace("-Infinity", "null").replace("Infinity", "null").replace("NaN", "null");
        }
    }
    out
}

/// What is outside of strings and what is inside, in turns, from outside on. A string's quotes are part of it.
fn strings_apart(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut inside, mut escaped) = (Vec::new(), 0, false, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if inside => escaped = true,
            b'"' => {
                let end = at + usize::from(inside);
                parts.push(&text[start..end]);
                (start, inside) = (end, !inside);
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn numbers_that_json_lacks_are_null_and_strings_stay() {
        let text = r#"{"rewards": [0.5, NaN, -Infinity,Infinity], "NaN": "a \"NaN\\", "é": "Infinity"}"#;
        let expected = json!({"rewards": [0.5, null, null, null], "NaN": "a \"NaN\\", "é": "Infinity"});
        assert_eq!(parse(text.as_bytes()), Ok(expected));
    }

    #[test]
    fn what_is_not_json_stays_an_error() {
        for text in ["", "{", "NaNs", "[NaN", "{\"a\": NaN\"}", "\"\\", "[1,]", "nullNaN"] {
            assert!(parse(text.as_bytes()).is_err(), "{text}");
        }
        assert!(parse(b"\xff\xfe NaN").is_err());
    }
}
