//! What a run was made on and with: the facts of a manifest.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// SHA-256 in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

/// The instructions that the kernels use.
pub fn path() -> elbow_kernels::Isa {
    elbow_kernels::isa().expect("invariant: checked when the program starts")
}

/// Version, commit and machine.
pub fn facts() -> Value {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|l| l.strip_prefix("model name")).map(|l| l.trim_start_matches([' ', '\t', ':']));
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "commit": option_env!("ELBOW_COMMIT").unwrap_or("unknown"),
        "cpu": model.unwrap_or("unknown"),
        "instructions": path().name(),
        "threads": std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        "os": std::env::consts::OS,
        "arch": std::env::consts::ARCH,
    })
}

/// The most memory this process ever held, in MiB; unknown where there is no /proc.
pub fn peak_memory() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<f64>().ok()? / 1024.0)
}
