//! `elbow train`: the main job.

use crate::{
    device::DeviceName,
    failure,
    live::{self, View},
    output,
    signals::Stop,
    table,
};
use anyhow::{Context, Result, bail};
use elbow_run::{Components, Event, Recipe, Results, Run, Status, judges, recipe};
use elbow_runlog::RunFolder;
use std::{
    fs,
    io::{ErrorKind, IsTerminal, stdout},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

/// Arguments of `elbow train`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  elbow train
  elbow train nano-flow-grpo --set seed=1 --set epochs=50
  elbow train --run runs/mine --set objective.kind=grpo --set objective.clip=1e-4
  elbow train --tui                                   curves and numbers on the full screen
  elbow train --resume runs/mine
  elbow train --resume runs/mine --set epochs=200     train a finished run on")]
pub struct Args {
    /// A recipe file, or the name of a recipe that `elbow methods` lists; the default is nano-geneval.
    recipe: Option<PathBuf>,
    /// Change one field, e.g. objective.clip=1e-4; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Where to write; the default is runs/<recipe>-<number>.
    #[arg(long, value_name = "FOLDER", conflicts_with = "resume")]
    run: Option<PathBuf>,
    /// Go on with a run where its last checkpoint stands.
    #[arg(long, value_name = "FOLDER")]
    resume: Option<PathBuf>,
    /// Epochs between evaluations on the held-out prompts, in place of the recipe's.
    #[arg(long, value_name = "EPOCHS")]
    eval_every: Option<u64>,
    /// Show the run on the full screen: curves, latest numbers, messages. `q` finishes the epoch, saves and stops.
    #[arg(long)]
    tui: bool,
}

/// Runs the command.
pub fn run(mut args: Args, device: DeviceName) -> Result<()> {
    if let Some(every) = args.eval_every {
        args.set.push(format!("eval.measure.every={every}"));
    }
    if args.tui && !stdout().is_terminal() {
        return Err(failure::error("--tui needs a terminal", "leave --tui out: lines are printed anywhere"));
    }
    let (name, recipe, target) = match &args.resume {
        Some(path) => {
            let folder = RunFolder::open(path)?;
            let recipe = recipe::of_run(&folder, args.recipe.as_deref(), &args.set)?;
            let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
            (name, recipe, Target::Existing(folder.claim()?))
        }
        None => start(&args)?,
    };
    let view = Arc::new(if args.tui { View::screen(&name)? } else { View::lines(&name) });
    let ended = train(recipe, target, device, &view);
    view.leave();
    let Ended { folder, text, stop } = ended?;
    output::line(&text);
    // Whoever listens for signals may be at work with it until the program ends.
    folder.release();
    drop(stop);
    Ok(())
}

/// How training ended.
struct Ended {
    folder: RunFolder,
    /// What is to be read of it.
    text: String,
    /// Listens until the program ends.
    stop: Stop,
}

/// Trains until the end, or until it is asked to stop.
fn train(recipe: Recipe, target: Target, device: DeviceName, view: &Arc<View>) -> Result<Ended> {
    let stop = Stop::listen(Duration::from_secs(recipe.setting.keep.grace_seconds), Arc::clone(view))?;
    if let Target::Existing(folder) = &target {
        stop.gives_back(folder);
    }
    let watch = |event: Event<'_>| view.event(event);
    let loaded = device.open().and_then(|device| Ok(Components::load(&recipe, &device, &watch)?));
    if let (Err(_), Target::New(path)) = (&loaded, &target) {
        // A name that was taken is free again; a folder that holds something stays.
        drop(fs::remove_dir(path));
    }
    let components = loaded?;
    let reward = components.reward.name();
    let mut run = match target {
        Target::New(path) => Run::create(path, recipe, &components, &watch)?,
        Target::Existing(folder) => Run::resume(folder, recipe, &components, &watch)?,
    };
    run.stop = stop.flag();
    stop.saves(run.finished());
    let folder = run.folder().clone();
    let (records, pictures) = live::earlier(&folder)?;
    view.begin(&live::Start {
        folder: folder.path(),
        epoch: run.epoch(),
        epochs: run.recipe().method.epochs,
        reward,
        measures: &judges::names(run.recipe(), &components.data.test),
        records: &records,
        pictures,
    });
    view.say(&announcement(&run));
    if run.steps()? == Status::Stopped {
        let (epoch, place) = (run.epoch(), folder.path().display());
        let text = format!("stopped after epoch {epoch}; go on with: elbow train --resume {place}");
        return Ok(Ended { folder, text, stop });
    }
    if run.halted().is_some() {
        let (epoch, folder) = (run.epoch(), folder.path().display());
        view.say(&format!("the radar ended the run after epoch {epoch}; to go on: elbow train --resume {folder} --set radar.action=warn"));
    }
    let text = summary(&run.finish()?, reward, &folder);
    Ok(Ended { folder, text, stop })
}

/// The recipe's name, the recipe, and the new folder of its run.
fn start(args: &Args) -> Result<(String, Recipe, Target)> {
    let (name, mut recipe) = recipe::load(args.recipe.as_deref(), &args.set)?;
    recipe.setting.model.pin()?;
    let path = if let Some(path) = &args.run { path.clone() } else { free_name(&name)? };
    Ok((name, recipe, Target::New(path)))
}

/// Creates and returns the first free folder of `runs/<name>-1`, `-2`, …: runs that start at the same time get different folders.
fn free_name(name: &str) -> Result<PathBuf> {
    fs::create_dir_all("runs").context("cannot create runs/")?;
    for number in 1..=u32::MAX {
        let path = PathBuf::from(format!("runs/{name}-{number}"));
        match fs::create_dir(&path) {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error).with_context(|| format!("cannot create {}", path.display())),
        }
    }
    bail!("no free name under runs/")
}

/// Where to write.
enum Target {
    New(PathBuf),
    Existing(RunFolder),
}

/// What is about to run.
fn announcement(run: &Run<'_>) -> String {
    let method = &run.recipe().method;
    let batch = method.batch;
    let images = batch.groups * batch.group_size;
    let points = run.points();
    format!(
        "{} prompts × {} images = {images} images an epoch, {} steps each; {} update(s) of {} images, {points} points each; \
         {} parameters trained, {} epochs from {}; writing to {}",
        batch.groups,
        batch.group_size,
        method.sampler.steps,
        batch.updates,
        images / batch.updates.max(1),
        run.parameters(),
        method.epochs,
        run.epoch(),
        run.folder().path().display(),
    )
}

/// Scores before and after, and where the rest is.
fn summary(results: &Results, reward: &str, folder: &RunFolder) -> String {
    let Results { base, tuned } = results;
    let mut parts = Vec::new();
    if let Some(table) = table::comparison(&["geneval", "judge"], base, tuned) {
        let what = "strict scores on held-out prompts (judge: an independent detector, never trained on)";
        parts.push(format!("\n{what}\n{table}"));
    }
    if reward != "geneval"
        && let Some(table) = table::comparison(&[reward], base, tuned)
    {
        parts.push(format!("\nthe reward on held-out prompts\n{table}"));
    }
    let pictures = folder.images().join("before-after.png");
    parts.push(format!("\nrun folder: {}\npictures:   {}", folder.path().display(), pictures.display()));
    parts.join("\n")
}
