//! What a recipe says: the method's configuration plus the model, the prompts, the reward and what the run keeps.

use crate::{
    error::Result,
    model::Model,
    radar::RadarConfig,
    reward::{self, Named, RewardConfig, SelfTest},
};
use elbow::{config::Config, eval::EvalConfig, kl::Anchor, method::MethodError};
use elbow_world::prompts::TaskWeights;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use toml::Table;

/// The largest integer of TOML.
pub(super) const MOST: u64 = i64::MAX as u64;

/// Everything a run is made of.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Recipe {
    /// The method: what decides a run's numbers.
    pub method: Config,
    /// Model, prompts, reward and what is kept.
    pub setting: Setting,
}

/// What the method is applied to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Setting {
    /// The policy.
    pub model: Model,
    /// Where prompts come from.
    pub prompts: PromptsConfig,
    /// What scores images.
    pub reward: RewardConfig,
    /// Pairs of pictures of which it is known which one the reward must prefer: it is asked before any work, and a run does not start
    /// if it says otherwise.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub self_test: Vec<SelfTest>,
    /// How the model is measured before, during and after training.
    pub eval: Eval,
    /// When a policy is held to cheat its reward or to have collapsed, and what happens then.
    pub radar: RadarConfig,
    /// What the run folder keeps.
    pub keep: Keep,
}

/// Where prompts come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum PromptsConfig {
    /// The embedded scenes: training prompts by task, held-out prompts for evaluation.
    Scenes {
        /// How often each task is drawn for training.
        #[serde(default)]
        weights: TaskWeights,
    },
    /// Files that end in `.jsonl`, one object a line with `prompt` and whatever the reward wants to know (for `geneval`: `tag`,
    /// `include` and perhaps `exclude`), or in `.txt`, one prompt a line.
    Files {
        /// File with the prompts to train on.
        train: PathBuf,
        /// File with the prompts to evaluate on.
        test: PathBuf,
    },
}

impl Default for PromptsConfig {
    fn default() -> Self {
        Self::Scenes { weights: TaskWeights::default() }
    }
}

/// How the model is measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Eval {
    /// Held-out prompts a task; prompt files are used whole.
    pub prompts_per_task: usize,
    /// Rewards that only watch: held-out images are scored by them too, and nothing is trained on them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rewards: Vec<Named>,
    /// Images, seed, steps and cadence.
    pub measure: EvalConfig,
}

impl Default for Eval {
    fn default() -> Self {
        Self { prompts_per_task: 25, rewards: Vec::new(), measure: EvalConfig::default() }
    }
}

/// What the run folder keeps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Keep {
    /// Epochs between checkpoints; the last epoch and an interrupt always write one.
    pub checkpoint_every: u64,
    /// Checkpoints kept. One that an interrupt wrote in between stands beside them until the next.
    pub checkpoints: usize,
    /// Seconds that the epoch under way may still take after SIGTERM or SIGHUP, by which clusters and closed terminals end a program. What
    /// is finished is saved at once; an epoch that does not end in time is trained again on resume. SLURM and Kubernetes kill after 30
    /// seconds unless they are told otherwise.
    pub grace_seconds: u64,
    /// Epochs between image grids; 0 keeps none.
    pub images_every: u64,
    /// Whether every epoch leaves a file of its samples: prompt, scores, why one is missing, advantage.
    pub samples: bool,
    /// Whether their pictures are kept beside it.
    pub pictures: bool,
    /// A folder in which scores of rewards that are asked outside (`python`, `command`, `served`) outlive the run, by picture and prompt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score_cache: Option<PathBuf>,
}

impl Default for Keep {
    fn default() -> Self {
        Self {
            checkpoint_every: 10,
            checkpoints: 2,
            grace_seconds: 20,
            images_every: 5,
            samples: true,
            pictures: false,
            score_cache: None,
        }
    }
}

impl Setting {
    /// The top-level keys that are its own; all others are the method's.
    pub(super) const KEYS: [&str; 7] = ["model", "prompts", "reward", "self_test", "eval", "radar", "keep"];
}

impl Recipe {
    /// The recipe with every field written out.
    pub(super) fn to_table(&self) -> Result<Table> {
        let mut table = Table::try_from(&self.method)?;
        table.extend(Table::try_from(&self.setting)?);
        Ok(table)
    }

    /// The recipe with every field written out, as `config.toml` holds it. The setting has sections only, so it can follow.
    pub fn to_toml(&self) -> Result<String> {
        Ok(format!("{}\n{}", toml::to_string(&self.method)?, toml::to_string(&self.setting)?))
    }

