//! `elbow doctor`: whether this machine, a model and a recipe can work, one line a check.

mod check;
mod place;
mod trial;

use super::{plan, progress::Bars};
use crate::{device::DeviceName, failure, numbers::count, output};
use anyhow::Result;
use check::{Check, Checks};
use elbow_models::pipeline::Source;
use elbow_run::{
    Components, Error, Event, Recipe, data,
    model::{Diffusers, Model},
    recipe,
};
use std::path::PathBuf;

/// Arguments of `elbow doctor`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  elbow doctor                                        this machine and the default recipe
  elbow doctor my-recipe.toml --set batch.micro_batch=4
  elbow doctor --model stable-diffusion-3.5-medium    whether a model folder is whole, without a recipe
  elbow doctor sd3.5-geneval --model stable-diffusion-3.5-medium

Nothing is written but prompt embeddings of a model folder. A recipe is tried with one optimizer step on two images. The exit
status is 1 if a check fails.")]
pub struct Args {
    /// A recipe file, or the name of a recipe that `elbow methods` lists; the default is nano-geneval.
    recipe: Option<PathBuf>,
    /// A model folder, in place of the recipe's; without a recipe it is checked alone.
    #[arg(long, value_name = "FOLDER")]
    model: Option<PathBuf>,
    /// Change one field; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
}

/// Runs the command.
pub fn run(args: &Args, device: DeviceName) -> Result<()> {
    let mut checks = Checks::default();
    for check in place::checks() {
        checks.add(&check);
    }
    match (&args.model, &args.recipe) {
        (Some(path), None) if args.set.is_empty() => model(&Diffusers::at(path.clone()), &mut checks),
        _ => self::recipe(args, device, &mut checks),
    }
    let Checks { made, failed } = checks;
    if failed == 0 {
        output::line(&format!("all {made} checks passed"));
        return Ok(());
    }
    Err(failure::error(format!("{failed} of {made} checks failed"), "mend what stands under each FAIL, and look again"))
}

/// A recipe: what it says, its model, its rewards, and one step of it.
fn recipe(args: &Args, device: DeviceName, checks: &mut Checks) {
    let mut set = args.set.clone();
    set.extend(args.model.iter().map(|path| format!("model.path={}", toml::Value::from(path.display().to_string()))));
    let (name, recipe) = match recipe::load(args.recipe.as_deref(), &set) {
        Ok(loaded) => loaded,
        Err(error) => return checks.add(&Check::new("recipe", Err(error.into()))),
    };
    let batch = recipe.method.batch;
    let said = format!("{name}: {} prompts × {} images an epoch", batch.groups, batch.group_size);
    checks.add(&Check::new("recipe", Ok(said)));
    match data::held_out(&recipe) {
        Ok((prompts, _)) => trial::rewards(&recipe, &prompts).iter().for_each(|check| checks.add(check)),
        Err(error) => checks.add(&Check::new("prompts", Err(error.into()))),
    }
    if let Model::Diffusers(folder) = &recipe.setting.model {
        let failed = checks.failed;
        model(folder, checks);
        if checks.failed > failed {
            return;
        }
    }
    match components(&recipe, device) {
        Ok(components) => trained(&recipe, &components, checks),
        Err(error) => checks.add(&Check::new("components", Err(error))),
    }
}

fn components(recipe: &Recipe, device: DeviceName) -> Result<Components> {
    let bars = Bars::new();
    Ok(Components::load(recipe, &device.open()?, &|event: Event<'_>| bars.progress(event))?)
}

fn trained(recipe: &Recipe, components: &Components, checks: &mut Checks) {
    let parameters = components.model.policy.network.layout().size();
    let said = format!("{} parameters, {} test prompts", count(parameters), components.data.test.len());
    checks.add(&Check::new("components", Ok(said)));
    checks.add(&Check::new("training step", trial::step(recipe, components)));
    let schedule = components.model.policy.schedule;
    if let Ok(method) = recipe.method.build(schedule)
        && let Some(weights) = plan::step_weights(&method, schedule)
    {
        let warnings = method.warnings(schedule).into_iter().map(|warning| format!("warning: {warning}; "));
        checks.add(&Check::new("scored steps", Ok(format!("{}{weights}", warnings.collect::<String>()))));
    }
}

/// A model folder: a line for each part that is wrong, or one for the whole.
fn model(folder: &Diffusers, checks: &mut Checks) {
    match folder.open() {
        Ok(source) => checks.add(&Check::new("model", Ok(description(&source)))),
        Err(Error::Source(several)) => {
            for fault in several.faults {
                checks.add(&Check::new("model", Err(fault.into())));
            }
        }
        Err(other) => checks.add(&Check::new("model", Err(other.into()))),
    }
}

fn description(source: &Source) -> String {
    let [channels, height, width] = source.latent;
    format!(
        "{} parameters, latents of {channels} × {height} × {width}, {:?}",
        count(source.network.layout().size()),
        source.scheduler.prediction
    )
}
