//! The weights of reward-weighted regression (arXiv 2305.13301, §4.1): not centered, all positive.
//!
//! w_i = B e^{κ z_i} / Σ_j e^{κ z_j},  z the reward in deviations of its group, j over the B samples of the batch
//!
//! The mean weight is 1. With objective `epg` without ratio and an ELBO this is RWR.

use super::{Advantage, History, Rewards};
use crate::{batch::Sample, setting::Meaning};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Exponential weights.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Softmax {
    /// κ, how sharply weights follow rewards; 0 is all alike.
    pub inverse_temperature: f64,
}

impl Default for Softmax {
    fn default() -> Self {
        Self { inverse_temperature: 0.2 }
    }
}

impl Advantage for Softmax {
    fn meaning(&self) -> Meaning {
        Meaning::Weight
    }

    fn advantages(&self, samples: &[Sample], _: &History) -> Vec<Option<f64>> {
        let exponents =
            Rewards::of(samples).standardized().into_iter().map(|z| z.map(|z| self.inverse_temperature * z));
        let exponents: Vec<Option<f64>> = exponents.collect();
        let largest = exponents.iter().flatten().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<Option<f64>> = exponents.into_iter().map(|e| e.map(|e| (e - largest).exp())).collect();
        let (sum, count) = (weights.iter().flatten().sum::<f64>(), weights.iter().flatten().count());
        weights.into_iter().map(|w| w.map(|w| w * count as f64 / sum)).collect()
    }

    fn compares_groups(&self) -> bool {
        false
    }

    fn validate(&self) -> Vec<String> {
        let wrong = !(self.inverse_temperature >= 0.0 && self.inverse_temperature.is_finite());
        let told = format!("advantage.inverse_temperature = {}: must be 0 or above", self.inverse_temperature);
        wrong.then_some(told).into_iter().collect()
    }
}
