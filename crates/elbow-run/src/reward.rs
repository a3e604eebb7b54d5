//! The rewards of a recipe.

use crate::{
    error::{At, Error, Result},
    machine,
    model::Resolution,
    self_test,
};
use elbow::{
    Prompt, Reward, RewardError,
    policy::Policy,
    reward::{Shape, Sum, Weighted},
    self_consistency::SelfConsistency,
};
use elbow_rewards::{
    Log,
    diversity::{self, Diversity},
    geneval::{GenEval, Mode},
    journal::{Cache, Journal, Journaled},
    jpeg::{Aim, Jpeg, Unit},
    served::{ConnectError, Served},
    worker::{Command, Python, StartError},
};
use elbow_world::{SceneDetector, scene::SIDE};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

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
        /// What the size is counted in.
        #[serde(default)]
        unit: Unit,
    },
    /// How well the base recovers noise that is added to a sample: a reward for any model, with nothing to download (SOLACE,
    /// arXiv 2603.00918).
    SelfConsistency {
        /// Times in (0, 1) at which noise is added.
        #[serde(default = "probe_times")]
        times: Vec<f64>,
        /// Noises at each time.
        #[serde(default = "probe_draws")]
        draws: usize,
    },
    /// A Python function of yours; `elbow reward new my_reward.py` writes one.
    Python(Python),
    /// A program of yours that speaks `docs/rewards-protocol.md`.
    Command(Command),
    /// A server's answers, by one of the protocols of the field.
    Served(Served),
    /// Any reward, shaped over each group so that its pictures stay different.
    Diversity {
        /// How.
        #[serde(default)]
        shape: diversity::Kind,
        /// The reward that is shaped, for example `{ kind = "geneval" }`.
        reward: Box<RewardConfig>,
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
    /// It counts 1 from this score on and 0 below, in place of its score.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threshold: Option<f64>,
    /// The least and the largest score that counts as such, `[least, largest]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip: Option<[f64; 2]>,
    /// It counts 0 where another part scores too little, for example `{ part = "ocr", at_least = 0.5 }`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub only_if: Option<Gate>,
    /// The reward.
    pub reward: RewardConfig,
}

/// Another part of a sum, and what it has to score.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Gate {
    /// The other part's name.
    pub part: String,
    /// The least score, before threshold and clip.
    pub at_least: f64,
}

/// A reward under a name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Named {
    /// Its name in the metrics.
    pub name: String,
    /// The reward.
    pub reward: RewardConfig,
}

/// Two pictures whose order is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SelfTest {
    /// The picture that must score higher.
    pub better: PathBuf,
    /// The other one.
    pub worse: PathBuf,
    /// What both were made for; the first held-out prompt if it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
}

fn one() -> f64 {
    1.0
}

fn probe_times() -> Vec<f64> {
    vec![0.25, 0.5, 0.75]
}

fn probe_draws() -> usize {
    4
}

impl Default for RewardConfig {
    fn default() -> Self {
        Self::Geneval { mode: Mode::Dense, upstream_position_quirk: false }
    }
}

/// What rewards are made with. Clones share the log and the journal.
#[derive(Clone, Default)]
pub struct Tools {
    /// What rewards say while they work.
    pub log: Log,
    /// What they answered.
    pub journal: Journal,
    /// Where scores outlive a run.
    pub cache: Option<PathBuf>,
    /// The policy, once it is loaded.
    pub policy: Arc<OnceLock<Arc<dyn Policy>>>,
    /// What every reward is asked before it is used; nothing if there is none.
    pub probe: Option<Probe>,
}

/// A question to try a reward with.
#[derive(Clone, Debug)]
pub struct Probe {
    /// A prompt of those that it is to score.
    pub prompt: Prompt,
    /// The size of its pictures.
    pub size: Resolution,
    /// Whether pictures of a known order are given, so that nothing is asked but these.
    pub given: bool,
}

impl RewardConfig {
    /// The reward. It was asked about pictures before it is returned, and has scored them.
    pub fn build(&self, tools: &Tools) -> Result<Box<dyn Reward>> {
        self.named(&self.name(), tools)
    }

    /// Its name where nothing else names it.
    pub fn name(&self) -> String {
        match self {
            Self::Geneval { .. } => "geneval".into(),
            Self::Jpeg { .. } => "jpeg".into(),
            Self::SelfConsistency { .. } => "self_consistency".into(),
            Self::Served(served) => served.protocol.name().into(),
            Self::Diversity { reward, .. } => reward.name(),
            Self::Python(python) => metric_name(Path::new(&python.file), "python"),
            Self::Command(command) => {
                metric_name(Path::new(command.program.first().map_or("", String::as_str)), "command")
            }
            Self::Sum { .. } => "sum".into(),
        }
    }

