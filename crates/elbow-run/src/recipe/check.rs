//! Reading a recipe, and all that is wrong with it in one message.
//!
//! serde says of a whole recipe only the first thing that is wrong. So a recipe is checked field by field (`place.rs`), and what is wrong
//! is noted and taken out, so that the rest reads.

use super::{
    fields::{MOST, Recipe},
    place::{Place, deserialize, is_missing, quoted},
};
use crate::error::{Error, Result};
use toml::{Table, Value};

/// A table that a recipe is made of, and where it comes from.
#[derive(Clone, Debug)]
pub struct Layer {
    /// `recipe <file>` or `--set`.
    pub place: String,
    /// What it says.
    pub table: Table,
}

/// Names of earlier versions, and what took their place. A name counts as old once no field has it.
const RENAMED: &[(&str, &str)] = &[
    ("batch.rows", "batch.micro_batch"),
    ("eval.measure.rows", "eval.measure.micro_batch"),
    ("top_up", "collection.kind = \"dynamic-sampling\""),
    ("drafts", "collection.kind = \"prefilter\""),
    ("replay", "collection.kind = \"replay\""),
    ("schedule", "model.schedule"),
];

const HINT: &str = "`elbow config --explain` lists every field";

/// Something wrong with a recipe.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Problem {
    /// Where.
    path: String,
    /// What, as a sentence that names the place.
    text: String,
}

/// Reads the table that `layers` were merged to. Everything that is wrong with it is one error, which names the layer at fault.
pub fn read(mut table: Table, layers: &[Layer]) -> Result<Recipe> {
    let mut problems = Vec::new();
    check_fields(&Place::default(), &mut table, RENAMED, &mut problems);
    let mut recipe = deserialize(table).map_err(|message| Error::new(message, HINT))?;
    recipe.fill_in();
    let checked = recipe.validate();
    if problems.is_empty() {
        checked?;
        return Ok(recipe);
    }
    // What was taken out has its default now: what is said of that is not the recipe's fault.
    let beyond = checked.err().map(|error| error.problems).unwrap_or_default();
    let own = |text: &String| !problems.iter().any(|problem| names(text, &problem.path));
    let beyond: Vec<String> = beyond.into_iter().filter(own).collect();
    Err(all(&problems, beyond, layers))
}

/// Whether a sentence names the field at `path`, or one inside it.
fn names(text: &str, path: &str) -> bool {
    let mut words = text.split(|c: char| !c.is_alphanumeric() && !"._".contains(c));
    words.any(|word| word.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
}

/// One error of all problems.
fn all(problems: &[Problem], beyond: Vec<String>, layers: &[Layer]) -> Error {
    let places: Vec<Option<&str>> = problems.iter().map(|problem| origin(&problem.path, layers)).collect();
    let same = places.iter().all(|place| *place == places[0]);
    let mut texts = Vec::new();
    for (problem, place) in problems.iter().zip(&places) {
        texts.push(match place {
            Some(place) if !same => format!("{} ({place})", problem.text),
            _ => problem.text.clone(),
        });
    }
    texts.extend(beyond);
    let message = match &texts[..] {
        [text] => text.clone(),
        _ => format!("{} problems:\n  - {}", texts.len(), texts.join("\n  - ")),
    };
    let error = Error::new(message, HINT);
    let place = places[0].filter(|_| same).unwrap_or("the recipe");
    Error::At { place: format!("cannot use {place}"), source: Box::new(error) }
}

/// The place of the last layer that says something at `path`.
fn origin<'a>(path: &str, layers: &'a [Layer]) -> Option<&'a str> {
    let keys: Vec<&str> = path.split(['.', '[']).filter(|key| !key.ends_with(']')).collect();
    let says = |layer: &&Layer| {
        let mut value = layer.table.get(keys[0]);
        for key in &keys[1..] {
            value = value.and_then(|value| value.get(key));
        }
        value.is_some()
    };
    layers.iter().rev().find(says).map(|layer| &*layer.place)
}

