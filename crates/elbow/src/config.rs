//! A training run as data: what a recipe says, with the paper's values as defaults.

use crate::{
    advantage::{AdvantageKind, StandardizeParts},
    behavior::{BehaviorLag, Ema},
    collection::CollectionKind,
    kl::{Kl, Proximal, Tightness},
    likelihood::LikelihoodKind,
    method::{Method, MethodError},
    missing::{OnMissing, Patience},
    objective::ObjectiveKind,
    optimizer::OptimizerConfig,
    sampler::SamplerConfig,
    schedule::Schedule,
    setting::{BatchSize, StartNoise},
};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;

/// Everything that decides a run's numbers, apart from the policy, the prompts and the reward.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Decides every random number of the run.
    pub seed: u64,
    /// Rounds of rollout, reward and update.
    pub epochs: u64,
    /// Which samples start from the same noise.
    pub start_noise: StartNoise,
    /// With `start_noise = "per-group"`, how far each sample starts from the noise of its group: √(1 − s²) ε + s δ, with a δ of its own.
    /// 0 is the same noise for all, 1 one of its own (Neighbor GRPO, arXiv 2511.16955).
    pub start_spread: f64,
    /// How many samples an epoch draws, and how they are split.
    pub batch: BatchConfig,
    /// How rollouts are drawn.
    pub sampler: SamplerConfig,
    /// Which samples make an epoch.
    pub collection: CollectionKind,
    /// How a log-probability is read off the network.
    pub likelihood: LikelihoodKind,
    /// How advantages and log-probabilities become a loss.
    pub objective: ObjectiveKind,
    /// What keeps the policy near the reference.
    pub kl: Kl,
    /// What keeps the policy near the behavior policy.
    pub proximal: Proximal,
    /// What keeps an ELBO near the log-probability that it bounds.
    pub tightness: Tightness,
    /// How the samples of one prompt are compared.
    pub advantage: AdvantageKind,
    /// How far the policy that draws rollouts lags behind.
    pub behavior: BehaviorLag,
    /// The averaged weights that are evaluated.
    pub ema: Ema,
    /// AdamW.
    pub optimizer: OptimizerConfig,
    /// Whether the parts of rewards that are sums are standardized before they are added up, whatever the advantage.
    pub standardize_parts: StandardizeParts,
    /// Largest share of missing rewards among samples that are drawn together.
    pub max_missing: f64,
    /// What happens where more are missing.
    pub on_missing: OnMissing,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            seed: 0,
            epochs: 100,
            start_noise: StartNoise::default(),
            start_spread: 0.0,
            batch: BatchConfig::default(),
            sampler: SamplerConfig::default(),
            collection: CollectionKind::default(),
            likelihood: LikelihoodKind::default(),
            objective: ObjectiveKind::default(),
            kl: Kl::default(),
            proximal: Proximal::default(),
            tightness: Tightness::default(),
            advantage: AdvantageKind::default(),
            behavior: BehaviorLag::default(),
            ema: Ema::default(),
            optimizer: OptimizerConfig::default(),
            standardize_parts: StandardizeParts::default(),
            max_missing: 0.2,
            on_missing: OnMissing::default(),
        }
    }
}

/// Samples of an epoch: `groups × group_size`, in `updates` optimizer steps, `micro_batch` at a time through the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct BatchConfig {
    /// Prompts an epoch.
    pub groups: usize,
    /// Samples a prompt.
    pub group_size: usize,
    /// Optimizer steps an epoch; each takes its share of the groups.
    pub updates: usize,
    /// Samples in one forward pass, or `"auto"`: as many, up to 64, as fit into memory when the run is created. Speed and memory
    /// depend on it, and the last bits of sums.
    pub micro_batch: MicroBatch,
    /// Leave groups whose rewards agree out of updates altogether (Flow-GRPO, DAPO). Otherwise they keep what does not come from their
    /// advantage: the penalties, and the pull of objectives like PEPG and NFT to the weights that drew.
    pub drop_zero_variance: bool,
    /// Whether updates take the velocities of the weights that drew from the rollout in place of a forward pass, where the likelihood asks
    /// at points of the path; they are kept in memory beside these. `"auto"`: where a test when the run is created gives equal bits.
    pub reuse_velocities: Reuse,
}

impl Default for BatchConfig {
    fn default() -> Self {
        Self {
            groups: 48,
            group_size: 24,
            updates: 1,
            micro_batch: MicroBatch::default(),
            drop_zero_variance: false,
            reuse_velocities: Reuse::default(),
        }
    }
}

