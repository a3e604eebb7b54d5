//! The groups of the batch as they are drawn, as every method draws them that does not choose (arXiv 2602.04663, arXiv 2305.13301).

use super::{Collected, Collection, Memory};
use crate::rollout::{Rollout, RolloutError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Everything that is drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Plain {}

impl Collection for Plain {
    fn collect(&self, rollout: &Rollout<'_>, _: &Memory) -> Result<Collected, RolloutError> {
        Ok(Collected::all(rollout.groups(0..rollout.batch.groups)?))
    }
}
