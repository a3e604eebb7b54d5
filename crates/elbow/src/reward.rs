//! Rewards: what the policy is tuned to please.

use crate::{policy, prompts::Prompt};
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

impl Request<'_> {
    /// Some of the samples, in the given order.
    pub fn select(&self, rows: &[usize]) -> Pictures {
        Pictures {
            images: rows.iter().map(|&row| self.images[row].clone()).collect(),
            prompts: rows.iter().map(|&row| Arc::clone(&self.prompts[row])).collect(),
            latents: self.latents.map(|latents| policy::rows_of(latents, rows)),
            groups: rows.iter().map(|&row| self.groups[row]).collect(),
        }
    }
}

/// Samples to score, owned: what a [`Request`] borrows.
#[derive(Clone, Debug, Default)]
pub struct Pictures {
    /// N pictures.
    pub images: Vec<RgbImage>,
    /// Their prompts.
    pub prompts: Vec<Arc<Prompt>>,
    /// Their clean latents `[N, D]`, if there are any.
    pub latents: Option<Tensor<2>>,
    /// The group of each.
    pub groups: Vec<usize>,
}

impl Pictures {
    /// The request to score all of them.
    pub fn request(&self) -> Request<'_> {
        let Self { images, prompts, latents, groups } = self;
        Request { images, prompts, latents: latents.as_ref(), groups }
    }
}

/// Asks a reward: one answer a picture, each a finite number or an error, whatever the reward returns.
pub fn ask(reward: &dyn Reward, request: &Request<'_>) -> Vec<Result<Score, RewardError>> {
    let (scores, pictures) = (reward.score(request), request.images.len());
    if scores.len() != pictures {
        let error = format!("the reward gave {} scores for {pictures} pictures", scores.len());
        return vec![Err(RewardError::Failed(error)); pictures];
    }
    let checked = |score: Result<Score, RewardError>| match score {
        Ok(Score { value, .. }) if !value.is_finite() => Err(RewardError::Failed(format!("the score is {value}"))),
        score => score,
    };
    scores.into_iter().map(checked).collect()
}

/// What a reward needs beside pictures and prompts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// The clean latents.
    pub latents: bool,
    /// All samples of a group in one request; otherwise a request has whatever was drawn together.
    pub whole_groups: bool,
    /// Requests that it takes side by side, at least 1: more than one for a server that answers several at a time.
    pub in_flight: usize,
}

impl Default for Needs {
    fn default() -> Self {
        Self { latents: false, whole_groups: false, in_flight: 1 }
    }
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

    /// Is called before samples are drawn: a model that [slept](Self::sleep) comes back to the accelerator.
    fn wake(&self) {}

    /// Is called once all samples are scored: a model may leave the accelerator to the policy.
    fn sleep(&self) {}
}

/// What one sample scored.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Score {
    /// The reward.
    pub value: f64,
    /// The parts of a sum; none of a single reward.
    pub parts: Vec<Part>,
}

/// What a sample scored by one reward of a sum.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// Its name in the metrics.
    pub name: Arc<str>,
    /// How much it counts.
    pub weight: f64,
    /// The score, before it is weighted.
    pub value: f64,
}

impl Score {
    /// Σ weight · value of the parts.
    pub fn sum(parts: Vec<Part>) -> Self {
        Self { value: parts.iter().map(|part| part.weight * part.value).sum(), parts }
    }
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
    /// What becomes of its score before it is weighted.
    pub shape: Shape,
    /// The reward.
    pub reward: Box<dyn Reward>,
}

/// What becomes of a score within a sum: first the threshold, then the range, then the gate.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Shape {
    /// 1 from this score on and 0 below, in place of the score.
    pub threshold: Option<f64>,
    /// The least and the largest score that counts as such; those beyond count as these.
    pub clip: Option<[f64; 2]>,
    /// The number of another part and the score that it has to reach, else this part counts 0.
    pub gate: Option<(usize, f64)>,
}

/// Σ weight · reward. Where one part is missing the sum is: a part is never taken for zero.
pub struct Sum {
    /// Name of the sum in the metrics.
    pub name: String,
    /// What is added up.
    pub parts: Vec<Weighted>,
}

impl Sum {
    /// One sample's score, of what it scored by each part.
    fn add(&self, scores: Vec<Result<Score, RewardError>>) -> Result<Score, RewardError> {
        let mut values = Vec::with_capacity(scores.len());
        for (part, score) in self.parts.iter().zip(scores) {
            values.push(score.map_err(|error| error.of(&part.name))?.value);
        }
        let shaped = |(k, part): (usize, &Weighted)| {
            let Shape { threshold, clip, gate } = &part.shape;
            let value = threshold.map_or(values[k], |least| f64::from(values[k] >= least));
            let value = clip.map_or(value, |[least, largest]| value.clamp(least, largest));
            let open = gate.is_none_or(|(other, least)| values[other] >= least);
            Part { name: part.name.as_str().into(), weight: part.weight, value: if open { value } else { 0.0 } }
        };
        Ok(Score::sum(self.parts.iter().enumerate().map(shaped).collect()))
    }
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
            in_flight: needs.iter().map(|needs| needs.in_flight).max().unwrap_or(1),
        }
    }

    /// All parts are asked at the same time.
    fn score(&self, request: &Request<'_>) -> Vec<Result<Score, RewardError>> {
        let mut columns: Vec<_> = std::thread::scope(|scope| {
            let asked: Vec<_> = self.parts.iter().map(|part| scope.spawn(|| ask(&*part.reward, request))).collect();
            let answer = |asked: std::thread::ScopedJoinHandle<'_, Vec<_>>| {
                asked.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)).into_iter()
            };
            asked.into_iter().map(answer).collect()
        });
        let answer = "invariant: one answer a picture";
        let row = |_| self.add(columns.iter_mut().map(|column| column.next().expect(answer)).collect());
        (0..request.images.len()).map(row).collect()
    }

    fn wake(&self) {
        self.parts.iter().for_each(|part| part.reward.wake());
    }

    fn sleep(&self) {
        self.parts.iter().for_each(|part| part.reward.sleep());
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
    /// The reward has no score for this sample; asked again, it would say the same.
    #[error("{0}")]
    Failed(String),
    /// Who scores cannot be reached, or broke down; asked later, it may give a score.
    #[error("{0}")]
    Unavailable(String),
}

impl RewardError {
    /// The same, of the part of a sum with the given name.
    #[must_use]
    pub fn of(self, name: &str) -> Self {
        match self {
            Self::Unavailable(text) => Self::Unavailable(format!("{name}: {text}")),
            other => Self::Failed(format!("{name}: {other}")),
        }
    }
}