/// Checks every field of a section, and takes out what is wrong.
fn check_fields(place: &Place, table: &mut Table, renamed: &[(&str, &str)], problems: &mut Vec<Problem>) {
    let keys: Vec<String> = table.keys().cloned().collect();
    for key in keys {
        let before = problems.len();
        let path = place.join(&key);
        let known = place.has(&key);
        let section = known && place.is_section(&key);
        let stands = match &mut table[&key] {
            Value::Table(inner) if section => check_section(place, &key, inner, renamed, problems),
            value => {
                problems.extend(if !known {
                    Some(Problem { text: unknown(place, &key, renamed), path })
                } else if section {
                    let text = format!("`{path}` = {value}: this is a section; {}", example(place, &key));
                    Some(Problem { path, text })
                } else {
                    wrong_item(place, &key, value).or_else(|| wrong_value(place, &key, value))
                });
                problems.len() == before
            }
        };
        if !stands {
            table.remove(&key);
        }
    }
}

/// Checks the section `key` and takes out what is wrong inside; whether the section as a whole can stay.
fn check_section(
    place: &Place,
    key: &str,
    table: &mut Table,
    renamed: &[(&str, &str)],
    problems: &mut Vec<Problem>,
) -> bool {
    let path = place.join(key);
    let mut inside = place.inside(key, None);
    if inside.has("kind") && !inside.takes_any_name() {
        let Some(kind) = table.get("kind") else {
            let text = format!("[{path}] has no `kind`: one of {}", inside.choices("kind").join(", "));
            problems.push(Problem { path, text });
            return false;
        };
        // The other fields belong to a kind.
        inside = place.inside(key, Some(kind));
        if let Some(problem) = wrong_value(&inside, "kind", kind) {
            problems.push(problem);
            return false;
        }
    }
    check_fields(&inside, table, renamed, problems);
    let Some(field) = missing(place, key, &inside, table) else { return true };
    // One that was taken out has its problem already.
    let absent = inside.join(&field);
    if !problems.iter().any(|problem| names(&problem.path, &absent)) {
        let kind = inside.kind().map_or_else(String::new, |kind| format!(" of kind {kind}"));
        problems.push(Problem { text: format!("[{path}]{kind} needs `{field}`"), path });
    }
    false
}

/// A field that the section `key` must have and has not, if all it has reads.
fn missing(place: &Place, key: &str, inside: &Place, table: &Table) -> Option<String> {
    let message = place.read(key, Value::Table(table.clone())).err().filter(|message| is_missing(message))?;
    let field = quoted(&message).into_iter().next()?;
    // Else it is the section around this one that lacks something.
    (inside.has(&field) && !table.contains_key(&field)).then_some(field)
}

/// What to say of a field that nothing has.
fn unknown(place: &Place, key: &str, renamed: &[(&str, &str)]) -> String {
    let path = place.join(key);
    if let Some((_, new)) = renamed.iter().find(|(old, _)| *old == path) {
        return format!("`{path}` is now `{new}`");
    }
    let section = match place.kind() {
        _ if place.is_top() => "a recipe".to_owned(),
        None => format!("[{}]", place.path()),
        Some(kind) => format!("[{}] of kind {kind}", place.path()),
    };
    let owner = place.kinds().into_iter().find(|kind| place.with_kind(kind).has(key));
    let owner = owner.map_or_else(String::new, |kind| {
        format!(" (`{key}` belongs to kind \"{kind}\": set {} too)", place.join("kind"))
    });
    format!("unknown field `{path}`; {section} has {}{owner}", place.fields().join(", "))
}

/// How a section is written.
fn example(place: &Place, key: &str) -> String {
    let inside = place.inside(key, None);
    let path = inside.path();
    match (inside.kinds().first(), inside.fields().first()) {
        (Some(kind), _) => format!("give its kind, for example {path}.kind = \"{kind}\""),
        (None, Some(field)) => format!("give one of its fields, for example {path}.{field} = …"),
        (None, None) => "it has no fields".to_owned(),
    }
}

