//! Cheap drafts: of many images of a prompt in few steps, only the best and the worst are drawn in full (the idea of Sol-RL,
//! arXiv 2604.06916).
//!
//! A draft and the image in full share their start noise, so that a draft tells what the image will be. Of `count` drafts the
//! ⌈G/2⌉ best and the ⌊G/2⌋ worst are redone, G = `batch.group_size`. A draft without a reward ranks in the middle, where it is
//! redone only if too few others have one; a redone image is scored again, and nothing is trained on a draft.
//!
//! Departure: the paper's drafts are cheap by arithmetic in 4 bits, these by few steps.

use crate::{
    sampler::{Dpm2, SamplerKind, Sampling},
    schedule::Schedule,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How drafts are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Drafts {
    /// Drafts a prompt; 0 is off.
    pub count: usize,
    /// Network evaluations a draft.
    pub steps: usize,
    /// The rule of a step. Shift and guidance are those of the images.
    pub rule: SamplerKind,
}

impl Default for Drafts {
    fn default() -> Self {
        Self { count: 0, steps: 4, rule: SamplerKind::Dpm2(Dpm2 {}) }
    }
}

impl Drafts {
    /// How drafts are drawn where `full` is how images are.
    #[must_use]
    pub fn sampling(self, full: Sampling) -> Sampling {
        Sampling { rule: self.rule, steps: self.steps, ..full }
    }

    /// What is wrong with them, for groups of `group_size` images.
    pub(crate) fn problems(&self, group_size: usize, full: Sampling, schedule: Schedule) -> Vec<String> {
        let Self { count, steps, .. } = *self;
        if count == 0 {
            return Vec::new();
        }
        let mut problems = Vec::new();
        if count < group_size {
            problems.push(format!(
                "drafts.count = {count}: at least batch.group_size = {group_size} drafts a prompt, of which the best and the \
                 worst are drawn in full; 0 is off"
            ));
        }
        if steps == 0 || steps > full.steps {
            let full = full.steps;
            problems.push(format!("drafts.steps = {steps}: at least 1, and no more than sampler.steps = {full}"));
        }
        let reasons = self.sampling(full).validate(schedule);
        problems.extend(reasons.into_iter().map(|reason| format!("drafts.rule: {reason}")));
        problems
    }
}

/// The `keep` drafts of a prompt that are redone, in their order: best and worst by reward, the first of equals, where `None`
/// is missing.
pub(crate) fn best_and_worst(rewards: &[Option<f64>], keep: usize) -> Vec<usize> {
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

    #[test]
    fn what_cannot_be_is_told_with_its_numbers() {
        let full = Sampling { steps: 10, ..Sampling::default() };
        let problems = |drafts: Drafts| drafts.problems(8, full, Schedule::RectifiedFlow);
        assert!(problems(Drafts { steps: 99, ..Drafts::default() }).is_empty(), "off");
        let drafts = Drafts { count: 16, ..Drafts::default() };
        assert!(problems(drafts).is_empty());
        let few = problems(Drafts { count: 7, steps: 11, ..drafts });
        assert!(few.len() == 2 && few[0].contains("= 7") && few[0].contains("group_size = 8"), "{few:?}");
        assert!(few[1].contains("steps = 11") && few[1].contains("= 10"), "{few:?}");
        assert_eq!(drafts.sampling(full), Sampling { steps: 4, ..full });
    }
}
