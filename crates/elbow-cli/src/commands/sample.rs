//! `elbow sample`: images for prompts.

use super::progress::Bars;
use crate::{
    recipe::{self, Recipe},
    session::{Hint, Session},
};
use anyhow::{Context, Result};
use elbow::{Prompt, eval::Measured, params::Params};
use elbow_runlog::{RunFolder, checkpoint, grid, save_png};
use std::path::PathBuf;

/// Arguments of `elbow sample`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  elbow sample \"a photo of two cats\"                    the embedded base model
  elbow sample --run runs/nano-geneval-1 \"a photo of a red car and a blue bird\" --images 8 --out cars.png")]
pub struct Args {
    /// What to draw.
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
    /// Change one field of the recipe, e.g. eval.measure.sampler.guidance=2; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl Source {
    /// The recipe, what it stands for, and the trained weights of the run if one was given.
    pub fn open(&self) -> Result<(Recipe, Session, Option<Params>)> {
        let Some(path) = &self.run else {
            let (_, recipe) = recipe::load(None, &self.set)?;
            let session = Session::new(&recipe)?;
            return Ok((recipe, session, None));
        };
        let folder = RunFolder::open(path)?;
        let (_, recipe) = recipe::load(Some(&folder.config()), &self.set)?;
        let session = Session::new(&recipe)?;
        let Some((_, latest)) = checkpoint::latest(&folder.checkpoints())? else {
            return Err(Hint::error(
                format!("{} has no checkpoint yet", path.display()),
                "let the run reach its first checkpoint (keep.checkpoint_every), or stop it with Ctrl-C, which writes one",
            ));
        };
        let checkpoint = checkpoint::read(&latest)?;
        let file = checkpoint.files.get("ema.safetensors").context("the checkpoint has no ema.safetensors")?;
        let params = elbow::policy::Policy::initial(&session.policy).with_values_of(file)?;
        Ok((recipe, session, Some(params)))
    }
}

/// Runs the command.
#[expect(clippy::print_stdout, reason = "says where the images are")]
pub fn run(args: &Args) -> Result<()> {
    let (mut recipe, mut session, params) = args.source.open()?;
    session.test = args.prompts.iter().map(|p| Prompt::from(p.as_str())).collect();
    session.measures.clear();
    recipe.setting.eval.measure.images_per_prompt = args.images;
    recipe.setting.eval.measure.seed = args.seed;
    let measured = session.measure(&recipe, params.as_ref(), &Bars::new())?;
    let tiles = tiles(&measured, measured.images.len());
    save_png(&args.out, &grid::grid(&tiles, args.images, 6))?;
    println!("{} images in {}", measured.images.len(), args.out.display());
    Ok(())
}

/// Images with their prompts and, where there is one, whether the first measure holds; spread evenly over all images.
pub fn tiles(measured: &Measured, most: usize) -> Vec<grid::Tile> {
    let total = measured.images.len();
    let count = total.min(most);
    let score = |i: usize| measured.scores.get("geneval").and_then(|s| s[i]);
    let tile = |i: usize| {
        let mut caption = vec![measured.prompts[i].text.clone()];
        caption.extend(score(i).map(|s| if s > 0.5 { "right".to_owned() } else { "wrong".to_owned() }));
        grid::Tile { image: measured.images[i].clone(), caption }
    };
    (0..count).map(|k| tile(k * total / count)).collect()
}
