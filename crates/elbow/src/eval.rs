//! Measuring a policy: fixed prompts, fixed start noise, deterministic steps.

use crate::{
    batch::Sample,
    draw::{Drawing, Seat},
    guidance::GuidedField,
    lanes,
    missing::{self, OnMissing, Patience, Unsettled},
    noise::{Key, Purpose},
    observer::Observer,
    policy::{EncodeError, Policy, VelocityField},
    prompts::Prompt,
    reward::{self, Needs, Request, Reward},
    sampler::{Keep, SamplerConfig},
};
use burn::tensor::Device;
use image::RgbImage;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, sync::Arc};

/// How a policy is measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EvalConfig {
    /// Epochs between evaluations; 0 evaluates before the first epoch and after the last only.
    pub every: u64,
    /// Images a prompt.
    pub images_per_prompt: usize,
    /// Decides the start noise, apart from the run's seed: runs of different seeds are measured alike.
    pub seed: u64,
    /// How the images are drawn.
    pub sampler: SamplerConfig,
    /// Images in one forward pass.
    pub micro_batch: usize,
}

impl Default for EvalConfig {
    fn default() -> Self {
        Self {
            every: 20,
            images_per_prompt: 4,
            seed: 42,
            sampler: SamplerConfig { steps: 40, ..SamplerConfig::default() },
            micro_batch: 32,
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
    /// Standard error of the mean over prompts: pictures of a prompt count as one number. NaN if a tag has fewer than two prompts.
    pub error: f64,
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
        let missing = scores.iter().filter(|s| s.is_none()).count();
        Some(Summary { mean: mean(&all), by_tag, error: error(&self.by_prompt(reward)?), missing })
    }

    /// Means of one reward over the images of each prompt, `None` where all scores of a prompt are missing.
    pub fn by_prompt(&self, reward: &str) -> Option<Vec<(&Prompt, Option<f64>)>> {
        let scores = self.scores.get(reward)?;
        let mut found = Vec::new();
        let mut start = 0;
        for end in 1..=scores.len() {
            if end == scores.len() || self.prompts[end] != self.prompts[start] {
                let known: Vec<f64> = scores[start..end].iter().flatten().copied().collect();
                let mean = (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64);
                found.push((&self.prompts[start], mean));
                start = end;
            }
        }
        Some(found)
    }
}

/// The standard error of a mean over tags: √(Σ s²/n)/T, where s is the deviation between the n prompts of each of T tags.
fn error(prompts: &[(&Prompt, Option<f64>)]) -> f64 {
    let mut tags = BTreeMap::<Option<&str>, Vec<f64>>::new();
    for (prompt, mean) in prompts {
        tags.entry(prompt.tag()).or_default().extend(mean);
    }
    let square = |means: &Vec<f64>| {
        let n = means.len() as f64;
        let mean = means.iter().sum::<f64>() / n;
        means.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0) / n
    };
    tags.values().map(square).sum::<f64>().sqrt() / tags.len() as f64
}

/// Why a policy could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    /// A prompt cannot be encoded.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// A reward was waited for, and whoever watches wants to wait no longer.
    #[error("stopped while waiting for reward `{0}` in an evaluation")]
    Stopped(String),
}

