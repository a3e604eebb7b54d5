//! What tests share.

use std::path::{Path, PathBuf};

/// A Python interpreter for tests that compare with it: that of the environment variable `ELBOW_TEST_PYTHON`, else
/// `target/python/bin/python`. Without one the test says that it is skipped, unless `ELBOW_REQUIRE_PYTHON` is set.
pub(crate) fn python() -> Option<PathBuf> {
    let own = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/python/bin/python");
    let path = std::env::var_os("ELBOW_TEST_PYTHON").map_or_else(own, PathBuf::from);
    if path.exists() {
        return Some(path);
    }
    assert!(std::env::var_os("ELBOW_REQUIRE_PYTHON").is_none(), "no Python at {}", path.display());
    println!("skipped: no Python at {}; set ELBOW_TEST_PYTHON", path.display());
    None
}
