//! Files and folders that a command writes.

use crate::{card, failure};
use anyhow::{Context, Result};
use std::path::Path;

/// Refuses `out` as a new `.safetensors` file; an existing one is replaced with `force`.
pub fn file(out: &Path, force: bool) -> Result<()> {
    if out.extension().is_none_or(|e| e != "safetensors") {
        return Err(failure::error(
            format!("--out {}: this is written as one file, and its name must end in .safetensors", out.display()),
            format!("for example --out {}", out.with_extension("safetensors").display()),
        ));
    }
    if out.is_dir() {
        return Err(failure::error(
            format!("--out {} is a folder", out.display()),
            "name a file that is not there yet",
        ));
    }
    vacant(out, force)
}

/// Refuses `out` as a new folder; with `force` an existing one is replaced if it holds nothing but weights and what
/// belongs to them, a card of ours included.
pub fn folder(out: &Path, force: bool) -> Result<()> {
    if out.is_file() || out.file_name().is_none() {
        return Err(failure::error(
            format!("--out {}: this is written as a folder, and there cannot be one of this name", out.display()),
            "name a folder that is not there yet",
        ));
    }
    if out.is_dir() && force {
        let place = || format!("cannot read {}", out.display());
        for entry in out.read_dir().with_context(place)? {
            let name = entry.with_context(place)?.file_name().to_string_lossy().into_owned();
            let known = ["adapter_config.json", "config.json", "before-after.png"].contains(&&*name)
                || (name == "README.md" && card::is_card(&out.join(&name)))
                || name.ends_with(".safetensors")
                || name.ends_with(".safetensors.index.json");
            if !known {
                return Err(failure::error(
                    format!("--force would remove {}, which is no part of an export", out.join(name).display()),
                    "choose another --out, or remove the folder yourself",
                ));
            }
        }
    }
    vacant(out, force)
}

fn vacant(out: &Path, force: bool) -> Result<()> {
    if out.exists() && !force {
        let hint = "choose another --out, or replace it with --force";
        return Err(failure::error(format!("{} is there already", out.display()), hint));
    }
    in_a_folder("--out", out)
}

/// A document that may be replaced: refused if its name does not end in `.<end>`, since another kind of file is probably not meant, or if its
/// folder is missing. `argument` is what names it, and `example` a name that would do.
pub fn document(argument: &str, path: &Path, end: &str, example: &str) -> Result<()> {
    if path.extension().is_none_or(|found| found != end) || path.is_dir() {
        return Err(failure::error(
            format!("{argument} {}: this is written as a file whose name ends in .{end}", path.display()),
            format!("for example {argument} {example}"),
        ));
    }
    in_a_folder(argument, path)
}

/// An error if the folder that a file is to be in does not exist.
fn in_a_folder(argument: &str, path: &Path) -> Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    if let Some(parent) = parent.filter(|parent| !parent.is_dir()) {
        return Err(failure::error(
            format!("{argument} {}: there is no folder {}", path.display(), parent.display()),
            "make it first",
        ));
    }
    Ok(())
}