/// Draws `images_per_prompt` images of every prompt from `field`, which is without guidance, and scores them with every reward. With
/// [`OnMissing::Wait`] those that are unavailable are waited for.
#[expect(clippy::too_many_arguments, reason = "what measures, what is measured and how are all apart")]
pub fn measure(
    policy: &dyn Policy,
    field: Box<dyn VelocityField + '_>,
    prompts: &[Prompt],
    rewards: &[&dyn Reward],
    config: &EvalConfig,
    on_missing: OnMissing,
    device: &Device,
    observer: &dyn Observer,
) -> Result<Measured, MeasureError> {
    let unconditional = policy.encode(&["".into()])?;
    let sampling = config.sampler.build();
    let field = GuidedField { field, scale: sampling.guidance, detach: false, unconditional };
    let shared: Vec<Arc<Prompt>> = prompts.iter().cloned().map(Arc::new).collect();
    let seat = |i: usize| {
        let row = i / config.images_per_prompt;
        let start = Key::new(config.seed, Purpose::Evaluation, 0).sample(i as u64);
        // Noise of stochastic steps: draws of the same key other than the start's.
        let key = Key { epoch: 1, ..start };
        Seat::new(Sample { row, group: row, ..Sample::new(Arc::clone(&shared[row]), key) }, start)
    };
    let drawing = Drawing {
        policy,
        field: &field,
        sampling: &sampling,
        keep: Keep::default(),
        micro_batch: config.micro_batch,
        in_flight: lanes::count(device),
        needs: Needs {
            whole_groups: rewards.iter().any(|reward| reward.needs().whole_groups),
            latents: true,
            in_flight: rewards.iter().map(|reward| reward.needs().in_flight).max().unwrap_or(1),
        },
        device,
        phase: "evaluation",
        observer,
    };
    let seats = (0..prompts.len() * config.images_per_prompt).map(seat).collect();
    // One row a sample: its score by each reward.
    let judge = |request: &Request<'_>| {
        let mut rows = vec![Vec::with_capacity(rewards.len()); request.images.len()];
        for reward in rewards {
            rows.iter_mut().zip(reward::ask(*reward, request)).for_each(|(row, score)| row.push(score));
        }
        rows
    };
    let prompts = policy.encode(prompts)?;
    for reward in rewards {
        reward.wake();
    }
    let mut drawn = drawing.draw(seats, prompts, judge);
    let broken = missing::broken(&drawn.batch);
    let mut scores_of = |reward: &dyn Reward| {
        let mut column: Vec<_> = drawn.verdicts.iter_mut().map(|row| row.remove(0)).collect();
        // Scores that no waiting brings stay missing: a summary counts them.
        let patience = Patience { most: 0.0, then: on_missing };
        if missing::settle(reward, &drawn.batch, &broken, &mut column, patience, observer) == Err(Unsettled::Stopped) {
            return Err(MeasureError::Stopped(reward.name().to_owned()));
        }
        let values = column.into_iter().map(|score| score.ok().map(|score| score.value)).collect();
        Ok((reward.name().to_owned(), values))
    };
    let scores = rewards.iter().map(|reward| scores_of(*reward)).collect::<Result<_, _>>();
    for reward in rewards {
        reward.sleep();
    }
    let scores = scores?;
    let samples = &drawn.batch.samples;
    Ok(Measured {
        images: samples.iter().map(|sample| RgbImage::clone(&sample.image)).collect(),
        prompts: samples.iter().map(|sample| Prompt::clone(&sample.prompt)).collect(),
        scores,
    })
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

    #[test]
    fn the_error_is_that_of_prompts_and_not_of_their_pictures() {
        let prompt = |text: &str, tag: Option<&str>| {
            let tag =
                tag.map_or(serde_json::json!({"prompt": text}), |tag| serde_json::json!({"prompt": text, "tag": tag}));
            serde_json::from_value::<Prompt>(tag).expect("a prompt")
        };
        let summary = |prompts: Vec<Prompt>, scores: &[f64]| {
            let scores = BTreeMap::from([("r".into(), scores.iter().copied().map(Some).collect())]);
            Measured { images: Vec::new(), prompts, scores }.summary("r").expect("a reward")
        };
        // Prompt means 0.5, 1 and 0: variance 1/4, error √(1/4 / 3).
        let plain = ["a", "a", "b", "b", "c", "c"].map(|text| prompt(text, None)).to_vec();
        let found = summary(plain, &[0.0, 1.0, 1.0, 1.0, 0.0, 0.0]);
        assert!((found.error - (0.25_f64 / 3.0).sqrt()).abs() < 1e-12, "{}", found.error);
        // Two tags of two prompts: variances 1/2 and 1/8, error √(1/4 + 1/16) / 2.
        let tagged =
            [("a", "x"), ("b", "x"), ("c", "y"), ("d", "y")].map(|(text, tag)| prompt(text, Some(tag))).to_vec();
        let found = summary(tagged, &[0.0, 1.0, 0.25, 0.75]);
        assert!((found.error - 0.3125_f64.sqrt() / 2.0).abs() < 1e-12, "{}", found.error);
        assert!(summary(vec![prompt("a", None)], &[1.0]).error.is_nan());
    }
}
