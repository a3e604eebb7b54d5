//! Replay of good paths: samples of earlier epochs in groups of this one (the idea of OP-GRPO, arXiv 2604.04142).
//!
//! Of a group whose rewards differ, the k best samples are kept with their paths and their log-probability L_c under the weights c
//! that drew them. A later epoch gives some of its groups to kept prompts: all but k samples of such a group are drawn anew, the
//! others are the kept ones, so that a prompt that is rarely solved meets what solved it. They are compared with the group
//! as any other; their part of the objective's loss counts
//!
//! w = min(exp(L_b − L_c), w₊),  L = Σ over the scored steps of the path
//!
//! where b are the behavior weights of now. This ratio of whole paths is held fixed; the objective's own ratio π_θ/π_b, and
//! so its clip, is that of samples drawn now. Late steps, where ratios of old paths are ill-conditioned, are left out by
//! `likelihood.fraction`.
//!
//! π_c and π_b are compared by L_b − L_c summed over the scored steps, and L is a mean over latent dimensions unless `likelihood.reduction
//! = "sum"`. With the mean, w is the D-th root of the paths' true ratio: it corrects which way the weights lean, and not by how much. The
//! true ratio of D = 3072 dimensions is 0 or at its cap after a few epochs.
//!
//! The paper's abstract states these three parts and not their formulas: which paths are kept (the prompts whose best
//! samples stand out most), for how long (until they are replayed, once) and the cap w₊ are choices of this module.

use super::{Collected, Collection, Memory, mean, memory::bits};
use crate::{
    advantage::Moments,
    batch::{Batch, Sample},
    draw::Seat,
    likelihood::Likelihood,
    noise::Key,
    params::Params,
    policy::VelocityField,
    prompts::Prompt,
    reward::{Part, Score},
    rollout::{Rollout, RolloutError},
    sampler::Keep,
    setting::{Scored, Setting, StartNoise},
};
use burn::tensor::{Device, Tensor, TensorData};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::sync::Arc;

/// Which samples of earlier epochs come back.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Replay {
    /// Prompts whose best samples are kept, those that stand out most from their group.
    pub prompts: usize,
    /// Groups of an epoch that are given to kept prompts, as far as there are any.
    pub groups: usize,
    /// k, samples of a prompt that are kept, and that replace as many of its group.
    pub samples: usize,
    /// w₊, the largest importance weight.
    pub max_weight: f64,
}

impl Default for Replay {
    fn default() -> Self {
        Self { prompts: 32, groups: 4, samples: 2, max_weight: 2.0 }
    }
}

/// The best samples of one prompt, kept for replay.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Kept {
    prompt: Prompt,
    /// By how much their mean reward lies above that of their group.
    #[serde(with = "bits")]
    margin: f64,
    samples: Vec<KeptSample>,
}

/// A sample that was drawn before.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct KeptSample {
    #[serde(with = "bits")]
    reward: f64,
    /// The rewards that it is the sum of.
    parts: Vec<KeptPart>,
    /// Epoch and number in it, which decide the steps that a likelihood chooses.
    epoch: u64,
    number: u64,
    /// L_c
    #[serde(with = "bits")]
    log_prob: f64,
    /// Its path, T + 1 points after each other, which a checkpoint holds as a tensor.
    #[serde(skip)]
    path: Vec<f32>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct KeptPart {
    name: String,
    #[serde(with = "bits")]
    weight: f64,
    #[serde(with = "bits")]
    value: f64,
}

impl Collection for Replay {
    fn collect(&self, rollout: &Rollout<'_>, memory: &Memory) -> Result<Collected, RolloutError> {
        let kept = recalled(memory);
        let (groups, size) = (rollout.batch.groups, rollout.batch.group_size);
        let slots = self.slots(&kept, groups);
        let prompts = prompts(rollout, &slots);
        let replayed: Vec<usize> = self.replayed(&slots, size);
        let seats = rollout.seats(&prompts, 0).into_iter().enumerate();
        let seats: Vec<Seat> = seats.filter(|(i, _)| !replayed.contains(i)).map(|(_, seat)| seat).collect();
        let new = rollout.draw("rollout", rollout.sampling, &prompts, seats, Keep { points: true, ..rollout.keep })?;
        let drawn = new.len();

        let due: Vec<&KeptSample> = slots.iter().flatten().flat_map(|kept| &kept.samples).collect();
        let batch = if due.is_empty() {
            new
        } else {
            let earlier = self.earlier(rollout, &prompts, &replayed, &due, &new);
            merged(new, earlier, &replayed)
        };
        let memory = remembered(&self.kept_after(rollout, &batch, &kept));
        Ok(Collected { memory, drawn, log: log(&batch), batch })
    }

