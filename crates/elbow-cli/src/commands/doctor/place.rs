//! The program and the machine.

use super::check::Check;
use crate::{device, failure};
use anyhow::Result;
use elbow_run::machine;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Bytes that the default recipe needs, roughly: of memory, and of disk for one run.
const MEMORY: f64 = 0.5e9;
const DISK: f64 = 0.5e9;

/// What can be said before any recipe.
pub fn checks() -> Vec<Check> {
    let facts = machine::facts();
    let fact = |key: &str| facts[key].as_str().unwrap_or("unknown").to_owned();
    let build = format!("elbow {} ({}), {} {}", fact("version"), fact("commit"), fact("os"), fact("arch"));
    let cores = format!("{}, {} threads; {}", fact("cpu"), facts["threads"], instructions());
    vec![
        Check::new("build", Ok(build)),
        Check::new("devices", Ok(format!("this build reaches {}", device::reachable().join(", ")))),
        Check::new("processor", Ok(cores)),
        Check::new("memory", memory()),
        Check::new("disk", disk()),
    ]
}

/// What the kernels run on, and what of precision there is to choose.
fn instructions() -> String {
    let path = machine::path();
    let bf16 = if path.multiplies_bf16() { "faster" } else { "no faster, since this CPU has no instructions for it" };
    format!("instructions {}; precision \"bf16\" is {bf16}", path.name())
}

fn memory() -> Result<String> {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let Some(kilobytes) = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok()) else {
        return Ok("unknown here".into());
    };
    let bytes = kilobytes * 1024.0;
    let said = format!("{:.1} GB available", bytes / 1e9);
    if bytes >= MEMORY {
        return Ok(said);
    }
    Err(failure::error(said, "close other programs; `elbow plan` says what a recipe needs"))
}

/// The place where runs go: `runs` here, or the folder that it would be made in.
fn disk() -> Result<String> {
    let here = std::env::current_dir()?;
    let runs = here.join("runs");
    let place: PathBuf = if runs.is_dir() { runs } else { here };
    if fs::metadata(&place)?.permissions().readonly() {
        let hint = "start from a folder that you may write to, or name one with --run";
        return Err(failure::error(format!("{} is read-only", place.display()), hint));
    }
    let Some(bytes) = free(&place) else { return Ok(format!("unknown here, {}", place.display())) };
    let said = format!("{:.1} GB free in {}", bytes / 1e9, place.display());
    if bytes >= DISK {
        return Ok(said);
    }
    Err(failure::error(said, "make room, or keep less: keep.checkpoints and keep.images_every"))
}

/// Bytes free where `place` is, as `df` says in the form that POSIX fixes.
fn free(place: &Path) -> Option<f64> {
    let output = Command::new("df").arg("-Pk").arg(place).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let kilobytes: f64 = text.lines().nth(1)?.split_whitespace().nth(3)?.parse().ok()?;
    Some(kilobytes * 1024.0)
}
