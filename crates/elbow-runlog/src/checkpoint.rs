//! Checkpoint folders that are complete or not there.
//!
//! `checkpoint-<step>/` is written as `.checkpoint-<step>.tmp`: every file first, each flushed to the disk, then
//! `manifest.json` with the length and SHA-256 of each, then the rename. A kill at any moment leaves a hidden folder,
//! which [`recover`] removes, and the checkpoints before it untouched.
//!
//! ```json
//! { "format": "elbow-checkpoint/1", "step": 40,
//!   "files": { "lora/adapter_model.safetensors": { "bytes": 4096, "sha256": "9f86d0…" } },
//!   "state": { … what the caller gave … } }
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::RunLogError;
use crate::atomic::{hidden, remove_dir, replace_dir, sync_dir, write_synced};

const FORMAT: &str = "elbow-checkpoint/1";
const MANIFEST: &str = "manifest.json";
const PREFIX: &str = "checkpoint-";

/// A checkpoint as read, with every file checked against its hash.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoint {
    /// The step in the folder's name.
    pub step: u64,
    /// What the caller gave to [`write()`].
    pub state: Value,
    /// Content by name.
    pub files: BTreeMap<String, Vec<u8>>,
}

/// Writes `root/checkpoint-<step>` and returns its path. A checkpoint of the same step is replaced.
///
/// Names are relative and may have folders: `lora/adapter_model.safetensors`. `state` is what the caller wants beside
/// the files: epoch, seed, format of the tensors.
pub fn write(root: &Path, step: u64, files: &[(&str, &[u8])], state: &Value) -> Result<PathBuf, RunLogError> {
    let complete = root.join(format!("{PREFIX}{step}"));
    let partial = hidden(&complete, ".tmp");
    let mut listed = serde_json::Map::new();
    for (name, bytes) in files {
        check_name(name)?;
        let entry = json!({ "bytes": bytes.len(), "sha256": sha256(bytes) });
        if listed.insert((*name).to_owned(), entry).is_some() {
            return Err(RunLogError::FileName { name: (*name).to_owned(), reason: "it is given twice" });
        }
    }
    remove_dir(&partial)?;
    create_dir(&partial)?;
    for (name, bytes) in files {
        let path = partial.join(name);
        let folder = path.parent().unwrap_or(&partial);
        create_dir(folder)?;
        write_synced(&path, bytes)?;
        sync_dir(folder)?;
    }
    let manifest = json!({ "format": FORMAT, "step": step, "files": listed, "state": state });
    write_synced(&partial.join(MANIFEST), format!("{manifest:#}\n").as_bytes())?;
    sync_dir(&partial)?;
    replace_dir(&partial, &complete)?;
    Ok(complete)
}

/// The complete checkpoint of the highest step. Folders without a manifest are passed over, and nothing is changed,
/// so this is safe beside a process that trains. An absent `root` has no checkpoint.
pub fn latest(root: &Path) -> Result<Option<(u64, PathBuf)>, RunLogError> {
    Ok(all(root)?.pop())
}

/// [`latest`], after removing what a kill left: for the one process that goes on with the run.
pub fn recover(root: &Path) -> Result<Option<(u64, PathBuf)>, RunLogError> {
    for name in names(root)? {
        let Some(inner) = name.strip_prefix('.') else { continue };
        let path = root.join(&name);
        if inner.strip_suffix(".tmp").and_then(step).is_some() {
            remove_dir(&path)?;
        } else if let Some(original) = inner.strip_suffix(".old").filter(|name| step(name).is_some()) {
            // Killed while a checkpoint was replaced: the old one counts until the new one has the name.
            let original = root.join(original);
            if original.join(MANIFEST).is_file() {
                remove_dir(&path)?;
            } else {
                remove_dir(&original)?;
                fs::rename(&path, &original).map_err(RunLogError::io("restore", &original))?;
            }
        }
    }
    latest(root)
}