    /// The reward under a name.
    pub fn named(&self, name: &str, tools: &Tools) -> Result<Box<dyn Reward>> {
        let own_name = name.to_owned();
        let reward: Box<dyn Reward> = match self {
            Self::Geneval { mode, upstream_position_quirk } => {
                let mut reward = GenEval::new(SceneDetector::new(), *mode);
                reward.rules.upstream_position_quirk = *upstream_position_quirk;
                Box::new(GenEval { name: own_name, ..reward })
            }
            Self::Jpeg { aim, unit } => Box::new(Jpeg { name: own_name, aim: *aim, unit: *unit }),
            Self::SelfConsistency { times, draws } => {
                let policy = Arc::clone(&tools.policy);
                Box::new(SelfConsistency { name: own_name, policy, times: times.clone(), draws: *draws })
            }
            Self::Python(python) => Box::new(python.start(name, tools.log.clone()).map_err(start_error)?),
            Self::Command(command) => Box::new(command.start(name, tools.log.clone()).map_err(start_error)?),
            Self::Served(served) => {
                let client = served.connect(name, tools.log.clone()).map_err(connect_error)?;
                if tools.probe.is_some() {
                    client.health().map_err(health_error)?;
                }
                Box::new(client)
            }
            Self::Diversity { shape, reward } => {
                return Ok(Box::new(Diversity { inner: reward.named(name, tools)?, kind: *shape }));
            }
            Self::Sum { parts } => {
                let parts = parts.iter().map(|part| part.build(parts, tools)).collect::<Result<_>>()?;
                return Ok(Box::new(Sum { name: own_name, parts }));
            }
        };
        if let Some(probe) = &tools.probe {
            self_test::try_out(self, &*reward, probe)?;
        }
        if !self.is_outside() {
            return Ok(reward);
        }
        let cache = tools.cache.as_ref().map(|folder| self.cache(folder, name)).transpose()?;
        Ok(Box::new(Journaled { inner: reward, journal: tools.journal.clone(), cache, log: tools.log.clone() }))
    }

    /// The rewards that it is made of, each by its name; itself if it is no sum.
    pub fn leaves(&self) -> Vec<(String, &Self)> {
        match self {
            Self::Sum { parts } => parts.iter().map(|part| (part.name.clone(), &part.reward)).collect(),
            Self::Diversity { reward, .. } => reward.leaves(),
            reward => vec![(reward.name(), reward)],
        }
    }

    /// Whether it is asked outside this program, so that its answers are worth keeping.
    fn is_outside(&self) -> bool {
        matches!(self, Self::Python(_) | Self::Command(_) | Self::Served(_))
    }

    fn cache(&self, folder: &Path, name: &str) -> Result<Cache> {
        let description = format!("{}{}", serde_json::to_string(self)?, self.sha256().unwrap_or_default());
        Cache::open(folder, name, &description).at(|| format!("cannot use score cache {}", folder.display()))
    }

    /// SHA-256 of the files that it is made of; none if it is of none.
    pub fn sha256(&self) -> Option<String> {
        let bytes: Vec<u8> = self.files().iter().filter_map(|path| std::fs::read(path).ok()).flatten().collect();
        (!bytes.is_empty()).then(|| machine::sha256(&bytes))
    }

    /// Files of the user that it is made of.
    fn files(&self) -> Vec<PathBuf> {
        match self {
            Self::Sum { parts } => parts.iter().flat_map(|part| part.reward.files()).collect(),
            Self::Diversity { reward, .. } => reward.files(),
            Self::Python(python) => vec![PathBuf::from(&python.file)],
            Self::Command(command) => command.program.iter().map(PathBuf::from).collect(),
            Self::Geneval { .. } | Self::Jpeg { .. } | Self::SelfConsistency { .. } | Self::Served(_) => Vec::new(),
        }
    }

    /// Whether prompts must come with `GenEval`'s records.
    pub fn wants_records(&self) -> bool {
        match self {
            Self::Geneval { .. } => true,
            Self::Jpeg { .. } | Self::SelfConsistency { .. } | Self::Python(_) | Self::Command(_) | Self::Served(_) => {
                false
            }
            Self::Diversity { reward, .. } => reward.wants_records(),
            Self::Sum { parts } => parts.iter().any(|p| p.reward.wants_records()),
        }
    }

