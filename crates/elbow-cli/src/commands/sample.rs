//! `elbow sample`: images for prompts.

use super::progress::Bars;
use crate::{device::DeviceName, failure, output};
use anyhow::Result;
use elbow::{Prompt, params::Params};
use elbow_run::{Event, LoadedModel, Recipe, Weights, data::Early, pictures, recipe};
use elbow_runlog::{RunFolder, RunLogError, grid, save_png};
use std::path::PathBuf;

/// Arguments of `elbow sample`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  elbow sample \"a photo of two cats\"                    the embedded base model
  elbow sample --run runs/nano-geneval-1 \"a photo of a red car and a blue bird\" --images 8 --out cars.png")]
pub struct Args {
    /// What to draw, one image row each.
    #[arg(required = true)]
    prompts: Vec<String>,
    #[command(flatten)]
    source: Source,
    /// Images a prompt.
    #[arg(long, default_value_t = 4)]
    images: usize,
    /// Decides the start noise.
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Where the grid of images goes.
    #[arg(long, default_value = "sample.png")]
    out: PathBuf,
}

/// A model to look at: a run's averaged weights, or a recipe's base.
#[derive(clap::Args)]
pub struct Source {
    /// A run folder; its last checkpoint's averaged weights are used. Without it, the base model.
    #[arg(long, value_name = "FOLDER")]
    run: Option<PathBuf>,
    /// The checkpoint of this epoch in place of the last one.
    #[arg(long, requires = "run")]
    epoch: Option<u64>,
    /// Change one field of the recipe, e.g. eval.measure.sampler.guidance=2; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl Source {
    /// The recipe: that of the run, or the default one.
    pub fn recipe(&self) -> Result<Recipe> {
        let config = self.run.as_ref().map(|path| Ok::<_, RunLogError>(RunFolder::open(path)?.config())).transpose()?;
        Ok(recipe::load(config.as_deref(), &self.set)?.1)
    }

    /// The trained weights of the run if one was given.
    pub fn params(&self, model: &LoadedModel) -> Result<Option<Params>> {
        let Some(path) = &self.run else { return Ok(None) };
        Ok(Some(model.trained(&RunFolder::open(path)?, self.epoch, Weights::Averaged)?.1))
    }
}

/// Runs the command.
pub fn run(args: &Args, device: DeviceName) -> Result<()> {
    if args.images == 0 {
        return Err(failure::error("--images 0: nothing to draw", "ask for at least one image a prompt"));
    }
    let mut recipe = args.source.recipe()?;
    recipe.setting.eval.measure.images_per_prompt = args.images;
    recipe.setting.eval.measure.seed = args.seed;
    let prompts: Vec<Prompt> = args.prompts.iter().map(|prompt| Prompt::from(prompt.as_str())).collect();
    let bars = Bars::new();
    let watch = |event: Event<'_>| bars.progress(event);
    let model = LoadedModel::load(&recipe, &Early::given(prompts.clone()), &device.open()?, &watch)?;
    let params = args.source.params(&model)?;
    let measured = model.measure(&recipe, &prompts, &[], params.as_ref(), &watch)?;
    let tiles = pictures::measured(&measured, measured.images.len());
    save_png(&args.out, &grid::grid(&tiles, args.images, 6))?;
    output::line(&format!("{} images in {}", measured.images.len(), args.out.display()));
    Ok(())
}
