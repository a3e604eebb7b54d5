//! `elbow plan`: what a recipe costs here, before it runs.

use super::{estimate, progress::Bars};
use crate::{
    device::DeviceName,
    failure::Hint,
    output,
    recipe::{self, Recipe},
    session::Session,
};
use anyhow::Result;
use elbow::{
    advantage::{AdvantageKind, Grouped},
    config::{Batch, Config},
    drafts::Drafts,
    lanes,
    sampler::Sampling,
    train::{Outcome, Trainer},
};
use elbow_runlog::{RunFolder, metrics};
use std::{fmt::Write, path::PathBuf, time::Instant};

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

/// Seconds that a part of the calibration takes, at least; the first run of each is not counted.
const CALIBRATION: f64 = 1.0;

/// Seconds that an epoch should take, from one batch of drawing and of training after one that is not counted.
pub fn epoch(recipe: &Recipe, session: &Session) -> Result<f64> {
    let plan = Plan::new(recipe, session, calibrate(recipe, session, 0.0)?);
    Ok(plan.draw + plan.train)
}

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
    let session = Session::new(&recipe, device, &Bars::new())?;
    let measured = calibrate(&recipe, &session, CALIBRATION)?;
    let plan = Plan::new(&recipe, &session, measured);
    output::line(&plan.text(&recipe));
    if let Some(folder) = folder {
        output::line(&comparison(&folder, plan.draw + plan.train)?);
    }
    Ok(())
}

/// Seconds an image to draw it (and score it) and to train on it, and the forward passes at all its points in an update that sees
/// other behavior weights.
#[derive(Clone, Copy)]
struct Measured {
    draw: f64,
    train: f64,
    passes: usize,
}

/// Draws whole groups, at least as many images as the device takes at once, and takes optimizer steps on them, with rewards that do
/// not agree. Drafts are counted apart. Each part takes `least` seconds or more.
fn calibrate(recipe: &Recipe, session: &Session, least: f64) -> Result<Measured> {
    let Batch { group_size, rows, .. } = recipe.method.batch;
    let groups = (rows * lanes::count(&session.device)).div_ceil(group_size);
    let mut trainer = Trainer::new(
        recipe.method.of_one_batch(Batch { groups, updates: 1, ..recipe.method.batch }),
        &session.policy,
        &*session.train,
        &*session.reward,
        session.device.clone(),
    )?;
    // The first of each is not counted.
    let drawn = trainer.draw(&())?;
    let draw = seconds(least, || trainer.draw(&()).map(drop))?;
    let count = drawn.rewards.rewards.len();
    let rewards = disagreeing(drawn.rewards);
    let mut seen = Outcome::default();
    let mut step = || {
        if off_policy(&recipe.method) {
            // Behavior weights that differ, so that their forward passes are not saved.
            trainer.state.behavior.values_mut()[0] += 1e-3;
        }
        seen = trainer.update(&drawn.rollout, &rewards, &())?;
        Ok(())
    };
    step()?;
    let train = seconds(least, step)?;
    let trained = seen.trained.max(1);
    Ok(Measured { draw: draw / count as f64, train: train / trained as f64, passes: seen.passes / trained })
}

/// The same images with the rewards 0, 1, 0, 1, …, so that every group has something to say.
pub fn disagreeing(rewards: Grouped) -> Grouped {
    let alternating = (0..rewards.rewards.len()).map(|i| Some((i % 2) as f64)).collect();
    Grouped { rewards: alternating, parts: Vec::new(), ..rewards }
}

/// Whether some updates see behavior weights that differ from the current ones.
pub fn off_policy(method: &Config) -> bool {
    method.batch.updates > 1 || method.behavior.max > 0.0
}

/// Forward passes at a point: two with guidance.
pub fn branches(sampling: &Sampling) -> usize {
    if sampling.guidance.to_bits() == 1f64.to_bits() { 1 } else { 2 }
}

