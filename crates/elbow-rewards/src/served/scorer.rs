//! The scorer of verl-omni (`utils/reward_score/http_scorer_client.py`).
//!
//! `{"images": [JPEG], "prompts": [text], "metadata": {}}` is answered by `{"scores": [number]}` or `{"error": text}`.

use super::{Sample, Scores, http::Http, pickled};
use crate::pickle::Value;
use elbow::RewardError;

/// The scores of one request.
pub(super) fn ask(http: &Http, samples: &[Sample<'_>]) -> Result<Scores, RewardError> {
    let prompts = samples.iter().map(|sample| Value::Text(sample.prompt.text.clone())).collect();
    let rest = vec![("prompts", Value::List(prompts)), ("metadata", Value::Dict(Vec::new()))];
    pickled::numbers(http, &pickled::ask(http, samples, rest, "scores")?, "scores")
}
