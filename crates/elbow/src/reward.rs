//! Rewards: what the policy is tuned to please.

use crate::prompts::Prompt;
use image::RgbImage;

/// Scores finished images; higher is better.
///
/// Runs on worker threads, hence `Send + Sync`. A failed image is an `Err` of its own: the trainer drops that sample and
/// counts it, it never trains on a made-up zero.
pub trait Reward: Send + Sync {
    /// Short name, as in `reward_<name>` of the metrics.
    fn name(&self) -> &str;

    /// One score per image, in order; `images` and `prompts` have the same length.
    fn score(&self, images: &[RgbImage], prompts: &[Prompt]) -> Vec<Result<f32, RewardError>>;
}

/// Why one image has no reward.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RewardError {
    /// The prompt lacks what this reward needs.
    #[error("prompt {prompt:?}: {reason}")]
    Prompt {
        /// The prompt's text.
        prompt: String,
        /// What is missing or malformed.
        reason: String,
    },
    /// The model, server or program behind the reward failed.
    #[error("{0}")]
    Failed(String),
}
