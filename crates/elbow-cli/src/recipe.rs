//! A recipe: the method's configuration plus the model, the prompts, the reward and what the run keeps.

use crate::session::Hint;
use anyhow::{Context, Result};
use elbow::{config::Config, eval::EvalConfig};
use elbow_models::{lora::LoraConfig, policy::Tuning};
use elbow_rewards::geneval::Mode;
use elbow_world::prompts::TaskWeights;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::path::{Path, PathBuf};
use toml::Table;

/// The default recipe, also in `recipes/`.
const DEFAULT: &str = include_str!("../../../recipes/nano-geneval.toml");

/// Everything a run is made of.
#[derive(Clone, Debug, PartialEq)]
pub struct Recipe {
    /// The method: what decides a run's numbers.
    pub method: Config,
    /// Model, prompts, reward and what is kept.
    pub setting: Setting,
}

/// What the method is applied to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Setting {
    /// The policy.
    pub model: Model,
    /// Where prompts come from.
    pub prompts: PromptsConfig,
    /// What scores images.
    pub reward: RewardConfig,
    /// How the model is measured before, during and after training.
    pub eval: Eval,
    /// What the run folder keeps.
    pub keep: Keep,
}

/// The policy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Model {
    /// The embedded nano MMDiT on 32×32 emoji scenes.
    Nano {
        /// Base weights; the embedded ones if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        weights: Option<PathBuf>,
        /// Which parameters are trained.
        #[serde(default = "full")]
        tuning: Tuning,
    },
    /// A local folder in diffusers' format.
    Diffusers {
        /// The folder.
        path: PathBuf,
        /// LoRA on it.
        #[serde(default)]
        lora: LoraConfig,
        /// Height and width of images.
        #[serde(default = "resolution")]
        resolution: usize,
    },
}

fn full() -> Tuning {
    Tuning::Full
}

fn resolution() -> usize {
    512
}

impl Default for Model {
    fn default() -> Self {
        Self::Nano { weights: None, tuning: Tuning::Full }
    }
}

/// Where prompts come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum PromptsConfig {
    /// The embedded scenes: training prompts by task, held-out prompts for evaluation.
    Scenes {
        /// How often each task is drawn for training.
        #[serde(default)]
        weights: TaskWeights,
    },
    /// Files: `.txt`, one prompt a line, or `.jsonl` with `prompt` and metadata.
    Files {
        /// Prompts to train on.
        train: PathBuf,
        /// Prompts to evaluate on.
        test: PathBuf,
    },
}

impl Default for PromptsConfig {
    fn default() -> Self {
        Self::Scenes { weights: TaskWeights::default() }
    }
}

/// What scores images in training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum RewardConfig {
    /// GenEval's rules over the embedded detector.
    Geneval {
        /// Partial credit, the benchmark's rule, or all exact.
        #[serde(default)]
        mode: Mode,
        /// Give a wrong position half credit, as the upstream reward does by mistake.
        #[serde(default)]
        upstream_position_quirk: bool,
    },
}

impl Default for RewardConfig {
    fn default() -> Self {
        Self::Geneval { mode: Mode::Dense, upstream_position_quirk: false }
    }
}

/// How the model is measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Eval {
    /// Held-out prompts a task; prompt files are used whole.
    pub prompts_per_task: usize,
    /// Images, seed, steps and cadence.
    pub measure: EvalConfig,
}

impl Default for Eval {
    fn default() -> Self {
        Self { prompts_per_task: 25, measure: EvalConfig::default() }
    }
}

/// What the run folder keeps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Keep {
    /// Epochs between checkpoints; the last epoch and an interrupt always write one.
    pub checkpoint_every: u64,
    /// Checkpoints kept.
    pub checkpoints: usize,
    /// Epochs between image grids; 0 keeps none.
    pub images_every: u64,
}

impl Default for Keep {
    fn default() -> Self {
        Self { checkpoint_every: 10, checkpoints: 2, images_every: 5 }
    }
}

/// Reads a recipe (`None`: the default one) and applies `key=value` overrides.
pub fn load(path: Option<&Path>, overrides: &[String]) -> Result<(String, Recipe)> {
    let (name, place) = match path {
        None => ("nano-geneval".to_owned(), "the default recipe".to_owned()),
        Some(path) => {
            let stem = path.file_stem().map_or_else(|| "run".into(), |s| s.to_string_lossy().into_owned());
            (stem, path.display().to_string())
        }
    };
    let mut table = match path {
        None => toml::from_str(DEFAULT).context("the default recipe is not valid TOML")?,
        Some(path) => read_table(path, 0)?,
    };
    for text in overrides {
        set(&mut table, text)?;
    }
    Ok((name, parse(table).with_context(|| format!("in {place}"))?))
}

