//! UniRL's reward service: `POST /score` (Tencent-Hunyuan/UniRL, `reward_service`).
//!
//! `{"requests": [{"history": [{"text", "image_b64"}], "required_rewards": [name], "metadata": {…}}]}` is answered, a picture
//! at a time, by `{"results": [{name: {sub: number}}], "errors": [{name: "…"}]}`: what failed for one picture says so there.

use super::{Sample, Scores, base64, failed, http::Http, json, number};
use elbow::{RewardError, Score, reward::Part};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// A reward of UniRL's service. The prompt's metadata goes along.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// The reward's name on the server.
    pub reward: String,
    /// Which of its numbers counts. Without it the only one does, or the sum of all, which are then logged apart.
    #[serde(default)]
    pub sub: Option<String>,
}

impl Service {
    /// What is wrong with it, one sentence each.
    pub(super) fn validate(&self) -> Vec<String> {
        let empty = self.reward.is_empty();
        empty
            .then(|| "reward.protocol.reward = \"\": must be the name of a reward on the server".into())
            .into_iter()
            .collect()
    }

    /// The scores of one request.
    pub(super) fn ask(&self, http: &Http, samples: &[Sample<'_>]) -> Result<Scores, RewardError> {
        let request = |sample: &Sample<'_>| {
            json!({
                "history": [{"text": sample.prompt.text, "image_b64": base64(&sample.picture)}],
                "required_rewards": [self.reward],
                "metadata": sample.prompt.metadata,
            })
        };
        let body = json!({"requests": samples.iter().map(request).collect::<Vec<_>>()});
        let (results, errors) = http.post("/score", "application/json", body.to_string().as_bytes(), read)?;
        let error = |k: usize| errors.get(k).map_or(&Value::Null, |errors| &errors[&self.reward]);
        Ok(results.iter().enumerate().map(|(k, result)| self.score(http, &result[&self.reward], error(k))).collect())
    }

    /// The score of one picture.
    fn score(&self, http: &Http, subs: &Value, error: &Value) -> Result<Score, RewardError> {
        match error {
            Value::Null => {}
            Value::String(text) => return Err(failed(http, text)),
            other => return Err(failed(http, &other.to_string())),
        }
        let Some(subs) = subs.as_object().filter(|subs| !subs.is_empty()) else {
            return Err(failed(http, &format!("no score of {:?}", self.reward)));
        };
        if let Some(name) = &self.sub {
            let names = || subs.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            let missing = || failed(http, &format!("{:?} has no {name:?} but {}", self.reward, names()));
            return number(http, subs.get(name).ok_or_else(missing)?).map(Score::from);
        }
        let part = |(name, value): (&String, &Value)| {
            Ok(Part { name: name.as_str().into(), weight: 1.0, value: number(http, value)? })
        };
        let mut parts = subs.iter().map(part).collect::<Result<Vec<_>, RewardError>>()?;
        if parts.len() == 1 { Ok(parts.remove(0).value.into()) } else { Ok(Score::sum(parts)) }
    }
}

/// Results and errors, one each a picture.
fn read(bytes: &[u8]) -> Result<(Vec<Value>, Vec<Value>), String> {
    let mut answer = json::parse(bytes)?;
    let Value::Array(results) = json::take(&mut answer, "results") else {
        return Err("there is no list `results`".into());
    };
    match json::take(&mut answer, "errors") {
        Value::Array(errors) => Ok((results, errors)),
        Value::Null => Ok((results, Vec::new())),
        _ => Err("`errors` is not a list".into()),
    }
}
