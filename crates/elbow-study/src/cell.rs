//! A finished run as a small JSON file, which can be committed: whoever has it never runs that cell again.

use crate::{
    file::Cost,
    plan::{Cell, FORMAT},
};
use elbow_run::{Error, Result, error::At};
use elbow_runlog::{metrics::Record, write_atomic};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// What is kept of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finished {
    /// [`FORMAT`].
    pub format: u32,
    /// Its cell.
    pub key: String,
    /// Its seed.
    pub seed: u64,
    /// Whether it is a trial.
    pub trial: bool,
    /// Why it ended before its last epoch; nothing if it did not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stopped: Option<String>,
    /// Version, commit and machine that ran it.
    pub made_by: Value,
    /// Its measurements, that of the base first.
    pub points: Vec<Point>,
}

/// A measurement on the held-out prompts, and what was spent until then.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Epochs trained.
    pub epoch: u64,
    /// Images drawn and scored.
    pub images: u64,
    /// Evaluations of the network without gradient, by rollouts and updates.
    pub forward: u64,
    /// Evaluations with gradient.
    pub backward: u64,
    /// The training reward's mean in that epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reward: Option<f64>,
    /// Means over the held-out prompts, by measure.
    pub held_out: BTreeMap<String, f64>,
}

impl Point {
    /// All evaluations of the network.
    pub fn evaluations(&self) -> f64 {
        (self.forward + self.backward) as f64
    }

    /// Seconds on an idle machine.
    pub fn seconds(&self, cost: &Cost) -> f64 {
        cost.seconds(self.images as f64, self.forward as f64, self.backward as f64)
    }
}

impl Finished {
    /// What is kept of a run with these records. `measures` are the names of what it was measured by, `reward` that of its training reward.
    pub fn of(cell: &Cell, records: &[Record], measures: &[String], reward: &str, stopped: Option<String>) -> Self {
        let [mut images, mut forward, mut backward] = [0.0; 3];
        let mut points = Vec::new();
        for record in records {
            let number = |name: &str| record.get(name).and_then(Value::as_f64);
            let spent =
                cell.passes.of(number("drawn_samples").unwrap_or(0.0), number("trained_samples").unwrap_or(0.0));
            images += spent.images;
            forward += spent.draw + spent.forward;
            backward += spent.backward;
            let value = |name: &String| Some((name.clone(), number(&format!("eval_reward_{name}"))?));
            let held_out: BTreeMap<String, f64> = measures.iter().filter_map(value).collect();
            if !held_out.is_empty() {
                points.push(Point {
                    epoch: number("epoch").unwrap_or(0.0) as u64,
                    images: images.round() as u64,
                    forward: forward.round() as u64,
                    backward: backward.round() as u64,
                    reward: number(&format!("reward_{reward}")),
                    held_out,
                });
            }
        }
        let epoch = |record: Option<&Record>| record.and_then(|record| record.get("epoch")).and_then(Value::as_u64);
        let unscored = points.last().map(|point| point.epoch) < epoch(records.last());
        let stopped = stopped.or_else(|| unscored.then(|| "its last images have no score".to_owned()));
        let made_by = elbow_run::machine::facts();
        let Cell { key, recipe, trial, .. } = cell;
        Self { format: FORMAT, key: key.clone(), seed: recipe.method.seed, trial: *trial, stopped, made_by, points }
    }

    /// The last measurement of a measure.
    pub fn last(&self, measure: &str) -> Option<f64> {
        self.points.iter().rev().find_map(|point| point.held_out.get(measure).copied())
    }

    /// The first measurement that reaches a value.
    pub fn reaches(&self, measure: &str, value: f64) -> Option<&Point> {
        self.points.iter().find(|point| point.held_out.get(measure).is_some_and(|&v| v >= value))
    }
}

/// Where finished cells lie.
#[derive(Clone, Debug)]
pub struct Store {
    folder: PathBuf,
}

impl Store {
    /// Cells in a folder, which need not be there yet.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// The file of a cell.
    pub fn path(&self, key: &str) -> PathBuf {
        self.folder.join(format!("{key}.json"))
    }

    /// A finished cell, if it is there.
    pub fn read(&self, key: &str) -> Result<Option<Finished>> {
        let path = self.path(key);
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            text => text.at(|| format!("cannot read cell {}", path.display()))?,
        };
        let cell: Finished = serde_json::from_str(&text).map_err(|error| damaged(&path, &error.to_string()))?;
        if cell.key != key || cell.points.is_empty() {
            return Err(damaged(&path, "it is of another cell, or has no measurement"));
        }
        Ok(Some(cell))
    }

    /// Whether all cells that are there can be read.
    pub fn check(&self) -> Result<()> {
        let Ok(entries) = fs::read_dir(&self.folder) else { return Ok(()) };
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            let name = path.file_name().and_then(|name| name.to_str()).filter(|name| !name.starts_with('.'));
            if let Some(key) = name.and_then(|name| name.strip_suffix(".json")) {
                self.read(key)?;
            }
        }
        Ok(())
    }

    /// Keeps a cell, whole or not at all.
    pub fn write(&self, cell: &Finished) -> Result<()> {
        fs::create_dir_all(&self.folder).at(|| format!("cannot create {}", self.folder.display()))?;
        let text = serde_json::to_string_pretty(cell)? + "\n";
        Ok(write_atomic(&self.path(&cell.key), text.as_bytes())?)
    }
}

fn damaged(path: &Path, why: &str) -> Error {
    Error::new(
        format!("cell {} is damaged: {why}", path.display()),
        "restore the file, or delete it to run the cell again",
    )
}
