//! Laying one table over another: defaults, then a recipe, then `--set`, every key checked on the way.

use crate::schema::{Field, Shape, Type, Variant};
use std::fmt::Write;
use toml::{Table, Value};

/// Lays `top` over `base`, and adds one sentence to `problems` for each thing in `top` that no recipe can hold.
///
/// A section that names another `kind` replaces the one below it, since the fields of the two have nothing to do with each
/// other; one that names the same kind or none keeps the fields it does not mention.
pub fn overlay(base: &mut Table, top: Table, fields: &[Field], problems: &mut Vec<String>) {
    let place = Place { path: String::new(), kind: None, variants: &[] };
    section(base, top, fields, &place, problems);
}

/// Where in a recipe something stands.
struct Place<'a> {
    path: String,
    kind: Option<&'a str>,
    variants: &'a [Variant],
}

impl Place<'_> {
    fn of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// What to say of a key that no field has.
    fn unknown(&self, key: &str, fields: &[Field]) -> String {
        let mut known: Vec<&str> = fields.iter().map(|f| f.name.as_str()).collect();
        if self.kind.is_some() {
            known.insert(0, "kind");
        }
        let place = match (self.path.as_str(), self.kind) {
            ("", _) => "a recipe".to_owned(),
            (path, None) => format!("[{path}]"),
            (path, Some(kind)) => format!("[{path}] of kind \"{kind}\""),
        };
        let mut text = format!("unknown field `{}`; {place} has {}", self.of(key), known.join(", "));
        let owner = self.variants.iter().find(|v| v.fields.iter().any(|f| f.name == key));
        if let Some(owner) = owner {
            let _ = write!(text, " (`{key}` belongs to kind \"{}\": set {} too)", owner.kind, self.of("kind"));
        }
        text
    }
}

fn section(base: &mut Table, top: Table, fields: &[Field], place: &Place<'_>, problems: &mut Vec<String>) {
    let named: Vec<String> = top.keys().cloned().collect();
    for (key, value) in top {
        let Some(field) = fields.iter().find(|f| f.name == key) else {
            problems.push(place.unknown(&key, fields));
            continue;
        };
        let path = place.of(&key);
        match (&field.shape, value) {
            (Shape::Value(kind), value) => match checked(kind, value) {
                Ok(value) => {
                    replaced(&path, &named, base);
                    base.insert(key, value);
                }
                Err(problem) => problems.push(format!("`{path}` = {problem}")),
            },
            (Shape::Section(fields), Value::Table(top)) => {
                section(child(base, key), top, fields, &Place { path, kind: None, variants: &[] }, problems);
            }
            (Shape::Tagged { variants, .. }, Value::Table(top)) => {
                tagged(child(base, key), top, variants, path, problems);
            }
            (shape, value) => {
                problems.push(format!("`{path}` = {value}: this is a section; {}", example(&path, shape)));
            }
        }
    }
}

/// Removes what the field at `path` takes the place of, unless it is `named` beside it: a model is in a folder or on the Hub.
fn replaced(path: &str, named: &[String], base: &mut Table) {
    let others: &[&str] = match path {
        "model.path" => &["hub", "revision"],
        "model.hub" => &["path", "revision"],
        _ => &[],
    };
    for other in others.iter().filter(|other| !named.iter().any(|key| key == *other)) {
        base.remove(*other);
    }
}

fn tagged(base: &mut Table, mut top: Table, variants: &[Variant], path: String, problems: &mut Vec<String>) {
    let below = base.get("kind").and_then(Value::as_str).map(str::to_owned);
    let names = || variants.iter().map(|v| v.kind.as_str()).collect::<Vec<_>>().join(", ");
    let kind = match top.remove("kind").or(below.clone().map(Value::String)) {
        Some(Value::String(kind)) => kind,
        Some(other) => return problems.push(format!("`{path}.kind` = {other}: expected one of {}", names())),
        None => return problems.push(format!("[{path}] has no `kind`: one of {}", names())),
    };
    let Some(variant) = variants.iter().find(|v| v.kind == kind) else {
        return problems.push(format!("`{path}.kind` = \"{kind}\": expected one of {}", names()));
    };
    if below.as_deref() != Some(&*kind) {
        base.clear();
        base.insert("kind".into(), Value::String(kind));
    }
    section(base, top, &variant.fields, &Place { path, kind: Some(&variant.kind), variants }, problems);
}

/// The section of that name, made if it is not there.
fn child(base: &mut Table, key: String) -> &mut Table {
    let value = base.entry(key).or_insert_with(|| Value::Table(Table::new()));
    value.as_table_mut().expect("invariant: the schema says that this is a section")
}

