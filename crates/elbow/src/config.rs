//! A training run as data: what a recipe says, with the paper's values as defaults.

use crate::{
    advantage::AdvantageKind,
    behavior::{BehaviorLag, Ema},
    drafts::Drafts,
    kl::{Kl, Proximal},
    likelihood::LikelihoodKind,
    objective::{ObjectiveKind, Setting},
    optimizer::OptimizerConfig,
    sampler::{Branch, SamplerKind, Sampling},
    schedule::Schedule,
    train::{Replay, TopUp},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Everything that decides a run's numbers, apart from the policy, the prompts and the reward.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Decides every random number of the run.
    pub seed: u64,
    /// Rounds of rollout, reward and update.
    pub epochs: u64,
    /// The path from data to noise that the model was trained on.
    pub schedule: Schedule,
    /// Which images start from the same noise.
    pub start_noise: StartNoise,
    /// How many images an epoch draws, and how they are split.
    pub batch: Batch,
    /// How rollouts are drawn.
    pub sampler: Sampling,
    /// Cheap images by which those to draw are chosen.
    pub drafts: Drafts,
    /// How a log-probability is read off the network.
    pub likelihood: LikelihoodKind,
    /// How advantages and log-probabilities become a loss.
    pub objective: ObjectiveKind,
    /// What keeps the policy near the reference.
    pub kl: Kl,
    /// What keeps the policy near the behavior policy.
    pub proximal: Proximal,
    /// How the images of one prompt are compared.
    pub advantage: AdvantageKind,
    /// How groups that say nothing are replaced.
    pub top_up: TopUp,
    /// Which good images of earlier epochs come back.
    pub replay: Replay,
    /// How far the policy that draws rollouts lags behind.
    pub behavior: BehaviorLag,
    /// The averaged weights that are evaluated.
    pub ema: Ema,
    /// AdamW.
    pub optimizer: OptimizerConfig,
    /// Largest share of missing rewards in an epoch before the run stops with an error.
    pub max_missing: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            seed: 0,
            epochs: 100,
            schedule: Schedule::default(),
            start_noise: StartNoise::default(),
            batch: Batch::default(),
            sampler: Sampling::default(),
            drafts: Drafts::default(),
            likelihood: LikelihoodKind::default(),
            objective: ObjectiveKind::default(),
            kl: Kl::default(),
            proximal: Proximal::default(),
            advantage: AdvantageKind::default(),
            top_up: TopUp::default(),
            replay: Replay::default(),
            behavior: BehaviorLag::default(),
            ema: Ema::default(),
            optimizer: OptimizerConfig::default(),
            max_missing: 0.2,
        }
    }
}

/// Which images of an epoch start from the same noise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum StartNoise {
    /// None.
    #[default]
    PerSample,
    /// Those of one prompt (DanceGRPO, arXiv 2505.07818): they differ by the noise of their steps alone.
    PerGroup,
}

/// Images of an epoch: `groups × group_size`, in `updates` optimizer steps, `rows` at a time through the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Batch {
    /// Prompts an epoch.
    pub groups: usize,
    /// Images a prompt.
    pub group_size: usize,
    /// Optimizer steps an epoch; each takes its share of the groups.
    pub updates: usize,
    /// Images in one forward pass. Speed and memory depend on it, and the last bits of sums.
    pub rows: usize,
}

impl Default for Batch {
    fn default() -> Self {
        Self { groups: 48, group_size: 24, updates: 1, rows: 64 }
    }
}

/// Everything that is wrong with a configuration, at once.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the configuration cannot run:\n{}", problems.iter().map(|p| format!("  - {p}")).collect::<Vec<_>>().join("\n"))]
pub struct ConfigError {
    /// One sentence each: what is wrong, with its numbers, and what to change.
    pub problems: Vec<String>,
}

