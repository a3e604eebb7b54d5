//! Estimators against the truth: policies of which every probability is known, and what the library's likelihoods say of them.
//!
//! [`world`] has the policies and [`ode`] the exact log-density of any velocity field. Then one file a question: [`ratio`], how far an estimated
//! log-ratio is off and what each time contributes; [`gradient`], how far a policy gradient is; [`convergence`], where training goes;
//! [`sparse`], what few successes do; [`drift`], what training does to the bound of a network; [`nano`], how much estimates of the embedded
//! model differ. [`Report`] is all of them.

pub mod convergence;
pub mod drift;
pub mod estimator;
pub mod gradient;
pub mod nano;
pub mod ode;
pub mod ratio;
pub mod sparse;
pub mod table;
pub mod world;

pub use table::{Cell, Measured, Table};

use elbow::{method::MethodError, train::TrainError};
use serde::Serialize;
use std::fmt::Write;

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// A method of the lab cannot run.
    #[error("a method of the lab cannot run")]
    Method(#[from] MethodError),
    /// Training stopped.
    #[error("training in the lab stopped")]
    Train(#[from] TrainError),
    /// The embedded model cannot be used.
    #[error(transparent)]
    Model(#[from] elbow_run::Error),
}

/// How much is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Size {
    /// Samples of a log-ratio.
    pub ratio: usize,
    /// Samples of a gradient.
    pub gradient: usize,
    /// Runs of where training goes.
    pub seeds: usize,
    /// Samples an epoch of them.
    pub samples: usize,
    /// Their epochs.
    pub epochs: u64,
    /// Runs with sparse rewards.
    pub trials: usize,
    /// Their epochs.
    pub learning: u64,
    /// Points of the plane at which a network's density is integrated.
    pub points: usize,
    /// Pictures of the embedded model.
    pub pictures: usize,
}

impl Size {
    /// The whole lab.
    pub const FULL: Self = Self {
        ratio: 2000,
        gradient: 7200,
        seeds: 3,
        samples: 256,
        epochs: 160,
        trials: 6,
        learning: 80,
        points: 400,
        pictures: 60,
    };
    /// A look at everything.
    pub const QUICK: Self = Self {
        ratio: 500,
        gradient: 1200,
        seeds: 2,
        samples: 64,
        epochs: 24,
        trials: 2,
        learning: 6,
        points: 40,
        pictures: 24,
    };
}

/// What the lab found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// How much was measured.
    pub size: Size,
    /// What every random number depends on.
    pub seed: u64,
    /// The tables, in order.
    pub tables: Vec<Table>,
}

impl Report {
    /// Answers every question; `say` is told which one is next.
    pub fn make(size: Size, seed: u64, say: &dyn Fn(&str)) -> Result<Self, LabError> {
        let mut tables = Vec::new();
        say("log-ratios");
        tables.extend(ratio::table(&size, seed));
        say("by time");
        tables.extend(ratio::profile(&size, seed));
        say("gradients");
        tables.extend(gradient::table(&size, seed));
        say("convergence");
        tables.extend(convergence::table(&size, seed)?);
        say("sparse rewards");
        tables.extend(sparse::table(&size, seed)?);
        say("drift");
        tables.push(drift::table(&size, seed)?);
        say("the embedded model");
        tables.extend(nano::table(&size, seed)?);
        Ok(Self { size, seed, tables })
    }

    /// The report in Markdown; `made` says by which command, in which time and on what it was made.
    pub fn markdown(&self, made: &str) -> String {
        let mut out = format!(
            "# The lab: estimators against the truth\n\n<!-- Made by elbow lab -->\n\n{}\n\n{made}\n\n",
            FOUND.trim()
        );
        for table in &self.tables {
            let _ = writeln!(out, "{}", table.markdown());
        }
        out.truncate(out.trim_end().len());
        out.push('\n');
        out
    }

    /// The report as JSON.
    pub fn json(&self) -> String {
        let text = serde_json::to_string_pretty(self).expect("invariant: numbers and words");
        format!("{text}\n")
    }
}

/// What was found by the full lab with seed 0, and what it does not decide.
const FOUND: &str = include_str!("found.md");
