//! Reading a recipe: what it extends, the file, and changes of single fields.

use super::{check, check::Layer, fields::Recipe, library, merge::merge, place::deserialize};
use crate::error::{At, Error, Result};
use elbow::config::{MicroBatch, Reuse};
use elbow_runlog::RunFolder;
use std::{io::ErrorKind, path::Path};
use toml::{Table, Value};

/// Recipes that may extend each other in a row.
const DEPTH: usize = 8;

/// Reads a recipe (`None`: the default one; a file, or the name of one that comes with the program) over the defaults, and then
/// `key=value` changes over both. The name of the recipe comes first.
pub fn load(path: Option<&Path>, changes: &[String]) -> Result<(String, Recipe)> {
    let mut layers = Vec::new();
    let name = match path {
        None => {
            let (name, text) = library::ALL[0];
            layers.push(Layer { place: format!("recipe {name}"), table: toml::from_str(text)? });
            name.to_owned()
        }
        Some(path) => {
            add_file(path, &mut layers)?;
            let name = path.file_name().map_or_else(|| "run".into(), |name| name.to_string_lossy().into_owned());
            name.trim_end_matches(".toml").to_owned()
        }
    };
    let mut table = Table::new();
    for change in changes {
        set(&mut table, change)?;
    }
    layers.push(Layer { place: "--set".into(), table });
    let mut merged = Recipe::default().to_table()?;
    for layer in &layers {
        merge(&mut merged, layer.table.clone());
    }
    Ok((name, check::read(merged, &layers)?))
}

/// The recipe of a run as it was saved. That it can run was checked when it started, on a model that may be elsewhere by now.
pub fn saved(folder: &RunFolder) -> Result<Recipe> {
    let config = folder.config();
    let mut layers = Vec::new();
    add_file(&config, &mut layers)?;
    let mut merged = Recipe::default().to_table()?;
    for layer in layers {
        merge(&mut merged, layer.table);
    }
    deserialize(merged).map_err(|message| {
        Error::new(format!("cannot use {}: {message}", config.display()), "restore the file as the run wrote it")
    })
}

/// Fields that say where something is: a run may find it elsewhere when it goes on. Hashes tell whether it is the same. And what another
/// place grants.
const PLACES: [&str; 14] = [
    "model.path",
    "model.adapter",
    "model.weights",
    "model.cache",
    "prompts.train",
    "prompts.test",
    "reward.file",
    "reward.python",
    "reward.url",
    "reward.workers",
    "self_test.better",
    "self_test.worse",
    "keep.score_cache",
    "keep.grace_seconds",
];

/// The recipe of an existing run. A recipe or changes given beside it must say the same, but for `epochs`, `[radar]` and the places of files and servers.
pub fn of_run(folder: &RunFolder, path: Option<&Path>, changes: &[String]) -> Result<Recipe> {
    let config = folder.config();
    let (_, saved) = load(Some(&config), &[])?;
    let (_, mut asked) = load(Some(path.unwrap_or(&config)), changes)?;
    asked.setting.model.follow(&saved.setting.model);
    let (asked_batch, saved_batch) = (&mut asked.method.batch, saved.method.batch);
    if asked_batch.micro_batch == MicroBatch::Auto {
        asked_batch.micro_batch = saved_batch.micro_batch;
    }
    if asked_batch.reuse_velocities == Reuse::Auto {
        asked_batch.reuse_velocities = saved_batch.reuse_velocities;
    }
    let mut same_length = asked.clone();
    same_length.method.epochs = saved.method.epochs;
    let mut differences = saved.differences(&same_length)?;
    // The radar changes no number of an epoch.
    let may_differ = |key: &str| key.starts_with("radar.") || is_place(key);
    differences.retain(|difference| !difference.split_once(": ").is_some_and(|(key, _)| may_differ(key)));
    if differences.is_empty() {
        return Ok(asked);
    }
    let place = folder.path().display();
    Err(Error::new(
        format!("{place} was made with another configuration:\n  - {}", differences.join("\n  - ")),
        "resume without a recipe and with no --set but epochs and paths, or start a new run with --run",
    ))
}

/// Whether a run may find another value of a field when it goes on; a reward may stand within another one or in a list.
fn is_place(key: &str) -> bool {
    let plain: String = key.split('[').map(|part| part.split_once(']').map_or(part, |(_, rest)| rest)).collect();
    let inner = plain.rfind(".reward.").map_or(&*plain, |at| &plain[at + 1..]);
    PLACES.contains(&inner)
}

