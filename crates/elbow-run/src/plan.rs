//! What a run costs on this machine, from a few seconds of drawing and training at its own settings.

use crate::{components::Components, error::Result, recipe::Recipe};
use elbow::{
    RewardError,
    batch::Batch,
    collection::CollectionKind,
    config::{BatchConfig, Config},
    lanes,
    sampler::SamplerConfig,
    setting::Meaning,
    train::{Outcome, TrainError},
};
use std::time::Instant;

/// What a run takes, in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    /// An epoch's rollout.
    pub draw: f64,
    /// An epoch's updates, if every group has something to say.
    pub train: f64,
    /// One evaluation on the held-out prompts.
    pub eval: f64,
    /// How many evaluations there are.
    pub evals: u64,
    /// Forward passes at all points of an image.
    pub passes: usize,
}

impl Plan {
    /// Measures drawing and training for at least `least` seconds each, after a first run of each that is not counted, and scales to
    /// the recipe's batch.
    pub fn measure(recipe: &Recipe, components: &Components, least: f64) -> Result<Self> {
        let image = calibrate(recipe, components, least)?;
        let (config, eval) = (&recipe.method, &recipe.setting.eval.measure);
        let method = components.trainer(config)?;
        let method = method.method();
        let images = method.batch.groups * method.batch.group_size;
        let pairs = method.advantage.meaning() == Meaning::Pair;
        let trained = if pairs { 2 * images / method.compared() } else { images };
        let passes = |sampler: &SamplerConfig| (sampler.steps * branches(sampler)) as f64;
        let longer = passes(&eval.sampler) / passes(&config.sampler);
        let between = method.epochs.checked_div(eval.every).unwrap_or(0);
        Ok(Self {
            draw: image.draw * (images as f64 + prefiltered(config)),
            train: image.train * trained as f64,
            eval: image.draw * longer * (components.data.test.len() * eval.images_per_prompt) as f64,
            evals: between + 2,
            passes: image.passes,
        })
    }

    /// Seconds of an epoch.
    pub fn epoch(&self) -> f64 {
        self.draw + self.train
    }
}

/// Seconds an image to draw it (and score it) and to train on it, and the forward passes at all its points in an update that sees
/// other behavior weights.
#[derive(Clone, Copy)]
struct PerImage {
    draw: f64,
    train: f64,
    passes: usize,
}

/// What an epoch's prefilter draws, in images in full.
pub fn prefiltered(config: &Config) -> f64 {
    let CollectionKind::Prefilter(prefilter) = &config.collection else { return 0.0 };
    (config.batch.groups * prefilter.count * prefilter.steps) as f64 / config.sampler.steps as f64
}

/// Draws whole groups, at least as many images as the device takes at once, and takes optimizer steps on them, with rewards that do
/// not agree. A prefilter is counted apart.
fn calibrate(recipe: &Recipe, components: &Components, least: f64) -> Result<PerImage> {
    let BatchConfig { group_size, micro_batch, .. } = recipe.method.batch;
    let groups = (micro_batch.size() * lanes::count(&components.model.device)).div_ceil(group_size);
    let reuse_velocities = components.reuse_velocities(&recipe.method)?;
    let batch = BatchConfig { groups, updates: 1, reuse_velocities, ..recipe.method.batch };
    let mut config = recipe.method.of_one_batch(batch);
    let moves_apart = config.behavior.moves_apart(recipe.method.batch.updates);
    if moves_apart && !config.behavior.on_policy {
        // The rollout then keeps what it keeps with several updates.
        config.behavior.max = config.behavior.max.max(0.5);
    }
    let mut trainer = components.trainer(&config)?;
    // The first of each is not counted.
    let collected = trainer.collect(&())?;
    let draw = seconds(least, || trainer.collect(&()).map(drop))?;
    let count = collected.batch.len();
    let batch = disagreeing(collected.batch);
    let mut seen = Outcome::default();
    let mut step = || {
        if moves_apart {
            // Behavior weights that differ, so that their forward passes are not saved.
            trainer.state.behavior.values_mut()[0] += 1e-3;
        }
        seen = trainer.update(&batch, &())?;
        Ok(())
    };
    step()?;
    let train = seconds(least, step)?;
    let trained = seen.trained.max(1);
    Ok(PerImage { draw: draw / count as f64, train: train / trained as f64, passes: seen.passes / trained })
}

/// The same images with the rewards 0, 1, 0, 1, …, so that every group has variance.
pub fn disagreeing(mut batch: Batch) -> Batch {
    for (i, sample) in batch.samples.iter_mut().enumerate() {
        sample.reward = Ok::<_, RewardError>(((i % 2) as f64).into());
    }
    batch
}

/// Forward passes at a point: two with guidance.
pub fn branches(sampler: &SamplerConfig) -> usize {
    if sampler.guidance.to_bits() == 1f64.to_bits() { 1 } else { 2 }
}

/// Mean seconds of a run; there is one at least.
fn seconds(least: f64, mut run: impl FnMut() -> Result<(), TrainError>) -> Result<f64> {
    let (start, mut runs) = (Instant::now(), 0);
    while runs == 0 || start.elapsed().as_secs_f64() < least {
        run()?;
        runs += 1;
    }
    Ok(start.elapsed().as_secs_f64() / f64::from(runs))
}