/// What is wrong with a value that its field cannot hold.
fn wrong_value(place: &Place, key: &str, value: &Value) -> Option<Problem> {
    let message = place.read(key, value.clone()).err().filter(|message| !is_missing(message))?;
    let path = place.join(key);
    let choices = place.choices(key);
    let expected = match message.rsplit_once("expected ").map(|(_, expected)| expected) {
        _ if !choices.is_empty() => format!("expected one of {}", choices.join(", ")),
        Some("u64") if key == "seed" => format!("expected an integer from 0 to {MOST}"),
        Some("u8" | "u16" | "u32" | "u64" | "usize") => "expected an integer of at least 0".to_owned(),
        Some("i8" | "i16" | "i32" | "i64" | "isize") => "expected an integer".to_owned(),
        Some("f32" | "f64") => "expected a number".to_owned(),
        Some("a boolean") => "expected true or false".to_owned(),
        Some("a string" | "path string") => "expected a text in quotes".to_owned(),
        Some("a sequence") if place.lists_sections(key) => {
            "expected a list of sections, for example [{ … }, { … }]".to_owned()
        }
        Some("a sequence") => "expected a list".to_owned(),
        Some(words) if message.starts_with("invalid ") => format!("expected {words}"),
        _ => message,
    };
    Some(Problem { text: format!("`{path}` = {value}: {expected}"), path })
}