impl BatchConfig {
    /// The sizes as numbers.
    pub fn build(self) -> BatchSize {
        let Self { groups, group_size, updates, micro_batch, drop_zero_variance, reuse_velocities } = self;
        BatchSize {
            groups,
            group_size,
            updates,
            micro_batch: micro_batch.size(),
            drop_zero_variance,
            reuse_velocities: reuse_velocities == Reuse::Yes,
        }
    }
}

/// Whether something computed before is used again: true, false, or the word `"auto"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reuse {
    /// Decided by a test when the run is created; until then, no.
    #[default]
    Auto,
    /// It is.
    Yes,
    /// It is computed again.
    No,
}

impl Serialize for Reuse {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => to.serialize_str("auto"),
            Self::Yes => to.serialize_bool(true),
            Self::No => to.serialize_bool(false),
        }
    }
}

impl<'de> Deserialize<'de> for Reuse {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(ReadReuse)
    }
}

struct ReadReuse;

impl de::Visitor<'_> for ReadReuse {
    type Value = Reuse;

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("true, false or \"auto\"")
    }

    fn visit_bool<E: de::Error>(self, yes: bool) -> Result<Reuse, E> {
        Ok(if yes { Reuse::Yes } else { Reuse::No })
    }

    fn visit_str<E: de::Error>(self, word: &str) -> Result<Reuse, E> {
        if word == "auto" { Ok(Reuse::Auto) } else { Err(E::invalid_value(de::Unexpected::Str(word), &self)) }
    }
}

impl JsonSchema for Reuse {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Reuse".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": ["boolean", "string"] })
    }
}

/// Samples in one forward pass: a number, or the word `"auto"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MicroBatch {
    /// What memory allows when the run is created.
    #[default]
    Auto,
    /// This many.
    Size(usize),
}

impl MicroBatch {
    /// The most that `"auto"` chooses: more are no faster.
    pub const MOST: usize = 64;

    /// The size; of one that was not chosen yet, the most.
    pub fn size(self) -> usize {
        match self {
            Self::Size(size) => size,
            Self::Auto => Self::MOST,
        }
    }
}

impl Serialize for MicroBatch {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => to.serialize_str("auto"),
            Self::Size(size) => to.serialize_u64(*size as u64),
        }
    }
}

impl<'de> Deserialize<'de> for MicroBatch {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Read)
    }
}

struct Read;

impl de::Visitor<'_> for Read {
    type Value = MicroBatch;

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("an integer of at least 1, or \"auto\"")
    }

    fn visit_u64<E: de::Error>(self, size: u64) -> Result<MicroBatch, E> {
        Ok(MicroBatch::Size(size as usize))
    }

    fn visit_i64<E: de::Error>(self, size: i64) -> Result<MicroBatch, E> {
        let wrong = |_| E::invalid_value(de::Unexpected::Signed(size), &self);
        usize::try_from(size).map(MicroBatch::Size).map_err(wrong)
    }

    fn visit_str<E: de::Error>(self, word: &str) -> Result<MicroBatch, E> {
        if word == "auto" { Ok(MicroBatch::Auto) } else { Err(E::invalid_value(de::Unexpected::Str(word), &self)) }
    }
}

impl JsonSchema for MicroBatch {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "MicroBatch".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": ["integer", "string"], "minimum": 1 })
    }
}

impl Config {
    /// The method that this says, checked for a policy on `schedule`.
    pub fn build(&self, schedule: Schedule) -> Result<Method, MethodError> {
        let method = Method {
            seed: self.seed,
            epochs: self.epochs,
            start_noise: self.start_noise,
            start_spread: self.start_spread,
            batch: self.batch.build(),
            sampler: self.sampler.build(),
            collection: self.collection.build(),
            likelihood: self.likelihood.build(),
            objective: self.objective.build(),
            kl: self.kl,
            proximal: self.proximal,
            tightness: self.tightness,
            advantage: self.advantage.build(),
            behavior: self.behavior,
            ema: self.ema,
            optimizer: self.optimizer.clone(),
            standardize_parts: self.standardize_parts,
            patience: Patience { most: self.max_missing, then: self.on_missing },
        };
        method.validate(schedule)?;
        Ok(method)
    }

    /// The same method with this batch, and nothing drawn beyond it.
    #[must_use]
    pub fn of_one_batch(&self, batch: BatchConfig) -> Self {
        Self { batch, collection: CollectionKind::default(), ..self.clone() }
    }
}
