//! Models by their names on the Hugging Face Hub: what a recipe may say of them, and with the feature `hub` the download.

#[cfg(feature = "hub")]
mod download;

#[cfg(feature = "hub")]
pub use download::{Wanted, fetch};

use std::path::Path;

/// What is wrong with where a recipe says that its model is, one sentence each.
pub fn validate(path: Option<&Path>, hub: Option<&str>, revision: Option<&str>) -> Vec<String> {
    let mut problems = Vec::new();
    match (path, hub) {
        (None, None) => problems.push("model.path is missing: name the folder of a model".into()),
        (Some(_), Some(_)) => problems.push("model.path and model.hub: give one of the two".into()),
        (Some(_), None) if revision.is_some() => problems.push("model.revision goes with model.hub only".into()),
        _ => {}
    }
    let Some(hub) = hub else { return problems };
    if hub.split('/').count() != 2 || !hub.split('/').all(plain) {
        problems.push(format!("model.hub = {hub:?}: must be of the form \"owner/name\""));
    }
    if let Some(revision) = revision.filter(|revision| !revision.split('/').all(plain)) {
        problems.push(format!("model.revision = {revision:?}: must be a branch, a tag or a commit"));
    }
    if !cfg!(feature = "hub") {
        problems.push(
            "model.hub: this program was built without downloads: build it with `cargo build --release --features \
             elbow-cli/hub`, or download the model and give its folder as model.path"
                .into(),
        );
    }
    problems
}

/// Whether a part of a name can be a part of a path and of an address as it is.
fn plain(part: &str) -> bool {
    let known = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    !part.is_empty() && !part.starts_with('.') && !part.contains("..") && part.chars().all(known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        let told = |path: Option<&str>, hub, revision| {
            let mut told = validate(path.map(Path::new), hub, revision).join("\n");
            if hub.is_some() && !cfg!(feature = "hub") {
                assert!(told.contains("--features elbow-cli/hub"), "{told}");
                told = told.split("model.hub: this program").next().expect("a part").to_owned();
            }
            told.trim_end().to_owned()
        };
        for fine in [(Some("a"), None, None), (None, Some("o/n-1.5_b"), None), (None, Some("o/n"), Some("refs/pr/1"))] {
            assert_eq!(told(fine.0, fine.1, fine.2), "", "{fine:?}");
        }
        assert!(told(None, None, None).starts_with("model.path is missing"));
        assert!(told(Some("a"), Some("o/n"), None).starts_with("model.path and model.hub"));
        assert!(told(Some("a"), None, Some("main")).starts_with("model.revision goes"));
        for name in ["n", "o/", "/n", "o/n/m", "../n", "o/.n", "o/a..b", "o/a b", "o/n?x"] {
            assert!(told(None, Some(name), None).starts_with("model.hub = "), "{name}");
        }
        for revision in ["", "a//b", "../x", "a b", "/a"] {
            assert!(told(None, Some("o/n"), Some(revision)).starts_with("model.revision = "), "{revision}");
        }
    }
}
