//! Replay of good paths: images of earlier epochs in groups of this one (the idea of arXiv 2604.04142).
//!
//! Of a group whose rewards differ, the k best images are kept with their paths and their log-probability L_c under the weights c
//! that drew them. A later epoch gives some of its groups to kept prompts: all but k images of such a group are drawn anew, the
//! others are the kept ones, so that a prompt that is rarely solved meets what solved it. They are compared with the group
//! as any other; their part of the objective's loss counts
//!
//! w = min(exp(L_b − L_c), w₊),  L = Σ over the scored steps of the path
//!
//! where b are the behavior weights of now. This ratio of whole paths is held fixed; the objective's own ratio π_θ/π_b, and
//! so its clip, is that of images drawn now. Late steps, where ratios of old paths are ill-conditioned, are left out by
//! `likelihood.fraction`.
//!
//! The paper's abstract states these three parts and not their formulas: which paths are kept (the prompts whose best
//! images stand out most), for how long (until they are replayed, once) and the cap w₊ are choices of this module.

use super::{
    Drawn, Trainer,
    rollout::{New, Scene},
    top_up::picked,
};
use crate::{
    advantage::{Grouped, Moments, Part},
    config::{Config, StartNoise},
    likelihood::{Likelihood, LikelihoodKind, Rollout},
    params::Params,
    policy::VelocityField,
    prompts::Prompt,
    sampler::SamplerKind,
};
use burn::tensor::{Device, Tensor, TensorData};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which images of earlier epochs come back.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Replay {
    /// Prompts whose best images are kept, those that stand out most from their group; 0 is off.
    pub prompts: usize,
    /// Groups of an epoch that are given to kept prompts, as far as there are any.
    pub groups: usize,
    /// k, images of a prompt that are kept, and that replace as many of its group.
    pub images: usize,
    /// w₊, the largest importance weight.
    pub max_weight: f64,
}

impl Default for Replay {
    fn default() -> Self {
        Self { prompts: 0, groups: 4, images: 2, max_weight: 2.0 }
    }
}

/// The best images of one prompt, kept for replay.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    prompt: Prompt,
    /// By how much their mean reward lies above that of their group.
    #[serde(with = "bits")]
    margin: f64,
    images: Vec<Image>,
}

/// An image that was drawn before.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Image {
    #[serde(with = "bits")]
    reward: f64,
    /// The rewards that it is the sum of; `NaN` is missing.
    parts: Vec<Bits>,
    /// L_c
    #[serde(with = "bits")]
    log_prob: f64,
    /// `[steps + 1, C, H, W]`
    shape: [usize; 4],
    /// Its path, in the checkpoint's own file.
    #[serde(skip)]
    points: Vec<f32>,
}

/// A number by its bits: numbers in text may come back rounded.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Bits(#[serde(with = "bits")] f64);

impl PartialEq for Bits {
    fn eq(&self, other: &Self) -> bool {
        self.0.to_bits() == other.0.to_bits()
    }
}

mod bits {
    use serde::{Deserialize, Deserializer, Serializer};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes fields so")]
    pub(super) fn serialize<S: Serializer>(value: &f64, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(value.to_bits())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
        u64::deserialize(from).map(f64::from_bits)
    }
}

impl Replay {
    /// What is wrong with it, and what of the configuration does not go with it.
    pub(crate) fn problems(self, config: &Config) -> Vec<String> {
        if self.prompts == 0 {
            return Vec::new();
        }
        let (Self { groups, images, max_weight, .. }, batch) = (self, config.batch);
        let mut problems = Vec::new();
        if groups == 0 || groups >= batch.groups {
            let all = batch.groups;
            problems.push(format!(
                "replay.groups = {groups}: at least 1, and fewer than batch.groups = {all}, so that some prompts are new"
            ));
        }
        if images == 0 || images >= batch.group_size {
            let size = batch.group_size;
            problems.push(format!(
                "replay.images = {images}: at least 1, and fewer than batch.group_size = {size}, so that some images are new"
            ));
        }
        if !(max_weight >= 1.0 && max_weight.is_finite()) {
            problems.push(format!("replay.max_weight = {max_weight}: must be a number from 1 on"));
        }
        if !matches!(config.likelihood, LikelihoodKind::Trajectory(_)) {
            problems.push(
                "replay needs the log-probability of a path: use likelihood `trajectory`, or replay.prompts = 0".into(),
            );
        }
        let moving = matches!(config.sampler.rule, SamplerKind::Window(_) | SamplerKind::Branch(_));
        let chosen = config.start_noise == StartNoise::PerGroup || config.drafts.count > 0 || config.top_up.groups > 0;
        if moving || chosen || !config.advantage.get().within_groups() {
            problems.push(
                "replay mixes images of several epochs in a group, which have to be drawn alike: use it without samplers \
                 `window` and `branch`, start_noise \"per-group\", drafts and top_up, and with an advantage that compares the \
                 images of a group; or set replay.prompts = 0"
                    .into(),
            );
        }
        problems
    }

