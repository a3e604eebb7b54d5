//! `elbow doctor`: whether this machine, a model and a recipe can work, one line a check.

mod check;
mod place;
mod trial;

use super::{plan, progress::Bars};
use crate::{device::DeviceName, failure, numbers::count, output};
use anyhow::Result;
use check::{Check, Checks};
use elbow_models::pipeline::{Source, SourceError};
use elbow_run::{
    Components, Error, Event, Recipe, data,
    model::{Diffusers, Model},
    recipe,
};
use std::path::{Path, PathBuf};

/// Arguments of `elbow doctor`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  elbow doctor                                        this machine and the default recipe
  elbow doctor my-recipe.toml --set batch.micro_batch=4
  elbow doctor --model stable-diffusion-3.5-medium    whether a model folder is whole, without a recipe
  elbow doctor --model my-model --set model.variant=fp16 --set \"model.resolution=[768, 1024]\"
  elbow doctor sd3.5-geneval --model stable-diffusion-3.5-medium

Nothing is written but prompt embeddings of a model folder. A recipe is tried with one optimizer step on two images. The exit
status is 1 if a check fails.")]
pub struct Args {
    /// A recipe file, or the name of a recipe that `elbow methods` lists; the default is nano-geneval.
    recipe: Option<PathBuf>,
    /// A model folder, in place of the recipe's; without a recipe it is checked alone, at the size that it was made for, and all its weights
    /// are looked at.
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
        (Some(path), None) => alone(path, &args.set, &mut checks),
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
    set.extend(args.model.iter().map(|path| path_change(path)));
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
    let mut warnings = Vec::new();
    if let Model::Diffusers(folder) = &recipe.setting.model {
        let Some(source) = model(folder.open(), checks) else { return };
        warnings = source.warnings;
    }
    match components(&recipe, device, &warnings) {
        Ok(components) => trained(&recipe, &components, checks),
        Err(error) => checks.add(&Check::new("components", Err(error))),
    }
}

/// Loads what the recipe works with; `told` are warnings that were shown already.
fn components(recipe: &Recipe, device: DeviceName, told: &[String]) -> Result<Components> {
    let bars = Bars::new();
    let watch = |event: Event<'_>| match event {
        Event::Warning { text } if told.iter().any(|warning| warning == text) => {}
        event => bars.progress(event),
    };
    Ok(Components::load(recipe, &device.open()?, &watch)?)
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

/// A model folder without a recipe: with the changes, and at the model's own size if they say none.
fn alone(path: &Path, set: &[String], checks: &mut Checks) {
    let folder = match changed(path, set) {
        Ok(folder) => folder,
        Err(error) => return checks.add(&Check::new("recipe", Err(error.into()))),
    };
    let sized = set.iter().any(|change| change.trim_start().starts_with("model.resolution"));
    let Some(source) = model(folder.open_at(sized.then_some(folder.resolution)), checks) else { return };
    match source.check_values() {
        Ok(()) => checks.add(&Check::new("weights", Ok("all are finite numbers".into()))),
        Err(SourceError { faults }) => {
            for fault in faults {
                checks.add(&Check::new("weights", Err(fault.into())));
            }
        }
    }
}

/// The model of the default recipe with the folder in its place, and with these changes.
fn changed(path: &Path, set: &[String]) -> Result<Diffusers, Error> {
    if set.is_empty() {
        return Ok(Diffusers::at(path.to_owned()));
    }
    let own = ["model.kind=diffusers".to_owned(), path_change(path)];
    let (_, recipe) = recipe::load(None, &own.iter().chain(set).cloned().collect::<Vec<_>>())?;
    match recipe.setting.model {
        Model::Diffusers(folder) => Ok(folder),
        Model::Nano { .. } => Ok(Diffusers::at(path.to_owned())),
    }
}

fn path_change(path: &Path) -> String {
    format!("model.path={}", toml::Value::from(path.display().to_string()))
}

/// A model folder: a line for each part that is wrong, or one for the whole.
fn model(opened: Result<Source, Error>, checks: &mut Checks) -> Option<Source> {
    match opened {
        Ok(source) => {
            checks.add(&Check::new("model", Ok(description(&source))));
            return Some(source);
        }
        Err(Error::Source(several)) => {
            for fault in several.faults {
                checks.add(&Check::new("model", Err(fault.into())));
            }
        }
        Err(other) => checks.add(&Check::new("model", Err(other.into()))),
    }
    None
}

fn description(source: &Source) -> String {
    let ([channels, height, width], [high, wide]) = (source.latent, source.resolution);
    let text = format!(
        "{} parameters, pictures of {high} × {wide}, latents of {channels} × {height} × {width}, {:?}",
        count(source.network.layout().size()),
        source.scheduler.prediction
    );
    let warnings = source.warnings.iter().map(|warning| format!("warning: {warning}"));
    [text].into_iter().chain(warnings).collect::<Vec<_>>().join("\n")
}
