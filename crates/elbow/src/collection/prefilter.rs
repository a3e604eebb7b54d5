//! A prefilter: of many cheap samples of a prompt, only the best and the worst are drawn in full (the idea of Sol-RL,
//! arXiv 2604.06916).
//!
//! A cheap sample and the one in full share their start noise, so that one tells what the other will be. Of `count` of them the
//! ⌈G/2⌉ best and the ⌊G/2⌋ worst are redone, G = `batch.group_size`. One without a reward ranks in the middle, where it is
//! redone only if too few others have one; a redone sample is scored again, and nothing is trained on a cheap one.
//!
//! Departure: the paper's are cheap by arithmetic in 4 bits, these by few steps.

use super::{Collected, Collection, Memory, mean};
use crate::{
    advantage::Moments,
    batch::Sample,
    draw::Seat,
    rollout::{Rollout, RolloutError},
    sampler::{Keep, SamplerKind, Sampling},
    setting::{Setting, StartNoise},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// How cheap samples are drawn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Prefilter {
    /// Cheap samples a prompt.
    pub count: usize,
    /// Network evaluations of each.
    pub steps: usize,
    /// The rule of a step. Shift and guidance are those of the samples in full.
    pub rule: SamplerKind,
}

impl Default for Prefilter {
    fn default() -> Self {
        Self { count: 96, steps: 4, rule: SamplerKind::default() }
    }
}

impl Collection for Prefilter {
    fn collect(&self, rollout: &Rollout<'_>, _: &Memory) -> Result<Collected, RolloutError> {
        let (groups, size, count) = (rollout.batch.groups, rollout.batch.group_size, self.count);
        let prompts = rollout.new_prompts(0, groups);
        let cheap_seat = |i: usize| {
            let sample = Sample {
                row: i / count,
                group: i / count,
                ..Sample::new(Arc::clone(&prompts[i / count]), rollout.key(i))
            };
            Seat::new(sample, rollout.start(i))
        };
        let seats = (0..groups * count).map(cheap_seat).collect();
        let sampling = Sampling {
            rule: self.rule.build().into(),
            steps: self.steps,
            spacing: rollout.sampling.spacing.of_any_length(),
            ..rollout.sampling.clone()
        };
        let cheap = rollout.draw("prefilter", &sampling, &prompts, seats, Keep::default())?;
        let rewards: Vec<Option<f64>> = cheap.samples.iter().map(Sample::value).collect();

        let mut seats = rollout.seats(&prompts, 0);
        for (group, rewards) in rewards.chunks(count).enumerate() {
            for (i, chosen) in best_and_worst(rewards, size).into_iter().enumerate() {
                seats[group * size + i].start = rollout.start(group * count + chosen);
            }
        }
        let batch = rollout.draw("rollout", rollout.sampling, &prompts, seats, rollout.keep)?;

        let scored: Vec<f64> = rewards.iter().flatten().copied().collect();
        let name = rollout.reward.name();
        let log = vec![
            ("prefilter_samples".into(), rewards.len().into()),
            ("prefilter_reward_missing".into(), (rewards.len() - scored.len()).into()),
            (format!("prefilter_reward_{name}"), mean(&scored)),
            (format!("prefilter_reward_{name}_std"), Moments::of(&scored).std.into()),
        ];
        Ok(Collected { log, ..Collected::all(batch) })
    }

    fn validate(&self, setting: &Setting) -> Vec<String> {
        let (Self { count, steps, .. }, size, full) = (self, setting.batch.group_size, setting.grid.steps());
        let mut problems = Vec::new();
        if *count < size {
            problems.push(format!(
                "collection.count = {count}: at least batch.group_size = {size} cheap samples a prompt, of which the best and the \
                 worst are drawn in full"
            ));
        }
        if *steps == 0 || *steps > full {
            problems.push(format!("collection.steps = {steps}: at least 1, and no more than sampler.steps = {full}"));
        }
        if setting.start_noise == StartNoise::PerGroup {
            problems.push(
                "collection `prefilter` chooses among start noises, of which start_noise = \"per-group\" has one: use \
                 \"per-sample\", or collection.kind = \"plain\""
                    .into(),
            );
        }
        let cheap = Sampling::plain(self.rule.build().into(), (*steps).max(1));
        let reasons = cheap.validate("collection", setting.grid.schedule);
        problems.extend(reasons.into_iter().map(|reason| format!("collection.rule: {reason}")));
        problems
    }
}

/// The `keep` samples of a prompt that are redone, in their order: best and worst by reward, the first of equals, where `None`
/// is missing.
fn best_and_worst(rewards: &[Option<f64>], keep: usize) -> Vec<usize> {
    let (mut ranked, unknown): (Vec<usize>, Vec<usize>) = (0..rewards.len()).partition(|&i| rewards[i].is_some());
    let reward = |i: usize| rewards[i].unwrap_or(f64::NAN);
    ranked.sort_by(|&a, &b| reward(b).total_cmp(&reward(a)));
    let middle = ranked.len().div_ceil(2);
    ranked.splice(middle..middle, unknown);
    let (best, worst) = (keep.div_ceil(2), keep / 2);
    let mut kept: Vec<usize> = ranked[..best].iter().chain(&ranked[ranked.len() - worst..]).copied().collect();
    kept.sort_unstable();
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_and_the_worst_are_redone() {
        let some = |values: &[f64]| values.iter().map(|&v| Some(v)).collect::<Vec<_>>();
        let rewards = some(&[0.1, 0.9, 0.5, -2.0, 0.8, 0.4]);
        for (keep, expected) in [(2, &[1, 3][..]), (3, &[1, 3, 4]), (4, &[0, 1, 3, 4]), (6, &[0, 1, 2, 3, 4, 5])] {
            assert_eq!(best_and_worst(&rewards, keep), expected);
        }
        assert_eq!(best_and_worst(&some(&[0.5; 5]), 3), [0, 1, 4]);
    }

    /// Were it zero, it would be the best of these and the worst of those.
    #[test]
    fn a_missing_reward_is_neither_good_nor_bad() {
        let below = [Some(-1.0), None, Some(-3.0), Some(-2.0), Some(-4.0)];
        assert_eq!(best_and_worst(&below, 2), [0, 4]);
        let above = [Some(1.0), None, Some(3.0), Some(2.0), Some(4.0)];
        assert_eq!(best_and_worst(&above, 4), [0, 2, 3, 4]);
        // Redone only where there are too few others.
        assert_eq!(best_and_worst(&[None, Some(1.0), None, None], 3), [0, 1, 3]);
        assert_eq!(best_and_worst(&[None; 4], 2), [0, 3]);
    }
}
