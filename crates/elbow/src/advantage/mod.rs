//! Comparing the images of one prompt: rewards to advantages.
//!
//! A missing reward has no advantage and takes no part in its group's statistics. A group whose rewards all agree says
//! nothing; every variant gives it its neutral value (0, or ½ for NFT's map), and the trainer reports and skips it.

mod exact;
mod nft;
mod standard;

pub use exact::Exact;
pub use nft::Nft;
pub use standard::{Deviation, Standard};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Rewards of a batch, in groups of one prompt each.
#[derive(Clone, Debug, PartialEq)]
pub struct Grouped {
    /// Sample after sample; `None` is missing.
    pub rewards: Vec<Option<f64>>,
    /// The group of each sample, 0, 1, 2, …
    pub groups: Vec<usize>,
}

/// Mean and population deviation of some numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Moments {
    /// Mean; NaN of nothing.
    pub mean: f64,
    /// √ of the mean squared distance to the mean.
    pub std: f64,
    /// How many.
    pub count: usize,
    /// Whether they are all equal (or none).
    pub agree: bool,
}

impl Moments {
    /// Of the given numbers.
    pub fn of(values: &[f64]) -> Self {
        let n = values.len() as f64;
        let agree = values.windows(2).all(|w| w[0] - w[1] == 0.0);
        // The mean of equal numbers is that number, whatever the rounding of their sum.
        let mean = if agree { values.first().copied().unwrap_or(f64::NAN) } else { values.iter().sum::<f64>() / n };
        let std = (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n).sqrt();
        Self { mean, std, count: values.len(), agree }
    }
}

impl Grouped {
    /// Moments of each group, missing rewards left out.
    pub fn moments(&self) -> Vec<Moments> {
        let count = self.groups.iter().max().map_or(0, |m| m + 1);
        let mut members = vec![Vec::new(); count];
        for (&group, reward) in self.groups.iter().zip(&self.rewards) {
            members[group].extend(*reward);
        }
        members.iter().map(|values| Moments::of(values)).collect()
    }

    /// Moments of the whole batch.
    pub fn total(&self) -> Moments {
        Moments::of(&self.rewards.iter().flatten().copied().collect::<Vec<_>>())
    }

    /// `f(reward, moments of its group)` for every reward that is there.
    fn map(&self, f: impl Fn(f64, Moments) -> f64) -> Vec<Option<f64>> {
        let moments = self.moments();
        self.rewards.iter().zip(&self.groups).map(|(r, &g)| r.map(|r| f(r, moments[g]))).collect()
    }
}

/// Rewards to advantages.
pub trait Advantage: Send + Sync {
    /// One advantage a sample; `None` where the reward is missing.
    fn advantages(&self, batch: &Grouped) -> Vec<Option<f64>>;
}

/// The advantage of a recipe.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum AdvantageKind {
    /// (η/β)(R − group mean).
    Exact(Exact),
    /// Centered by group, divided by a deviation.
    Standard(Standard),
    /// NFT's map to [0, 1].
    Nft(Nft),
}

impl Default for AdvantageKind {
    fn default() -> Self {
        Self::Exact(Exact::default())
    }
}

impl AdvantageKind {
    /// The implementation.
    pub fn get(&self) -> &dyn Advantage {
        match self {
            Self::Exact(a) => a,
            Self::Standard(a) => a,
            Self::Nft(a) => a,
        }
    }
}

#[cfg(test)]
mod tests;
