//! The log of samples: one file an epoch, a line a sample, so that every number that was trained on can be looked up.

use crate::error::Result;
use elbow::{Prompt, RewardError, Score, train::Logged};
use elbow_rewards::journal::picture_hash;
use elbow_runlog::{RunLogError, save_png, write_atomic};
use serde_json::{Map, Value, json};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Writes `epoch-<number>.jsonl`, complete or not at all, and the pictures beside it if they are wanted.
pub fn write(folder: &Path, epoch: u64, samples: &[Logged], pictures: bool) -> Result<(), RunLogError> {
    let create = |folder: &Path| fs::create_dir_all(folder).map_err(RunLogError::io("create", folder));
    create(folder)?;
    let mut text = String::new();
    for (number, logged) in samples.iter().enumerate() {
        let mut line = line(epoch, number, logged);
        if pictures && !logged.sample.replayed {
            let name = format!("epoch-{epoch:05}/{number:05}.png");
            let path = folder.join(&name);
            path.parent().map_or(Ok(()), create)?;
            save_png(&path, &logged.sample.image)?;
            line.insert("file".into(), name.into());
        }
        text += &Value::Object(line).to_string();
        text.push('\n');
    }
    write_atomic(&folder.join(format!("epoch-{epoch:05}.jsonl")), text.as_bytes())
}

/// Removes the samples of epochs after the given one: a run that goes on from there draws them again.
pub fn forget_after(folder: &Path, epoch: u64) -> io::Result<()> {
    let Ok(entries) = fs::read_dir(folder) else { return Ok(()) };
    for entry in entries {
        let path = entry?.path();
        let name = path.file_stem().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix("epoch-"));
        if name.and_then(|number| number.parse().ok()).is_some_and(|number: u64| number > epoch) {
            if path.is_dir() { fs::remove_dir_all(path)? } else { fs::remove_file(path)? }
        }
    }
    Ok(())
}

/// What is known of a sample.
fn line(epoch: u64, number: usize, Logged { sample, advantage, trained }: &Logged) -> Map<String, Value> {
    let mut line = Map::new();
    let mut add = |key: &str, value: Value| drop(line.insert(key.to_owned(), value));
    add("epoch", epoch.into());
    add("sample", number.into());
    add("group", sample.group.into());
    add("prompt", sample.prompt.text.clone().into());
    if !sample.prompt.metadata.is_empty() {
        add("metadata", Value::Object(sample.prompt.metadata.clone()));
    }
    add("key", json!({ "seed": sample.key.seed, "epoch": sample.key.epoch, "sample": sample.key.sample }));
    add_score(&mut line, &sample.reward);
    let mut add = |key: &str, value: Value| drop(line.insert(key.to_owned(), value));
    add("advantage", (*advantage).into());
    add("trained", (*trained).into());
    if sample.replayed {
        add("replayed", true.into());
        add("importance", sample.importance.into());
    } else {
        add("picture", picture_hash(&sample.image).into());
    }
    line
}

/// Adds what a picture scored, or why it has no score.
pub fn add_score(line: &mut Map<String, Value>, score: &Result<Score, RewardError>) {
    let mut add = |key: &str, value: Value| drop(line.insert(key.to_owned(), value));
    match score {
        Ok(score) => {
            add("status", "scored".into());
            add("reward", score.value.into());
            if !score.parts.is_empty() {
                let parts = score.parts.iter().map(|part| (part.name.to_string(), Value::from(part.value)));
                add("parts", Value::Object(parts.collect()));
            }
        }
        Err(error) => {
            let status = match error {
                RewardError::Prompt { .. } => "prompt",
                RewardError::Failed(_) => "failed",
                RewardError::Unavailable(_) => "unavailable",
            };
            add("status", status.into());
            add("reason", error.to_string().into());
        }
    }
}

/// The pictures that a run kept of its samples, with their prompts, epoch after epoch.
pub fn kept(folder: &Path) -> Result<Vec<(PathBuf, Prompt)>> {
    let Ok(entries) = fs::read_dir(folder) else { return Ok(Vec::new()) };
    let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.retain(|path| path.extension().is_some_and(|end| end == "jsonl"));
    files.sort();
    let mut kept = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file)?;
        for line in text.lines() {
            let line: Value = serde_json::from_str(line)?;
            let (Some(picture), Some(prompt)) = (line["file"].as_str(), line["prompt"].as_str()) else { continue };
            let metadata = line["metadata"].as_object().cloned().unwrap_or_default();
            kept.push((folder.join(picture), Prompt { text: prompt.to_owned(), metadata }));
        }
    }
    Ok(kept)
}
