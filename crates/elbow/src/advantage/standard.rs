//! The group-standardized advantage of GRPO and Flow-GRPO (arXiv 2505.05470, eq. 4), of one reward or several.
//!
//! A = scale · (R − mean of the group) / (deviation + floor)
//!
//! | several rewards R_k of weight w_k | A |
//! |---|---|
//! | sum | of R = Σ w_k R_k |
//! | normalize (MixGRPO, arXiv 2507.21802) | Σ w_k A_k, with A_k that of R_k |
//! | decouple (GDPO, arXiv 2601.05242) | (Z − mean of the batch) / (deviation of the batch + floor), Z = Σ w_k A_k |
//!
//! with a floor of 10⁻⁴ in Flow-GRPO, and an unbiased deviation (n − 1) with 10⁻⁸ in DanceGRPO (arXiv 2505.07818),
//! and then c tanh(A/c), if there is a soft clip c (V-GRPO, arXiv 2604.23380).

use super::{Advantage, History, Moments, Rewards};
use crate::{
    batch::Sample,
    setting::{positive_number, zero_or_positive},
};
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

/// How several rewards become one advantage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Several {
    /// Their sum is standardized: the reward that varies most decides.
    #[default]
    Sum,
    /// Each is standardized, then they are summed (MixGRPO, arXiv 2507.21802).
    Normalize,
    /// The same, and the sums are standardized once more over the batch (GDPO, arXiv 2601.05242).
    Decouple,
}

/// Standardized reward.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Standard {
    /// Factor on the result.
    pub scale: f64,
    /// Whose deviation divides.
    pub deviation: Deviation,
    /// Divide by n − 1 in the deviation, as DanceGRPO's code does, instead of n.
    pub unbiased: bool,
    /// Added to the deviation, above 0.
    pub floor: f64,
    /// How several rewards become one; without effect on a single one.
    pub several: Several,
    /// c of c tanh(A/c), which bounds the result smoothly; 3 in V-GRPO.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub soft_clip: Option<f64>,
}

impl Default for Standard {
    fn default() -> Self {
        Self {
            scale: 1.0,
            deviation: Deviation::Batch,
            unbiased: false,
            floor: 1e-4,
            several: Several::Sum,
            soft_clip: None,
        }
    }
}

impl Standard {
    /// One reward, standardized.
    fn standardize(&self, rewards: &Rewards) -> Vec<Option<f64>> {
        let total = rewards.total();
        rewards.map(|reward, group| {
            let whose = if self.deviation == Deviation::Batch { total } else { group };
            (reward - group.mean) / self.divisor(whose)
        })
    }

    /// A deviation as it divides.
    fn divisor(&self, of: Moments) -> f64 {
        let n = of.count as f64;
        let bias = if self.unbiased && of.count > 1 { (n / (n - 1.0)).sqrt() } else { 1.0 };
        of.std * bias + self.floor
    }

    /// Σ w_k A_k; missing where the sum of the rewards is.
    fn sum_of_standardized(&self, rewards: &Rewards, parts: &[(f64, Rewards)]) -> Vec<Option<f64>> {
        let mut sums: Vec<Option<f64>> = rewards.values.iter().map(|r| r.map(|_| 0.0)).collect();
        for (weight, part) in parts {
            for (sum, a) in sums.iter_mut().zip(self.standardize(part)) {
                *sum = sum.zip(a).map(|(sum, a)| sum + weight * a);
            }
        }
        sums
    }
}

impl Advantage for Standard {
    fn advantages(&self, samples: &[Sample], _: &History) -> Vec<Option<f64>> {
        let (rewards, parts) = (Rewards::of(samples), Rewards::of_parts(samples));
        let standardized = match self.several {
            Several::Normalize if !parts.is_empty() => self.sum_of_standardized(&rewards, &parts),
            Several::Decouple if !parts.is_empty() => {
                let sums = rewards.with(self.sum_of_standardized(&rewards, &parts));
                let all = sums.total();
                sums.map(|z, _| (z - all.mean) / self.divisor(all))
            }
            _ => self.standardize(&rewards),
        };
        let soft = |a: f64| self.soft_clip.map_or(a, |c| c * (a / c).tanh());
        standardized.into_iter().map(|a| a.map(|a| soft(self.scale * a))).collect()
    }

    /// Rewards whose sums agree may differ among themselves, and say something where each is standardized.
    fn zero_variance(&self, samples: &[Sample]) -> Vec<bool> {
        let agree =
            |rewards: &Rewards| -> Vec<bool> { rewards.moments().into_iter().map(|group| group.agree).collect() };
        let parts = Rewards::of_parts(samples);
        if self.several == Several::Sum || parts.is_empty() {
            return agree(&Rewards::of(samples));
        }
        let parts: Vec<Vec<bool>> = parts.iter().map(|(_, part)| agree(part)).collect();
        (0..parts[0].len()).map(|group| parts.iter().all(|part| part[group])).collect()
    }

    fn validate(&self) -> Vec<String> {
        let wrong = self.soft_clip.filter(|c| c.is_nan() || *c <= 0.0);
        let mut problems: Vec<String> =
            wrong.map(|c| format!("advantage.soft_clip = {c}: must be above 0")).into_iter().collect();
        problems.extend(zero_or_positive("advantage.scale", self.scale));
        problems.extend(positive_number("advantage.floor", self.floor));
        problems
    }
}
