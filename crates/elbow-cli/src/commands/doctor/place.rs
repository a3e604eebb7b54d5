//! The program and the machine.

use super::Check;
use crate::{failure::Hint, machine};
use anyhow::Result;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Instruction sets that make a difference, as the system calls them.
const INSTRUCTIONS: [&str; 8] = ["sse4_2", "avx", "avx2", "fma", "avx512f", "avx512_bf16", "amx_tile", "asimd"];
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
        Check::new("devices", Ok("cpu; no other is built in".into())),
        Check::new("processor", Ok(cores)),
        Check::new("memory", memory()),
        Check::new("disk", disk()),
    ]
}

/// The instruction sets that the system reports.
fn instructions() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = text.lines().find(|line| line.starts_with("flags") || line.starts_with("Features")).unwrap_or_default();
    let there: Vec<&str> = INSTRUCTIONS.into_iter().filter(|set| flags.split_whitespace().any(|f| f == *set)).collect();
    if there.is_empty() { "instruction sets unknown here".into() } else { there.join(" ") }
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
    Err(Hint::error(said, "close other programs; `elbow plan` says what a recipe needs"))
}

/// The place where runs go: `runs` here, or the folder that it would be made in.
fn disk() -> Result<String> {
    let here = std::env::current_dir()?;
    let runs = here.join("runs");
    let place: PathBuf = if runs.is_dir() { runs } else { here };
    if fs::metadata(&place)?.permissions().readonly() {
        let hint = "start from a folder that you may write to, or name one with --run";
        return Err(Hint::error(format!("{} is read-only", place.display()), hint));
    }
    let Some(bytes) = free(&place) else { return Ok(format!("unknown here, {}", place.display())) };
    let said = format!("{:.1} GB free in {}", bytes / 1e9, place.display());
    if bytes >= DISK {
        return Ok(said);
    }
    Err(Hint::error(said, "make room, or keep less: keep.checkpoints and keep.images_every"))
}

/// Bytes free where `place` is, as `df` says in the form that POSIX fixes.
fn free(place: &Path) -> Option<f64> {
    let output = Command::new("df").arg("-Pk").arg(place).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let kilobytes: f64 = text.lines().nth(1)?.split_whitespace().nth(3)?.parse().ok()?;
    Some(kilobytes * 1024.0)
}
