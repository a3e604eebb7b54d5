//! Flow-Factory's reward server: `POST /compute` (X-GenGroup/Flow-Factory, `rewards/my_reward_remote.py`).
//!
//! `{"prompt": […], "image": [base64 PNG], "video": null, "condition_images": null, "condition_videos": null}` is answered by
//! `{"rewards": […]}` or `{"error": "…"}`.

use super::{Sample, Scores, base64, failed, http::Http, json, numbers};
use elbow::RewardError;
use serde_json::{Value, json};

/// The scores of one request.
pub(super) fn ask(http: &Http, samples: &[Sample<'_>]) -> Result<Scores, RewardError> {
    let prompts: Vec<&str> = samples.iter().map(|sample| sample.prompt.text.as_str()).collect();
    let images: Vec<String> = samples.iter().map(|sample| base64(&sample.picture)).collect();
    let body = json!({
        "prompt": prompts,
        "image": images,
        "video": null,
        "condition_images": null,
        "condition_videos": null,
    });
    let answer = http.post("/compute", "application/json", body.to_string().as_bytes(), read)?;
    answer.map(|values| numbers(http, &values)).map_err(|error| failed(http, &error))
}

/// The rewards, or the error that the server names.
fn read(bytes: &[u8]) -> Result<Result<Vec<Value>, String>, String> {
    let mut answer = json::parse(bytes)?;
    match (json::take(&mut answer, "error"), json::take(&mut answer, "rewards")) {
        (Value::String(error), _) if !error.is_empty() => Ok(Err(error)),
        (_, Value::Array(rewards)) => Ok(Ok(rewards)),
        (_, _) => Err("there is no list `rewards`".into()),
    }
}
