//! The samples of an epoch, or a part of them, with all that is known of each.

use crate::{
    noise::Key,
    policy::{self, Conditioning},
    prompts::Prompt,
    reward::{RewardError, Score},
    sampler::Step,
    schedule::Grid,
};
use burn::tensor::Tensor;
use image::RgbImage;
use std::sync::Arc;

/// One drawn sample.
#[derive(Clone, Debug)]
pub struct Sample {
    /// What it was drawn for.
    pub prompt: Arc<Prompt>,
    /// The row of [`Batch::prompts`] that conditions it.
    pub row: usize,
    /// The samples it is compared with: those of the same group, numbered 0, 1, 2, … within the batch.
    pub group: usize,
    /// Seed, epoch and number of the sample: decides its noise.
    pub key: Key,
    /// The key of the first sample of its prompt, the same for all of them.
    pub shared_key: Key,
    /// The steps that it was drawn by.
    pub walk: Arc<[Step]>,
    /// The decoded picture.
    pub image: Arc<RgbImage>,
    /// Whether all values of the picture were finite when it was decoded.
    pub decoded: bool,
    /// What it scored, or why it has no score.
    pub reward: Result<Score, RewardError>,
    /// How much the objective's loss counts: 1, but for samples of earlier weights.
    pub importance: f64,
    /// Whether it was drawn in an earlier epoch.
    pub replayed: bool,
}

impl Sample {
    /// A sample that was neither drawn nor scored yet: first of its prompt, in group 0.
    pub fn new(prompt: Arc<Prompt>, key: Key) -> Self {
        Self {
            prompt,
            row: 0,
            group: 0,
            key,
            shared_key: key,
            walk: Arc::new([]),
            image: Arc::default(),
            decoded: true,
            reward: Err(RewardError::Failed("it was not scored".into())),
            importance: 1.0,
            replayed: false,
        }
    }

    /// Its reward, if it has one.
    pub fn value(&self) -> Option<f64> {
        self.reward.as_ref().ok().map(|score| score.value)
    }

    /// What it scored by one reward of a sum.
    pub fn part(&self, name: &str) -> Option<f64> {
        let parts = &self.reward.as_ref().ok()?.parts;
        parts.iter().find(|part| *part.name == *name).map(|part| part.value)
    }
}

/// Samples that were drawn alike. [`select`](Batch::select), [`cat`](Batch::cat) and [`groups`](Batch::groups) are the ways to
/// rearrange one. N samples, D latent dimensions.
#[derive(Clone, Debug)]
pub struct Batch {
    /// N samples.
    pub samples: Vec<Sample>,
    /// One row a prompt; samples name theirs.
    pub prompts: Conditioning,
    /// Points `[N, D]` at every time of the grid, the clean samples last; only these if nothing asked for more.
    pub points: Vec<Tensor<2>>,
    /// Velocities `[N, D]` that the weights which drew the samples had at every point but the last; none if they were not kept.
    pub velocities: Vec<Tensor<2>>,
    /// The times they were drawn on, and the path.
    pub grid: Arc<Grid>,
    /// The deviation of each step of the sampler's rule, were all of them stochastic.
    pub stds: Arc<[f64]>,
    /// The guidance scale they were drawn with.
    pub guidance: f64,
}

impl Batch {
    /// N.
    pub fn len(&self) -> usize {
        self.samples.len()
    }

    /// Whether there is no sample.
    pub fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }

    /// The clean samples `[N, D]`.
    pub fn clean(&self) -> &Tensor<2> {
        self.points.last().expect("invariant: a batch holds its clean samples")
    }

    /// What conditions the samples, one row each.
    pub fn conditioning(&self) -> Conditioning {
        let rows: Vec<usize> = self.samples.iter().map(|sample| sample.row).collect();
        self.prompts.select(&rows)
    }

    /// The numbers of the samples of each group.
    pub fn groups(&self) -> Vec<Vec<usize>> {
        groups(&self.samples)
    }

    /// The given samples, in the given order.
    #[must_use]
    pub fn select(&self, rows: &[usize]) -> Self {
        let indices = policy::indices(rows, &self.clean().device());
        let select = |all: &[Tensor<2>]| all.iter().map(|each| each.clone().select(0, indices.clone())).collect();
        Self {
            samples: rows.iter().map(|&row| self.samples[row].clone()).collect(),
            prompts: self.prompts.clone(),
            points: select(&self.points),
            velocities: select(&self.velocities),
            grid: Arc::clone(&self.grid),
            stds: Arc::clone(&self.stds),
            guidance: self.guidance,
        }
    }

    /// The samples of all parts, one after the other. Groups and rows of conditioning are numbered on.
    ///
    /// # Panics
    /// If there are none.
    #[must_use]
    pub fn cat(parts: Vec<Self>) -> Self {
        let joined = |all: fn(&Self) -> &[Tensor<2>]| -> Vec<Tensor<2>> {
            let at = |k: usize| Tensor::cat(parts.iter().map(|part| all(part)[k].clone()).collect(), 0);
            (0..all(&parts[0]).len()).map(at).collect()
        };
        let (points, velocities) = (joined(|part| &part.points), joined(|part| &part.velocities));
        let prompts = Conditioning::cat(&parts.iter().map(|part| &part.prompts).collect::<Vec<_>>());
        let (grid, stds) = (Arc::clone(&parts[0].grid), Arc::clone(&parts[0].stds));
        let guidance = parts[0].guidance;
        let (mut samples, mut first_row, mut first_group) = (Vec::new(), 0, 0);
        for part in parts {
            let rows = part.prompts.rows();
            let groups = part.samples.iter().map(|sample| sample.group + 1).max().unwrap_or(0);
            samples.extend(part.samples.into_iter().map(|sample| Sample {
                row: sample.row + first_row,
                group: sample.group + first_group,
                ..sample
            }));
            first_row += rows;
            first_group += groups;
        }
        Self { samples, prompts, points, velocities, grid, stds, guidance }
    }
}

/// The numbers of the samples of each group.
pub fn groups(samples: &[Sample]) -> Vec<Vec<usize>> {
    let count = samples.iter().map(|sample| sample.group + 1).max().unwrap_or(0);
    let mut groups = vec![Vec::new(); count];
    for (i, sample) in samples.iter().enumerate() {
        groups[sample.group].push(i);
    }
    groups
}
