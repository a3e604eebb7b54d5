//! The LLaVA server of DDPO (kvablack/LLaVA-server): prompt-image alignment (arXiv 2305.13301, §5.2).
//!
//! A vision model answers a question about the picture, and BERTScore compares its answer with the one that the prompt makes
//! one expect. `{"images": [JPEG], "queries": [[text]], "answers": [[text]]}` is answered by `{"recall": [[number]], …}`: a row
//! a picture and a number a question; there is one question here.

use super::{Sample, Scores, failed, http::Http, pickled, template::Template};
use crate::pickle::Value;
use elbow::{Prompt, RewardError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// BERTScore's recall of the expected answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Llava {
    /// What the model is asked about each picture.
    pub question: String,
    /// The answer to expect. `{prompt}` stands for the prompt and `{metadata.KEY}` for a key of its line in the prompt file.
    pub answer: String,
}

impl Default for Llava {
    fn default() -> Self {
        Self { question: "What is happening in this image? Answer briefly.".into(), answer: "{prompt}".into() }
    }
}

impl Llava {
    /// What is wrong with it, one sentence each.
    pub(super) fn validate(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.question.is_empty() {
            problems.push("reward.protocol.question = \"\": must say what to ask".into());
        }
        problems.extend(self.asker().err().map(|error| format!("reward.protocol.answer: {error}")));
        problems
    }

    /// The question, ready to be asked; the error says what is wrong.
    pub(super) fn asker(&self) -> Result<Asker, String> {
        Ok(Asker { question: self.question.clone(), answer: Template::parse(&self.answer)? })
    }
}

/// A question with an answer for each prompt.
pub(super) struct Asker {
    question: String,
    answer: Template,
}

impl Asker {
    /// Whether the prompt has what the answer is made of.
    pub(super) fn check(&self, prompt: &Prompt) -> Result<(), RewardError> {
        self.answer.fill(prompt).map(drop)
    }

    /// The scores of one request.
    pub(super) fn ask(&self, http: &Http, samples: &[Sample<'_>]) -> Result<Scores, RewardError> {
        let one = |text: String| Value::List(vec![Value::Text(text)]);
        let queries = samples.iter().map(|_| one(self.question.clone())).collect();
        let answers =
            samples.iter().map(|sample| self.answer.fill(sample.prompt).map(one)).collect::<Result<_, _>>()?;
        let rest = vec![("queries", Value::List(queries)), ("answers", Value::List(answers))];
        let answer = pickled::ask(http, samples, rest, "recall")?;
        let score = |row: &Value| match row.as_list() {
            Some([number]) => pickled::number(http, number),
            _ => Err(failed(http, &format!("the recall is not a list of one number but {row:?}"))),
        };
        Ok(pickled::list(http, &answer, "recall")?.iter().map(score).collect())
    }
}