    /// An error if images are of a size at which its detector sees nothing.
    pub fn check_resolution(&self, resolution: Resolution) -> Result<()> {
        if resolution == Resolution::square(SIDE) || !self.wants_records() {
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

    /// What is wrong with it, one sentence each; `place` is where it stands in the recipe.
    pub fn validate(&self, place: &str) -> Vec<String> {
        match self {
            Self::Geneval { .. } | Self::Jpeg { .. } => Vec::new(),
            Self::SelfConsistency { times, draws } => {
                let mut problems = Vec::new();
                if times.is_empty() || times.iter().any(|t| !(0.0 < *t && *t < 1.0)) {
                    problems.push(format!("{place}.times = {times:?}: needs one number or more between 0 and 1"));
                }
                if *draws == 0 {
                    problems.push(format!("{place}.draws = 0: must be at least 1"));
                }
                problems
            }
            Self::Diversity { shape, reward } => {
                let mut problems = placed(shape.validate(), &format!("{place}.shape"));
                problems.extend(reward.validate(&format!("{place}.reward")));
                problems
            }
            Self::Served(served) => placed(served.validate(), place),
            Self::Python(python) => placed(python.validate(), place),
            Self::Command(command) => placed(command.validate(), place),
            Self::Sum { parts } => validate_sum(place, parts),
        }
    }
}

/// The name of a file as it stands in metrics.
fn metric_name(path: &Path, otherwise: &str) -> String {
    let stem = path.file_stem().map(|stem| stem.to_string_lossy().to_lowercase()).unwrap_or_default();
    let plain = |c: char| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '_' };
    let name: String = stem.chars().map(plain).collect();
    if name.is_empty() || name == "sum" { otherwise.to_owned() } else { name }
}

/// Complaints about `reward.field`, of a reward that stands elsewhere.
fn placed(problems: Vec<String>, place: &str) -> Vec<String> {
    let moved =
        |text: String| text.strip_prefix("reward").map_or_else(|| text.clone(), |rest| format!("{place}{rest}"));
    problems.into_iter().map(moved).collect()
}

fn connect_error(error: ConnectError) -> Error {
    let hint = match error {
        ConnectError::Config(_) => "see `elbow config --explain` for the fields of `kind = \"served\"`",
        ConnectError::Key { .. } => "set the variable that `reward.key_env` names to the token",
    };
    Error::new(error.to_string(), hint)
}

fn health_error(error: RewardError) -> Error {
    Error::new(
        error.to_string(),
        "start the reward's server, or correct `reward.url`; `elbow reward check` tries it alone",
    )
}

/// What a worker says when it cannot start has its own advice.
fn start_error(error: StartError) -> Error {
    Error::new(error.0, "`elbow reward check` tries the reward alone, and `elbow reward new` writes an example")
}

fn validate_sum(place: &str, parts: &[Part]) -> Vec<String> {
    let mut problems = names(&format!("{place}.parts"), parts.iter().map(|part| &*part.name));
    if parts.is_empty() {
        problems.push(format!("{place}.parts is empty: a sum needs at least one reward"));
    }
    for (k, Part { name, weight, threshold, clip, only_if, reward }) in parts.iter().enumerate() {
        let place = format!("{place}.parts[{k}]");
        let numbers = [Some(*weight), *threshold, clip.map(|c| c[0]), clip.map(|c| c[1])];
        for (field, number) in ["weight", "threshold", "clip", "clip"].into_iter().zip(numbers) {
            if number.is_some_and(|number| !number.is_finite()) {
                problems.push(format!("{place}.{field} = {}: must be a finite number", number.unwrap_or(f64::NAN)));
            }
        }
        if clip.is_some_and(|[least, largest]| least > largest) {
            problems
                .push(format!("{place}.clip: the first number is the least score that counts, the second the largest"));
        }
        if let Some(Gate { part, at_least }) = only_if {
            if part == name || !parts.iter().any(|other| other.name == *part) {
                problems.push(format!("{place}.only_if.part = \"{part}\": must be the name of another part"));
            }
            if !at_least.is_finite() {
                problems.push(format!("{place}.only_if.at_least = {at_least}: must be a finite number"));
            }
        }
        if matches!(reward, RewardConfig::Sum { .. }) {
            problems.push(format!("{place}.reward is a sum: list its parts in this one"));
        }
        problems.extend(reward.validate(&format!("{place}.reward")));
    }
    problems
}

/// What is wrong with the names of several rewards.
pub(crate) fn names<'a>(place: &str, names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let (mut problems, mut seen) = (Vec::new(), Vec::new());
    for (k, name) in names.enumerate() {
        if name == "sum" || seen.contains(&name) {
            problems.push(format!("{place}[{k}].name = \"{name}\": taken; give each reward a name of its own"));
        }
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if name.is_empty() || !name.chars().all(plain) {
            problems.push(format!("{place}[{k}].name = \"{name}\": use lower-case letters, digits and _"));
        }
        seen.push(name);
    }
    problems
}

impl Part {
    fn build(&self, all: &[Self], tools: &Tools) -> Result<Weighted> {
        let gate = |gate: &Gate| {
            let other = all.iter().position(|part| part.name == gate.part).expect("invariant: a valid recipe");
            (other, gate.at_least)
        };
        Ok(Weighted {
            name: self.name.clone(),
            weight: self.weight,
            shape: Shape { threshold: self.threshold, clip: self.clip, gate: self.only_if.as_ref().map(gate) },
            reward: self.reward.named(&self.name, tools)?,
        })
    }
}
