//! The rewards of a recipe.

use crate::error::{Error, Result};
use elbow::{
    Reward,
    reward::{Shape, Sum, Weighted},
};
use elbow_rewards::{
    geneval::{GenEval, Mode},
    jpeg::{Aim, Jpeg},
};
use elbow_world::{SceneDetector, scene::SIDE};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What scores images in training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum RewardConfig {
    /// GenEval's rules over the embedded detector (arXiv 2310.11513).
    Geneval {
        /// Partial credit, the benchmark's rule, or all exact.
        #[serde(default)]
        mode: Mode,
        /// Give a wrong position half credit, as the upstream reward does by mistake.
        #[serde(default)]
        upstream_position_quirk: bool,
    },
    /// Size of the JPEG file at quality 95, in kB (arXiv 2305.13301).
    Jpeg {
        /// Which size is better.
        #[serde(default)]
        aim: Aim,
    },
    /// A weighted sum of rewards, each reported by its name (arXiv 2601.05242).
    Sum {
        /// What is added up, for example `[{ name = "dense", weight = 0.5, reward = { kind = "geneval", mode = "dense" } }]`; a
        /// weight that is not given is 1.
        parts: Vec<Part>,
    },
}

/// A reward within a sum.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// Its name in the metrics.
    pub name: String,
    /// How much it counts.
    #[serde(default = "one")]
    pub weight: f64,
    /// The reward.
    pub reward: RewardConfig,
}

fn one() -> f64 {
    1.0
}

impl Default for RewardConfig {
    fn default() -> Self {
        Self::Geneval { mode: Mode::Dense, upstream_position_quirk: false }
    }
}

impl RewardConfig {
    /// The reward.
    pub fn build(&self) -> Box<dyn Reward> {
        match self {
            Self::Geneval { mode, upstream_position_quirk } => {
                let mut reward = GenEval::new(SceneDetector::new(), *mode);
                reward.rules.upstream_position_quirk = *upstream_position_quirk;
                Box::new(reward)
            }
            Self::Jpeg { aim } => Box::new(Jpeg { aim: *aim }),
            Self::Sum { parts } => {
                let part = |p: &Part| Weighted {
                    name: p.name.clone(),
                    weight: p.weight,
                    shape: Shape::default(),
                    reward: p.reward.build(),
                };
                Box::new(Sum { name: "sum".into(), parts: parts.iter().map(part).collect() })
            }
        }
    }

    /// Whether prompts must come with `GenEval`'s records.
    pub fn wants_records(&self) -> bool {
        match self {
            Self::Geneval { .. } => true,
            Self::Jpeg { .. } => false,
            Self::Sum { parts } => parts.iter().any(|p| p.reward.wants_records()),
        }
    }

    /// An error if images are of a size at which its detector sees nothing.
    pub fn check_resolution(&self, resolution: usize) -> Result<()> {
        if resolution == SIDE || !self.wants_records() {
            return Ok(());
        }
        Err(Error::new(
            format!(
                "reward `geneval` scores with the detector of the embedded scenes, which are {SIDE} × {SIDE} pixels, and \
                 model.resolution = {resolution}: it would see nothing"
            ),
            "set another reward, for example --set reward.kind=jpeg; there is no detector for photographs yet",
        ))
    }

    /// What is wrong with it, one sentence each.
    pub fn validate(&self) -> Vec<String> {
        let Self::Sum { parts } = self else { return Vec::new() };
        let mut problems = Vec::new();
        if parts.is_empty() {
            problems.push("reward.parts is empty: a sum needs at least one reward".to_owned());
        }
        for (k, Part { name, weight, reward }) in parts.iter().enumerate() {
            let place = format!("reward.parts[{k}]");
            if name == "sum" || parts[..k].iter().any(|other| other.name == *name) {
                problems.push(format!("{place}.name = \"{name}\": taken; give each reward a name of its own"));
            }
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
            if name.is_empty() || !name.chars().all(plain) {
                problems.push(format!("{place}.name = \"{name}\": use lower-case letters, digits and _"));
            }
            if !weight.is_finite() {
                problems.push(format!("{place}.weight = {weight}: must be a finite number"));
            }
            if matches!(reward, Self::Sum { .. }) {
                problems.push(format!("{place}.reward is a sum: list its parts in this one"));
            }
        }
        problems
    }
}
