//! What a variant of one axis may know of the choices on the others.

use crate::schedule::Grid;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How many samples an epoch has, and how they are split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchSize {
    /// Prompts an epoch.
    pub groups: usize,
    /// Samples a prompt.
    pub group_size: usize,
    /// Optimizer steps an epoch; each takes its share of the groups.
    pub updates: usize,
    /// Samples in one forward pass.
    pub micro_batch: usize,
    /// Whether groups without variance are left out of updates, penalties and all.
    pub drop_zero_variance: bool,
    /// Whether updates take velocities of the weights that drew from the rollout, where the likelihood asks at points of the path.
    pub reuse_velocities: bool,
}

/// Which samples of an epoch start from the same noise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum StartNoise {
    /// None.
    #[default]
    PerSample,
    /// Those of one prompt (DanceGRPO, arXiv 2505.07818): they differ by the noise of their steps, and by `start_spread`.
    PerGroup,
}

/// What a likelihood reads log-probabilities off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scored {
    /// Velocities, compared with a target that a query has.
    Velocities,
    /// Steps of the path. `gaussian_means`: by the mean over dimensions of their Gaussian densities.
    Steps {
        /// Whether divergences of steps are in the unit of the log-probability.
        gaussian_means: bool,
    },
    /// Which of a group's points a step goes to.
    Neighbors,
}

/// What an advantage means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// How much better than its group a sample is, around 0.
    Relative,
    /// The probability that it is good, in [0, 1].
    Probability,
    /// 1 for the better and −1 for the worse of a pair; the others of the group have none.
    Pair,
    /// A weight from 0 on.
    Weight,
}

/// The choices of a method, as far as variants depend on each other.
#[derive(Clone, Debug)]
pub struct Setting {
    /// The times that samples are drawn on, and the path.
    pub grid: Grid,
    /// How many samples an epoch has.
    pub batch: BatchSize,
    /// Which samples start from the same noise.
    pub start_noise: StartNoise,
    /// Samples that are compared with each other: those of a prompt, or those of it that branch at the same step.
    pub compared: usize,
    /// Scored steps of a walk that have noise.
    pub stochastic_steps: usize,
    /// Whether a step with noise (any step, if none has noise) depends on velocities at earlier points too.
    pub remembers: bool,
    /// Whether the steps of a walk depend on the sample or the epoch.
    pub moves: bool,
    /// What the likelihood reads log-probabilities off.
    pub scored: Scored,
    /// What the advantage means.
    pub meaning: Meaning,
    /// Whether the advantage compares a sample with its group alone.
    pub compares_groups: bool,
}

/// A complaint if a number is not above 0 and finite.
pub(crate) fn positive_number(name: &str, value: f64) -> Option<String> {
    let fine = value > 0.0 && value.is_finite();
    (!fine).then(|| format!("{name} = {value}: must be a positive number"))
}

/// A complaint if a number is not 0, or above 0 and finite.
pub(crate) fn zero_or_positive(name: &str, value: f64) -> Option<String> {
    let fine = value >= 0.0 && value.is_finite();
    (!fine).then(|| format!("{name} = {value}: must be 0 or a positive number"))
}