/// The first item of a list that does not read.
fn wrong_item(place: &Place, key: &str, value: &Value) -> Option<Problem> {
    let items = value.as_array()?;
    if place.read(key, value.clone()).is_ok() {
        return None;
    }
    let none = place.read(key, Value::Array(Vec::new()));
    for (index, item) in items.iter().enumerate() {
        let one = place.read(key, Value::Array(vec![item.clone()]));
        if let Err(message) = &one
            && one != none
        {
            let path = format!("{}[{index}]", place.join(key));
            return Some(Problem { text: format!("`{path}` = {item}: {message}"), path });
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::merge;

    /// What is wrong with a recipe over the defaults.
    fn problems(text: &str, renamed: &[(&str, &str)]) -> Vec<String> {
        let mut table = Recipe::default().to_table().expect("plain data");
        merge(&mut table, toml::from_str(text).expect("TOML"));
        let mut problems = Vec::new();
        check_fields(&Place::default(), &mut table, renamed, &mut problems);
        deserialize(table).expect("the rest reads");
        problems.into_iter().map(|problem| problem.text).collect()
    }

    #[track_caller]
    fn assert_told(text: &str, expected: &[&str]) {
        let problems = problems(text, &[]);
        assert_eq!(problems.len(), expected.len(), "{problems:#?}");
        for part in expected {
            assert!(problems.iter().any(|problem| problem.contains(part)), "{part}\n  is not in\n{problems:#?}");
        }
    }

    #[test]
    fn every_problem_is_told_with_its_place() {
        assert_told(
            "sed = 1\nepochs = -1\nkl.kind = 'k9'\nbatch = 3\nobjective = {kind = 'epg', clip = 1}\nreward = 'geneval'\n
             model.schedule = {kind = 'rectified-flow', x = 1}\nsampler.rule.x.y = 1\nstart_noise = 'none'\nfoo.bar = 1",
            &[
                "`batch` = 3: this is a section; give one of its fields, for example batch.groups",
                "`epochs` = -1: expected an integer of at least 0",
                "`kl.kind` = \"k9\": expected one of girsanov, path, step,",
                "unknown field `objective.clip`; [objective] of kind \"epg\" has kind, ratio (`clip` belongs to kind \"grpo\": set \
                 objective.kind too)",
                "`reward` = \"geneval\": this is a section; give its kind, for example reward.kind = \"geneval\"",
                "unknown field `model.schedule.x`; [model.schedule] of kind \"rectified-flow\" has kind",
                "unknown field `sampler.rule.x`; [sampler.rule] of kind \"dpm2\" has kind",
                "`start_noise` = \"none\": expected one of per-sample, per-group",
                "unknown field `sed`; a recipe has seed, epochs,",
                "unknown field `foo`; a recipe has seed, epochs,",
            ],
        );
    }

    #[test]
    fn a_field_is_of_its_type() {
        assert_told(
            "seed.x = 1\nepochs = 'many'\nmax_missing = true\nbehavior.on_policy = 1\nmodel.weights = 3\nobjective = 3\n
             batch.groups = []\nkl.kind = 3",
            &[
                "`seed` = { x = 1 }: expected an integer",
                "`epochs` = \"many\": expected an integer",
                "`max_missing` = true: expected a number",
                "`behavior.on_policy` = 1: expected true or false",
                "`model.weights` = 3: expected a text in quotes",
                "`objective` = 3: this is a section",
                "`batch.groups` = []: expected an integer",
                "`kl.kind` = 3: expected one of girsanov, path, step,",
            ],
        );
    }

    #[test]
    fn what_must_be_given_is_named_with_who_needs_it() {
        assert_told("prompts = {kind = 'files', test = 'a.txt'}", &["[prompts] of kind \"files\" needs `train`"]);
        let tuning = "model = {kind = 'diffusers', path = 'a', lora = {rank = 3}, tuning = {kind = 'full'}}";
        assert_told(tuning, &["unknown field `model.tuning`; [model] of kind \"diffusers\" has kind, path, hub"]);
        assert_told(
            "sampler.rule = {kind = 'window', sde = {eta = 0.5}}",
            &["[sampler.rule.sde] has no `kind`: one of"],
        );
        assert_told("prompts.kind = 'files'\nsed = 1", &["[prompts] of kind \"files\" needs", "unknown field `sed`"]);
    }

    #[test]
    fn an_item_of_a_list_is_named_by_its_number() {
        let jpeg = "{name = 'a', reward = {kind = 'jpeg'}}";
        assert_told(&format!("reward = {{kind = 'sum', parts = [{jpeg}]}}"), &[]);
        let typo = "{name = 'b', wight = 1, reward = {kind = 'jpeg'}}";
        assert_told(
            &format!("reward = {{kind = 'sum', parts = [{jpeg}, {typo}]}}"),
            &["}: unknown field `wight`, expected one of `name`, `weight`, `threshold`, `clip`, `only_if`, `reward`"],
        );
        assert_told("reward = {kind = 'sum', parts = [{name = 'a'}]}", &["missing field `reward`"]);
        assert_told("reward = {kind = 'sum', parts = 3}", &["`reward.parts` = 3: expected a list of sections"]);
    }

    #[test]
    fn numbers_go_by_names_of_the_users_own() {
        for weights in ["{}", "{ocr = 0.5, kind = 2}"] {
            assert_told(&format!("reward = {{kind = 'python', weights = {weights}}}"), &[]);
        }
        assert_told(
            "reward = {kind = 'python', weights = {ocr = 'a'}}",
            &["`reward.weights.ocr` = \"a\": expected a number"],
        );
    }

    #[test]
    fn whole_numbers_stand_for_numbers() {
        assert_told(
            "objective = {kind = 'grpo', clip = 1}\noptimizer.learning_rate = 1\noptimizer.half_life = inf",
            &[],
        );
    }

    #[test]
    fn an_old_name_is_told_with_the_new_one() {
        let renamed = [("batch.images", "batch.groups"), ("mix", "sampler.rule.kind = \"window\"")];
        let told = problems("batch.images = 3\nmix.size = 2", &renamed);
        assert_eq!(told, ["`batch.images` is now `batch.groups`", "`mix` is now `sampler.rule.kind = \"window\"`"]);
        // A name that a field has is not old, whatever the table says.
        assert_eq!(problems("seed = 3", &[("seed", "key")]), Vec::<String>::new());
    }

    #[test]
    fn problems_name_the_layer_at_fault() {
        let layer = |place: &str, text: &str| Layer { place: place.into(), table: toml::from_str(text).expect("TOML") };
        let told = |layers: &[Layer]| {
            let mut table = Recipe::default().to_table().expect("plain data");
            for layer in layers {
                merge(&mut table, layer.table.clone());
            }
            read(table, layers).expect_err("something is wrong").chain()
        };
        let file = layer("recipe a.toml", "sed = 1\nepochs = 'x'");
        let text = told(&[file.clone(), layer("--set", "seed = 1")]);
        assert!(text.starts_with("cannot use recipe a.toml: 2 problems:\n  - `epochs`"), "{text}");
        let text = told(&[file, layer("--set", "sed = 2\nbatch.groups = 5\nbatch.updates = 2")]);
        assert!(text.starts_with("cannot use the recipe: 3 problems:"), "{text}");
        assert!(text.contains("(recipe a.toml)") && text.contains("(--set)"), "{text}");
        assert!(text.contains("batch.groups = 5"), "{text}");
    }
}