    fn only_new(&self) -> bool {
        false
    }

    fn validate(&self, setting: &Setting) -> Vec<String> {
        let (Self { prompts, groups, samples, max_weight }, batch) = (*self, setting.batch);
        let mut problems = Vec::new();
        if prompts == 0 {
            problems.push("collection.prompts = 0: at least one prompt is kept, or collection.kind = \"plain\"".into());
        }
        if groups == 0 || groups >= batch.groups {
            let all = batch.groups;
            problems.push(format!(
                "collection.groups = {groups}: at least 1, and fewer than batch.groups = {all}, so that some prompts are new"
            ));
        }
        if samples == 0 || samples >= batch.group_size {
            let size = batch.group_size;
            problems.push(format!(
                "collection.samples = {samples}: at least 1, and fewer than batch.group_size = {size}, so that some samples are new"
            ));
        }
        if !(max_weight >= 1.0 && max_weight.is_finite()) {
            problems.push(format!("collection.max_weight = {max_weight}: must be a number from 1 on"));
        }
        if !matches!(setting.scored, Scored::Steps { .. }) {
            problems.push(
                "collection `replay` needs the log-probability of a path: use likelihood `trajectory`, or collection.kind = \"plain\""
                    .into(),
            );
        }
        if setting.moves || setting.start_noise == StartNoise::PerGroup || !setting.compares_groups {
            problems.push(
                "collection `replay` mixes samples of several epochs in a group, which have to be drawn alike: use it without samplers \
                 `window` and `branch` and start_noise \"per-group\", and with an advantage that compares the samples of a group; or \
                 set collection.kind = \"plain\""
                    .into(),
            );
        }
        problems
    }
}

impl Replay {
    /// The kept prompt of each of `groups` groups that is given to one, evenly spread.
    fn slots<'a>(&self, kept: &'a [Kept], groups: usize) -> Vec<Option<&'a Kept>> {
        let due = self.groups.min(kept.len());
        let mut slots = vec![None; groups];
        for (i, kept) in kept.iter().take(due).enumerate() {
            slots[i * groups / due] = Some(kept);
        }
        slots
    }

    /// The samples that are replayed, by number: the last of each group that is given to a kept prompt.
    fn replayed(&self, slots: &[Option<&Kept>], size: usize) -> Vec<usize> {
        let given = slots.iter().enumerate().filter(|(_, slot)| slot.is_some());
        given.flat_map(|(group, _)| (group + 1) * size - self.samples..(group + 1) * size).collect()
    }

    /// The kept samples, which become those of the numbers `replayed`.
    fn earlier(
        &self,
        rollout: &Rollout<'_>,
        prompts: &[Arc<Prompt>],
        replayed: &[usize],
        due: &[&KeptSample],
        new: &Batch,
    ) -> Batch {
        let samples = replayed.iter().zip(due).map(|(&number, kept)| {
            let sample = rollout.sample(prompts, 0, number);
            let key = Key { epoch: kept.epoch, ..sample.key }.sample(kept.number);
            Sample {
                key,
                walk: rollout.sampling.rule.walk(&new.grid, key).into(),
                reward: Ok(kept.score()),
                replayed: true,
                ..sample
            }
        });
        let points = paths(due, new.points.len(), rollout.policy.dims(), rollout.device);
        let mut earlier = Batch { samples: samples.collect(), points, ..new.clone() };
        let now = log_probs(rollout.likelihood, &earlier, rollout.field);
        let pictures = rollout.policy.decode(earlier.clean().clone());
        for (((sample, kept), now), picture) in earlier.samples.iter_mut().zip(due).zip(now).zip(pictures) {
            sample.importance = (now - kept.log_prob).exp().min(self.max_weight);
            sample.image = Arc::new(picture.picture);
        }
        earlier
    }

    /// What is kept after an epoch that drew this batch: what was kept and not replayed, and the best samples of the groups drawn
    /// now.
    fn kept_after(&self, rollout: &Rollout<'_>, batch: &Batch, kept: &[Kept]) -> Vec<Kept> {
        let due = self.groups.min(kept.len());
        let mut new: Vec<(f64, Vec<usize>)> = batch
            .groups()
            .into_iter()
            .filter(|members| members.iter().all(|&i| !batch.samples[i].replayed))
            .filter_map(|members| best(batch, &members, self.samples))
            .collect();
        // The newest samples of a prompt are those that fit the weights best.
        let again = |kept: &Kept| new.iter().any(|(_, rows)| *batch.samples[rows[0]].prompt == kept.prompt);
        let mut all: Vec<Kept> = kept[due..].iter().filter(|kept| !again(kept)).cloned().collect();
        let mut margins: Vec<f64> =
            all.iter().map(|kept| kept.margin).chain(new.iter().map(|(margin, _)| *margin)).collect();
        margins.sort_by(|a, b| b.total_cmp(a));
        if let Some(&least) = margins.get(self.prompts - 1) {
            new.retain(|(margin, _)| *margin >= least);
        }
        all.extend(new.into_iter().map(|(margin, rows)| Kept {
            prompt: Prompt::clone(&batch.samples[rows[0]].prompt),
            margin,
            samples: copies(rollout, batch, &rows),
        }));
        all.sort_by(|a, b| b.margin.total_cmp(&a.margin));
        all.truncate(self.prompts);
        all
    }
}

