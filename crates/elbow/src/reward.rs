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

    /// The rewards it is the weighted sum of; none if it is a single one.
    fn parts(&self) -> &[Weighted] {
        &[]
    }
}

/// A reward within a sum.
pub struct Weighted {
    /// Its name in the metrics, which differs from those of the others.
    pub name: String,
    /// How much it counts.
    pub weight: f64,
    /// The reward.
    pub reward: Box<dyn Reward>,
}

/// Σ weight · reward. Where one part is missing the sum is: a part is never taken for zero.
pub struct Sum {
    /// Name of the sum in the metrics.
    pub name: String,
    /// What is added up.
    pub parts: Vec<Weighted>,
}

impl Reward for Sum {
    fn name(&self) -> &str {
        &self.name
    }

    fn score(&self, images: &[RgbImage], prompts: &[Prompt]) -> Vec<Result<f32, RewardError>> {
        score(self, images, prompts).into_iter().map(|s| s.map(|s| s.total)).collect()
    }

    fn parts(&self) -> &[Weighted] {
        &self.parts
    }
}

/// What one image scored.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    /// The reward.
    pub total: f32,
    /// The parts of a sum, in order, before they are weighted.
    pub parts: Vec<f32>,
}

/// One score per image, each part of a sum asked once.
pub fn score(reward: &dyn Reward, images: &[RgbImage], prompts: &[Prompt]) -> Vec<Result<Score, RewardError>> {
    let parts = reward.parts();
    if parts.is_empty() {
        let single = |total| Score { total, parts: Vec::new() };
        return reward.score(images, prompts).into_iter().map(|s| s.map(single)).collect();
    }
    let empty = Score { total: 0.0, parts: Vec::new() };
    let mut sums: Vec<Result<Score, RewardError>> = vec![Ok(empty); images.len()];
    for part in parts {
        for (sum, value) in sums.iter_mut().zip(part.reward.score(images, prompts)) {
            let next = match (&*sum, value) {
                (Ok(sum), Ok(value)) => Ok(Score {
                    total: sum.total + part.weight as f32 * value,
                    parts: sum.parts.iter().copied().chain([value]).collect(),
                }),
                (Ok(_), Err(error)) => Err(RewardError::Failed(format!("{}: {error}", part.name))),
                (Err(error), _) => Err(error.clone()),
            };
            *sum = next;
        }
    }
    sums
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
