//! RLOO's advantage: each sample against the mean of the others of its group (arXiv 2402.14740, eq. 8).
//!
//! A_i = scale · (R_i − mean of R_j, j ≠ i) = scale · G/(G − 1) · (R_i − mean)

use super::{Advantage, History, Rewards};
use crate::{batch::Sample, setting::zero_or_positive};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Leave-one-out baseline.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LeaveOneOut {
    /// Factor on the result.
    pub scale: f64,
}

impl Default for LeaveOneOut {
    fn default() -> Self {
        Self { scale: 1.0 }
    }
}

impl Advantage for LeaveOneOut {
    fn advantages(&self, samples: &[Sample], _: &History) -> Vec<Option<f64>> {
        Rewards::of(samples).map(|reward, group| {
            let count = group.count as f64;
            let others = if group.count > 1 { count / (count - 1.0) } else { 0.0 };
            self.scale * others * (reward - group.mean)
        })
    }

    fn validate(&self) -> Vec<String> {
        zero_or_positive("advantage.scale", self.scale).into_iter().collect()
    }
}
