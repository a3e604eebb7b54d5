//! `elbow methods`: what there is to choose from.

use crate::{
    output,
    schema::{self, Field, Shape},
};
use elbow_run::recipe::library;
use std::fmt::Write;

/// Arguments of `elbow methods`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  elbow methods
  elbow methods | grep 2509.16117                     what comes from one paper
  elbow train nano-flow-grpo                          a recipe by its name
  elbow train --set objective.kind=grpo --set advantage.kind=standard
  elbow config --explain                              the parameters of each variant")]
pub struct Args {}

/// The axes: title, and where in a recipe the choice stands.
const AXES: [(&str, &[&str]); 5] = [
    ("Objectives", &["objective"]),
    ("Likelihoods", &["likelihood"]),
    ("Samplers", &["sampler", "rule"]),
    ("Advantages", &["advantage"]),
    ("Collections", &["collection"]),
];

/// Runs the command.
pub fn run(_: &Args) {
    output::print(&listing());
}

fn listing() -> String {
    let (fields, mut out) = (schema::fields(), String::new());
    for (title, path) in AXES {
        let _ = writeln!(out, "{title} ({}.kind)", path.join("."));
        let variants = variants(&fields, path).expect("invariant: every axis is a section with a kind");
        table(&variants, &mut out);
        out += "\n";
    }
    out += "Recipes (elbow train NAME)\n";
    let recipes: Vec<(String, String)> =
        library::ALL.iter().map(|(name, text)| ((*name).to_owned(), library::summary(text))).collect();
    table(&recipes, &mut out);
    out
}

/// Name and meaning of every kind of the section at `path`.
fn variants(fields: &[Field], path: &[&str]) -> Option<Vec<(String, String)>> {
    let field = fields.iter().find(|f| f.name == path[0])?;
    match &field.shape {
        Shape::Section(inner) => variants(inner, &path[1..]),
        Shape::Tagged { variants, .. } => {
            Some(variants.iter().map(|v| (v.kind.clone(), v.meaning.trim_end_matches('.').to_owned())).collect())
        }
        Shape::Value(_) => None,
    }
}

fn table(rows: &[(String, String)], out: &mut String) {
    let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    for (name, meaning) in rows {
        let _ = writeln!(out, "  {name:width$}  {meaning}");
    }
}
