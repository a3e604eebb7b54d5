//! A pair a group, as preferences are learned from (online Diffusion-DPO, after arXiv 2311.12908): A = 1 for its best sample, −1 for
//! its worst, and the rest is not trained on. The earlier one wins a tie.

use super::{Advantage, History, Rewards};
use crate::{batch::Sample, setting::Meaning};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Best against worst.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BestWorst {}

impl Advantage for BestWorst {
    fn meaning(&self) -> Meaning {
        Meaning::Pair
    }

    fn advantages(&self, samples: &[Sample], _: &History) -> Vec<Option<f64>> {
        let mut advantages = vec![None; samples.len()];
        for members in Rewards::of(samples).members() {
            // `max_by` takes the last of equals, and this is in reverse.
            let best = members.iter().rev().max_by(|a, b| a.1.total_cmp(&b.1));
            let worst = members.iter().min_by(|a, b| a.1.total_cmp(&b.1));
            if let (Some(best), Some(worst)) = (best, worst)
                && best.1 > worst.1
            {
                (advantages[best.0], advantages[worst.0]) = (Some(1.0), Some(-1.0));
            }
        }
        advantages
    }
}
