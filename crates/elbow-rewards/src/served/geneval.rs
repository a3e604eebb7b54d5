//! The GenEval server of Flow-GRPO (yifan123/reward-server, `app_geneval.py`).
//!
//! `{"images": [JPEG], "meta_datas": [record], "only_strict": bool}` is answered by `scores`, `rewards` and `strict_rewards`,
//! a number each a picture; `rewards` is computed where `only_strict` is false. The lists by task, `group_rewards` and
//! `group_strict_rewards`, are not read: -10 stands there for pictures of other tasks.

use super::{Sample, Scores, http::Http, pickled};
use crate::{Mode, pickle::Value};
use elbow::RewardError;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// GenEval's scores. The prompts need their records, as in the benchmark's own JSONL file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Geneval {
    /// Which score counts.
    pub mode: Mode,
}

impl Geneval {
    /// The scores of one request.
    pub(super) fn ask(self, http: &Http, samples: &[Sample<'_>]) -> Result<Scores, RewardError> {
        let key = match self.mode {
            Mode::Dense => "scores",
            Mode::Lenient => "rewards",
            Mode::Strict => "strict_rewards",
        };
        let record = |sample: &Sample<'_>| {
            let mut record = sample.prompt.metadata.clone();
            record.insert("prompt".into(), sample.prompt.text.clone().into());
            pickled::dict(&record)
        };
        let records = samples.iter().map(record).collect();
        let only_strict = Value::Bool(self.mode != Mode::Lenient);
        let rest = vec![("meta_datas", Value::List(records)), ("only_strict", only_strict)];
        pickled::numbers(http, &pickled::ask(http, samples, rest, key)?, key)
    }
}
