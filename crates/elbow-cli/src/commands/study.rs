//! `elbow study`: many runs, and what their numbers allow to say.

use super::progress::Bars;
use crate::{device::DeviceName, output, signals};
use anyhow::Result;
use elbow_run::{Components, Event};
use elbow_study::{Cell, Finished, Report, Stage, Standing, Store, Study, Told, Workshop, cost, file::Cost};
use std::{fmt::Write, path::PathBuf, sync::Mutex};

/// Arguments of `elbow study`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The study file.
    study: PathBuf,
    /// Say which runs there are and how long they take, and run nothing.
    #[arg(long)]
    plan: bool,
    /// Measure what a pass costs here, for `[cost]` of the study file, and run nothing. The machine should be idle.
    #[arg(long, conflicts_with = "plan")]
    measure: bool,
    /// Run so many cells and stop.
    #[arg(long, value_name = "CELLS")]
    cells: Option<usize>,
    /// Where runs are kept; the default is runs/<name>.
    #[arg(long, value_name = "FOLDER")]
    runs: Option<PathBuf>,
    /// Where finished cells and the report are kept; the default is docs/studies/<name>.
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
}

const EXAMPLES: &str = "\
Examples:
  elbow study studies/first.toml --plan       which runs, and how many hours
  elbow study studies/first.toml              run what is not finished, then write the report
  elbow study studies/first.toml --cells 4    four runs today
  elbow study studies/first.toml --measure    what a pass costs on this machine, for [cost]

A study file:
  name = \"mine\"
  seeds = [0, 1, 2, 3, 4]
  budget = { samples = 960 }                # or evaluations, or epochs
  threshold = 0.6                           # of `measure`, which is geneval
  set = { batch.groups = 12, batch.group_size = 8 }
  [[method]]
  name = \"pepg\"
  [[method]]
  name = \"flow-grpo\"
  recipe = \"nano-flow-grpo\"
  [tune]
  fields = { \"optimizer.learning_rate\" = [1e-4, 3e-4, 1e-3] }
  budget = 3

A finished cell is a small file below --out, which can be committed; it is never run again. A study that was stopped or killed goes on
by the same command, in the middle of a run too, and several processes may work on one. Ctrl-C finishes the epoch and saves it.";

/// Seconds that the measurement of costs takes, at least.
const CALIBRATION: f64 = 30.0;

/// Runs the command.
pub fn run(args: &Args, device: DeviceName) -> Result<()> {
    let study = Study::read(&args.study)?;
    let name = &study.file.name;
    let out = args.out.clone().unwrap_or_else(|| PathBuf::from("docs/studies").join(name));
    let store = Store::new(out.join("cells"));
    if args.measure {
        output::line(&section(&measured(&study, device)?));
        return Ok(());
    }
    if args.plan {
        let cost = match &study.file.cost {
            Some(cost) => cost.clone(),
            None => measured(&study, device)?,
        };
        output::line(&plan(&study, &store, &cost)?);
        return Ok(());
    }
    let bars = Bars::new();
    let runs = args.runs.clone().unwrap_or_else(|| PathBuf::from("runs").join(name));
    let now = Mutex::new((0, String::new()));
    let watch = |told: Told<'_>| match told {
        Told::Begin { title, cell, number, of } => {
            if let Ok(mut now) = now.lock() {
                *now = (cell.recipe.method.epochs, cell.recipe.setting.reward.name());
            }
            bars.say(&format!("\n{number} of at most {of}: {title}, {} epochs", cell.recipe.method.epochs));
        }
        Told::Run(Event::Epoch { epoch, record, took, left, .. }) => {
            let (epochs, reward) = now.lock().map_or_else(|_| (0, String::new()), |now| now.clone());
            bars.epoch((epoch, epochs), &reward, record, took, left);
        }
        Told::Run(event) => bars.progress(event),
        Told::Finish { title, finished } => bars.say(&format!("{title}: {}", outcome(finished, &study.file.measure))),
        Told::Busy { title } => bars.say(&format!("{title}: another process is at work on it")),
    };
    let shop = Workshop {
        store: store.clone(),
        runs,
        device: device.open()?,
        stop: signals::flag()?,
        most: args.cells.unwrap_or(usize::MAX),
        watch: &watch,
    };
    let standing = study.run(&shop)?;
    Report::make(&study, &store)?.write(&out)?;
    let Standing { finished, left, stopped, .. } = standing;
    let cells = if finished == 1 { "cell" } else { "cells" };
    let mut text = format!("{finished} {cells} finished now");
    if left > 0 || stopped {
        let _ = write!(text, ", {left} left: go on with the same command");
    }
    let _ = write!(text, "\nreport: {} and report.html beside it", out.join("report.md").display());
    bars.say(&text);
    Ok(())
}

