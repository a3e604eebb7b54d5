//! `elbow config`: a recipe with its defaults, and what every field means.

use crate::recipe::{self, Setting};
use anyhow::Result;
use elbow::config::Config;
use schemars::schema_for;
use serde_json::Value;
use std::{fmt::Write, path::PathBuf};

/// Arguments of `elbow config`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  elbow config                                        the default recipe, every field written out
  elbow config recipes/nano-flow-grpo.toml --set objective.clip=1e-4
  elbow config --explain                              every field with its meaning")]
pub struct Args {
    /// A recipe; the default is nano-geneval.
    recipe: Option<PathBuf>,
    /// Change one field; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Explain every field, as Markdown.
    #[arg(long)]
    explain: bool,
}

/// Runs the command.
#[expect(clippy::print_stdout, reason = "prints a document")]
pub fn run(args: &Args) -> Result<()> {
    if args.explain {
        print!("{}", explain());
    } else {
        print!("{}", recipe::load(args.recipe.as_deref(), &args.set)?.1.to_toml()?);
    }
    Ok(())
}

/// Every field of a recipe, from the types themselves.
pub fn explain() -> String {
    let mut out = String::from(
        "# Every field of a recipe\n\nMade by `elbow config --explain`. A recipe holds only what differs from these defaults.\n",
    );
    for schema in [schema_for!(Config), schema_for!(Setting)] {
        let root = schema.to_value();
        section(&root, &root, "", &mut out);
    }
    out
}

/// The definition a `$ref` points to, or the schema itself.
fn resolve<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
    let target = schema["$ref"].as_str().or_else(|| schema["allOf"][0]["$ref"].as_str());
    target.and_then(|path| root.pointer(path.trim_start_matches('#'))).unwrap_or(schema)
}

fn sentence(schema: &Value) -> String {
    schema["description"].as_str().unwrap_or("").replace('\n', " ")
}

/// Fields of an object as a list; objects within follow as sections of their own.
fn section(root: &Value, schema: &Value, path: &str, out: &mut String) {
    let Some(properties) = schema["properties"].as_object() else { return };
    let mut inner = Vec::new();
    for (name, field) in properties.iter().filter(|(name, _)| *name != "kind") {
        let target = resolve(root, field);
        let full = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        let default = field.get("default").filter(|d| !d.is_object());
        let default = default.map(|d| format!(" (default `{d}`)")).unwrap_or_default();
        let described = if field["description"].is_string() { sentence(field) } else { sentence(target) };
        let _ = writeln!(out, "- `{full}`{default}: {described}{}", choices(target));
        if target["properties"].is_object() || target["oneOf"].is_array() {
            inner.push((full, target));
        }
    }
    for (full, target) in inner {
        if target["properties"].is_object() {
            let _ = writeln!(out, "\n## `[{full}]`\n");
            section(root, target, &full, out);
        }
        for variant in target["oneOf"].as_array().into_iter().flatten() {
            let Some(kind) = variant["properties"]["kind"]["const"].as_str() else { continue };
            let _ = writeln!(out, "\n## `[{full}]` with `kind = \"{kind}\"`\n\n{}\n", sentence(variant));
            section(root, resolve(root, variant), &full, out);
            if variant["properties"].is_object() && variant["$ref"].is_string() {
                section(root, variant, &full, out);
            }
        }
    }
}

/// The values of a plain enumeration.
fn choices(schema: &Value) -> String {
    let plain = schema["oneOf"].as_array().into_iter().flatten().filter_map(|v| {
        let name = v["const"].as_str()?;
        Some(format!("`{name}`: {}", sentence(v)))
    });
    let all: Vec<String> = plain.collect();
    if all.is_empty() { String::new() } else { format!(" One of {}", all.join("; ")) }
}
