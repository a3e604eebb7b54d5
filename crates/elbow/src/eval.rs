//! Measuring a policy: fixed prompts, fixed start noise, deterministic steps.

use crate::{
    guidance::Guided,
    lanes,
    noise::{self, Key, Purpose},
    policy::{EncodeError, Policy, VelocityField},
    prompts::Prompt,
    reward::Reward,
    sampler::{self, Sampling},
    schedule::Schedule,
    train::Observer,
};
use burn::tensor::Device;
use image::RgbImage;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicUsize, Ordering},
};

/// How a policy is measured.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EvalConfig {
    /// Epochs between evaluations; 0 evaluates before the first epoch and after the last only.
    pub every: u64,
    /// Images a prompt.
    pub images_per_prompt: usize,
    /// Decides the start noise, apart from the run's seed: runs of different seeds are measured alike.
    pub seed: u64,
    /// How the images are drawn.
    pub sampler: Sampling,
    /// Images in one forward pass.
    pub rows: usize,
}

impl Default for EvalConfig {
    fn default() -> Self {
        Self {
            every: 20,
            images_per_prompt: 4,
            seed: 42,
            sampler: Sampling { steps: 40, ..Sampling::default() },
            rows: 32,
        }
    }
}

/// Images and their scores.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Prompt after prompt, `images_per_prompt` each.
    pub images: Vec<RgbImage>,
    /// The prompt of each image.
    pub prompts: Vec<Prompt>,
    /// By reward: one score an image, `None` where missing.
    pub scores: BTreeMap<String, Vec<Option<f64>>>,
}

/// A reward's scores, summed up.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// Mean by tag of the prompt; empty if prompts have none.
    pub by_tag: BTreeMap<String, f64>,
    /// Mean over tags (`GenEval`'s rule), or over images if prompts have no tag; NaN if nothing was scored.
    pub mean: f64,
    /// Images without a score.
    pub missing: usize,
}

impl Measured {
    /// Means of one reward.
    pub fn summary(&self, reward: &str) -> Option<Summary> {
        let scores = self.scores.get(reward)?;
        let mut tags = BTreeMap::<String, Vec<f64>>::new();
        for (score, prompt) in scores.iter().zip(&self.prompts) {
            if let (Some(score), Some(tag)) = (score, prompt.tag()) {
                tags.entry(tag.to_owned()).or_default().push(*score);
            }
        }
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let by_tag: BTreeMap<String, f64> = tags.into_iter().map(|(tag, values)| (tag, mean(&values))).collect();
        let all: Vec<f64> = if by_tag.is_empty() {
            scores.iter().flatten().copied().collect()
        } else {
            by_tag.values().copied().collect()
        };
        Some(Summary { mean: mean(&all), by_tag, missing: scores.iter().filter(|s| s.is_none()).count() })
    }
}

/// Draws `images_per_prompt` images of every prompt from `field` and scores them with every reward.
#[expect(clippy::too_many_arguments, reason = "each is a thing of its own, and there is one caller")]
pub fn measure(
    policy: &dyn Policy,
    field: Box<dyn VelocityField + '_>,
    prompts: &[Prompt],
    rewards: &[&dyn Reward],
    config: &EvalConfig,
    schedule: Schedule,
    device: &Device,
    observer: &dyn Observer,
) -> Result<Measured, EncodeError> {
    let unconditional = policy.encode(&["".into()])?;
    let field = Guided { field, scale: config.sampler.guidance, unconditional };
    let cond = policy.encode(prompts)?;
    let total = prompts.len() * config.images_per_prompt;
    let owner: Vec<usize> = (0..total).map(|i| i / config.images_per_prompt).collect();
    let (size, done) = (config.rows.max(1), AtomicUsize::new(0));
    let draw = |part: usize| {
        let rows = &owner[part * size..total.min((part + 1) * size)];
        let key = |i: usize| Key::new(config.seed, Purpose::Evaluation, 0).sample((part * size + i) as u64);
        let keys: Vec<Key> = (0..rows.len()).map(key).collect();
        let start = noise::normal(keys.iter().copied(), policy.latent_shape(), device);
        // Noise of stochastic steps: draws of the same key other than the start's.
        let keys: Vec<Key> = keys.into_iter().map(|k| Key { epoch: 1, ..k }).collect();
        let points = sampler::sample(&field, &config.sampler, schedule, start, &cond.select(rows), &keys, false);
        observer.progress("evaluation", done.fetch_add(rows.len(), Ordering::Relaxed) + rows.len(), total);
        points.last().map(|images| policy.decode(images.clone())).unwrap_or_default()
    };
    let images = lanes::map(device, total.div_ceil(size), draw).concat();
    let prompts: Vec<Prompt> = owner.iter().map(|&p| prompts[p].clone()).collect();
    let score = |reward: &&dyn Reward| {
        let scores =
            reward.score(&images, &prompts).into_iter().map(|s| s.ok().map(f64::from).filter(|v| v.is_finite()));
        (reward.name().to_owned(), scores.collect())
    };
    let scores = rewards.iter().map(score).collect();
    Ok(Measured { images, prompts, scores })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_is_over_tags_and_missing_scores_do_not_count() {
        let prompt =
            |tag: &str| serde_json::from_value(serde_json::json!({"prompt": "p", "tag": tag})).expect("a prompt");
        let measured = Measured {
            images: Vec::new(),
            prompts: vec![prompt("a"), prompt("a"), prompt("a"), prompt("b")],
            scores: BTreeMap::from([("r".into(), vec![Some(1.0), Some(0.0), None, Some(1.0)])]),
        };
        let summary = measured.summary("r").expect("a reward");
        assert_eq!((summary.by_tag["a"], summary.by_tag["b"], summary.mean, summary.missing), (0.5, 1.0, 0.75, 1));
    }
}
