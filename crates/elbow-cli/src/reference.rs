//! The reference of recipes: every field with its type, default and meaning, as Markdown.

use crate::schema::{self, Field, Shape, Type, Variant};
use serde_json::Value;
use std::fmt::Write;

const OPENING: &str = "\
# Recipes: every field

<!-- Made by `elbow config --explain > docs/config.md`. -->

A recipe is a TOML file that says what differs from the defaults below; an empty file is a valid recipe.
`elbow train recipe.toml` runs it, `elbow config recipe.toml` prints it with every field written out, and
`--set section.field=value` changes one field on the command line. Without a recipe the embedded `nano-geneval` is used, which
departs from these defaults: `elbow config` prints it.

`extends = \"other.toml\"` on its first line lets a recipe start from another one, named relative to it, in place of the
defaults.

Some sections have a `kind`, which decides their other fields. A section that names another kind starts from that kind's
defaults; one that names the same kind, or none, keeps every field it does not mention. An unknown field is an error.
Integers are never negative. Paths are relative to the folder that the command runs in.
";

/// The whole reference.
pub fn markdown() -> String {
    let mut out = OPENING.to_owned();
    let fields = schema::fields();
    out += "\n## Top level\n";
    table("", &fields, "", &mut out);
    sections("", &fields, &mut out);
    out
}

/// The sections among `fields`, each with those inside it.
fn sections(path: &str, fields: &[Field], out: &mut String) {
    for field in fields {
        let path = join(path, &field.name);
        match &field.shape {
            Shape::Value(_) => {}
            Shape::Section(inner) => {
                let _ = write!(out, "\n## `[{path}]`\n\n{}\n", field.meaning);
                table(&path, inner, &field.meaning, out);
                sections(&path, inner, out);
            }
            Shape::Tagged { default, variants } => {
                let _ = write!(out, "\n## `[{path}]`\n\n{} Its `{path}.kind` is", field.meaning);
                let last = variants.len() - 1;
                for (i, variant) in variants.iter().enumerate() {
                    let between = if i == 0 {
                        ""
                    } else if i == last {
                        " or"
                    } else {
                        ","
                    };
                    let mark = if default.as_ref() == Some(&variant.kind) { " (the default)" } else { "" };
                    let _ = write!(out, "{between} `\"{}\"`{mark}", variant.kind);
                }
                *out += ".\n";
                for variant in variants {
                    kind(&path, variant, out);
                }
            }
        }
    }
}

fn kind(path: &str, variant: &Variant, out: &mut String) {
    let _ = write!(out, "\n### `[{path}]` with `kind = \"{}\"`\n\n{}\n", variant.kind, variant.meaning);
    if variant.fields.is_empty() {
        *out += "\nNo other fields.\n";
    } else {
        table(path, &variant.fields, &variant.meaning, out);
        sections(path, &variant.fields, out);
    }
}

/// One row a field; a field without a meaning of its own has that of its section.
fn table(path: &str, fields: &[Field], meaning: &str, out: &mut String) {
    *out += "\n| Field | Type | Default | Meaning |\n|---|---|---|---|\n";
    for field in fields {
        let full = join(path, &field.name);
        let text = if field.meaning.is_empty() { meaning } else { &field.meaning };
        let (kind, default) = match &field.shape {
            Shape::Value(kind) => (name(kind), default(field)),
            Shape::Section(_) => (link("section", &full), String::new()),
            Shape::Tagged { default, .. } => {
                (link("section with `kind`", &full), default.as_ref().map(|k| format!("`\"{k}\"`")).unwrap_or_default())
            }
        };
        let mut text = text.to_owned();
        if let Shape::Value(Type::OneOf(choices)) = &field.shape {
            for (choice, meaning) in choices {
                let _ = write!(text, "<br>`\"{choice}\"`: {meaning}");
            }
        }
        let cells = [format!("`{full}`"), kind, default, text];
        let cells: Vec<String> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
        let _ = writeln!(out, "| {} |", cells.join(" | "));
    }
}

/// A link to the heading of a section.
fn link(text: &str, path: &str) -> String {
    format!("[{text}](#{})", path.replace('.', ""))
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

fn name(kind: &Type) -> String {
    match kind {
        Type::Integer => "integer",
        Type::Number => "number",
        Type::Boolean => "true or false",
        Type::Text => "text",
        Type::Texts => "list of texts",
        Type::Numbers => "list of numbers",
        Type::Sections => "list of sections",
        Type::Section => "section",
        Type::NumbersByName => "numbers by name",
        Type::OneOf(_) => "one of",
    }
    .to_owned()
}

fn default(field: &Field) -> String {
    match &field.default {
        Some(Value::Array(items)) => items.iter().map(|v| format!("`{v}`")).collect::<Vec<_>>().join(", "),
        Some(value) => format!("`{value}`"),
        None if field.required => "must be given".into(),
        None => "none".into(),
    }
}