/// A recipe file, laid over the one it `extends` (a path relative to it), if any.
fn read_table(path: &Path, depth: usize) -> Result<Table> {
    let place = path.display();
    if depth > 8 {
        return Err(Hint::error(format!("{place}: `extends` goes in a circle"), "a recipe cannot extend itself"));
    }
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read recipe {place}"))?;
    let mut table: Table = toml::from_str(&text).with_context(|| format!("{place} is not valid TOML"))?;
    match table.remove("extends") {
        None => Ok(table),
        Some(toml::Value::String(parent)) => {
            let mut base = read_table(&path.with_file_name(parent), depth + 1).with_context(|| format!("extended by {place}"))?;
            overlay(&mut base, table);
            Ok(base)
        }
        Some(other) => Err(Hint::error(format!("{place}: extends = {other}: not a path"), "write extends = \"base.toml\"")),
    }
}

/// Key by key; a section of another kind replaces the old one whole.
fn overlay(base: &mut Table, top: Table) {
    for (key, value) in top {
        match (base.get_mut(&key), value) {
            (Some(toml::Value::Table(old)), toml::Value::Table(new)) if !new.contains_key("kind") || new.get("kind") == old.get("kind") => {
                overlay(old, new);
            }
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

/// Splits a table into the method's part and the setting, and reads both; unknown keys are errors.
fn parse(mut table: Table) -> Result<Recipe> {
    let mut setting = Table::new();
    for key in ["model", "prompts", "reward", "eval", "keep"] {
        if let Some(value) = table.remove(key) {
            setting.insert(key.into(), value);
        }
    }
    let recipe = Recipe { method: read(table)?, setting: read(setting)? };
    recipe.method.validate()?;
    Ok(recipe)
}

fn read<T: DeserializeOwned>(table: Table) -> Result<T> {
    serde_path_to_error::deserialize(table).map_err(|error| {
        let (path, cause) = (error.path().to_string(), error.into_inner());
        let place = if path == "." { String::new() } else { format!("{path}: ") };
        Hint::error(format!("{place}{}", cause.to_string().trim_end()), "`elbow config --explain` lists every field")
    })
}

/// Applies one `a.b.c=value`; the value is TOML, or else a plain string.
fn set(table: &mut Table, text: &str) -> Result<()> {
    let wrong = || Hint::error(format!("--set {text}: not of the form key=value"), "for example --set optimizer.learning_rate=1e-4");
    let (path, value) = text.split_once('=').ok_or_else(wrong)?;
    let value = match toml::from_str::<Table>(&format!("value = {value}")) {
        Ok(mut parsed) => parsed.remove("value").ok_or_else(wrong)?,
        Err(_) => toml::Value::String(value.to_owned()),
    };
    let mut keys: Vec<&str> = path.trim().split('.').collect();
    let last = keys.pop().filter(|k| !k.is_empty()).ok_or_else(wrong)?;
    let mut place = table;
    for key in keys {
        let next = place.entry(key).or_insert_with(|| toml::Value::Table(Table::new()));
        place = next.as_table_mut().ok_or_else(|| {
            Hint::error(format!("--set {text}: `{key}` is a value, not a section"), "`elbow config` shows the recipe's sections")
        })?;
    }
    place.insert(last.to_owned(), value);
    Ok(())
}

impl Recipe {
    /// The recipe with every field written out, as `config.toml` holds it.
    pub fn to_toml(&self) -> Result<String> {
        let mut table = Table::try_from(&self.method)?;
        table.extend(Table::try_from(&self.setting)?);
        Ok(toml::to_string(&table)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_out_reads_back_equal() {
        let (_, recipe) = load(None, &["seed=5".into(), "objective.kind=grpo".into()]).expect("valid");
        let table = toml::from_str(&recipe.to_toml().expect("writes")).expect("TOML");
        assert_eq!(parse(table).expect("reads"), recipe);
        assert_eq!(recipe.method.seed, 5);
    }

    #[test]
    fn every_recipe_of_the_repository_reads() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes");
        let mut count = 0;
        for entry in std::fs::read_dir(folder).expect("recipes") {
            let path = entry.expect("an entry").path();
            if path.extension().is_some_and(|e| e == "toml") {
                load(Some(&path), &[]).unwrap_or_else(|e| panic!("{}: {e:#}", path.display()));
                count += 1;
            }
        }
        assert!(count >= 12, "{count} recipes");
    }
}
