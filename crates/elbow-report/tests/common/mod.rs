//! Run folders as `elbow train` leaves them, with numbers that a test can foretell.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part")]
#![expect(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use elbow_runlog::{MetricsWriter, RunFolder, Tile, grid, save_png};
use image::{Rgb, RgbImage};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// The tasks of a fixture.
pub const TAGS: [&str; 2] = ["color_attr", "counting"];

/// A run to be written.
#[derive(Clone)]
pub struct Fixture {
    pub name: String,
    pub seed: u64,
    /// Epochs that were trained, and that were to be.
    pub epochs: u64,
    pub of: u64,
    /// Epochs between evaluations; 0 is none but at the ends, as in a recipe.
    pub eval_every: u64,
    pub objective: &'static str,
    pub prompt: String,
    /// Side of the pictures.
    pub side: u32,
    /// Whether every picture is kept.
    pub pictures: bool,
    /// Whether there are sheets.
    pub sheets: bool,
    /// Whether anything was measured on held-out prompts.
    pub measured: bool,
}

impl Default for Fixture {
    fn default() -> Self {
        Self {
            name: "run-1".into(),
            seed: 0,
            epochs: 10,
            of: 10,
            eval_every: 5,
            objective: "pepg",
            prompt: "a photo of a cat".into(),
            side: 32,
            pictures: false,
            sheets: true,
            measured: true,
        }
    }
}

/// Pictures of a group, and groups, of a fixture.
const GROUP: usize = 4;
const GROUPS: usize = 6;

/// The score of a fixture at an epoch: a straight line from 0.3 to 0.9, and as much more as its seed says.
pub fn score(seed: u64, epoch: u64, of: u64) -> f64 {
    0.3 + 0.6 * epoch as f64 / of as f64 + if epoch == 0 { 0.0 } else { 0.01 * seed as f64 }
}

impl Fixture {
    /// Writes the folder and returns its path.
    pub fn write(&self, root: &Path) -> PathBuf {
        let path = root.join(&self.name);
        let folder = RunFolder::create(&path).unwrap();
        let keep = if self.pictures { "true" } else { "false" };
        let config = format!(
            "seed = {}\nepochs = {}\n\n[batch]\ngroups = {GROUPS}\ngroup_size = {GROUP}\n\n[objective]\nkind = \"{}\"\n\n[model]\nkind = \
             \"diffusers\"\nresolution = {}\n\n[reward]\nkind = \"geneval\"\nmode = \"dense\"\n\n[keep]\npictures = {keep}\n",
            self.seed, self.of, self.objective, self.side
        );
        fs::write(folder.config(), config).unwrap();
        let manifest = json!({
            "version": "0.1.0", "commit": "abc", "cpu": "a processor", "threads": 2, "device": "Device<Flex(Cpu)>", "seed": self.seed,
            "base_sha256": "00", "prompts_sha256": "11", "arguments": ["train", self.recipe(), "--set", format!("seed={}", self.seed)],
        });
        fs::write(folder.manifest(), manifest.to_string()).unwrap();
        let mut writer = MetricsWriter::open(folder.metrics()).unwrap();
        for epoch in 0..=self.epochs {
            writer.append(self.record(epoch).as_object().unwrap()).unwrap();
            if epoch > 0 {
                self.write_samples(&folder, epoch);
            }
        }
        if self.epochs == self.of && self.measured {
            let result = json!({ "base": self.scores(0), "tuned": self.scores(self.of) });
            fs::write(path.join("result.json"), result.to_string()).unwrap();
            if self.sheets {
                let tiles = |seed: u32, word: &str| -> Vec<Tile> {
                    (0..24).map(|i| self.tile(seed + i, &[&self.prompt, word])).collect()
                };
                let sheet = grid::before_after(("base", &tiles(1, "wrong")), ("tuned", &tiles(100, "right")), 6, 4);
                save_png(&folder.images().join("before-after.png"), &sheet).unwrap();
            }
        }
        path
    }