    /// The kept prompt of each of `groups` groups that is given to one, evenly spread.
    pub(super) fn slots(self, kept: &[Kept], groups: usize) -> Vec<Option<&Kept>> {
        let due = self.groups.min(kept.len());
        let mut slots = vec![None; groups];
        for (i, kept) in kept.iter().take(due).enumerate() {
            slots[i * groups / due] = Some(kept);
        }
        slots
    }

    /// The images that are replayed, by number: the last of each group that is given to a kept prompt.
    pub(super) fn rows(self, slots: &[Option<&Kept>], size: usize) -> Vec<usize> {
        let given = slots.iter().enumerate().filter(|(_, slot)| slot.is_some());
        given.flat_map(|(g, _)| (g + 1) * size - self.images..(g + 1) * size).collect()
    }
}

impl Kept {
    pub(super) fn prompt(&self) -> &Prompt {
        &self.prompt
    }

    /// The paths of all that is kept, for a checkpoint.
    pub(super) fn paths(all: &[Self]) -> Params {
        Self::params(all, |image| image.points.clone())
    }

    /// Gives back the paths that [`Self::paths`] took; the layout says nothing of their values.
    pub(super) fn layout(all: &[Self]) -> Params {
        Self::params(all, |image| vec![0.0; image.shape.iter().product()])
    }

    fn params(all: &[Self], values: impl Fn(&Image) -> Vec<f32>) -> Params {
        let images = all.iter().flat_map(|kept| &kept.images);
        Params::new(images.enumerate().map(|(i, image)| (i.to_string(), image.shape.to_vec(), values(image))))
    }

    /// Puts the values of a [`Self::layout`] back into place.
    pub(super) fn with_paths(mut all: Vec<Self>, paths: &Params) -> Vec<Self> {
        let mut values = paths.values();
        for image in all.iter_mut().flat_map(|kept| &mut kept.images) {
            let (path, rest) = values.split_at(image.shape.iter().product());
            image.points = path.to_vec();
            values = rest;
        }
        all
    }
}

/// L of each path under a field `[B]`: the sum over the likelihood's queries.
fn log_probs(likelihood: &dyn Likelihood, rollout: &Rollout, field: &dyn VelocityField) -> Vec<f64> {
    let mut sums = vec![0.0; rollout.keys.len()];
    for query in likelihood.queries(rollout) {
        let values = query.log_prob(query.velocity(field)).into_data();
        sums.iter_mut().zip(values.iter::<f64>()).for_each(|(sum, value)| *sum += value);
    }
    sums
}

/// Puts the kept images of the slots into their `rows`; `new` has those of all other rows, in order.
pub(super) fn insert(scene: &Scene<'_>, new: New, slots: &[Option<&Kept>], rows: &[usize]) -> New {
    let config = &scene.trainer.config;
    let size = config.batch.group_size;
    let images: Vec<&Image> = slots.iter().flatten().flat_map(|kept| &kept.images).collect();
    let owners: Vec<usize> = rows.iter().map(|row| row / size).collect();
    let mut rollout = Rollout {
        points: paths(&images, &scene.trainer.device),
        cond: scene.cond.select(&owners),
        keys: rows.iter().map(|&row| scene.key(row)).collect(),
        group_keys: owners.iter().map(|group| scene.key(group * size)).collect(),
        importance: vec![1.0; rows.len()],
        ..new.rollout
    };
    let now = log_probs(config.likelihood.get(), &rollout, &*scene.field);
    let weight = |(now, image): (f64, &&Image)| (now - image.log_prob).exp().min(config.replay.max_weight);
    rollout.importance = now.into_iter().zip(&images).map(weight).collect();
    let pictures = scene.trainer.policy.decode(rollout.images().clone());

    let mut next = [0, new.images.len()];
    let place = |row: usize| {
        let next = &mut next[usize::from(rows.contains(&row))];
        *next += 1;
        *next - 1
    };
    let order: Vec<usize> = (0..slots.len() * size).map(place).collect();
    let part = |(k, part): (usize, Part)| {
        let earlier = images.iter().map(|image| Some(image.parts[k].0).filter(|r| !r.is_nan())).collect();
        Part { rewards: picked(part.rewards, earlier, &order), ..part }
    };
    let rewards = images.iter().map(|image| Some(image.reward)).collect();
    New {
        rollout: Rollout::cat(&[new.rollout, rollout]).select(&order),
        images: picked(new.images, pictures, &order),
        rewards: Grouped {
            rewards: picked(new.rewards.rewards, rewards, &order),
            parts: new.rewards.parts.into_iter().enumerate().map(part).collect(),
            ..new.rewards
        },
    }
}

