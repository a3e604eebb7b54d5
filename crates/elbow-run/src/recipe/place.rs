//! What serde knows of the fields of a recipe, asked one at a time.
//!
//! A table of one field, under the `kind` of each section that leads to it, either reads or names what is wrong with that field. The
//! fields of a section and its kinds are asked in the same way, by a name that nothing has.

use super::fields::{Recipe, Setting};
use toml::{Table, Value};

/// A name that no field and no kind has.
const NOBODY: &str = "?";

/// A section of a recipe: the names that lead to it, each with the `kind` of that section.
#[derive(Clone, Default)]
pub(super) struct Place(Vec<(String, Option<Value>)>);

impl Place {
    /// The section `key` in this one.
    pub(super) fn inside(&self, key: &str, kind: Option<&Value>) -> Self {
        let mut names = self.0.clone();
        names.push((key.to_owned(), kind.cloned()));
        Self(names)
    }

    /// Whether it is the recipe itself.
    pub(super) fn is_top(&self) -> bool {
        self.0.is_empty()
    }

    /// The same section, if it were of that kind.
    pub(super) fn with_kind(&self, kind: &str) -> Self {
        let mut names = self.0.clone();
        if let Some((_, old)) = names.last_mut() {
            *old = Some(Value::String(kind.to_owned()));
        }
        Self(names)
    }

    pub(super) fn kind(&self) -> Option<&Value> {
        self.0.last().and_then(|(_, kind)| kind.as_ref())
    }

    pub(super) fn path(&self) -> String {
        self.0.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(".")
    }

    pub(super) fn join(&self, key: &str) -> String {
        if self.is_top() { key.to_owned() } else { format!("{}.{key}", self.path()) }
    }

    /// Reads a recipe that has this one field here, and the kinds that lead to it.
    pub(super) fn read(&self, key: &str, value: Value) -> Result<(), String> {
        let mut table = Table::from_iter([(key.to_owned(), value)]);
        for (name, kind) in self.0.iter().rev() {
            if let Some(kind) = kind {
                table.entry("kind").or_insert_with(|| kind.clone());
            }
            table = Table::from_iter([(name.clone(), Value::Table(table))]);
        }
        deserialize(table).map(drop)
    }

    /// Whether there is a field of that name. One that takes lists of lists of lists is one that nobody reads.
    pub(super) fn has(&self, key: &str) -> bool {
        let absurd = Value::Array(vec![Value::Array(vec![Value::Array(Vec::new())])]);
        self.read(key, absurd).is_err_and(|message| !is_unknown_field(&message))
    }

    /// Whether the field holds fields of its own.
    pub(super) fn is_section(&self, key: &str) -> bool {
        match self.read(key, Value::Table(Table::new())) {
            Ok(()) => true,
            Err(message) => is_missing(&message),
        }
    }

    /// Whether this is no section of known fields but numbers under names of the user's own.
    pub(super) fn takes_any_name(&self) -> bool {
        self.read(NOBODY, Value::Float(0.0)).is_ok()
    }

    /// Whether the field is a list of sections.
    pub(super) fn lists_sections(&self, key: &str) -> bool {
        let read = |items| self.read(key, Value::Array(items)).err();
        let one = read(vec![Value::Table(Table::new())]);
        match &one {
            None => true,
            Some(message) => is_missing(message) && one != read(Vec::new()),
        }
    }

    /// The names of a section's fields, `kind` first.
    pub(super) fn fields(&self) -> Vec<String> {
        let mut fields: Vec<String> = self.kind().map(|_| "kind".to_owned()).into_iter().collect();
        let message = self.read(NOBODY, Value::Integer(0)).err().filter(|message| is_unknown_field(message));
        fields.extend(message.iter().flat_map(|message| quoted(message).into_iter().skip(1)));
        if self.is_top() {
            fields.extend(Setting::KEYS.map(str::to_owned));
        }
        fields
    }

    /// The kinds that a section can be of.
    pub(super) fn kinds(&self) -> Vec<String> {
        if self.is_top() { Vec::new() } else { self.choices("kind") }
    }

    /// The names that a field can hold, if it holds one of several.
    pub(super) fn choices(&self, key: &str) -> Vec<String> {
        let message = self.read(key, Value::String(NOBODY.into())).err();
        let message = message.filter(|message| message.starts_with("unknown variant"));
        message.iter().flat_map(|message| quoted(message).into_iter().skip(1)).collect()
    }
}

pub(super) fn is_missing(message: &str) -> bool {
    message.starts_with("missing field")
}

fn is_unknown_field(message: &str) -> bool {
    message.starts_with("unknown field")
}

/// What stands between backquotes in a message of serde.
pub(super) fn quoted(message: &str) -> Vec<String> {
    message.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Splits a table into the method's part and the setting, and reads both; or what serde says.
pub(super) fn deserialize(mut table: Table) -> Result<Recipe, String> {
    let mut setting = Table::new();
    for key in Setting::KEYS {
        setting.extend(table.remove(key).map(|value| (key.to_owned(), value)));
    }
    let said = |error: toml::de::Error| error.message().trim_end().to_owned();
    Ok(Recipe { method: table.try_into().map_err(said)?, setting: setting.try_into().map_err(said)? })
}
