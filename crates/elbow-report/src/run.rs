//! A run as its folder has it. What is damaged or not there yet is noted and left out; only a folder that is no run is an error.

use crate::{error::ReportError, measure::Measure, recipe::Recipe};
use elbow_runlog::{RunFolder, RunLogError, metrics::Record};
use serde_json::{Map, Value};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// One run.
#[derive(Debug)]
pub(crate) struct Run {
    /// The folder's name.
    pub(crate) name: String,
    pub(crate) folder: RunFolder,
    pub(crate) recipe: Recipe,
    /// What it was made on and with; null if it is not there.
    pub(crate) manifest: Value,
    /// The record, epoch by epoch; epoch 0 is the measurement of the base.
    pub(crate) epochs: Vec<Epoch>,
    /// Its reward, as the record calls it.
    pub(crate) reward: Option<String>,
    /// What it was measured with on held-out prompts.
    pub(crate) measures: Vec<Measure>,
    /// Held-out scores before training.
    pub(crate) base: Map<String, Value>,
    /// Held-out scores after the last epoch, once the run is finished; before that, those of its latest evaluation.
    pub(crate) tuned: Map<String, Value>,
    /// The epoch of these scores.
    pub(crate) tuned_epoch: u64,
    /// Whether all epochs are trained and measured.
    pub(crate) finished: bool,
    /// What a reader should know of the files: damage, and what is missing.
    pub(crate) notes: Vec<String>,
}

/// One line of the record, with what was spent until then.
#[derive(Debug)]
pub(crate) struct Epoch {
    pub(crate) number: u64,
    /// Optimizer steps.
    pub(crate) step: u64,
    /// Images drawn, this epoch's among them.
    pub(crate) images: f64,
    /// Seconds of drawing and training, this epoch's among them.
    pub(crate) seconds: f64,
    pub(crate) record: Record,
}

impl Epoch {
    /// A finite number of the record.
    pub(crate) fn number(&self, key: &str) -> Option<f64> {
        number(&self.record, key)
    }
}

/// A finite number of an object.
pub(crate) fn number(object: &Map<String, Value>, key: &str) -> Option<f64> {
    object.get(key)?.as_f64().filter(|value| value.is_finite())
}

impl Run {
    /// Reads the folder of a run.
    pub(crate) fn open(path: &Path) -> Result<Self, ReportError> {
        let folder = RunFolder::open(path)?;
        let mut notes = Vec::new();
        let manifest = json(&folder.manifest(), &mut notes).unwrap_or(Value::Null);
        let text = fs::read_to_string(folder.config()).map_err(RunLogError::io("read", &folder.config()))?;
        let recipe =
            Recipe::read(text, &manifest).map_err(|reason| ReportError::Config { path: folder.config(), reason })?;
        let records = records(&folder.metrics(), &mut notes)?;
        if records.is_empty() {
            return Err(ReportError::NoRecords { path: path.to_path_buf() });
        }
        let epochs = accumulate(records, &recipe);
        let last = epochs.last().map_or(0, |epoch| epoch.number);

        let result = folder.path().join("result.json");
        let result = if result.exists() { json(&result, &mut notes) } else { None };
        let scores = |which: &str| result.as_ref().and_then(|result| result[which].as_object().cloned());
        let complete = recipe.epochs().is_none_or(|epochs| last >= epochs);
        let finished = complete && scores("tuned").is_some();
        if result.is_some() && !complete {
            notes.push("result.json is of an earlier end of this run, which goes on since, and is left out.".into());
        }
        let evaluations: Vec<&Epoch> = epochs.iter().filter(|epoch| has_scores(&epoch.record)).collect();
        let only_scores = |epoch: &&Epoch| -> Map<String, Value> {
            let held_out = epoch.record.iter().filter(|(key, _)| key.starts_with("eval_reward_"));
            held_out.map(|(key, value)| (key.clone(), value.clone())).collect()
        };
        let first = evaluations.first().filter(|epoch| epoch.number == 0).map(only_scores);
        let base = scores("base").or(first).unwrap_or_default();
        let latest = evaluations.last().filter(|epoch| epoch.number > 0);
        let (tuned, tuned_epoch) = match scores("tuned").filter(|_| finished) {
            Some(tuned) => (tuned, last),
            None => latest.map(|epoch| (only_scores(epoch), epoch.number)).unwrap_or_default(),
        };
        let measures = Measure::all(if tuned.is_empty() { &base } else { &tuned });
        Ok(Self {
            name: name(path),
            reward: epochs.iter().find_map(|epoch| reward(&epoch.record)),
            folder,
            recipe,
            manifest,
            epochs,
            measures,
            base,
            tuned,
            tuned_epoch,
            finished,
            notes,
        })
    }

