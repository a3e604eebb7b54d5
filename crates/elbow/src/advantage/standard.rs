//! The group-standardized advantage of GRPO and Flow-GRPO (arXiv 2505.05470, eq. 4).
//!
//! A = scale · (R − mean of the group) / (deviation + 10⁻⁴)

use super::{Advantage, Grouped};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Whose deviation divides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Deviation {
    /// The whole batch's (Flow-GRPO's default).
    #[default]
    Batch,
    /// The group's own.
    Group,
}

/// Standardized reward.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Standard {
    /// Factor on the result.
    pub scale: f64,
    /// Whose deviation divides.
    pub deviation: Deviation,
}

impl Default for Standard {
    fn default() -> Self {
        Self { scale: 1.0, deviation: Deviation::Batch }
    }
}

impl Advantage for Standard {
    fn advantages(&self, batch: &Grouped) -> Vec<Option<f64>> {
        let total = batch.total().std;
        batch.map(|reward, group| {
            let deviation = if self.deviation == Deviation::Batch { total } else { group.std };
            self.scale * (reward - group.mean) / (deviation + 1e-4)
        })
    }
}
