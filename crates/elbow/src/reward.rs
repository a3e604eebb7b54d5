//! Rewards: what the policy is tuned to please.

use crate::prompts::Prompt;
use burn::tensor::Tensor;
use image::RgbImage;
use std::sync::Arc;

/// What a reward is asked to score: N samples.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// N pictures.
    pub images: &'a [RgbImage],
    /// Their prompts.
    pub prompts: &'a [Arc<Prompt>],
    /// Their clean latents `[N, D]`, for rewards that [need](Reward::needs) them.
    pub latents: Option<&'a Tensor<2>>,
    /// The group of each: samples of one number are compared with each other.
    pub groups: &'a [usize],
}

/// What a reward needs beside pictures and prompts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// The clean latents.
    pub latents: bool,
    /// All samples of a group in one request; otherwise a request has whatever was drawn together.
    pub whole_groups: bool,
}

/// Scores finished samples; higher is better.
///
/// Runs on worker threads, hence `Send + Sync`. A sample that cannot be scored is an `Err` of its own: the trainer drops that sample
/// and counts it, it never trains on a made-up zero.
pub trait Reward: Send + Sync {
    /// Short name, as in `reward_<name>` of the metrics.
    fn name(&self) -> &str;

    /// Says before any work what it cannot score of these prompts.
    fn check(&self, prompts: &[Prompt]) -> Result<(), RewardError> {
        let _ = prompts;
        Ok(())
    }

    /// What it needs beside pictures and prompts.
    fn needs(&self) -> Needs {
        Needs::default()
    }

    /// One score a sample, in order.
    fn score(&self, request: &Request<'_>) -> Vec<Result<Score, RewardError>>;

    /// The rewards it is the weighted sum of; none if it is a single one.
    fn parts(&self) -> &[Weighted] {
        &[]
    }
}

/// What one sample scored.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Score {
    /// The reward.
    pub value: f64,
    /// The parts of a sum, in order; none of a single reward.
    pub parts: Vec<Part>,
}

/// What a sample scored by one reward of a sum.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Part {
    /// How much it counts.
    pub weight: f64,
    /// The score, before it is weighted.
    pub value: f64,
}

impl From<f64> for Score {
    fn from(value: f64) -> Self {
        Self { value, parts: Vec::new() }
    }
}

impl From<f32> for Score {
    fn from(value: f32) -> Self {
        Self::from(f64::from(value))
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

    fn check(&self, prompts: &[Prompt]) -> Result<(), RewardError> {
        self.parts.iter().try_for_each(|part| part.reward.check(prompts))
    }

    fn needs(&self) -> Needs {
        let needs: Vec<Needs> = self.parts.iter().map(|part| part.reward.needs()).collect();
        Needs {
            latents: needs.iter().any(|needs| needs.latents),
            whole_groups: needs.iter().any(|needs| needs.whole_groups),
        }
    }

    fn score(&self, request: &Request<'_>) -> Vec<Result<Score, RewardError>> {
        let mut sums: Vec<Result<Score, RewardError>> = vec![Ok(Score::default()); request.images.len()];
        for part in &self.parts {
            for (sum, score) in sums.iter_mut().zip(part.reward.score(request)) {
                match (sum.as_mut(), score) {
                    (Ok(sum), Ok(score)) => {
                        sum.value += part.weight * score.value;
                        sum.parts.push(Part { weight: part.weight, value: score.value });
                    }
                    (Ok(_), Err(error)) => *sum = Err(RewardError::Failed(format!("{}: {error}", part.name))),
                    (Err(_), _) => {}
                }
            }
        }
        sums
    }

    fn parts(&self) -> &[Weighted] {
        &self.parts
    }
}

/// Why one sample has no reward.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
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
