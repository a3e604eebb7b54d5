//! One rollout and one step as a file, for another program to do the same and compare (`benches/peers/`).

use super::{
    args::Args,
    workload::{self, Workload},
};
use anyhow::{Context, Result};
use burn::tensor::Tensor;
use elbow::{
    noise::{self, Key, Purpose},
    params::Params,
    policy::{Conditioning, Policy},
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
    entries.extend(step(policy, workload)?);
    let optimizer = &workload.trainer.method().optimizer;
    let sampler = &workload.trainer.method().sampler;
    let lora = if let Tuning::Lora(lora) = &policy.tuning { Some(lora) } else { None };
    let facts = json!({
        "network": workload::network(args),
        "batch": args.batch,
        "lora": lora,
        "sampler": {"steps": sampler.steps, "shift": sampler.shift, "guidance": sampler.guidance},
        "optimizer": optimizer,
    });
    let metadata = HashMap::from([("elbow".to_owned(), facts.to_string())]);
    write_atomic(path, &Params::new(entries).to_safetensors(Some(metadata)))?;
    Ok(())
}

fn rollout(policy: &NetworkPolicy, workload: &Workload<'_>) -> Result<Vec<Entry>> {
    let drawn = workload.rollout()?;
    let cond = drawn.conditioning();
    let starts = drawn.samples.iter().map(|sample| Key { purpose: Purpose::Start, ..sample.key });
    let start = noise::normal(starts, policy.dims(), &drawn.clean().device());
    Ok(vec![
        images("input.rollout.start", start, policy),
        tensor("input.rollout.tokens", cond.tokens.clone()),
        tensor("input.rollout.pooled", pooled(&cond)),
        images("output.rollout.images", drawn.clean().clone(), policy),
    ])
}

fn step(policy: &NetworkPolicy, workload: &mut Workload<'_>) -> Result<Vec<Entry>> {
    let batch = &workload.batch;
    let (method, cond) = (workload.trainer.method(), batch.conditioning());
    let query = method.likelihood.queries(batch, batch).next().context("the likelihood asks nothing")?;
    let draws = batch.samples.iter().map(|sample| Key { purpose: Purpose::Draw, ..sample.key }.draw(0));
    let advantages = method.advantage.advantages(&batch.samples, &workload.trainer.state.history);
    let beta1 = method.optimizer.beta1;
    let mut entries = vec![
        images("input.step.clean", batch.clean().clone(), policy),
        images("input.step.noise", noise::normal(draws, policy.dims(), &batch.clean().device()), policy),
        images("input.step.point", query.x.clone(), policy),
        tensor("input.step.time", query.t.clone()),
        tensor("input.step.tokens", cond.tokens.clone()),
        tensor("input.step.pooled", pooled(&cond)),
        numbers("input.step.advantages", advantages.iter().flatten().copied()),
    ];
    let seen = workload.step()?;
    entries.push(numbers("output.step.losses", seen.policy_losses));
    entries.push(numbers("output.step.log_ratios", seen.log_ratios));
    entries.push(numbers("output.step.grad_norm", seen.grad_norms));
    // After one step from zero, AdamW's first moment is (1 − β₁) times the clipped gradient.
    let mut gradient = workload.trainer.state.optimizer.first.clone();
    let scale = 1.0 - beta1;
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

/// Latents `[N, D]` in the shape that the network knows.
fn images(name: &str, latents: Tensor<2>, policy: &NetworkPolicy) -> Entry {
    let ([n, _], [c, h, w]) = (latents.dims(), policy.latent);
    tensor::<4>(name, latents.reshape([n, c, h, w]))
}

fn pooled(cond: &Conditioning) -> Tensor<2> {
    cond.pooled.clone().expect("invariant: the embedded encoder gives one")
}

fn tensor<const D: usize>(name: &str, tensor: Tensor<D>) -> Entry {
    (name.to_owned(), tensor.dims().to_vec(), tensor.into_data().iter::<f32>().collect())
}