impl KeptSample {
    fn score(&self) -> Score {
        let parts = self.parts.iter().map(|part| Part {
            name: part.name.as_str().into(),
            weight: part.weight,
            value: part.value,
        });
        Score { value: self.reward, parts: parts.collect() }
    }
}

/// What is kept, out of a memory.
fn recalled(memory: &Memory) -> Vec<Kept> {
    if memory.is_empty() {
        return Vec::new();
    }
    let mut all: Vec<Kept> = Vec::deserialize(&memory.notes).expect("invariant: the notes are this collection's own");
    for (i, sample) in all.iter_mut().flat_map(|kept| &mut kept.samples).enumerate() {
        // By name: a file has tensors in the order of their names, where 10 comes before 2.
        let name = format!("path.{i}");
        let mut entries = memory.tensors.entries().iter();
        let path = entries.find(|entry| entry.name == name).expect("invariant: one path a sample");
        sample.path = memory.tensors.values()[path.range.clone()].to_vec();
    }
    all
}

/// A memory of what is kept.
fn remembered(all: &[Kept]) -> Memory {
    if all.is_empty() {
        return Memory::default();
    }
    let paths = all.iter().flat_map(|kept| &kept.samples).map(|sample| &sample.path);
    let tensors = paths.enumerate().map(|(i, path)| (format!("path.{i}"), vec![path.len()], path.clone()));
    Memory { notes: serde_json::to_value(all).expect("invariant: plain data"), tensors: Params::new(tensors) }
}

/// The prompt of each group: that of its slot, or the next of the source.
fn prompts(rollout: &Rollout<'_>, slots: &[Option<&Kept>]) -> Vec<Arc<Prompt>> {
    let new = slots.iter().filter(|slot| slot.is_none()).count();
    let mut new = rollout.new_prompts(0, new).into_iter();
    let prompt = |slot: Option<&Kept>| slot.map_or_else(|| new.next(), |kept| Some(Arc::new(kept.prompt.clone())));
    slots.iter().copied().filter_map(prompt).collect()
}

/// L of each path under a field `[B]`: the sum over the likelihood's queries.
fn log_probs(likelihood: &dyn Likelihood, batch: &Batch, field: &dyn VelocityField) -> Vec<f64> {
    let mut sums = vec![0.0; batch.len()];
    for query in likelihood.queries(batch, batch) {
        let values = query.log_prob(query.velocity(field)).into_data();
        sums.iter_mut().zip(values.iter::<f64>()).for_each(|(sum, value)| *sum += value);
    }
    sums
}