/// The points of paths, each `[B, C, H, W]`.
fn paths(images: &[&Image], device: &Device) -> Vec<Tensor<4>> {
    let [points, c, h, w] = images[0].shape;
    let length = c * h * w;
    let point = |k: usize| {
        let values: Vec<f32> =
            images.iter().flat_map(|image| &image.points[k * length..(k + 1) * length]).copied().collect();
        Tensor::from_data(TensorData::new(values, [images.len(), c, h, w]), device)
    };
    (0..points).map(point).collect()
}

/// What is kept after an epoch that drew this, if the recipe replays: what was kept and not replayed, and the best images of
/// the groups drawn now.
pub(super) fn kept(trainer: &Trainer<'_>, drawn: &Drawn) -> Vec<Kept> {
    let (config, replay) = (&trainer.config, trainer.config.replay);
    if replay.prompts == 0 {
        return Vec::new();
    }
    let due = replay.groups.min(trainer.state.kept.len());
    let size = config.batch.group_size;
    let groups = (0..drawn.prompts.len()).filter(|g| !drawn.replayed.contains(&((g + 1) * size - 1)));
    let mut new: Vec<(f64, usize, Vec<usize>)> = groups
        .filter_map(|g| {
            let (margin, best) = best(&drawn.rewards.rewards[g * size..(g + 1) * size], replay.images)?;
            Some((margin, g, best.into_iter().map(|i| g * size + i).collect()))
        })
        .collect();
    // The newest images of a prompt are those that fit the weights best.
    let again = |kept: &Kept| new.iter().any(|(_, g, _)| drawn.prompts[*g] == kept.prompt);
    let mut all: Vec<Kept> = trainer.state.kept[due..].iter().filter(|kept| !again(kept)).cloned().collect();
    let mut margins: Vec<f64> =
        all.iter().map(|kept| kept.margin).chain(new.iter().map(|(margin, ..)| *margin)).collect();
    margins.sort_by(|a, b| b.total_cmp(a));
    if let Some(&least) = margins.get(replay.prompts - 1) {
        new.retain(|(margin, ..)| *margin >= least);
    }
    let field = trainer.field(Some(trainer.drawing()));
    all.extend(new.into_iter().map(|(margin, g, rows)| Kept {
        prompt: drawn.prompts[g].clone(),
        margin,
        images: copies(trainer, drawn, &rows, &*field),
    }));
    all.sort_by(|a, b| b.margin.total_cmp(&a.margin));
    all.truncate(replay.prompts);
    all
}

/// The `count` best of a group's rewards, the first of equals, and by how much their mean lies above the group's; `None` unless
/// each of them does.
fn best(rewards: &[Option<f64>], count: usize) -> Option<(f64, Vec<usize>)> {
    let mut known: Vec<(usize, f64)> = rewards.iter().enumerate().filter_map(|(i, r)| Some((i, (*r)?))).collect();
    let mean = Moments::of(&known.iter().map(|(_, r)| *r).collect::<Vec<_>>()).mean;
    known.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    let best = known.get(..count).filter(|best| best.iter().all(|(_, r)| *r > mean))?;
    let margin = best.iter().map(|(_, r)| r - mean).sum::<f64>() / count as f64;
    Some((margin, best.iter().map(|(i, _)| *i).collect()))
}

/// Copies of the given rows, with their log-probabilities under the field that drew them.
fn copies(trainer: &Trainer<'_>, drawn: &Drawn, rows: &[usize], field: &dyn VelocityField) -> Vec<Image> {
    let rollout = drawn.rollout.select(rows);
    let log_probs = log_probs(trainer.config.likelihood.get(), &rollout, field);
    let [_, c, h, w] = rollout.images().dims();
    let points: Vec<Vec<f32>> = rollout.points.iter().map(|p| p.clone().into_data().iter::<f32>().collect()).collect();
    let length = c * h * w;
    let copy = |(i, (&row, log_prob)): (usize, (&usize, f64))| Image {
        reward: drawn.rewards.rewards[row].expect("invariant: the best have a reward"),
        parts: drawn.rewards.parts.iter().map(|part| Bits(part.rewards[row].unwrap_or(f64::NAN))).collect(),
        log_prob,
        shape: [points.len(), c, h, w],
        points: points.iter().flat_map(|p| p[i * length..(i + 1) * length].to_vec()).collect(),
    };
    rows.iter().zip(log_probs).enumerate().map(copy).collect()
}

/// What replay leaves in the log: images replayed, and the mean and the largest of their weights.
pub(super) fn entries(drawn: &Drawn) -> Vec<(String, serde_json::Value)> {
    let weights: Vec<f64> = drawn.replayed.iter().map(|&row| drawn.rollout.importance[row]).collect();
    let mean = (!weights.is_empty()).then(|| Moments::of(&weights).mean);
    vec![
        ("replayed".into(), weights.len().into()),
        ("replay_weight".into(), mean.into()),
        ("replay_weight_max".into(), weights.iter().copied().reduce(f64::max).into()),
    ]
}

#[cfg(test)]
mod tests;