    /// Where another recipe says something else: `key: here → there`.
    pub fn differences(&self, other: &Self) -> Result<Vec<String>> {
        let (mut here, mut there) = (Vec::new(), Vec::new());
        flatten("", &toml::Value::Table(self.to_table()?), &mut here);
        flatten("", &toml::Value::Table(other.to_table()?), &mut there);
        let value = |list: &[(String, String)], key: &str| {
            list.iter().find(|(k, _)| k == key).map_or_else(|| "nothing".to_owned(), |(_, v)| v.clone())
        };
        let mut keys: Vec<&String> = here.iter().chain(&there).map(|(key, _)| key).collect();
        keys.sort();
        keys.dedup();
        let changed = keys.into_iter().map(|key| (key, value(&here, key), value(&there, key)));
        Ok(changed.filter(|(_, a, b)| a != b).map(|(key, a, b)| format!("{key}: {a} → {b}")).collect())
    }

    /// Takes what a recipe leaves to the model from it: the time shift of its samplers.
    pub fn fill_in(&mut self) {
        let samplers = [&mut self.method.sampler, &mut self.setting.eval.measure.sampler];
        let open: Vec<_> = samplers.into_iter().filter(|sampler| sampler.shift.is_none()).collect();
        if open.is_empty() {
            return;
        }
        let shift = self.setting.model.shift();
        for sampler in open {
            sampler.shift = shift;
        }
    }

    /// Checks what types cannot, of the method and of the setting.
    pub fn validate(&self) -> Result<(), MethodError> {
        // A model folder says its path when it is opened; on which one its method runs is checked then again.
        let schedule = self.setting.model.schedule();
        let mut problems = self.method.build(schedule).err().map(|error| error.problems).unwrap_or_default();
        problems.extend(self.setting_problems());
        if self.method.kl.reference == Anchor::Adapter && self.setting.model.adapter().is_none() {
            problems.push(
                "kl.reference = \"adapter\": there is none to keep near; name it in model.adapter, or set \"base\""
                    .into(),
            );
        }
        if problems.is_empty() { Ok(()) } else { Err(MethodError { problems }) }
    }

    /// What is wrong with the setting; one sentence each.
    fn setting_problems(&self) -> Vec<String> {
        let Setting { model, prompts, reward, self_test: _, eval, radar, keep } = &self.setting;
        let (measure, mut problems) = (&eval.measure, reward.validate("reward"));
        problems.extend(reward::names("eval.rewards", eval.rewards.iter().map(|named| &*named.name)));
        for (k, named) in eval.rewards.iter().enumerate() {
            problems.extend(named.reward.validate(&format!("eval.rewards[{k}].reward")));
        }
        problems.extend(model.validate());
        problems.extend(radar.validate());
        for (key, value) in [
            ("eval.prompts_per_task", eval.prompts_per_task),
            ("eval.measure.images_per_prompt", measure.images_per_prompt),
            ("eval.measure.micro_batch", measure.micro_batch),
            ("keep.checkpoint_every", keep.checkpoint_every as usize),
            ("keep.checkpoints", keep.checkpoints),
        ] {
            if value == 0 {
                problems.push(format!("{key} = 0: must be at least 1"));
            }
        }
        for (key, seed) in [("seed", self.method.seed), ("eval.measure.seed", measure.seed)] {
            if seed > MOST {
                problems.push(format!("{key} = {seed}: must be from 0 to {MOST}, the largest integer of TOML"));
            }
        }
        problems.extend(measure.sampler.build().validate("eval.measure.sampler", model.schedule()));
        if let PromptsConfig::Scenes { weights: w } = prompts {
            let all = [w.single_object, w.two_object, w.counting, w.colors, w.position, w.color_attr];
            if all.iter().any(|w| !(w.is_finite() && *w >= 0.0)) || all.iter().all(|&w| w == 0.0) {
                problems.push("prompts.weights: none may be negative, and at least one must be positive".into());
            }
        }
        problems
    }
}

/// Values by dotted key; of sections in a list, with the number of each.
fn flatten(path: &str, value: &toml::Value, out: &mut Vec<(String, String)>) {
    match value {
        toml::Value::Table(table) => {
            for (key, value) in table {
                flatten(&if path.is_empty() { key.clone() } else { format!("{path}.{key}") }, value, out);
            }
        }
        toml::Value::Array(items) if items.iter().any(toml::Value::is_table) => {
            for (index, item) in items.iter().enumerate() {
                flatten(&format!("{path}[{index}]"), item, out);
            }
        }
        value => out.push((path.to_owned(), value.to_string())),
    }
}
