//! Rewards on pictures of which the answer is known, and one step of a recipe.

use super::check::Check;
use crate::failure;
use anyhow::{Context, Result};
use burn::tensor::Tensor;
use elbow::{
    Prompt,
    batch::Batch,
    config::{BatchConfig, Config, MicroBatch},
    evaluation::{Evaluation, Fields},
    policy::Policy,
    schedule::Schedule,
    train::Trainer,
};
use elbow_rewards::Log;
use elbow_run::{Components, Recipe, components, plan::disagreeing};

/// Each reward of a recipe on pictures of which something is known.
pub fn rewards(recipe: &Recipe, prompts: &[Prompt]) -> Vec<Check> {
    let tried = components::try_each(recipe, prompts, &Log::default());
    tried.into_iter().map(|said| Check::new("reward", said.map_err(Into::into))).collect()
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
