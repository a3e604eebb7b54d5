//! Comparing the images of one prompt: rewards to advantages.
//!
//! A missing reward has no advantage and takes no part in its group's statistics. A group whose rewards all agree says
//! nothing where images of a group are compared; those variants give it their neutral value (0, or ½ for NFT's map), and the trainer
//! reports and skips it.

mod best_worst;
mod exact;
mod history;
mod leave_one_out;
mod nft;
mod softmax;
mod standard;
mod top;

pub use best_worst::BestWorst;
pub use exact::Exact;
pub use history::{History, PerPrompt};
pub use leave_one_out::LeaveOneOut;
pub use nft::Nft;
pub use softmax::Softmax;
pub use standard::{Deviation, Several, Standard};
pub use top::Top;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Rewards of a batch, in groups of one prompt each.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Grouped {
    /// Sample after sample; `None` is missing.
    pub rewards: Vec<Option<f64>>,
    /// The group of each sample, 0, 1, 2, …
    pub groups: Vec<usize>,
    /// Earlier rewards of each group's prompt, oldest first; empty unless the advantage asks for them.
    pub earlier: Vec<Vec<f64>>,
    /// The rewards that `rewards` are the weighted sums of; none if they are no sums.
    pub parts: Vec<Part>,
}

/// One of several rewards.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// How much it counts in the sum.
    pub weight: f64,
    /// Sample after sample; `None` where the sum is missing.
    pub rewards: Vec<Option<f64>>,
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
        let of = |members: Vec<(usize, f64)>| Moments::of(&members.into_iter().map(|(_, r)| r).collect::<Vec<_>>());
        self.members().into_iter().map(of).collect()
    }

    /// Samples and rewards of each group, missing rewards left out.
    fn members(&self) -> Vec<Vec<(usize, f64)>> {
        let count = self.groups.iter().max().map_or(0, |m| m + 1);
        let mut members = vec![Vec::new(); count];
        for (i, (&group, reward)) in self.groups.iter().zip(&self.rewards).enumerate() {
            members[group].extend(reward.map(|r| (i, r)));
        }
        members
    }

    /// Moments of the whole batch.
    pub fn total(&self) -> Moments {
        Moments::of(&self.rewards.iter().flatten().copied().collect::<Vec<_>>())
    }

    /// The same samples with another reward.
    fn with(&self, rewards: Vec<Option<f64>>) -> Self {
        Self { rewards, groups: self.groups.clone(), ..Self::default() }
    }

    /// `f(reward, moments of its group)` for every reward that is there.
    fn map(&self, f: impl Fn(f64, Moments) -> f64) -> Vec<Option<f64>> {
        let moments = self.moments();
        self.rewards.iter().zip(&self.groups).map(|(r, &g)| r.map(|r| f(r, moments[g]))).collect()
    }

    /// Rewards in deviations of their group.
    fn standardized(&self) -> Vec<Option<f64>> {
        self.map(|reward, group| (reward - group.mean) / (group.std + 1e-6))
    }
}

/// Rewards to advantages.
pub trait Advantage: Send + Sync {
    /// One advantage a sample; `None` where the reward is missing, or the sample is not to be trained on.
    fn advantages(&self, batch: &Grouped) -> Vec<Option<f64>>;

    /// Whether a sample is compared with its group alone, so that one whose rewards agree says nothing.
    fn within_groups(&self) -> bool {
        true
    }

    /// The groups that say nothing about which image is better; they are not trained on.
    fn silent(&self, batch: &Grouped) -> Vec<bool> {
        batch.moments().into_iter().map(|group| group.agree && self.within_groups()).collect()
    }

    /// How many earlier rewards of a prompt are wanted.
    fn memory(&self) -> usize {
        0
    }

    /// What is wrong with its parameters.
    fn problems(&self) -> Vec<String> {
        Vec::new()
    }
}

/// The advantage of a recipe.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum AdvantageKind {
    /// (η/β)(R − group mean) (arXiv 2602.04663).
    Exact(Exact),
    /// Centered by group, divided by a deviation (GRPO, arXiv 2505.05470; several rewards: GDPO, arXiv 2601.05242).
    Standard(Standard),
    /// Probability of being a good image (DiffusionNFT, arXiv 2509.16117).
    Nft(Nft),
    /// Centered by the mean of the others in the group (RLOO, arXiv 2402.14740).
    LeaveOneOut(LeaveOneOut),
    /// Standardized by the prompt's own history (DDPO, arXiv 2305.13301).
    PerPrompt(PerPrompt),
    /// Exponential weights (reward-weighted regression; arXiv 2305.13301).
    Softmax(Softmax),
    /// Weight 1 for the best share of a batch (sparse reward-weighted regression; arXiv 2305.13301).
    Top(Top),
    /// 1 for the best and −1 for the worst image of a group: the pairs of objective `dpo` (after arXiv 2311.12908).
    BestWorst(BestWorst),
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
            Self::LeaveOneOut(a) => a,
            Self::PerPrompt(a) => a,
            Self::Softmax(a) => a,
            Self::Top(a) => a,
            Self::BestWorst(a) => a,
        }
    }
}

#[cfg(test)]
mod tests;
