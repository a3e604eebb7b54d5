//! `elbow eval`: scores on the held-out prompts, by task.

use super::{progress::Bars, sample::Source};
use crate::{
    device::DeviceName,
    output,
    table::{self, Column},
};
use anyhow::Result;
use elbow::{Prompt, eval::Summary};
use elbow_run::{Event, LoadedModel, Recipe, components, data, judges, machine, reward::RewardConfig};
use elbow_runlog::write_atomic;
use serde_json::{Map, Value, json};
use std::path::PathBuf;

/// Arguments of `elbow eval`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  elbow eval                                          the embedded base model
  elbow eval --run runs/nano-geneval-1 --json scores.json
  elbow eval --run runs/nano-geneval-1 --epoch 20     an earlier checkpoint, as the `best_epoch` of its result.json
  elbow eval --set model.tuning.kind=lora --set model.adapter=my-lora
  elbow eval --set eval.prompts_per_task=100 --set eval.measure.sampler.guidance=3

Prompts, start noise and steps are fixed (40 deterministic steps, seed 42, averaged weights), so numbers of different
runs compare; ± is a 95 % interval over prompts. The file of --json holds the whole protocol, with hashes of prompts and
weights, so that somebody else can check the row.")]
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
        let entry = |c: &Column<'_>| {
            let Summary { mean, by_tag, error, missing } = &c.summary;
            (c.title.to_owned(), json!({"mean": mean, "error": error, "by_tag": by_tag, "missing": missing}))
        };
        let mut row: Map<String, Value> = columns.iter().map(entry).collect();
        row.insert("protocol".into(), protocol(&recipe, &prompts)?);
        let weights =
            params.as_ref().or(model.policy.adapter.as_ref()).map(|params| components::values_sha256([params]));
        row.insert(
            "model".into(),
            json!({"base": recipe.setting.model.name(), "base_sha256": model.sha256, "weights_sha256": weights}),
        );
        row.insert("made_by".into(), machine::facts());
        write_atomic(path, serde_json::to_string_pretty(&row)?.as_bytes())?;
    }
    Ok(())
}

/// How the scores are to be had again.
fn protocol(recipe: &Recipe, prompts: &[Prompt]) -> Result<Value> {
    let setting = &recipe.setting;
    let rewards =
        setting.reward.leaves().into_iter().chain(setting.eval.rewards.iter().map(|n| (n.name.clone(), &n.reward)));
    let reward = |(name, config): (String, &RewardConfig)| (name, json!({"is": config, "sha256": config.sha256()}));
    let mut protocol = judges::protocol(recipe, prompts.len());
    protocol["prompts_sha256"] = machine::sha256(serde_json::to_string(prompts)?.as_bytes()).into();
    protocol["rewards"] = rewards.map(reward).collect::<Map<_, _>>().into();
    Ok(protocol)
}
