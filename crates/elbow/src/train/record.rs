//! What an epoch leaves in the log, under the field's names.

use super::{Drawn, Trainer, replay, update::Outcome};
use crate::{advantage::Moments, prompts::Prompt};
use image::RgbImage;
use serde_json::{Map, Value};
use std::time::Duration;

/// One epoch's numbers and some of its images.
#[derive(Clone, Debug)]
pub struct EpochReport {
    /// One record of `metrics.jsonl`; keys that start with `time_` and `samples_per_second` depend on the machine, all others
    /// on the run alone.
    pub record: Map<String, Value>,
    /// The first image of each group.
    pub samples: Vec<Sample>,
}

/// An image, what it was drawn for and how it scored.
#[derive(Clone, Debug)]
pub struct Sample {
    /// The picture.
    pub image: RgbImage,
    /// Its prompt.
    pub prompt: Prompt,
    /// Its reward; `None` is missing.
    pub reward: Option<f64>,
}

pub(super) struct Timing {
    pub(super) rollout: Duration,
    pub(super) reward: Duration,
    pub(super) update: Duration,
}

/// Mean of what is there; null of nothing.
fn mean(values: &[f64]) -> Value {
    if values.is_empty() { Value::Null } else { Value::from(Moments::of(values).mean) }
}

pub(super) fn report(trainer: &Trainer<'_>, drawn: &Drawn, outcome: &Outcome, timing: Timing) -> EpochReport {
    let (total, groups) = (Moments::of(&new(drawn, &drawn.rewards.rewards)), drawn.rewards.moments());
    let images = drawn.images.len() - drawn.replayed.len();
    let drawn_images = images + drawn.extra.groups * trainer.config.batch.group_size;
    let reward = trainer.reward.name();
    let group_std: Vec<f64> = groups.iter().filter(|g| g.count > 0).map(|g| g.std).collect();
    let squares: Vec<f64> = outcome.log_ratios.iter().map(|r| r * r / 2.0).collect();
    let largest = outcome.log_ratios.iter().fold(0.0, |m: f64, r| m.max(r.abs()));
    let ratios = Moments::of(&outcome.log_ratios);
    let seconds = (timing.rollout + timing.update).as_secs_f64();
    let parts = trainer.reward.parts().iter().zip(&drawn.rewards.parts).flat_map(|(reward, part)| {
        let of = Moments::of(&new(drawn, &part.rewards));
        let name = format!("reward_{}", reward.name);
        [(format!("{name}_std"), Value::from(of.std)), (name, Value::from(of.mean))]
    });
    let top_up = (trainer.config.top_up.groups > 0).then(|| drawn.extra.entries(reward));
    let per_tag = tags(drawn).into_iter().map(|(tag, values)| (format!("reward_{reward}_{tag}"), mean(&values)));
    let entries = [
        ("epoch".into(), Value::from(trainer.state.epoch)),
        ("step".into(), Value::from(trainer.state.optimizer.step)),
        (format!("reward_{reward}"), Value::from(total.mean)),
        (format!("reward_{reward}_std"), Value::from(total.std)),
        ("reward_std_mean".into(), mean(&group_std)),
        ("reward_missing".into(), Value::from(images - total.count)),
        ("zero_std_ratio".into(), Value::from(groups.iter().filter(|g| g.agree).count() as f64 / groups.len() as f64)),
        ("trained_samples".into(), Value::from(outcome.trained)),
        ("policy_loss".into(), mean(&outcome.policy_losses)),
        ("kl_loss".into(), mean(&outcome.kls)),
        ("approx_kl".into(), mean(&squares)),
        ("logratio_std".into(), Value::from(ratios.std)),
        ("logratio_max".into(), Value::from(largest)),
        ("clipfrac".into(), mean(&outcome.clipped)),
        ("grad_norm".into(), mean(&outcome.grad_norms)),
        ("time_rollout".into(), Value::from(timing.rollout.as_secs_f64())),
        ("time_reward".into(), Value::from(timing.reward.as_secs_f64())),
        ("time_update".into(), Value::from(timing.update.as_secs_f64())),
        ("samples_per_second".into(), Value::from(drawn_images as f64 / seconds)),
    ];
    let replayed = (trainer.config.replay.prompts > 0).then(|| replay::entries(drawn)).into_iter().flatten();
    let further = drafts(drawn, reward)
        .into_iter()
        .chain(replayed)
        .chain(per_tag)
        .chain(parts)
        .chain(top_up.into_iter().flatten());
    let record = entries.into_iter().chain(further).collect();
    let first = |g: usize| g * trainer.config.batch.group_size;
    let sample = |(g, prompt): (usize, &Prompt)| Sample {
        image: drawn.images[first(g)].clone(),
        prompt: prompt.clone(),
        reward: drawn.rewards.rewards[first(g)],
    };
    EpochReport { record, samples: drawn.prompts.iter().enumerate().map(sample).collect() }
}

/// Rewards that are there, of the images drawn in the epoch.
fn new(drawn: &Drawn, rewards: &[Option<f64>]) -> Vec<f64> {
    let known = rewards.iter().enumerate().filter(|(i, _)| !drawn.replayed.contains(i));
    known.filter_map(|(_, reward)| *reward).collect()
}

/// What the drafts cost and scored, if there were any.
fn drafts(drawn: &Drawn, reward: &str) -> Vec<(String, Value)> {
    if drawn.drafts.is_empty() {
        return Vec::new();
    }
    let scored: Vec<f64> = drawn.drafts.iter().flatten().copied().collect();
    vec![
        ("drafts".into(), Value::from(drawn.drafts.len())),
        ("draft_reward_missing".into(), Value::from(drawn.drafts.len() - scored.len())),
        (format!("draft_reward_{reward}"), mean(&scored)),
        (format!("draft_reward_{reward}_std"), Value::from(Moments::of(&scored).std)),
    ]
}

/// Rewards by tag of the prompt, in order of the tags' names.
fn tags(drawn: &Drawn) -> std::collections::BTreeMap<&str, Vec<f64>> {
    let mut tags = std::collections::BTreeMap::<&str, Vec<f64>>::new();
    let size = drawn.images.len() / drawn.prompts.len();
    for (i, reward) in drawn.rewards.rewards.iter().enumerate().filter(|(i, _)| !drawn.replayed.contains(i)) {
        if let Some(tag) = drawn.prompts[i / size].tag() {
            tags.entry(tag).or_default().extend(reward);
        }
    }
    tags.retain(|_, rewards| !rewards.is_empty());
    tags
}
