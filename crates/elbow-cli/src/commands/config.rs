//! `elbow config`: a recipe with its defaults, and what every field means.

use crate::{output, reference};
use anyhow::Result;
use elbow_run::recipe;
use std::path::PathBuf;

/// Arguments of `elbow config`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  elbow config                                        the default recipe, every field written out
  elbow config recipes/nano-flow-grpo.toml --set objective.clip=1e-4
  elbow config --explain                              every field with its meaning, as in docs/config.md")]
pub struct Args {
    /// A recipe; the default is nano-geneval.
    recipe: Option<PathBuf>,
    /// Change one field; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Explain every field, as Markdown.
    #[arg(long, conflicts_with_all = ["recipe", "set"])]
    explain: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    let text = if args.explain {
        reference::markdown()
    } else {
        recipe::load(args.recipe.as_deref(), &args.set)?.1.to_toml()?
    };
    output::print(&text);
    Ok(())
}
