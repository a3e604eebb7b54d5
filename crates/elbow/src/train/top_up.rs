//! Dynamic sampling (arXiv 2503.14476, §3.2): further groups in place of those that say nothing.

use super::{
    Observer, TrainError, Trainer,
    rollout::{self, Drawn},
};
use crate::{
    advantage::{Grouped, Moments, Part},
    likelihood::Rollout,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How often groups that say nothing, since their rewards agree, are drawn anew (dynamic sampling, arXiv 2503.14476).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TopUp {
    /// Groups that an epoch may draw beyond `batch.groups`, one for each that says nothing until none is left; 0 draws none.
    pub groups: usize,
}

/// What an epoch drew beyond its batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Extra {
    /// Further groups.
    pub groups: usize,
    /// Those of them that said nothing either, or too late.
    pub unused: usize,
    /// Every reward that was drawn, also those that are not in the batch; empty without further groups.
    pub rewards: Vec<f64>,
}

/// Draws an epoch's groups, and further ones in place of those that say nothing.
pub(super) fn draw(trainer: &Trainer<'_>, observer: &dyn Observer) -> Result<Drawn, TrainError> {
    let (batch, top_up) = (trainer.config.batch, trainer.config.top_up);
    let mut drawn = rollout::draw(trainer, observer, 0..batch.groups)?;
    let (mut next, end) = (batch.groups, batch.groups + top_up.groups);
    while next < end {
        let missing = silent(trainer, &drawn);
        if missing.is_empty() {
            break;
        }
        let more = rollout::draw(trainer, observer, next..end.min(next + missing.len()))?;
        next += more.prompts.len();
        drawn = replaced(trainer, drawn, more, &missing);
    }
    Ok(drawn)
}

/// The groups that say nothing.
fn silent(trainer: &Trainer<'_>, drawn: &Drawn) -> Vec<usize> {
    let silent = trainer.config.advantage.get().silent(&drawn.rewards);
    silent.into_iter().enumerate().filter_map(|(g, silent)| silent.then_some(g)).collect()
}

/// What was drawn, with the groups `missing` replaced by those of `more` that say something, as far as these go.
fn replaced(trainer: &Trainer<'_>, drawn: Drawn, more: Drawn, missing: &[usize]) -> Drawn {
    let (size, count, further) = (trainer.config.batch.group_size, drawn.prompts.len(), more.prompts.len());
    let still = silent(trainer, &more);
    let speaking: Vec<usize> = (0..further).filter(|g| !still.contains(g)).collect();
    let mut groups: Vec<usize> = (0..count).collect();
    for (&old, &new) in missing.iter().zip(&speaking) {
        groups[old] = count + new;
    }
    let rows: Vec<usize> = groups.iter().flat_map(|g| g * size..(g + 1) * size).collect();
    let seen = if drawn.extra.groups == 0 { present(&drawn.rewards) } else { drawn.extra.rewards };
    let extra = Extra {
        groups: drawn.extra.groups + further,
        unused: drawn.extra.unused + further - speaking.len(),
        rewards: [seen, present(&more.rewards)].concat(),
    };
    let images = [drawn.images, more.images].concat();
    Drawn {
        rollout: Rollout::cat(&[drawn.rollout, more.rollout]).select(&rows),
        prompts: picked(drawn.prompts, more.prompts, &groups),
        images: rows.iter().map(|&r| images[r].clone()).collect(),
        rewards: Grouped {
            rewards: picked(drawn.rewards.rewards, more.rewards.rewards, &rows),
            groups: drawn.rewards.groups,
            earlier: picked(drawn.rewards.earlier, more.rewards.earlier, &groups),
            parts: (drawn.rewards.parts.into_iter().zip(more.rewards.parts))
                .map(|(a, b)| Part { weight: a.weight, rewards: picked(a.rewards, b.rewards, &rows) })
                .collect(),
        },
        drafts: [drawn.drafts, more.drafts].concat(),
        extra,
        replayed: drawn.replayed,
        reward_time: drawn.reward_time + more.reward_time,
    }
}

/// These of the elements of both.
pub(super) fn picked<T: Clone>(mut first: Vec<T>, second: Vec<T>, indices: &[usize]) -> Vec<T> {
    first.extend(second);
    indices.iter().map(|&i| first[i].clone()).collect()
}

/// Rewards that are there.
fn present(rewards: &Grouped) -> Vec<f64> {
    rewards.rewards.iter().flatten().copied().collect()
}

impl Extra {
    /// What it leaves in the log: groups drawn, those of them without use, and the mean reward of all that was drawn.
    pub(super) fn entries(&self, reward: &str) -> Vec<(String, serde_json::Value)> {
        let mean = (!self.rewards.is_empty()).then(|| Moments::of(&self.rewards).mean);
        vec![
            ("extra_groups".into(), self.groups.into()),
            ("extra_groups_unused".into(), self.unused.into()),
            (format!("reward_{reward}_drawn"), mean.into()),
        ]
    }
}
