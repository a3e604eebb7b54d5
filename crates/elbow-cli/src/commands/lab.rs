//! `elbow lab`: estimators against the truth, as a report.

use super::progress::Bars;
use crate::{output, target};
use anyhow::Result;
use elbow_run::machine;
use elbow_runlog::write_atomic;
use elbow_study::lab::{Report, Size};
use std::{path::PathBuf, time::Instant};

/// Arguments of `elbow lab`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  elbow lab                       writes docs/lab.md and docs/lab.json
  elbow lab --quick --out my.md   a look at everything, with large errors

Policies of which every probability is known are asked by every likelihood: how far log-ratios and gradients are off, what each time
contributes, where training goes, and what few successes do. The tables depend on the seed alone; a line of the report says the time and the machine.")]
pub struct Args {
    /// Few samples, seeds and epochs.
    #[arg(long)]
    quick: bool,
    /// Where the report goes; its numbers go beside it, to the same name that ends in .json. Older ones are replaced.
    #[arg(long, value_name = "FILE", default_value = "docs/lab.md")]
    out: PathBuf,
    /// Decides every random number.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    target::document("--out", &args.out, "md", "lab.md")?;
    let bars = Bars::new();
    let started = Instant::now();
    let size = if args.quick { Size::QUICK } else { Size::FULL };
    let report = Report::make(size, args.seed, &|question| bars.say(question))?;
    let minutes = started.elapsed().as_secs_f64() / 60.0;
    let quick = if args.quick { " --quick" } else { "" };
    let cpu = machine::facts()["cpu"].as_str().unwrap_or("an unknown processor").to_owned();
    let made = format!("Made by `elbow lab{quick} --seed {}` in {minutes:.1} minutes on {cpu}.", args.seed);
    let json = args.out.with_extension("json");
    write_atomic(&args.out, report.markdown(&made).as_bytes())?;
    write_atomic(&json, report.json().as_bytes())?;
    output::line(&format!("{} and {}: {} tables", args.out.display(), json.display(), report.tables.len()));
    Ok(())
}
