//! `elbow doctor`: whether this machine, a model and a recipe can work, one line a check.

mod place;
mod trial;

use super::progress::Bars;
use crate::{
    device::DeviceName,
    failure::{self, Hint},
    model::{Diffusers, Model},
    output,
    recipe::{self, Recipe},
    session::Session,
};
use anyhow::{Error, Result};
use elbow_models::pipeline::{Source, SourceError};
use std::path::PathBuf;

/// Arguments of `elbow doctor`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  elbow doctor                                        this machine and the default recipe
  elbow doctor my-recipe.toml --set batch.rows=4
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

/// What was looked at, and what was found.
struct Check {
    name: String,
    found: Result<String>,
}

impl Check {
    fn new(name: impl Into<String>, found: Result<String>) -> Self {
        Self { name: name.into(), found }
    }

    fn text(&self) -> String {
        let indented = |text: String| text.replace('\n', &format!("\n{:21}", ""));
        let (mark, found) = match &self.found {
            Ok(text) => ("ok", text.clone()),
            Err(error) => ("FAIL", format!("{error:#}")),
        };
        let advice = self.found.as_ref().err().and_then(failure::advice);
        let advice = advice.map(|advice| format!("\n{:21}hint: {}", "", indented(advice))).unwrap_or_default();
        format!("{mark:<4}  {:<13}  {}{advice}", self.name, indented(found))
    }
}

/// Checks as they are made: each is shown at once, since some take a while.
#[derive(Default)]
struct Checks {
    made: usize,
    failed: usize,
}

impl Checks {
    fn add(&mut self, check: &Check) {
        self.made += 1;
        self.failed += usize::from(check.found.is_err());
        output::line(&check.text());
    }
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
    Err(Hint::error(format!("{failed} of {made} checks failed"), "mend what stands under each FAIL, and look again"))
}

/// A recipe: what it says, its model, its rewards, and one step of it.
fn recipe(args: &Args, device: DeviceName, checks: &mut Checks) {
    let mut set = args.set.clone();
    set.extend(args.model.iter().map(|path| format!("model.path={}", toml::Value::from(path.display().to_string()))));
    let (name, recipe) = match recipe::load(args.recipe.as_deref(), &set) {
        Ok(loaded) => loaded,
        Err(error) => return checks.add(&Check::new("recipe", Err(error))),
    };
    let batch = recipe.method.batch;
    let said = format!("{name}: {} prompts × {} images an epoch", batch.groups, batch.group_size);
    checks.add(&Check::new("recipe", Ok(said)));
    for check in trial::rewards(&recipe.setting.reward) {
        checks.add(&check);
    }
    if let Model::Diffusers(folder) = &recipe.setting.model {
        let failed = checks.failed;
        model(folder, checks);
        if checks.failed > failed {
            return;
        }
    }
    match Session::new(&recipe, device, &Bars::new()) {
        Ok(session) => trained(&recipe, &session, checks),
        Err(error) => checks.add(&Check::new("session", Err(error))),
    }
}

fn trained(recipe: &Recipe, session: &Session, checks: &mut Checks) {
    let parameters = session.policy.network.network.layout().size();
    let said = format!("{} parameters, {} test prompts", count(parameters), session.test.len());
    checks.add(&Check::new("session", Ok(said)));
    checks.add(&Check::new("training step", trial::step(recipe, session)));
}

/// A model folder: a line for each part that is wrong, or one for the whole.
fn model(folder: &Diffusers, checks: &mut Checks) {
    match folder.open() {
        Ok(source) => checks.add(&Check::new("model", Ok(description(&source)))),
        Err(error) => match error.downcast::<SourceError>() {
            Ok(several) => {
                several.faults.into_iter().for_each(|fault| checks.add(&Check::new("model", Err(Error::new(fault)))));
            }
            Err(other) => checks.add(&Check::new("model", Err(other))),
        },
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

/// A number of parameters in a unit that suits it.
pub fn count(parameters: usize) -> String {
    let n = parameters as f64;
    match parameters {
        0..1_000_000 => format!("{:.0} thousand", n / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} million", n / 1e6),
        _ => format!("{:.2} billion", n / 1e9),
    }
}
