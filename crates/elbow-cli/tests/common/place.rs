//! A tiny model in `diffusers`' format, prompts, and room for runs on it.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part")]
#![expect(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use crate::{
    common::{elbow, sets},
    model_folder::whole,
};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};
use tempfile::TempDir;

/// The model, and the folder with `prompts.txt`, runs and the cache.
pub struct Place {
    pub model: TempDir,
    pub room: TempDir,
    /// `--set` of its runs, apart from paths.
    small: &'static [&'static str],
}

impl Place {
    pub fn new(pipeline: &str, prompts: &str, small: &'static [&'static str]) -> Self {
        let room = tempfile::tempdir().unwrap();
        fs::write(room.path().join("prompts.txt"), prompts).unwrap();
        Self { model: whole(pipeline), room, small }
    }

    /// `elbow train recipe` on the model, writing to `run`.
    pub fn train(&self, recipe: &str, run: &str, changes: &[&str]) -> Command {
        self.train_on(self.model.path(), recipe, run, changes)
    }

    /// The same on another model.
    pub fn train_on(&self, model: &Path, recipe: &str, run: &str, changes: &[&str]) -> Command {
        let mut command = elbow(["train", recipe, "--run", run]);
        let model = format!("model.path={}", model.display());
        let paths = [&model, "model.cache=cache", "prompts.train=prompts.txt", "prompts.test=prompts.txt"];
        command.args(sets(self.small)).args(sets(&paths)).args(sets(changes)).current_dir(self.room.path());
        command
    }

    pub fn run(&self, name: &str) -> PathBuf {
        self.room.path().join(name)
    }
}