/// How a cell ended, in a few words.
fn outcome(finished: &Finished, measure: &str) -> String {
    let base = finished.points.first().and_then(|point| point.held_out.get(measure).copied());
    let numbers = base.zip(finished.last(measure));
    let numbers = numbers.map_or_else(String::new, |(base, last)| format!("{measure} {base:.3} → {last:.3}"));
    match &finished.stopped {
        None => numbers,
        Some(why) => format!("{numbers}; it stopped: {why}"),
    }
}

/// What passes of the first method's model cost here.
fn measured(study: &Study, device: DeviceName) -> Result<Cost> {
    let recipe = study.cell(&study.variants[0], 0, study.file.seeds[0])?.recipe;
    let bars = Bars::new();
    let components = Components::load(&recipe, &device.open()?, &|event: Event<'_>| bars.progress(event))?;
    Ok(cost::measure(&recipe, &components, CALIBRATION)?)
}

/// Costs as a study file has them.
fn section(Cost { forward, backward, image, from }: &Cost) -> String {
    format!("[cost]\nforward = {forward:.3e}\nbackward = {backward:.3e}\nimage = {image:.3e}\nfrom = {from:?}")
}

/// Which runs there are and how long they take.
fn plan(study: &Study, store: &Store, cost: &Cost) -> Result<String> {
    let mut out = String::from("   runs    left  epochs   images  evaluations  minutes a run  method\n");
    let (mut all, mut left) = (0.0, 0.0);
    let mut add = |out: &mut String, cells: &[Cell], name: &str| -> Result<()> {
        let Some(first) = cells.first() else { return Ok(()) };
        let each = cost::seconds(first, cost)?;
        let mut open = 0;
        for cell in cells {
            open += usize::from(store.read(&cell.key)?.is_none());
        }
        (all, left) = (all + each * cells.len() as f64, left + each * open as f64);
        let epochs = first.recipe.method.epochs;
        let total = |each: f64| each * epochs as f64;
        let _ = writeln!(
            out,
            "{:7} {open:7} {epochs:7} {:8.0} {:12.0} {:14.1}  {name}",
            cells.len(),
            total(first.passes.images),
            total(first.passes.evaluations()),
            each / 60.0,
        );
        Ok(())
    };
    for variant in &study.variants {
        for stage in study.stages() {
            if stage == Stage::Tuned {
                let mut trials = Vec::new();
                for candidate in 0..variant.candidates.len() {
                    trials.extend(study.trials(variant, candidate)?);
                }
                add(&mut out, &trials, &format!("{}, trials", variant.name))?;
            }
            let chosen = match stage {
                Stage::Published => 0,
                Stage::Tuned => study.chosen(variant, store)?.map_or(0, |choice| choice.candidate),
            };
            let seeds = study.file.seeds.iter();
            let cells =
                seeds.map(|&seed| study.cell(variant, chosen, seed)).collect::<elbow_run::Result<Vec<Cell>>>()?;
            add(&mut out, &cells, &format!("{}, {}", variant.name, stage.name()))?;
        }
    }
    let Cost { forward, backward, image, from } = cost;
    let _ = write!(
        out,
        "{:.1} hours in all, {:.1} left, if nothing else runs: {:.2} ms an evaluation, {:.2} ms one with its gradient, {:.2} ms an image\n({from})",
        all / 3600.0,
        left / 3600.0,
        forward * 1e3,
        backward * 1e3,
        image * 1e3
    );
    Ok(out)
}