/// Mean seconds of a run; there is one at least.
fn seconds(least: f64, mut run: impl FnMut() -> Result<(), elbow::train::TrainError>) -> Result<f64> {
    let (start, mut runs) = (Instant::now(), 0);
    while runs == 0 || start.elapsed().as_secs_f64() < least {
        run()?;
        runs += 1;
    }
    Ok(start.elapsed().as_secs_f64() / f64::from(runs))
}

/// What a run takes, in seconds.
struct Plan {
    /// An epoch's rollout.
    draw: f64,
    /// An epoch's updates, if every group has something to say.
    train: f64,
    /// One evaluation on the held-out prompts.
    eval: f64,
    /// How many evaluations there are.
    evals: u64,
    /// Forward passes at all points of an image.
    passes: usize,
}

impl Plan {
    fn new(recipe: &Recipe, session: &Session, per_image: Measured) -> Self {
        let (method, eval) = (&recipe.method, &recipe.setting.eval.measure);
        let images = method.batch.groups * method.batch.group_size;
        let pairs = matches!(method.advantage, AdvantageKind::BestWorst(_));
        let trained = if pairs { 2 * images / method.compared() } else { images };
        let passes = |sampling: &Sampling| (sampling.steps * branches(sampling)) as f64;
        let longer = passes(&eval.sampler) / passes(&method.sampler);
        let drafts =
            (method.batch.groups * method.drafts.count * method.drafts.steps) as f64 / method.sampler.steps as f64;
        let between = method.epochs.checked_div(eval.every).unwrap_or(0);
        Self {
            draw: per_image.draw * (images as f64 + drafts),
            train: per_image.train * trained as f64,
            eval: per_image.draw * longer * (session.test.len() * eval.images_per_prompt) as f64,
            evals: between + 2,
            passes: per_image.passes,
        }
    }

    fn text(&self, recipe: &Recipe) -> String {
        let method = &recipe.method;
        let Batch { groups, group_size, updates, .. } = method.batch;
        let guided = branches(&method.sampler);
        let points = method.likelihood.count(&method.sampler, method.schedule);
        let mut out = String::new();
        let epoch = self.draw + self.train;
        let total = epoch * method.epochs as f64 + self.eval * self.evals as f64;
        let _ = writeln!(out, "an epoch        {groups} prompts × {group_size} images, {updates} update(s)");
        if method.drafts.count > 0 {
            let Drafts { count, steps, .. } = method.drafts;
            let _ =
                writeln!(out, "drafts          {count} a prompt, {} forward passes and a reward each", steps * guided);
        }
        let _ = writeln!(
            out,
            "an image        {} forward passes to draw it; {points} × {} forward and {points} × {guided} backward to train on it",
            method.sampler.steps * guided,
            self.passes / points.max(1) * guided,
        );
        let _ = writeln!(out, "time an epoch   {epoch:.1} s: {:.1} s drawing, {:.1} s training", self.draw, self.train);
        let _ = writeln!(
            out,
            "time in all     {}: {} epochs, and {} evaluations of {:.0} s",
            duration(total),
            method.epochs,
            self.evals,
            self.eval
        );
        let memory = super::bench::peak_memory().map_or_else(|| "unknown here".to_owned(), |m| format!("{m:.0} MiB"));
        let _ =
            write!(out, "memory          {memory} at the peak of the calibration, which has the run's micro-batches");
        out
    }
}

fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    if whole < 60 { format!("{whole} s") } else { format!("{} min {:02} s", whole / 60, whole % 60) }
}

/// What the epochs of a run took, beside what they should have.
pub fn comparison(folder: &RunFolder, planned: f64) -> Result<String> {
    let mut took: Vec<f64> = Vec::new();
    for record in metrics::read(&folder.metrics())? {
        let time = |key: &str| record.get(key).and_then(serde_json::Value::as_f64);
        took.extend(time("time_rollout").zip(time("time_update")).map(|(rollout, update)| rollout + update));
    }
    if took.is_empty() {
        return Err(Hint::error("the run has no epochs to compare with", "let it finish one first"));
    }
    let (epochs, median) = (took.len(), super::bench::median(took));
    let off = 100.0 * (planned / median - 1.0);
    Ok(format!("the run         {median:.1} s an epoch, the median of {epochs}: the plan is {off:+.0} % off"))
}
