//! Comparing the samples of one prompt: rewards to advantages.
//!
//! A missing reward has no advantage and takes no part in its group's statistics. A group whose rewards all agree has zero variance:
//! variants that compare the samples of a group give it their neutral value (0, or ½ for NFT's map). The trainer
//! reports it, and skips it where nothing of its loss has a gradient.

mod history;
mod rewards;

pub use history::History;
pub use rewards::{Moments, Rewards, StandardizeParts};
pub use standard::{Deviation, Several};

use crate::{axis::axis, batch::Sample, setting::Meaning};

/// Rewards to advantages.
pub trait Advantage: Send + Sync {
    /// One advantage a sample; `None` where the reward is missing, or the sample is not to be trained on. `history` has earlier
    /// rewards of each prompt, as many as [`memory`](Self::memory) asks for.
    fn advantages(&self, samples: &[Sample], history: &History) -> Vec<Option<f64>>;

    /// What the numbers mean.
    fn meaning(&self) -> Meaning {
        Meaning::Relative
    }

    /// Whether a sample is compared with its group alone, so that nothing can be learned from one whose rewards agree.
    fn compares_groups(&self) -> bool {
        true
    }

    /// The groups without variance: nothing in them says which sample is better.
    fn zero_variance(&self, samples: &[Sample]) -> Vec<bool> {
        let moments = Rewards::of(samples).moments();
        moments.into_iter().map(|group| group.agree && self.compares_groups()).collect()
    }

    /// How many earlier rewards of a prompt are wanted.
    fn memory(&self) -> usize {
        0
    }

    /// What is wrong with its parameters.
    fn validate(&self) -> Vec<String> {
        Vec::new()
    }
}

axis! {
    /// The advantage of a recipe.
    AdvantageKind: Advantage, default Exact;
    /// (η/β)(R − group mean) (arXiv 2602.04663).
    exact::Exact,
    /// Centered by group, divided by a deviation (GRPO, arXiv 2505.05470; several rewards: GDPO, arXiv 2601.05242).
    standard::Standard,
    /// Probability of being a good sample (DiffusionNFT, arXiv 2509.16117).
    nft::Nft,
    /// Centered by the mean of the others in the group (RLOO, arXiv 2402.14740).
    leave_one_out::LeaveOneOut,
    /// Standardized by the prompt's own history (DDPO, arXiv 2305.13301).
    per_prompt::PerPrompt,
    /// Exponential weights (reward-weighted regression; arXiv 2305.13301).
    softmax::Softmax,
    /// Weight 1 for the best share of a batch (sparse reward-weighted regression; arXiv 2305.13301).
    top::Top,
    /// 1 for the best and −1 for the worst sample of a group: the pairs of objective `dpo` (after arXiv 2311.12908).
    best_worst::BestWorst,
    /// Over a quasi-norm of the group (Neighbor GRPO, arXiv 2511.16955).
    quasi_norm::QuasiNorm,
}

#[cfg(test)]
mod tests;