/// Adds the layer of a recipe file, and before it those of the recipe that it `extends` (a path relative to it).
fn add_file(path: &Path, layers: &mut Vec<Layer>) -> Result<()> {
    let (mut table, base) = parse(path)?;
    let mut above = Vec::new();
    let mut place = path.to_owned();
    let mut extends = base;
    while let Some(name) = extends {
        above.push(Layer { place: format!("recipe {}", place.display()), table });
        if above.len() > DEPTH {
            let message = format!("recipe {}: `extends` goes in a circle", path.display());
            return Err(Error::new(message, "a recipe cannot extend itself"));
        }
        let base = place.with_file_name(name);
        (table, extends) = parse(&base).at(|| format!("cannot read what recipe {} extends", place.display()))?;
        place = base;
    }
    layers.push(Layer { place: format!("recipe {}", place.display()), table });
    layers.extend(above.into_iter().rev());
    Ok(())
}

/// The table of a recipe file, and what it extends.
fn parse(path: &Path) -> Result<(Table, Option<String>)> {
    let place = path.display();
    let text = library::read(path).map_err(|error| {
        let hint = match error.kind() {
            ErrorKind::InvalidData => "save the recipe as UTF-8",
            _ => "name a file, or a recipe that `elbow methods` lists",
        };
        Error::new(format!("cannot read recipe {place}: {error}"), hint)
    })?;
    let mut table: Table = toml::from_str(&text).map_err(|error| {
        let message = format!("recipe {place} is not valid TOML: {}", error.to_string().trim_end());
        let large = error.message().contains("too large") || error.message().contains("too small");
        let range = format!("correct the line shown: integers go from {} to {}", i64::MIN, i64::MAX);
        Error::new(message, if large { &*range } else { "correct the line shown" })
    })?;
    match table.remove("extends") {
        None => Ok((table, None)),
        Some(Value::String(base)) => Ok((table, Some(base))),
        Some(other) => Err(Error::new(
            format!("recipe {place}: extends = {other}: expected a text in quotes"),
            "name another recipe, for example extends = \"base.toml\"",
        )),
    }
}

/// Adds one `a.b.c=value`; the value is TOML, or else a plain string.
fn set(table: &mut Table, text: &str) -> Result<()> {
    let wrong = || {
        Error::new(format!("--set {text}: not of the form key=value"), "for example --set optimizer.learning_rate=1e-4")
    };
    let (path, value) = text.split_once('=').ok_or_else(wrong)?;
    let value = match toml::from_str::<Table>(&format!("value = {value}")) {
        Ok(mut parsed) => parsed.remove("value").ok_or_else(wrong)?,
        Err(_) => Value::String(value.to_owned()),
    };
    let mut keys: Vec<&str> = path.split('.').map(str::trim).collect();
    if keys.iter().any(|key| key.is_empty()) {
        return Err(wrong());
    }
    let last = keys.pop().ok_or_else(wrong)?;
    let mut place = table;
    for key in keys {
        let next = place.entry(key).or_insert_with(|| Value::Table(Table::new()));
        place = next.as_table_mut().ok_or_else(|| {
            Error::new(format!("--set {text}: another --set gives `{key}` a value"), "drop one of the two")
        })?;
    }
    place.insert(last.to_owned(), value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_out_reads_back_equal() {
        let (_, recipe) = load(None, &["seed=5".into(), "objective.kind=grpo".into()]).expect("valid");
        let table = toml::from_str(&recipe.to_toml().expect("writes")).expect("TOML");
        assert_eq!(check::read(table, &[]).expect("reads"), recipe);
        assert_eq!(recipe.method.seed, 5);
    }

    #[test]
    fn places_are_known_wherever_a_reward_stands() {
        let places = ["model.path", "reward.file", "reward.parts[0].reward.file", "eval.rewards[12].reward.url"];
        for key in places.into_iter().chain(["reward.reward.python", "self_test[1].worse", "keep.grace_seconds"]) {
            assert!(is_place(key), "{key}");
        }
        for key in ["model.rank", "reward.parts[0].name", "reward.function", "seed", "reward.parts[0].reward.timeout"] {
            assert!(!is_place(key), "{key}");
        }
    }

    #[test]
    fn every_recipe_of_the_repository_reads() {
        for (name, _) in library::ALL {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../recipes/{name}.toml"));
            load(Some(&path), &[]).unwrap_or_else(|error| panic!("{name}: {}", error.chain()));
            load(Some(Path::new(name)), &[]).unwrap_or_else(|error| panic!("{name} by its name: {}", error.chain()));
        }
    }
}