    /// The recipe's name in the manifest.
    pub fn recipe(&self) -> String {
        format!("nano-{}", self.objective)
    }

    fn record(&self, epoch: u64) -> Value {
        let mut record = json!({ "epoch": epoch });
        if epoch > 0 {
            let mean = score(self.seed, epoch, self.of);
            record["step"] = (2 * epoch).into();
            record["reward_geneval"] = mean.into();
            record["reward_geneval_std"] = 0.4.into();
            record["reward_std_mean"] = 0.35.into();
            record["reward_missing"] = 0.into();
            record["zero_std_ratio"] = 0.25.into();
            for (tag, shift) in TAGS.iter().zip([-0.1, 0.1]) {
                record[format!("reward_geneval_{tag}")] = (mean + shift).into();
            }
            record["trained_samples"] = 24.into();
            record["policy_loss"] = (-0.1).into();
            record["kl_loss"] = (0.001 * epoch as f64).into();
            record["clipfrac"] = Value::Null;
            record["grad_norm"] = 0.5.into();
            record["time_rollout"] = 6.0.into();
            record["time_reward"] = 0.01.into();
            record["time_update"] = 12.0.into();
            record["images_per_second"] = (24.0 / 18.0).into();
            record["time_planned"] = 17.0.into();
        }
        let due = epoch == 0 || self.eval_every > 0 && epoch.is_multiple_of(self.eval_every);
        if due && self.measured {
            for (key, value) in self.scores(epoch).as_object().unwrap() {
                record[key] = value.clone();
            }
        }
        record
    }

    fn scores(&self, epoch: u64) -> Value {
        let mut scores = json!({});
        for (measure, shift) in [("geneval", 0.0), ("judge", 0.02), ("geneval_dense", 0.05)] {
            let mean = score(self.seed, epoch, self.of) + shift;
            scores[format!("eval_reward_{measure}")] = mean.into();
            for (tag, shift) in TAGS.iter().zip([-0.1, 0.1]) {
                scores[format!("eval_reward_{measure}_{tag}")] = (mean + shift).into();
            }
        }
        scores
    }

    fn write_samples(&self, folder: &RunFolder, epoch: u64) {
        // Long runs are of curves.
        if epoch > 50 {
            return;
        }
        let reward = |i: usize| (i % 5) as f64 / 4.0;
        let mut lines = String::new();
        for i in 0..GROUPS * GROUP {
            let mut line = json!({ "epoch": epoch, "sample": i, "group": i / GROUP, "prompt": self.prompt, "status": "scored", "reward": reward(i) });
            if self.pictures {
                let name = format!("epoch-{epoch:05}/{i:05}.png");
                fs::create_dir_all(folder.samples().join(&name).parent().unwrap()).unwrap();
                save_png(&folder.samples().join(&name), &self.tile(i as u32, &[]).image).unwrap();
                line["file"] = name.into();
            }
            lines += &line.to_string();
            lines.push('\n');
        }
        fs::create_dir_all(folder.samples()).unwrap();
        fs::write(folder.samples().join(format!("epoch-{epoch:05}.jsonl")), lines).unwrap();
        if self.sheets && epoch.is_multiple_of(5) {
            let tiles: Vec<Tile> = (0..GROUPS)
                .map(|g| self.tile(g as u32, &[&self.prompt, &format!("{:.2}", reward(g * GROUP))]))
                .collect();
            save_png(&folder.images().join(format!("epoch-{epoch:05}.png")), &grid::grid(&tiles, 8, 4)).unwrap();
        }
    }

    fn tile(&self, number: u32, caption: &[&str]) -> Tile {
        let noise = |x: u32, y: u32| (x * 7919 + y * 104_729 + number * 31).wrapping_mul(2_654_435_761) >> 13;
        let image = RgbImage::from_fn(self.side, self.side, |x, y| {
            let n = noise(x, y);
            Rgb([n as u8, (n >> 3) as u8, (n >> 5) as u8])
        });
        Tile { image, caption: caption.iter().map(ToString::to_string).collect() }
    }
}
