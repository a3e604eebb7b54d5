//! `elbow plan`: what a recipe costs here, before it runs.

use super::{estimate, progress::Bars};
use crate::{
    device::DeviceName,
    failure,
    numbers::{duration, median},
    output,
};
use anyhow::Result;
use elbow::{
    Policy,
    collection::{CollectionKind, Prefilter},
    config::BatchConfig,
    method::Method,
    schedule::Schedule,
};
use elbow_run::{Components, Event, Plan, Recipe, machine, plan::branches, recipe};
use elbow_runlog::{RunFolder, metrics};
use std::{fmt::Write, path::PathBuf};

/// Arguments of `elbow plan`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  elbow plan                                          the default recipe
  elbow plan nano-flow-grpo --set batch.groups=48
  elbow plan --run runs/nano-geneval-1                how long an epoch should take, and how long it took
  elbow plan sd3.5-geneval --config-only stable-diffusion-3.5-medium --gpu a100

A few seconds of drawing and training at the recipe's own settings are measured on this machine and scaled to its batch. With
--config-only nothing is measured and no weights are needed: parameters, memory and operations follow from the folder's
config.json files, and time from a published peak of a device and the share of it that is reached.")]
pub struct Args {
    /// A recipe file, or the name of a recipe that `elbow methods` lists; the default is nano-geneval.
    recipe: Option<PathBuf>,
    /// Change one field; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Plan the recipe of this run and compare with the times it has logged.
    #[arg(long, value_name = "FOLDER", conflicts_with_all = ["recipe", "set"])]
    run: Option<PathBuf>,
    /// Estimate from transformer/config.json or unet/config.json, and vae/ and text_encoder*/ where they are there.
    #[arg(long, value_name = "FOLDER", conflicts_with = "run")]
    config_only: Option<PathBuf>,
    /// The device of that estimate: h100, a100, 4090, l40s, or its operations a second in dense bf16.
    #[arg(long, value_parser = estimate::gpu, default_value = "h100", requires = "config_only")]
    gpu: estimate::Gpu,
    /// Share of the device's operations that is reached.
    #[arg(long, value_name = "SHARE", default_value_t = 0.4, requires = "config_only")]
    utilization: f64,
    /// Memory of the device in GiB, in place of the published one.
    #[arg(long, value_name = "GIB", requires = "config_only")]
    memory: Option<f64>,
}

/// Seconds that a part of the calibration takes, at least.
const CALIBRATION: f64 = 1.0;

/// Runs the command.
pub fn run(args: &Args, device: DeviceName) -> Result<()> {
    let folder = args.run.as_ref().map(RunFolder::open).transpose()?;
    let source = folder.as_ref().map(RunFolder::config).or_else(|| args.recipe.clone());
    let (_, recipe) = recipe::load(source.as_deref(), &args.set)?;
    if let Some(folder) = &args.config_only {
        let Args { gpu, utilization, memory, .. } = args;
        let accelerator = estimate::Device { gpu: gpu.clone(), utilization: *utilization, memory: *memory };
        return estimate::run(&recipe, folder, &accelerator);
    }
    let bars = Bars::new();
    let components = Components::load(&recipe, &device.open()?, &|event: Event<'_>| bars.progress(event))?;
    let plan = Plan::measure(&recipe, &components, CALIBRATION)?;
    let trainer = components.trainer(&recipe.method)?;
    output::line(&text(&plan, &recipe, trainer.method(), components.model.policy.schedule()));
    if let Some(folder) = folder {
        output::line(&comparison(&folder, plan.epoch())?);
    }
    Ok(())
}

/// What is said of a plan.
fn text(plan: &Plan, recipe: &Recipe, built: &Method, schedule: Schedule) -> String {
    let method = &recipe.method;
    let BatchConfig { groups, group_size, updates, .. } = method.batch;
    let guided = branches(&method.sampler);
    let points = built.points(schedule);
    let mut out = String::new();
    let epoch = plan.epoch();
    let total = epoch * method.epochs as f64 + plan.eval * plan.evals as f64;
    let _ = writeln!(out, "an epoch        {groups} prompts × {group_size} images, {updates} update(s)");
    if let CollectionKind::Prefilter(Prefilter { count, steps, .. }) = &method.collection {
        let _ = writeln!(out, "prefilter       {count} a prompt, {} forward passes and a reward each", steps * guided);
    }
    let _ = writeln!(
        out,
        "an image        {} forward passes to draw it; {points} × {} forward and {points} × {guided} backward to train on it",
        method.sampler.steps * guided,
        plan.passes / points.max(1) * guided,
    );
    if let Some(weights) = step_weights(built, schedule) {
        let _ = writeln!(out, "steps           {weights}");
    }
    for warning in built.warnings(schedule) {
        let _ = writeln!(out, "warning         {warning}");
    }
    let _ = writeln!(out, "time an epoch   {epoch:.1} s: {:.1} s drawing, {:.1} s training", plan.draw, plan.train);
    let _ = writeln!(
        out,
        "time in all     {}: {} epochs, and {} evaluations of {:.0} s",
        duration(total),
        method.epochs,
        plan.evals,
        plan.eval
    );
    let memory = machine::peak_memory().map_or_else(|| "unknown here".to_owned(), |m| format!("{m:.0} MiB"));
    let _ = write!(out, "memory          {memory} at the peak of the calibration, which has the run's micro-batches");
    out
}

/// How much each scored step counts in the likelihood, as multiples of the median step; nothing if no steps are scored.
pub fn step_weights(method: &Method, schedule: Schedule) -> Option<String> {
    let weights = method.step_weights(schedule);
    if weights.is_empty() {
        return None;
    }
    let median = median(weights.iter().map(|(_, weight)| *weight).collect());
    let relative: Vec<String> =
        weights.iter().map(|(k, weight)| format!("{}: {:.2}", k + 1, weight / median)).collect();
    Some(format!("weight in the likelihood, over the median's: {}", relative.join(", ")))
}

/// What the epochs of a run took, beside what they should have.
pub fn comparison(folder: &RunFolder, planned: f64) -> Result<String> {
    let mut took: Vec<f64> = Vec::new();
    for record in metrics::read(&folder.metrics())? {
        let time = |key: &str| record.get(key).and_then(serde_json::Value::as_f64);
        took.extend(time("time_rollout").zip(time("time_update")).map(|(rollout, update)| rollout + update));
    }
    if took.is_empty() {
        return Err(failure::error("the run has no epochs to compare with", "let it finish one first"));
    }
    let (epochs, median) = (took.len(), median(took));
    let off = 100.0 * (planned / median - 1.0);
    Ok(format!("the run         {median:.1} s an epoch, the median of {epochs}: the plan is {off:+.0} % off"))
}
