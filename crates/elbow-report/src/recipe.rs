//! The resolved recipe of a run, and in what those of several runs differ.

use serde_json::Value;
use std::{collections::BTreeMap, path::Path};
use toml::Table;

/// What a run was asked to do.
#[derive(Debug)]
pub(crate) struct Recipe {
    /// The recipe's name, as the run was started with.
    pub(crate) name: String,
    /// `config.toml` as it is.
    pub(crate) text: String,
    /// Every field by its path, as it is written in TOML.
    pub(crate) fields: BTreeMap<String, String>,
    /// Base weights and prompts by their hashes.
    pub(crate) inputs: BTreeMap<String, String>,
}

/// Sections and fields that change no number of a run: what is kept.
const KEPT: &str = "keep.";

impl Recipe {
    /// Reads a resolved configuration; `manifest` may be null.
    pub(crate) fn read(text: String, manifest: &Value) -> Result<Self, String> {
        let table: Table = text.parse().map_err(|error: toml::de::Error| error.message().to_owned())?;
        let mut fields = BTreeMap::new();
        flatten("", &table, &mut fields);
        let arguments: Vec<&str> =
            manifest["arguments"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let inputs = ["base_sha256", "prompts_sha256", "teachers_sha256"].into_iter();
        let inputs = inputs.filter_map(|key| Some((key.to_owned(), manifest[key].as_str()?.to_owned()))).collect();
        Ok(Self { name: started_with(&arguments), text, fields, inputs })
    }

    /// A field without the quotes of a text.
    pub(crate) fn field(&self, path: &str) -> Option<&str> {
        self.fields.get(path).map(|value| value.trim_matches('"'))
    }

    fn number(&self, path: &str) -> Option<f64> {
        self.field(path)?.parse().ok()
    }

    /// Epochs that it is to train.
    pub(crate) fn epochs(&self) -> Option<u64> {
        self.field("epochs")?.parse().ok()
    }

    /// Images an epoch.
    pub(crate) fn batch(&self) -> Option<f64> {
        Some(self.number("batch.groups")? * self.number("batch.group_size")?)
    }

    /// Images a group.
    pub(crate) fn group_size(&self) -> usize {
        self.field("batch.group_size").and_then(|size| size.parse().ok()).unwrap_or(1)
    }

    /// Height and width of its pictures.
    pub(crate) fn side(&self) -> u32 {
        let resolution = self.field("model.resolution").and_then(|side| side.parse().ok());
        resolution.unwrap_or(if self.field("model.kind") == Some("diffusers") { 512 } else { 32 })
    }

    /// Whether a run of the other differs from one of this in nothing but its seed and what it keeps.
    pub(crate) fn same_but_seed(&self, other: &Self) -> bool {
        self.identity().eq(other.identity())
    }

    fn identity(&self) -> impl Iterator<Item = (&String, &String)> {
        self.fields.iter().filter(|(path, _)| *path != "seed" && !path.starts_with(KEPT)).chain(&self.inputs)
    }
}

/// The name of the recipe in the arguments of `elbow train`; its default without one.
fn started_with(arguments: &[&str]) -> String {
    const DEFAULT: &str = "nano-geneval";
    let mut arguments = arguments.iter().skip_while(|argument| **argument != "train").skip(1);
    while let Some(argument) = arguments.next() {
        if !argument.starts_with("--") {
            return Path::new(argument).file_stem().map_or(DEFAULT.into(), |stem| stem.to_string_lossy().into_owned());
        }
        // Every option of `train` takes a value, after `=` or as the next argument.
        if !argument.contains('=') {
            arguments.next();
        }
    }
    DEFAULT.into()
}

fn flatten(prefix: &str, table: &Table, fields: &mut BTreeMap<String, String>) {
    for (key, value) in table {
        let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        match value {
            toml::Value::Table(table) => flatten(&path, table, fields),
            value => drop(fields.insert(path, value.to_string())),
        }
    }
}

/// In what recipes differ: a row a field, in it one value a recipe, `None` where the recipe has no such field. Seeds and what is kept are
/// no difference.
pub(crate) fn differences(recipes: &[&Recipe]) -> Vec<(String, Vec<Option<String>>)> {
    let mut paths: Vec<&String> = recipes.iter().flat_map(|recipe| recipe.identity().map(|(path, _)| path)).collect();
    paths.sort();
    paths.dedup();
    let row = |path: &String| {
        let value = |recipe: &&Recipe| recipe.fields.get(path).or(recipe.inputs.get(path)).cloned();
        (path.clone(), recipes.iter().map(value).collect::<Vec<_>>())
    };
    paths.into_iter().map(row).filter(|(_, values)| values.iter().any(|value| *value != values[0])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn recipe(text: &str) -> Recipe {
        Recipe::read(text.into(), &Value::Null).unwrap()
    }

    #[test]
    fn fields_have_paths_and_seeds_are_no_difference() {
        let one = recipe("seed = 1\nepochs = 60\n[objective]\nkind = 'pepg'\n[keep]\npictures = true");
        let two = recipe("seed = 2\nepochs = 60\n[objective]\nkind = \"pepg\"");
        let three = recipe("epochs = 60\n[objective]\nkind = \"grpo\"\nclip = 1e-4");
        assert_eq!((one.field("objective.kind"), one.epochs()), (Some("pepg"), Some(60)));
        assert!(one.same_but_seed(&two) && !one.same_but_seed(&three));
        assert_eq!(differences(&[&one, &two]), []);
        let text = |text: &str| Some(text.to_owned());
        let expected = [
            ("objective.clip".to_owned(), vec![None, text("0.0001")]),
            ("objective.kind".to_owned(), vec![text("\"pepg\""), text("\"grpo\"")]),
        ];
        assert_eq!(differences(&[&one, &three]), expected);
    }

    #[test]
    fn another_base_is_another_recipe() {
        let with = |hash: &str| Recipe::read("epochs = 1".into(), &json!({ "base_sha256": hash })).unwrap();
        assert!(with("a").same_but_seed(&with("a")) && !with("a").same_but_seed(&with("b")));
        assert_eq!(differences(&[&with("a"), &with("b")])[0].0, "base_sha256");
    }

    #[test]
    fn a_recipe_is_named_as_it_was_asked_for() {
        let name = |arguments: &[&str]| started_with(arguments);
        assert_eq!(name(&["train"]), "nano-geneval");
        assert_eq!(name(&["train", "nano-flow-grpo", "--set", "seed=1"]), "nano-flow-grpo");
        assert_eq!(name(&["--device", "cpu", "train", "--set", "seed=1", "recipes/mine.toml"]), "mine");
        assert_eq!(name(&["train", "--run=x", "--eval-every", "5", "b"]), "b");
        assert_eq!(name(&[]), "nano-geneval");
    }
}
