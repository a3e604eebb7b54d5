//! Texts with a place for the prompt.

use elbow::{Prompt, RewardError};
use serde_json::Value;

/// A text with places for the prompt, `{prompt}`, and for its metadata, `{metadata.KEY}`. Other braces are just that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Template(Vec<Piece>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Prompt,
    Metadata(String),
}

const PROMPT: &str = "{prompt}";
const METADATA: &str = "{metadata.";

impl Template {
    /// Reads a template; the error says what is wrong with it.
    pub(super) fn parse(template: &str) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut rest = template;
        while let Some(at) = rest.find(PROMPT).into_iter().chain(rest.find(METADATA)).min() {
            pieces.push(Piece::Text(rest[..at].to_owned()));
            rest = &rest[at..];
            if let Some(after) = rest.strip_prefix(PROMPT) {
                pieces.push(Piece::Prompt);
                rest = after;
                continue;
            }
            let (key, after) = rest[METADATA.len()..]
                .split_once('}')
                .ok_or_else(|| format!("`{METADATA}` lacks its closing brace"))?;
            pieces.push(Piece::Metadata(key.to_owned()));
            rest = after;
        }
        pieces.push(Piece::Text(rest.to_owned()));
        Ok(Self(pieces))
    }

    /// The text for a prompt.
    pub(super) fn fill(&self, prompt: &Prompt) -> Result<String, RewardError> {
        let piece = |piece: &Piece| match piece {
            Piece::Text(text) => Ok(text.clone()),
            Piece::Prompt => Ok(prompt.text.clone()),
            Piece::Metadata(key) => match prompt.metadata.get(key) {
                Some(Value::String(text)) => Ok(text.clone()),
                Some(other) => Ok(other.to_string()),
                None => Err(RewardError::Prompt {
                    prompt: prompt.text.clone(),
                    reason: format!("the template asks for metadata `{key}`, which the prompt lacks"),
                }),
            },
        };
        self.0.iter().map(piece).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_filled_once() {
        let line = r#"{"prompt": "a {metadata.n} {prompt}", "n": 3, "tag": "counting", "include": [{"class": "cat"}]}"#;
        let prompt: Prompt = serde_json::from_str(line).unwrap();
        let fill = |template| Template::parse(template).unwrap().fill(&prompt);
        assert_eq!(fill("{metadata.tag}: {prompt}, {metadata.n}!"), Ok("counting: a {metadata.n} {prompt}, 3!".into()));
        assert_eq!(fill("{metadata.include}{x} {"), Ok("[{\"class\":\"cat\"}]{x} {".into()));
        assert_eq!(fill(""), Ok(String::new()));
        let error = fill("{prompt} {metadata.color}").expect_err("no color");
        assert!(matches!(&error, RewardError::Prompt { reason, .. } if reason.contains("`color`")), "{error}");
        assert_eq!(Template::parse("{metadata.n"), Err("`{metadata.` lacks its closing brace".into()));
    }
}
