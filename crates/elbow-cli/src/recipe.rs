//! A recipe: the method's configuration plus the model, the prompts, the reward and what the run keeps.

use crate::{
    failure::Hint,
    library,
    model::Model,
    overlay::overlay,
    reward::RewardConfig,
    schema::{self, Field},
};
use anyhow::{Context, Result};
use elbow::{
    config::{Config, ConfigError},
    eval::EvalConfig,
};
use elbow_world::prompts::TaskWeights;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::path::{Path, PathBuf};
use toml::Table;

/// Everything a run is made of.
#[derive(Clone, Debug, Default, PartialEq)]
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
    /// Files that end in `.jsonl`, one object a line with `prompt` and whatever the reward wants to know (for `geneval`: `tag`,
    /// `include` and perhaps `exclude`), or in `.txt`, one prompt a line.
    Files {
        /// File with the prompts to train on.
        train: PathBuf,
        /// File with the prompts to evaluate on.
        test: PathBuf,
    },
}

impl Default for PromptsConfig {
    fn default() -> Self {
        Self::Scenes { weights: TaskWeights::default() }
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

/// Reads a recipe (`None`: the default one) over the defaults, and then `key=value` overrides over both. The name of the recipe
/// comes first.
pub fn load(path: Option<&Path>, overrides: &[String]) -> Result<(String, Recipe)> {
    let fields = schema::fields();
    let mut table = Recipe::default().to_table()?;
    let name = match path {
        None => {
            let (name, text) = library::ALL[0];
            lay(&mut table, toml::from_str(text)?, &fields)?;
            name.to_owned()
        }
        Some(path) => {
            read_file(path, &fields, &mut table, 0)?;
            let name = path.file_name().map_or_else(|| "run".into(), |s| s.to_string_lossy().into_owned());
            name.trim_end_matches(".toml").to_owned()
        }
    };
    let mut changes = Table::new();
    for text in overrides {
        set(&mut changes, text)?;
    }
    lay(&mut table, changes, &fields).context("cannot use --set")?;
    Ok((name, read(table)?))
}

/// Lays a recipe file over a table, and under it the one it `extends` (a path relative to it), if any.
fn read_file(path: &Path, fields: &[Field], table: &mut Table, depth: usize) -> Result<()> {
    let place = path.display();
    if depth > 8 {
        return Err(Hint::error(
            format!("recipe {place}: `extends` goes in a circle"),
            "a recipe cannot extend itself",
        ));
    }
    let text = library::read(path).map_err(|error| {
        Hint::error(
            format!("cannot read recipe {place}: {error}"),
            "name a file, or a recipe that `elbow methods` lists",
        )
    })?;
    let mut written: Table = toml::from_str(&text).map_err(|error| {
        Hint::error(
            format!("recipe {place} is not valid TOML: {}", error.to_string().trim_end()),
            "correct the line shown",
        )
    })?;
    match written.remove("extends") {
        None => {}
        Some(toml::Value::String(base)) => {
            let base = path.with_file_name(base);
            read_file(&base, fields, table, depth + 1)
                .with_context(|| format!("cannot read what recipe {place} extends"))?;
        }
        Some(other) => {
            let message = format!("recipe {place}: extends = {other}: expected a text in quotes");
            return Err(Hint::error(message, "name another recipe, for example extends = \"base.toml\""));
        }
    }
    lay(table, written, fields).with_context(|| format!("cannot use recipe {place}"))
}

/// Lays one table over another; everything that is wrong with it is one error.
fn lay(table: &mut Table, top: Table, fields: &[Field]) -> Result<()> {
    let mut problems = Vec::new();
    overlay(table, top, fields, &mut problems);
    let message = match &problems[..] {
        [] => return Ok(()),
        [one] => one.clone(),
        several => format!("{} problems:\n  - {}", several.len(), several.join("\n  - ")),
    };
    Err(Hint::error(message, "`elbow config --explain` lists every field"))
}

/// Splits a table into the method's part and the setting, reads both and checks what they say.
fn read(mut table: Table) -> Result<Recipe> {
    let mut setting = Table::new();
    for key in ["model", "prompts", "reward", "eval", "keep"] {
        setting.extend(table.remove(key).map(|value| (key.to_owned(), value)));
    }
    let recipe = Recipe { method: part(table)?, setting: part(setting)? };
    let mut problems = recipe.method.validate().err().map(|e| e.problems).unwrap_or_default();
    problems.extend(recipe.problems());
    if problems.is_empty() { Ok(recipe) } else { Err(ConfigError { problems }.into()) }
}

fn part<T: DeserializeOwned>(table: Table) -> Result<T> {
    serde_path_to_error::deserialize(table).map_err(|error| {
        let (path, cause) = (error.path().to_string(), error.into_inner());
        Hint::error(format!("`{path}`: {}", cause.to_string().trim_end()), "`elbow config --explain` lists every field")
    })
}

/// Adds one `a.b.c=value`; the value is TOML, or else a plain string.
fn set(table: &mut Table, text: &str) -> Result<()> {
    let wrong = || {
        Hint::error(
            format!("--set {text}: not of the form key=value"),
            "for example --set optimizer.learning_rate=1e-4",
        )
    };
    let (path, value) = text.split_once('=').ok_or_else(wrong)?;
    let value = match toml::from_str::<Table>(&format!("value = {value}")) {
        Ok(mut parsed) => parsed.remove("value").ok_or_else(wrong)?,
        Err(_) => toml::Value::String(value.to_owned()),
    };
    let mut keys: Vec<&str> = path.split('.').map(str::trim).collect();
    if keys.iter().any(|k| k.is_empty()) {
        return Err(wrong());
    }
    let last = keys.pop().ok_or_else(wrong)?;
    let mut place = table;
    for key in keys {
        let next = place.entry(key).or_insert_with(|| toml::Value::Table(Table::new()));
        place = next.as_table_mut().ok_or_else(|| {
            Hint::error(format!("--set {text}: another --set gives `{key}` a value"), "drop one of the two")
        })?;
    }
    place.insert(last.to_owned(), value);
    Ok(())
}

impl Recipe {
    fn to_table(&self) -> Result<Table> {
        let mut table = Table::try_from(&self.method)?;
        table.extend(Table::try_from(&self.setting)?);
        Ok(table)
    }

    /// The recipe with every field written out, as `config.toml` holds it. The setting has sections only, so it can follow.
    pub fn to_toml(&self) -> Result<String> {
        Ok(format!("{}\n{}", toml::to_string(&self.method)?, toml::to_string(&self.setting)?))
    }

    /// Where another recipe says something else: `key: here → there`.
    pub fn differences(&self, other: &Self) -> Result<Vec<String>> {
        let (mut here, mut there) = (Vec::new(), Vec::new());
        flatten("", &toml::Value::Table(self.to_table()?), &mut here);
        flatten("", &toml::Value::Table(other.to_table()?), &mut there);
        let value = |list: &[(String, String)], key: &str| {
            list.iter().find(|(k, _)| k == key).map_or_else(|| "nothing".to_owned(), |(_, v)| v.clone())
        };
        let mut keys: Vec<&String> = here.iter().chain(&there).map(|(key, _)| key).collect();
        keys.sort();
        keys.dedup();
        let changed = keys.into_iter().map(|key| (key, value(&here, key), value(&there, key)));
        Ok(changed.filter(|(_, a, b)| a != b).map(|(key, a, b)| format!("{key}: {a} → {b}")).collect())
    }

    /// What is wrong with the setting, as far as types cannot tell; one sentence each.
    fn problems(&self) -> Vec<String> {
        let Setting { model, prompts, reward, eval, keep } = &self.setting;
        let (measure, mut problems) = (&eval.measure, reward.problems());
        problems.extend(model.problems());
        for (key, value) in [
            ("eval.prompts_per_task", eval.prompts_per_task),
            ("eval.measure.images_per_prompt", measure.images_per_prompt),
            ("eval.measure.rows", measure.rows),
            ("eval.measure.sampler.steps", measure.sampler.steps),
            ("keep.checkpoint_every", keep.checkpoint_every as usize),
            ("keep.checkpoints", keep.checkpoints),
        ] {
            if value == 0 {
                problems.push(format!("{key} = 0: must be at least 1"));
            }
        }
        for (key, value) in [("shift", measure.sampler.shift), ("guidance", measure.sampler.guidance)] {
            if !(value > 0.0 && value.is_finite()) {
                problems.push(format!("eval.measure.sampler.{key} = {value}: must be a positive number"));
            }
        }
        problems.extend(measure.sampler.refuses(self.method.schedule));
        if let PromptsConfig::Scenes { weights: w } = prompts {
            let all = [w.single_object, w.two_object, w.counting, w.colors, w.position, w.color_attr];
            if all.iter().any(|w| !(w.is_finite() && *w >= 0.0)) || all.iter().all(|&w| w == 0.0) {
                problems.push("prompts.weights: none may be negative, and at least one must be positive".into());
            }
        }
        problems
    }
}

/// Values by dotted key.
fn flatten(path: &str, value: &toml::Value, out: &mut Vec<(String, String)>) {
    match value {
        toml::Value::Table(table) => {
            for (key, value) in table {
                flatten(&if path.is_empty() { key.clone() } else { format!("{path}.{key}") }, value, out);
            }
        }
        value => out.push((path.to_owned(), value.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_out_reads_back_equal() {
        let (_, recipe) = load(None, &["seed=5".into(), "objective.kind=grpo".into()]).expect("valid");
        let table = toml::from_str(&recipe.to_toml().expect("writes")).expect("TOML");
        assert_eq!(read(table).expect("reads"), recipe);
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
