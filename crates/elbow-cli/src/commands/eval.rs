//! `elbow eval`: scores on the held-out prompts, by task.

use super::{progress::Bars, sample::Source};
use crate::{
    device::DeviceName,
    output,
    table::{self, Column},
};
use anyhow::Result;
use elbow_run::{Event, LoadedModel, components, data, judges};
use elbow_runlog::write_atomic;
use serde_json::{Value, json};
use std::path::PathBuf;

/// Arguments of `elbow eval`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  elbow eval                                          the embedded base model
  elbow eval --run runs/nano-geneval-1 --json scores.json
  elbow eval --set eval.prompts_per_task=100 --set eval.measure.sampler.guidance=3

Prompts, start noise and steps are fixed (40 deterministic steps, seed 42, averaged weights), so numbers of different
runs compare.")]
pub struct Args {
    #[command(flatten)]
    source: Source,
    /// Also write the numbers to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: &Args, device: DeviceName) -> Result<()> {
    let recipe = args.source.recipe()?;
    recipe.setting.reward.check_resolution(recipe.setting.model.resolution())?;
    let bars = Bars::new();
    let watch = |event: Event<'_>| bars.progress(event);
    let (prompts, early) = data::held_out(&recipe)?;
    let tools = components::tools(&recipe, &prompts);
    let reward = components::reward(&recipe, &prompts, &tools)?;
    let judges = judges::judges(&recipe, &prompts, &tools)?;
    let model = LoadedModel::load(&recipe, &early, &device.open()?, &watch)?;
    drop(tools.policy.set(model.policy.clone()));
    let params = args.source.params(&model)?;
    let measures = judges::measures(&judges, &*reward);
    let measured = model.measure(&recipe, &prompts, &measures, params.as_ref(), &watch)?;
    let columns: Vec<Column<'_>> = measures
        .iter()
        .filter_map(|m| Some(Column { title: m.name(), summary: measured.summary(m.name())? }))
        .collect();
    let eval = &recipe.setting.eval.measure;
    output::line(&format!(
        "{} held-out prompts × {} images, {} steps, guidance {}, seed {}\n{}",
        prompts.len(),
        eval.images_per_prompt,
        eval.sampler.steps,
        eval.sampler.guidance,
        eval.seed,
        table::scores(&columns)
    ));
    if let Some(path) = &args.json {
        let entry = |c: &Column<'_>| (c.title.to_owned(), json!({"mean": c.summary.mean, "by_tag": c.summary.by_tag}));
        let all: Value = Value::Object(columns.iter().map(entry).collect());
        write_atomic(path, serde_json::to_string_pretty(&all)?.as_bytes())?;
    }
    Ok(())
}