/// Reads a checkpoint and checks every file; the error names the first that is missing, cut short or corrupt.
pub fn read(path: &Path) -> Result<Checkpoint, RunLogError> {
    let manifest_path = path.join(MANIFEST);
    let text = match fs::read(&manifest_path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && path.is_dir() => {
            return Err(RunLogError::Incomplete { path: path.to_path_buf() });
        }
        other => other.map_err(RunLogError::io("read", &manifest_path))?,
    };
    let wrong = |reason: &str| RunLogError::Manifest { path: manifest_path.clone(), reason: reason.to_owned() };
    let mut manifest: Value = serde_json::from_slice(&text).map_err(|error| wrong(&error.to_string()))?;
    if manifest["format"] != FORMAT {
        return Err(wrong(&format!("its format is {}, and this version reads \"{FORMAT}\"", manifest["format"])));
    }
    let step = manifest["step"].as_u64().ok_or_else(|| wrong("it has no `step`"))?;
    let listed = manifest["files"].as_object().ok_or_else(|| wrong("it has no `files`"))?;
    let mut files = BTreeMap::new();
    for (name, entry) in listed {
        check_name(name)?;
        let (Some(bytes), Some(hash)) = (entry["bytes"].as_u64(), entry["sha256"].as_str()) else {
            return Err(wrong(&format!("`{name}` has no length or no hash")));
        };
        files.insert(name.clone(), read_checked(&path.join(name), bytes, hash)?);
    }
    Ok(Checkpoint { step, state: manifest["state"].take(), files })
}

/// Removes all complete checkpoints but those of the `n` highest steps; at least one is kept.
pub fn keep_last(root: &Path, n: usize) -> Result<(), RunLogError> {
    keep_regular(root, n, None, |_| true)
}

/// Removes all complete checkpoints but those of the `n` highest steps that are `regular`, at least one, that of step `spared`, and that of the
/// highest step of all: one that an interrupt wrote in between takes no other's place, and goes when the next is complete.
pub fn keep_regular(
    root: &Path,
    n: usize,
    spared: Option<u64>,
    regular: impl Fn(u64) -> bool,
) -> Result<(), RunLogError> {
    let all = all(root)?;
    let steps: Vec<u64> = all.iter().map(|(step, _)| *step).filter(|step| regular(*step)).collect();
    let kept = &steps[steps.len().saturating_sub(n.max(1))..];
    let Some((_, older)) = all.split_last() else { return Ok(()) };
    for (_, path) in older.iter().filter(|(step, _)| !kept.contains(step) && Some(*step) != spared) {
        // Renamed first: a kill during the removal must not leave half a checkpoint under a good name.
        let doomed = hidden(path, ".tmp");
        remove_dir(&doomed)?;
        fs::rename(path, &doomed).map_err(RunLogError::io("remove", path))?;
        remove_dir(&doomed)?;
    }
    Ok(())
}

fn read_checked(path: &Path, expected: u64, hash: &str) -> Result<Vec<u8>, RunLogError> {
    let bytes = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(RunLogError::Missing { path: path.to_path_buf() });
        }
        other => other.map_err(RunLogError::io("read", path))?,
    };
    if bytes.len() as u64 != expected {
        return Err(RunLogError::Length { path: path.to_path_buf(), expected, found: bytes.len() as u64 });
    }
    let found = sha256(&bytes);
    if found != hash {
        return Err(RunLogError::Corrupt { path: path.to_path_buf(), expected: hash.to_owned(), found });
    }
    Ok(bytes)
}

/// All complete checkpoints with their steps, by rising step; as safe as [`latest`].
pub fn all(root: &Path) -> Result<Vec<(u64, PathBuf)>, RunLogError> {
    let mut found: Vec<_> = names(root)?
        .into_iter()
        .filter_map(|name| Some((step(&name)?, root.join(name))))
        .filter(|(_, path)| path.join(MANIFEST).is_file())
        .collect();
    found.sort();
    Ok(found)
}

/// Names in a folder; other than Unicode cannot be ours.
fn names(root: &Path) -> Result<Vec<String>, RunLogError> {
    let entries = match fs::read_dir(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(RunLogError::io("list", root))?,
    };
    entries
        .filter_map(|entry| entry.map(|entry| entry.file_name().into_string().ok()).transpose())
        .collect::<io::Result<_>>()
        .map_err(RunLogError::io("list", root))
}

/// The step in `checkpoint-<step>`, written as [`write()`] writes it.
fn step(name: &str) -> Option<u64> {
    let digits = name.strip_prefix(PREFIX)?;
    let step: u64 = digits.parse().ok()?;
    (step.to_string() == digits).then_some(step)
}

fn check_name(name: &str) -> Result<(), RunLogError> {
    let plain = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
    let reason = if name.is_empty() || name.ends_with('/') {
        "it names no file"
    } else if !plain || name.contains('\\') {
        "it must be a relative path without `..`"
    } else if name == MANIFEST {
        "the manifest is written for you"
    } else {
        return Ok(());
    };
    Err(RunLogError::FileName { name: name.to_owned(), reason })
}

fn create_dir(path: &Path) -> Result<(), RunLogError> {
    fs::create_dir_all(path).map_err(RunLogError::io("create", path))
}

fn sha256(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}
