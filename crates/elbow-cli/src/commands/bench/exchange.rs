//! One rollout and one step as a file, for another program to do the same and compare (`benches/peers/`).

use super::{Args, workload::Workload};
use anyhow::{Context, Result};
use burn::tensor::Tensor;
use elbow::{
    noise::{self, Key, Purpose},
    params::Params,
    policy::Policy,
};
use elbow_models::policy::{NetworkPolicy, Tuning};
use elbow_runlog::write_atomic;
use serde_json::json;
use std::{collections::HashMap, path::Path};

/// A name, a shape and values, as [`Params::new`] takes them.
type Entry = (String, Vec<usize>, Vec<f32>);

/// Writes weights (`base.`, `current.`, `behavior.`), what went in (`input.`) and what came out (`output.`,
/// `gradient.`).
pub fn write(path: &Path, args: &Args, policy: &NetworkPolicy, workload: &mut Workload<'_>) -> Result<()> {
    let mut entries = named("base", &policy.base());
    entries.extend(named("current", &workload.trainer.state.current));
    entries.extend(named("behavior", &workload.trainer.state.behavior));
    entries.extend(rollout(policy, workload)?);
    entries.extend(step(workload)?);
    let optimizer = &workload.trainer.config().optimizer;
    let lora = if let Tuning::Lora(lora) = &policy.tuning { Some(lora) } else { None };
    let facts = json!({
        "network": super::workload::network(args),
        "batch": args.batch,
        "lora": lora,
        "sampler": workload.trainer.config().sampler,
        "optimizer": optimizer,
    });
    let metadata = HashMap::from([("elbow".to_owned(), facts.to_string())]);
    write_atomic(path, &Params::new(entries).to_safetensors(Some(metadata)))?;
    Ok(())
}

fn rollout(policy: &NetworkPolicy, workload: &Workload<'_>) -> Result<Vec<Entry>> {
    let drawn = workload.rollout()?.rollout;
    let starts = drawn.keys.iter().map(|&k| Key { purpose: Purpose::Start, ..k });
    let start = noise::normal(starts, policy.latent_shape(), &drawn.images().device());
    Ok(vec![
        tensor("input.rollout.start", start),
        tensor("input.rollout.tokens", drawn.cond.tokens.clone()),
        tensor("input.rollout.pooled", drawn.cond.pooled.clone()),
        tensor("output.rollout.images", drawn.images().clone()),
    ])
}

fn step(workload: &mut Workload<'_>) -> Result<Vec<Entry>> {
    let batch = &workload.batch;
    let config = workload.trainer.config().clone();
    let query = config.likelihood.get().queries(batch).next().context("the likelihood asks nothing")?;
    let draws = batch.keys.iter().map(|&k| Key { purpose: Purpose::Draw, ..k }.draw(0));
    let [_, c, h, w] = batch.images().dims();
    let advantages = config.advantage.get().advantages(&workload.rewards);
    let mut entries = vec![
        tensor("input.step.clean", batch.images().clone()),
        tensor("input.step.noise", noise::normal(draws, [c, h, w], &batch.images().device())),
        tensor("input.step.point", query.x.clone()),
        tensor("input.step.time", query.t.clone()),
        tensor("input.step.tokens", batch.cond.tokens.clone()),
        tensor("input.step.pooled", batch.cond.pooled.clone()),
        numbers("input.step.advantages", advantages.iter().flatten().copied()),
    ];
    let seen = workload.step()?;
    entries.push(numbers("output.step.losses", seen.policy_losses));
    entries.push(numbers("output.step.log_ratios", seen.log_ratios));
    entries.push(numbers("output.step.grad_norm", seen.grad_norms));
    // After one step from zero, AdamW's first moment is (1 − β₁) times the clipped gradient.
    let mut gradient = workload.trainer.state.optimizer.first.clone();
    let scale = 1.0 - config.optimizer.beta1;
    gradient.values_mut().iter_mut().for_each(|v| *v = (f64::from(*v) / scale) as f32);
    entries.extend(named("gradient", &gradient));
    Ok(entries)
}

fn named(prefix: &str, params: &Params) -> Vec<Entry> {
    let entry = |e: &elbow::params::Entry| {
        (format!("{prefix}.{}", e.name), e.shape.clone(), params.values()[e.range.clone()].to_vec())
    };
    params.entries().iter().map(entry).collect()
}

fn numbers(name: &str, values: impl IntoIterator<Item = f64>) -> Entry {
    let values: Vec<f32> = values.into_iter().map(|v| v as f32).collect();
    (name.to_owned(), vec![values.len()], values)
}

fn tensor<const D: usize>(name: &str, tensor: Tensor<D>) -> Entry {
    (name.to_owned(), tensor.dims().to_vec(), tensor.into_data().iter::<f32>().collect())
}
