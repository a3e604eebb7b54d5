//! What tests that need Python share.

#![allow(unreachable_pub, reason = "a module of several tests")]

use std::path::{Path, PathBuf};

/// A Python that has Pillow: `ELBOW_TEST_PYTHON`, else the one in `target/python`. Where there is none the test says that it is
/// skipped, unless `ELBOW_REQUIRE_PYTHON` is set.
#[expect(clippy::print_stderr, reason = "a skipped test says so")]
pub fn python() -> Option<String> {
    let built = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/python/bin/python");
    let python = std::env::var_os("ELBOW_TEST_PYTHON").map_or_else(built, PathBuf::from);
    if python.exists() {
        return python.to_str().map(str::to_owned);
    }
    assert!(std::env::var_os("ELBOW_REQUIRE_PYTHON").is_none(), "no Python at {}", python.display());
    eprintln!("skipped: no Python at {}", python.display());
    None
}