/// New samples and earlier ones in one batch, in which the earlier ones have the numbers `replayed`.
fn merged(new: Batch, earlier: Batch, replayed: &[usize]) -> Batch {
    let total = new.len() + earlier.len();
    let (mut next_new, mut next_earlier) = (0, new.len());
    let order: Vec<usize> = (0..total)
        .map(|number| {
            let next = if replayed.contains(&number) { &mut next_earlier } else { &mut next_new };
            *next += 1;
            *next - 1
        })
        .collect();
    // Both have the conditioning of all prompts and the groups of the whole batch.
    let points = new.points.iter().zip(&earlier.points);
    let points = points.map(|(new, earlier)| Tensor::cat(vec![new.clone(), earlier.clone()], 0)).collect();
    let samples = new.samples.iter().chain(&earlier.samples).cloned().collect();
    Batch { samples, points, ..new }.select(&order)
}

/// The points of paths, each `[B, D]`.
fn paths(samples: &[&KeptSample], points: usize, dims: usize, device: &Device) -> Vec<Tensor<2>> {
    let point = |k: usize| {
        let values = samples.iter().flat_map(|sample| &sample.path[k * dims..(k + 1) * dims]).copied();
        Tensor::from_data(TensorData::new(values.collect::<Vec<f32>>(), [samples.len(), dims]), device)
    };
    (0..points).map(point).collect()
}

/// The `count` best of a group's samples, the first of equals, and by how much their mean lies above the group's; `None` unless
/// each of them does.
fn best(batch: &Batch, members: &[usize], count: usize) -> Option<(f64, Vec<usize>)> {
    let reward = |&i: &usize| Some((i, batch.samples[i].value()?));
    let mut known: Vec<(usize, f64)> = members.iter().filter_map(reward).collect();
    let mean = Moments::of(&known.iter().map(|(_, r)| *r).collect::<Vec<_>>()).mean;
    known.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    let best = known.get(..count).filter(|best| best.iter().all(|(_, r)| *r > mean))?;
    let margin = best.iter().map(|(_, r)| r - mean).sum::<f64>() / count as f64;
    Some((margin, best.iter().map(|(i, _)| *i).collect()))
}

/// Copies of the given samples, with their log-probabilities under the field that drew them.
fn copies(rollout: &Rollout<'_>, batch: &Batch, rows: &[usize]) -> Vec<KeptSample> {
    let chosen = batch.select(rows);
    let log_probs = log_probs(rollout.likelihood, &chosen, rollout.field);
    let dims = rollout.policy.dims();
    let points: Vec<Vec<f32>> = chosen.points.iter().map(|p| p.clone().into_data().iter::<f32>().collect()).collect();
    let copy = |(i, (sample, log_prob)): (usize, (&Sample, f64))| {
        let score = sample.reward.as_ref().expect("invariant: the best have a reward");
        let parts = score.parts.iter().map(|part| KeptPart {
            name: part.name.to_string(),
            weight: part.weight,
            value: part.value,
        });
        KeptSample {
            reward: score.value,
            parts: parts.collect(),
            epoch: sample.key.epoch,
            number: sample.key.sample,
            log_prob,
            path: points.iter().flat_map(|point| point[i * dims..(i + 1) * dims].to_vec()).collect(),
        }
    };
    chosen.samples.iter().zip(log_probs).enumerate().map(copy).collect()
}

/// What replay leaves in the log: samples replayed, and the mean and the largest of their weights.
fn log(batch: &Batch) -> Vec<(String, Value)> {
    let replayed = batch.samples.iter().filter(|sample| sample.replayed);
    let weights: Vec<f64> = replayed.map(|sample| sample.importance).collect();
    vec![
        ("replayed".into(), weights.len().into()),
        ("replay_weight".into(), mean(&weights)),
        ("replay_weight_max".into(), weights.iter().copied().reduce(f64::max).into()),
    ]
}

#[cfg(test)]
mod tests;
