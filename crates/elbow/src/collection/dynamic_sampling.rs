//! Dynamic sampling (arXiv 2503.14476, §3.2): further groups in place of those without variance.
//!
//! Groups of the batch keep their places. While some have no variance, as many further groups are drawn, up to a bound; those of them
//! that have some take the places of those that have none, in order.
//!
//! Departure: the paper draws whole further batches and drops what is left over.

use super::{Collected, Collection, Memory, mean};
use crate::{
    batch::{Batch, Sample},
    rollout::{Rollout, RolloutError},
    setting::Setting,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Further groups in place of those without variance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DynamicSampling {
    /// Groups that an epoch may draw beyond `batch.groups`: one for each without variance, until none is left.
    pub extra_groups: usize,
}

impl Default for DynamicSampling {
    fn default() -> Self {
        Self { extra_groups: 48 }
    }
}

impl Collection for DynamicSampling {
    fn collect(&self, rollout: &Rollout<'_>, _: &Memory) -> Result<Collected, RolloutError> {
        let (groups, size) = (rollout.batch.groups, rollout.batch.group_size);
        let mut batch = rollout.groups(0..groups)?;
        let mut seen = rewards(&batch);
        let (mut next, mut unused) = (groups, 0);
        let end = groups + self.extra_groups;
        while next < end {
            let missing = without_variance(rollout, &batch);
            if missing.is_empty() {
                break;
            }
            let more = rollout.groups(next..end.min(next + missing.len()))?;
            let further = more.len() / size;
            next += further;
            seen.extend(rewards(&more));
            let flat = without_variance(rollout, &more);
            let useful: Vec<usize> = (0..further).filter(|group| !flat.contains(group)).collect();
            unused += further - useful.len();
            batch = replaced(batch, more, size, &missing, &useful);
        }
        let extra = next - groups;
        let drawn_rewards = if extra == 0 { Vec::new() } else { seen };
        let log = vec![
            ("extra_groups".into(), extra.into()),
            ("extra_groups_unused".into(), unused.into()),
            (format!("reward_{}_drawn", rollout.reward.name()), mean(&drawn_rewards)),
        ];
        Ok(Collected { drawn: next * size, log, ..Collected::all(batch) })
    }

    fn validate(&self, setting: &Setting) -> Vec<String> {
        let (extra, mut problems) = (self.extra_groups, Vec::new());
        if extra == 0 {
            problems
                .push("collection.extra_groups = 0: at least one further group, or collection.kind = \"plain\"".into());
        }
        if !setting.compares_groups {
            problems.push(
                "collection `dynamic-sampling`: this advantage looks beyond the group, so that every group says something; set \
                 collection.kind = \"plain\""
                    .into(),
            );
        }
        if setting.compared != setting.batch.group_size {
            problems.push(format!(
                "collection `dynamic-sampling` replaces the samples of a prompt, of which this sampler compares {} at a time; set \
                 collection.kind = \"plain\"",
                setting.compared
            ));
        }
        problems
    }
}

/// The groups without variance.
fn without_variance(rollout: &Rollout<'_>, batch: &Batch) -> Vec<usize> {
    let zero_variance = rollout.advantage.zero_variance(&batch.samples);
    (0..zero_variance.len()).filter(|&group| zero_variance[group]).collect()
}

/// A batch whose groups `missing` are replaced by the groups `useful` of `more`, as far as these go.
fn replaced(batch: Batch, more: Batch, size: usize, missing: &[usize], useful: &[usize]) -> Batch {
    let count = batch.len() / size;
    let mut groups: Vec<usize> = (0..count).collect();
    for (&old, &new) in missing.iter().zip(useful) {
        groups[old] = count + new;
    }
    let rows: Vec<usize> = groups.iter().flat_map(|group| group * size..(group + 1) * size).collect();
    let mut batch = Batch::cat(vec![batch, more]).select(&rows);
    for (i, sample) in batch.samples.iter_mut().enumerate() {
        sample.group = i / size;
    }
    batch
}

/// Rewards that are there.
fn rewards(batch: &Batch) -> Vec<f64> {
    batch.samples.iter().filter_map(Sample::value).collect()
}
