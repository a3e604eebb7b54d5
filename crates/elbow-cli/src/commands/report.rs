//! `elbow report`: what happened, as a page.

use crate::{failure, output, target};
use anyhow::Result;
use elbow_report::{Report, ReportError};
use elbow_runlog::write_atomic;
use std::{
    error::Error,
    path::{Path, PathBuf},
};

/// Arguments of `elbow report`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  elbow report runs/nano-geneval-1                    writes runs/nano-geneval-1/report.html
  elbow report runs/*-seed? --out seeds.html          one curve with a band a recipe, and what differs between recipes
  elbow report runs/nano-geneval-1 --csv curves.csv   also run, step, elapsed hours, reward and averaged reward
  elbow report docs/studies/first                     the study whose results lie there

A page is one file that asks no network. A run under way may be looked at as well; of a study `elbow study` writes the page too.")]
pub struct Args {
    /// Folders of runs, or one with the results of a study. Runs of one recipe that differ in their seeds are shown as one curve with a band.
    #[arg(required = true, value_name = "RUN|STUDY")]
    runs: Vec<PathBuf>,
    /// Where the page goes; the default is report.html in the folder, or here for several runs. An older page is replaced.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Also write the training curves to this file.
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    let out = match (&args.out, &args.runs[..]) {
        (Some(out), _) => out.clone(),
        (None, [run]) => run.join("report.html"),
        (None, _) => PathBuf::from("report.html"),
    };
    if args.out.is_some() {
        target::document("--out", &out, "html", "report.html")?;
    }
    if let Some(csv) = &args.csv {
        target::document("--csv", csv, "csv", "report.csv")?;
    }
    let (page, table) = match &args.runs[..] {
        [folder] if is_study(folder) => {
            let study = elbow_study::Report::read(folder)?;
            (study.html(), args.csv.as_ref().map(|_| study.curves_csv()))
        }
        runs => {
            if let Some(study) = runs.iter().find(|folder| is_study(folder)) {
                let message = format!("{} holds a study: a page is of one study, or of runs", study.display());
                return Err(failure::error(message, "name it alone"));
            }
            if let Some(file) = runs.iter().find(|file| file.extension().is_some_and(|end| end == "toml")) {
                let message = format!("{} is a file, and a page is made of results", file.display());
                return Err(failure::error(message, "name the folder that `elbow study` writes: docs/studies/<name>"));
            }
            let report = Report::read(runs).map_err(told)?;
            (report.html(), args.csv.as_ref().map(|_| report.csv()).transpose().map_err(told)?)
        }
    };
    write_atomic(&out, page.as_bytes())?;
    output::line(&format!("{} ({}): open it in a browser", out.display(), size(page.len())));
    if let (Some(csv), Some(table)) = (&args.csv, table) {
        write_atomic(csv, table.as_bytes())?;
        output::line(&format!("{}: the curves", csv.display()));
    }
    Ok(())
}

/// Whether `elbow study` wrote the folder.
fn is_study(folder: &Path) -> bool {
    folder.join(elbow_study::report::RESULTS).is_file()
}

/// An error with its causes in one line, and its hint.
fn told(error: ReportError) -> anyhow::Error {
    let Some(hint) = error.hint() else { return error.into() };
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        message = format!("{message}: {source}");
        cause = source.source();
    }
    failure::error(message, hint)
}

fn size(bytes: usize) -> String {
    let kilobytes = bytes as f64 / 1e3;
    if kilobytes < 1e3 { format!("{kilobytes:.0} kB") } else { format!("{:.1} MB", kilobytes / 1e3) }
}