/// The value if it has the type; integers stand for numbers.
fn checked(kind: &Type, value: Value) -> Result<Value, String> {
    let expected = match (kind, &value) {
        (Type::Number, Value::Integer(i)) => return Ok(Value::Float(*i as f64)),
        (Type::Integer, Value::Integer(i)) if *i < 0 => "an integer of at least 0".into(),
        (Type::Integer, Value::Integer(_))
        | (Type::Number, Value::Float(_))
        | (Type::Boolean, Value::Boolean(_))
        | (Type::Text, Value::String(_)) => return Ok(value),
        (Type::Sections, Value::Array(items)) if items.iter().all(Value::is_table) => return Ok(value),
        (Type::Texts, Value::Array(items)) if items.iter().all(Value::is_str) => return Ok(value),
        (Type::OneOf(names), Value::String(s)) if names.iter().any(|(name, _)| name == s) => return Ok(value),
        (Type::OneOf(names), _) => {
            format!("one of {}", names.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", "))
        }
        (Type::Integer, _) => "an integer".into(),
        (Type::Number, _) => "a number".into(),
        (Type::Boolean, _) => "true or false".into(),
        (Type::Text, _) => "a text in quotes".into(),
        (Type::Texts, _) => "a list of texts".into(),
        (Type::Sections, _) => "a list of sections, for example [{ … }, { … }]".into(),
    };
    Err(format!("{value}: expected {expected}"))
}

/// How a field of this section is written.
fn example(path: &str, shape: &Shape) -> String {
    match shape {
        Shape::Tagged { variants, .. } => {
            let kind = variants.first().map_or("", |v| v.kind.as_str());
            format!("give its kind, for example {path}.kind = \"{kind}\"")
        }
        Shape::Section(fields) => {
            let name = fields.first().map_or("", |f| f.name.as_str());
            format!("give one of its fields, for example {path}.{name} = …")
        }
        Shape::Value(_) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::fields;

    fn lay(base: &str, top: &str) -> (Table, Vec<String>) {
        let mut base: Table = toml::from_str(base).unwrap();
        let mut problems = Vec::new();
        overlay(&mut base, toml::from_str(top).unwrap(), &fields(), &mut problems);
        (base, problems)
    }

    #[test]
    fn the_same_kind_keeps_fields_and_another_replaces_them() {
        let base = "[objective]\nkind = 'grpo'\nclip = 0.5\nmax_advantage = 1.0\n[kl]\nkind = 'k1'\nweight = 0.25";
        let (kept, problems) = lay(base, "objective.clip = 2\nkl.kind = 'k2'");
        let expected = "[objective]\nkind = 'grpo'\nclip = 2.0\nmax_advantage = 1.0\n[kl]\nkind = 'k2'\nweight = 0.25";
        assert_eq!((kept, problems), (toml::from_str(expected).unwrap(), vec![]));
        let (replaced, problems) = lay(base, "objective = { kind = 'pepg', ratio = false }");
        let expected = "[objective]\nkind = 'pepg'\nratio = false\n[kl]\nkind = 'k1'\nweight = 0.25";
        assert_eq!((replaced, problems), (toml::from_str(expected).unwrap(), vec![]));
    }

    #[test]
    fn a_folder_and_a_name_on_the_hub_replace_each_other() {
        let kind = "[model]\nkind = 'diffusers'\n";
        for (base, top, expected) in [
            ("path = 'a'", "model.hub = 'o/n'", "hub = 'o/n'"),
            ("hub = 'o/n'\nrevision = 'r'", "model.hub = 'o/m'", "hub = 'o/m'"),
            ("hub = 'o/n'\nrevision = 'r'", "model.path = 'a'", "path = 'a'"),
            ("hub = 'o/n'", "model.revision = 'r'", "hub = 'o/n'\nrevision = 'r'"),
            ("path = 'a'", "model = { hub = 'o/n', revision = 'r' }", "hub = 'o/n'\nrevision = 'r'"),
            ("", "model = { hub = 'o/n', path = 'a' }", "hub = 'o/n'\npath = 'a'"),
        ] {
            let (laid, problems) = lay(&format!("{kind}{base}"), top);
            assert_eq!((laid, problems), (toml::from_str(&format!("{kind}{expected}")).unwrap(), vec![]), "{top}");
        }
    }

    #[test]
    fn every_problem_is_told_with_its_place() {
        let top =
            "sed = 1\nepochs = -1\nkl.kind = 'k9'\nbatch = 3\nschedule.x = 1\nobjective.clip = 1\nreward = 'geneval'";
        let (_, problems) = lay("schedule.kind = 'rectified-flow'\nobjective.kind = 'epg'", top);
        for (problem, part) in problems.iter().zip([
            "`batch` = 3: this is a section; give one of its fields, for example batch.groups",
            "`epochs` = -1: expected an integer of at least 0",
            "`kl.kind` = \"k9\": expected one of girsanov, k1,",
            "unknown field `objective.clip`; [objective] of kind \"epg\" has kind, ratio (`clip` belongs to kind \"grpo\"",
            "`reward` = \"geneval\": this is a section; give its kind, for example reward.kind = \"geneval\"",
            "unknown field `schedule.x`; [schedule] of kind \"rectified-flow\" has kind",
            "unknown field `sed`; a recipe has seed, epochs,",
        ]) {
            assert!(problem.contains(part), "{problem}\n  does not contain\n{part}");
        }
        assert_eq!(problems.len(), 7, "{problems:?}");
    }
}
