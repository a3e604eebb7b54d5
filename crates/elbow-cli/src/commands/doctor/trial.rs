//! Rewards on pictures of which the answer is known, and one step of a recipe.

use super::check::Check;
use crate::failure;
use anyhow::{Context, Result};
use burn::tensor::Tensor;
use elbow::{
    Prompt, Request, RgbImage,
    batch::Batch,
    config::{BatchConfig, Config, MicroBatch},
    evaluation::{Evaluation, Fields},
    policy::Policy,
    schedule::Schedule,
    train::Trainer,
};
use elbow_run::{Components, Recipe, plan::disagreeing, reward::RewardConfig};
use elbow_world::{Scene, Task, prompts, splitmix};
use std::sync::Arc;

/// Each reward of a recipe on pictures whose score is known.
pub fn rewards(reward: &RewardConfig) -> Vec<Check> {
    match reward {
        RewardConfig::Sum { parts } => parts.iter().flat_map(|part| rewards(&part.reward)).collect(),
        RewardConfig::Geneval { .. } => vec![Check::new("reward", geneval(reward))],
        RewardConfig::Jpeg { .. } => vec![Check::new("reward", jpeg(reward))],
    }
}

/// A scene drawn for its prompt scores 1, an empty picture less.
fn geneval(reward: &RewardConfig) -> Result<String> {
    let record = prompts::records_of(Task::TwoObject).first().context("the world has no prompts")?;
    let scene = Scene::sample(record, &mut splitmix(0))?;
    let [right, wrong] = scores(reward, [scene.render(), Scene::default().render()], &Prompt::from(record))?;
    if right.to_bits() == 1f64.to_bits() && wrong < 1.0 {
        return Ok(format!("geneval: 1 for a picture of {:?}, {wrong} for an empty one", record.prompt));
    }
    Err(broken(format!("geneval: {right} for a picture of {:?}, 1 expected; {wrong} for an empty one", record.prompt)))
}

/// Bytes of a plain picture, 32 × 32, as libjpeg writes it.
const PLAIN: f64 = 646.0;

fn jpeg(reward: &RewardConfig) -> Result<String> {
    let plain = RgbImage::from_pixel(32, 32, image::Rgb([200, 120, 40]));
    let [kilobytes, _] = scores(reward, [plain.clone(), plain], &"a plain picture".into())?;
    let said = format!("jpeg: {kilobytes} for a plain picture of {PLAIN} bytes");
    // Encoders differ by a byte or two.
    if (kilobytes.abs() * 1000.0 - PLAIN).abs() < 2.5 { Ok(said) } else { Err(broken(said)) }
}

fn scores(reward: &RewardConfig, images: [RgbImage; 2], prompt: &Prompt) -> Result<[f64; 2]> {
    let prompts = [prompt, prompt].map(|prompt| Arc::new(prompt.clone()));
    let request = Request { images: &images, prompts: &prompts, latents: None, groups: &[0, 0] };
    let scored = reward.build().score(&request);
    let [first, second] = <[_; 2]>::try_from(scored).map_err(|_| broken("two pictures have not two scores".into()))?;
    Ok([first?.value, second?.value])
}

fn broken(message: String) -> anyhow::Error {
    failure::error(message, "this build is broken: build it again, and report it if that does not help")
}

/// Two images, scored 0 and 1, and one optimizer step on them.
pub fn step(recipe: &Recipe, components: &Components) -> Result<String> {
    let mut trainer = components.trainer(&small(&recipe.method, components.model.policy.schedule()))?;
    let batch = trainer.collect(&())?.batch;
    let ratio = equal_weights(&trainer, components, &batch)?;
    let outcome = trainer.update(&disagreeing(batch), &())?;
    let losses = &outcome.policy_losses;
    let loss = losses.iter().sum::<f64>() / losses.len().max(1) as f64;
    let norm = outcome.grad_norms.first().copied().unwrap_or(f64::NAN);
    let said = format!("log-ratio {ratio} under equal weights, loss {loss:.3e}, gradient {norm:.3e}");
    if loss.is_finite() && norm.is_finite() {
        return Ok(said);
    }
    Err(failure::error(
        said,
        "loss and gradient must be finite: check that the base weights are, and lower the guidance",
    ))
}

/// The recipe with as few images and steps as it allows.
fn small(method: &Config, schedule: Schedule) -> Config {
    let least = method.of_one_batch(BatchConfig { groups: 1, updates: 1, ..method.batch });
    let few = BatchConfig { group_size: 2, micro_batch: MicroBatch::Size(2), ..least.batch };
    let mut pair = Config { batch: few, ..least.clone() };
    if pair.build(schedule).is_err() {
        pair = least;
    }
    let mut short = pair.clone();
    short.sampler.steps = 2;
    if short.build(schedule).is_ok() { short } else { pair }
}

/// The largest |ln ρ| between the current weights with a graph and the same weights without, which must be 0, bit for bit.
fn equal_weights(trainer: &Trainer<'_>, components: &Components, batch: &Batch) -> Result<f64> {
    let part = batch.select(&[0, 1]);
    let leaves = trainer.state.current.tensors(&components.model.device.clone().autodiff());
    let current = trainer.guided(components.model.policy.bind(Some(&leaves)));
    let (behavior, reference) = (trainer.field(Some(&trainer.state.current)), trainer.field(None));
    let query = trainer.method().likelihood.queries(&part, batch).next().context("the likelihood asks nothing")?;
    let fields = Fields {
        behavior: Some(&*behavior),
        lagged: None,
        reference: &*reference,
        guided_reference: None,
        teachers: &[],
    };
    let ratios: Tensor<1> = Evaluation::new(&query, &*current, &fields).log_ratio();
    let largest = ratios.inner().into_data().iter::<f64>().map(f64::abs).fold(0.0, f64::max);
    if largest == 0.0 {
        return Ok(largest);
    }
    let hint = "sampling and training do not compute the same thing: report it with the output of `elbow doctor`";
    Err(failure::error(format!("log-ratio {largest:e} under equal weights, 0 expected"), hint))
}