    /// The epochs that were trained: all but the measurement of the base.
    pub(crate) fn trained(&self) -> impl DoubleEndedIterator<Item = &Epoch> {
        self.epochs.iter().filter(|epoch| epoch.number > 0)
    }

    /// The last epoch that was trained.
    pub(crate) fn last(&self) -> u64 {
        self.epochs.last().map_or(0, |epoch| epoch.number)
    }

    /// Pictures that were drawn, and seconds of drawing and training.
    pub(crate) fn spent(&self) -> (f64, f64) {
        self.epochs.last().map_or((0.0, 0.0), |epoch| (epoch.images, epoch.seconds))
    }

    /// What the run should please, on held-out prompts: the measure of its reward's name if there is one, else the first.
    pub(crate) fn headline(&self) -> Option<&Measure> {
        let own = self.measures.iter().find(|measure| Some(&measure.name) == self.reward.as_ref());
        own.or(self.measures.first())
    }

    /// Held-out scores by epoch: the base, evaluations under way, and the end.
    pub(crate) fn held_out(&self, key: &str) -> BTreeMap<u64, f64> {
        let mut scores: BTreeMap<u64, f64> =
            self.epochs.iter().filter_map(|epoch| Some((epoch.number, epoch.number(key)?))).collect();
        scores.extend(number(&self.base, key).map(|score| (0, score)));
        scores.extend(number(&self.tuned, key).map(|score| (self.tuned_epoch, score)));
        scores
    }

    pub(crate) fn seed(&self) -> Option<&str> {
        self.recipe.fields.get("seed").map(String::as_str)
    }
}

/// The folder's name, of `.` too.
fn name(path: &Path) -> String {
    let whole = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    whole.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
}

fn has_scores(record: &Record) -> bool {
    record.keys().any(|key| key.starts_with("eval_reward_"))
}

/// The name of the reward: what an epoch's record has first.
fn reward(record: &Record) -> Option<String> {
    let mut names = record.keys().filter_map(|key| key.strip_prefix("reward_"));
    names.find(|name| !["std_mean", "missing"].contains(name)).map(str::to_owned)
}

/// A file of JSON; what is wrong with it is noted.
fn json(path: &Path, notes: &mut Vec<String>) -> Option<Value> {
    let read = fs::read(path).map_err(|error| error.to_string());
    let value = read.and_then(|bytes| serde_json::from_slice(&bytes).map_err(|error| error.to_string()));
    value.map_err(|error| notes.push(format!("{} cannot be read: {error}.", file_name(path)))).ok()
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The lines of a record that can be read, each epoch once. A report is no repair: damaged lines are noted and passed over.
fn records(path: &PathBuf, notes: &mut Vec<String>) -> Result<Vec<(u64, Record)>, ReportError> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let bytes = fs::read(path).map_err(RunLogError::io("read", path))?;
    let mut records = BTreeMap::new();
    let mut damaged = Vec::new();
    for (index, line) in bytes.split_inclusive(|&byte| byte == b'\n').enumerate() {
        let record = serde_json::from_slice::<Record>(line).ok();
        match record.and_then(|record| Some((record.get("epoch")?.as_u64()?, record))) {
            Some((epoch, mut record)) => {
                // What earlier versions called it.
                if let Some(speed) = record.remove("samples_per_second") {
                    record.insert("images_per_second".into(), speed);
                }
                records.insert(epoch, record);
            }
            None if !line.ends_with(b"\n") => {
                notes.push("The last line of metrics.jsonl is half written: the run was killed, or is at work.".into());
            }
            None => damaged.push((index + 1).to_string()),
        }
    }
    if !damaged.is_empty() {
        let (what, lines) = (if damaged.len() == 1 { "line" } else { "lines" }, damaged.join(", "));
        notes.push(format!("metrics.jsonl is damaged in {what} {lines}: what they said is missing here."));
    }
    Ok(records.into_iter().collect())
}

/// Adds up what each epoch drew and how long it took. The batch of the recipe stands for what a record does not say.
fn accumulate(records: Vec<(u64, Record)>, recipe: &Recipe) -> Vec<Epoch> {
    let (mut images, mut seconds) = (0.0, 0.0);
    let epoch = |(number, record): (u64, Record)| {
        let time = |key| self::number(&record, key);
        let took = time("time_rollout").unwrap_or(0.0) + time("time_update").unwrap_or(0.0);
        if number > 0 {
            let drawn = time("images_per_second").map(|rate| (rate * took).round()).filter(|drawn| *drawn > 0.0);
            images += drawn.or(recipe.batch()).unwrap_or(0.0);
            seconds += took;
        }
        let step = record.get("step").and_then(Value::as_u64).unwrap_or(number);
        Epoch { number, step, images, seconds, record }
    };
    records.into_iter().map(epoch).collect()
}