impl Config {
    /// Checks what types cannot: batch arithmetic, ranges, and whether the three axes fit together.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let mut problems = Vec::new();
        self.validate_batch(&mut problems);
        self.validate_ranges(&mut problems);
        self.validate_starts(&mut problems);
        let likelihood = self.likelihood.get().refuses(&self.sampler, self.schedule);
        problems.extend(likelihood.into_iter().chain(self.sampler.validate(self.schedule)));
        let setting = Setting { likelihood: self.likelihood, advantage: self.advantage, rows: self.batch.rows };
        problems.extend(self.objective.get().problems(&setting));
        problems.extend(self.advantage.get().problems());
        problems.extend(self.replay.problems(self));
        if problems.is_empty() { Ok(()) } else { Err(ConfigError { problems }) }
    }

    /// The same method with this batch, and nothing drawn beyond it: no drafts, no further groups, no replay.
    #[must_use]
    pub fn of_one_batch(&self, batch: Batch) -> Self {
        let (drafts, top_up, replay) = (Drafts::default(), TopUp::default(), Replay::default());
        Self { batch, drafts, top_up, replay, ..self.clone() }
    }

    fn validate_batch(&self, problems: &mut Vec<String>) {
        let Batch { groups, group_size, updates, rows } = self.batch;
        if group_size < 2 && self.advantage.get().within_groups() {
            problems.push(format!(
                "batch.group_size = {group_size}: an advantage compares at least 2 images of one prompt"
            ));
        }
        if group_size == 0 {
            problems.push("batch.group_size = 0: at least one image a prompt".into());
        }
        if updates == 0 || groups == 0 || groups % updates != 0 {
            problems.push(format!(
                "batch.groups = {groups} cannot be split evenly into batch.updates = {updates} optimizer steps \
                 ({groups} groups × {group_size} images = {} images an epoch): make groups a multiple of updates",
                groups * group_size
            ));
        }
        if self.top_up.groups > 0 && !self.advantage.get().within_groups() {
            problems.push(format!(
                "top_up.groups = {}: this advantage looks beyond the group, so that every group says something; set it to 0",
                self.top_up.groups
            ));
        }
        if self.top_up.groups > 0 && self.compared() != group_size {
            problems.push(format!(
                "top_up.groups = {}: it replaces the images of a prompt, of which this sampler compares {} at a time; set it to 0",
                self.top_up.groups,
                self.compared()
            ));
        }
        if self.behavior.on_policy && updates > 1 {
            problems.push(format!(
                "behavior.on_policy = true and batch.updates = {updates}: after the first update nothing remembers the weights \
                 that drew the images; set batch.updates = 1"
            ));
        }
        if rows == 0 {
            problems.push("batch.rows = 0: at least one image goes through the network at a time".into());
        }
    }

    fn validate_starts(&self, problems: &mut Vec<String>) {
        let (size, shared) = (self.batch.group_size, self.start_noise == StartNoise::PerGroup);
        if shared && self.sampler.noise(self.schedule).iter().all(|&std| std == 0.0) {
            problems.push(
                "start_noise = \"per-group\" and a sampler without noise: all images of a prompt would be the same. Use a \
                 stochastic sampler, or \"per-sample\""
                    .into(),
            );
        }
        if let SamplerKind::Branch(Branch { points, explorations, .. }) = self.sampler.rule {
            if !shared {
                problems.push(
                    "sampler `branch` compares images that are one up to a step: set start_noise = \"per-group\""
                        .into(),
                );
            }
            if points * explorations != size {
                problems.push(format!(
                    "sampler `branch`: points = {points} × explorations = {explorations} make {} images of a prompt, and \
                     batch.group_size = {size}: make them equal",
                    points * explorations
                ));
            }
        }
        if shared && self.drafts.count > 0 {
            problems.push(
                "drafts choose among start noises, of which start_noise = \"per-group\" has one: use \"per-sample\", or \
                 drafts.count = 0"
                    .into(),
            );
        }
        problems.extend(self.drafts.problems(size, self.sampler, self.schedule));
    }

    /// Images that an advantage compares: those of a prompt, or those of it that branch at the same step.
    pub fn compared(&self) -> usize {
        self.sampler.explorations().unwrap_or(self.batch.group_size)
    }

    fn validate_ranges(&self, problems: &mut Vec<String>) {
        let positive = |name: &str, value: f64| {
            (!(value > 0.0 && value.is_finite())).then(|| format!("{name} = {value}: must be a positive number"))
        };
        let share = |name: &str, value: f64| {
            (!(0.0..=1.0).contains(&value)).then(|| format!("{name} = {value}: must lie between 0 and 1"))
        };
        problems.extend(positive("sampler.shift", self.sampler.shift));
        problems.extend(positive("sampler.guidance", self.sampler.guidance));
        problems.extend(positive("optimizer.learning_rate", self.optimizer.learning_rate));
        problems.extend(positive("optimizer.max_grad_norm", self.optimizer.max_grad_norm));
        problems.extend(positive("optimizer.epsilon", self.optimizer.epsilon));
        if let AdvantageKind::Exact(exact) = self.advantage {
            problems.extend(positive("advantage.beta", exact.beta));
        }
        for (name, weight) in [("kl.weight", self.kl.weight), ("proximal.weight", self.proximal.weight)] {
            if !(weight >= 0.0 && weight.is_finite()) {
                problems.push(format!("{name} = {weight}: must be 0 (off) or a positive number"));
            }
        }
        if self.optimizer.half_life.is_nan() || self.optimizer.half_life <= 0.0 {
            problems.push(format!("optimizer.half_life = {}: must be above 0", self.optimizer.half_life));
        }
        problems.extend(share("optimizer.beta1", self.optimizer.beta1));
        problems.extend(share("optimizer.beta2", self.optimizer.beta2));
        problems.extend(share("likelihood fraction", self.likelihood.fraction()));
        problems.extend(share("behavior.max", self.behavior.max));
        problems.extend(share("ema.max_decay", self.ema.max_decay));
        problems.extend(share("max_missing", self.max_missing));
        if self.sampler.steps == 0 {
            problems.push("sampler.steps = 0: at least one step from noise to image".into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        likelihood::{LikelihoodKind, Trajectory},
        sampler::FlowSde,
    };

    #[test]
    fn the_default_runs() {
        assert_eq!(Config::default().validate(), Ok(()));
    }

    #[test]
    fn every_problem_is_told_at_once() {
        let batch = Batch { groups: 5, group_size: 1, updates: 2, rows: 0 };
        let config =
            Config { batch, likelihood: LikelihoodKind::Trajectory(Trajectory::default()), ..Config::default() };
        let problems = config.validate().expect_err("several").problems;
        assert_eq!(problems.len(), 4, "{problems:?}");
        assert!(problems[1].contains("batch.groups = 5") && problems[1].contains("batch.updates = 2"));
        assert!(problems[3].contains("flow-sde"));
    }

    #[test]
    fn what_a_group_shares_fits_the_sampler() {
        let (sde, branch) = (SamplerKind::FlowSde(FlowSde::default()), SamplerKind::Branch(Branch::default()));
        let with = |rule, start_noise, count| Config {
            sampler: Sampling { rule, ..Sampling::default() },
            start_noise,
            drafts: Drafts { count, ..Drafts::default() },
            ..Config::default()
        };
        let (ode, own, shared) = (SamplerKind::default(), StartNoise::PerSample, StartNoise::PerGroup);
        for fine in [with(sde, shared, 0), with(branch, shared, 0), with(ode, own, 24), with(sde, own, 24)] {
            assert_eq!(fine.validate(), Ok(()));
        }
        let split = Branch { points: 3, ..Branch::default() };
        for (wrong, words) in [
            (with(ode, shared, 0), ["per-group", "would be the same"]),
            (with(branch, own, 0), ["branch", "per-group"]),
            (with(SamplerKind::Branch(split), shared, 0), ["make 18 images", "group_size = 24"]),
            (with(sde, shared, 24), ["drafts", "per-sample"]),
            (with(ode, own, 23), ["drafts.count = 23", "group_size = 24"]),
        ] {
            let problems = wrong.validate().expect_err("does not fit").problems;
            assert!(problems.len() == 1 && words.iter().all(|word| problems[0].contains(word)), "{problems:?}");
        }
    }

    #[test]
    fn an_sde_takes_a_trajectory() {
        let sampler = Sampling { rule: SamplerKind::FlowSde(FlowSde::default()), ..Sampling::default() };
        let likelihood = LikelihoodKind::Trajectory(Trajectory::default());
        assert_eq!(Config { sampler, likelihood, ..Config::default() }.validate(), Ok(()));
    }
}
