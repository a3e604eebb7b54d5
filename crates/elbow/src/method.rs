//! What trains: one choice on each axis, and the numbers around them.
//!
//! A recipe is read as a [`Config`](crate::config::Config), which builds a method of the variants that come with the library. A
//! method can also be put together by hand, of anybody's variants.

use crate::{
    advantage::{Advantage, StandardizeParts},
    behavior::{BehaviorLag, Ema},
    collection::Collection,
    kl::{Kl, Proximal, Tightness},
    likelihood::Likelihood,
    missing::Patience,
    noise::{Key, Purpose},
    objective::Objective,
    optimizer::OptimizerConfig,
    sampler::{self, Sampling, Step},
    schedule::{Grid, Schedule},
    setting::{BatchSize, Setting, StartNoise, zero_or_positive},
};

/// Everything that decides a run's numbers, apart from the policy, the prompts and the reward.
pub struct Method {
    /// Decides every random number of the run.
    pub seed: u64,
    /// Rounds of rollout, reward and update that the run is to have.
    pub epochs: u64,
    /// Which samples start from the same noise.
    pub start_noise: StartNoise,
    /// How far samples of one start noise start from it: √(1 − s²) ε + s δ.
    pub start_spread: f64,
    /// How many samples an epoch draws, and how they are split.
    pub batch: BatchSize,
    /// How rollouts are drawn.
    pub sampler: Sampling,
    /// Which samples make an epoch.
    pub collection: Box<dyn Collection>,
    /// How a log-probability is read off the network.
    pub likelihood: Box<dyn Likelihood>,
    /// How advantages and log-probabilities become a loss.
    pub objective: Box<dyn Objective>,
    /// What keeps the policy near the reference.
    pub kl: Kl,
    /// What keeps the policy near the behavior policy.
    pub proximal: Proximal,
    /// What keeps an ELBO near the log-probability that it bounds.
    pub tightness: Tightness,
    /// How the samples of one prompt are compared.
    pub advantage: Box<dyn Advantage>,
    /// How far the policy that draws rollouts lags behind.
    pub behavior: BehaviorLag,
    /// The averaged weights that are evaluated.
    pub ema: Ema,
    /// AdamW.
    pub optimizer: OptimizerConfig,
    /// Whether the parts of rewards that are sums are standardized before they are added up.
    pub standardize_parts: StandardizeParts,
    /// How many rewards may be missing.
    pub patience: Patience,
}

/// A step whose slope/std is more than this many times that of the median one stands out.
const OUTLIER: f64 = 10.0;

/// Everything that is wrong with a method, at once.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the configuration cannot run:\n{}", problems.iter().map(|p| format!("  - {p}")).collect::<Vec<_>>().join("\n"))]
pub struct MethodError {
    /// One sentence each: what is wrong, with its numbers, and what to change.
    pub problems: Vec<String>,
}

impl Method {
    /// Samples that an advantage compares: those of a prompt, or those of it that branch at the same step.
    pub fn compared(&self) -> usize {
        self.sampler.rule.branches().map_or(self.batch.group_size, |branches| branches.explorations.max(1))
    }

    /// Points that each sample is evaluated at, on a path.
    pub fn points(&self, schedule: Schedule) -> usize {
        self.likelihood.count(&self.walk(&self.sampler.grid(schedule)))
    }

    /// The steps of the first sample.
    fn walk(&self, grid: &Grid) -> Vec<Step> {
        self.sampler.rule.walk(grid, Key::new(self.seed, Purpose::Step, 0))
    }

    /// Whether a sample with advantage 0 adds nothing to the gradient.
    pub fn rests_without_advantage(&self) -> bool {
        let penalties = [self.kl.weight, self.proximal.weight, self.tightness.weight];
        self.objective.rests() && penalties.iter().all(|&weight| weight == 0.0)
    }

    /// Whether updates may take velocities from the rollout: it makes those that they ask for, some are asked for after the weights have
    /// moved, and all samples are of this epoch.
    pub fn can_reuse_velocities(&self) -> bool {
        let moves_apart = !self.behavior.on_policy && self.behavior.moves_apart(self.batch.updates);
        self.likelihood.needs_path() && moves_apart && self.collection.only_new()
    }

    /// (slope/std)² of each step that the likelihood scores, and its place in the walk of the first sample: how much a change of the
    /// velocity there counts. Empty if no steps are scored.
    pub fn step_weights(&self, schedule: Schedule) -> Vec<(usize, f64)> {
        self.likelihood.step_weights(&self.steps(schedule))
    }

    /// The steps of a walk; of a rule that is stochastic at steps that move, all that may be so.
    fn steps(&self, schedule: Schedule) -> Vec<Step> {
        let (grid, rule) = (self.sampler.grid(schedule), &self.sampler.rule);
        if !rule.moves() {
            return self.walk(&grid);
        }
        let mut steps: Vec<Step> = (0..grid.steps()).map(|k| rule.step(&grid, k)).collect();
        if let Some(last) = steps.last_mut() {
            last.std = 0.0;
        }
        steps
    }

    /// What runs, and is probably not meant; one sentence each.
    pub fn warnings(&self, schedule: Schedule) -> Vec<String> {
        let (steps, weights) = (self.steps(schedule), self.step_weights(schedule));
        let mut told: Vec<(usize, f64, &str)> =
            outliers(&weights).map(|(k, factor)| (k, factor, "likelihood")).collect();
        if self.kl.weight != 0.0 && self.kl.of_steps() {
            let weight = |&(k, _): &(usize, f64)| (k, (steps[k].mean.v[0] / steps[k].std).powi(2));
            let penalty: Vec<(usize, f64)> = weights.iter().map(weight).collect();
            let known: Vec<usize> = told.iter().map(|(k, ..)| *k).collect();
            let more = outliers(&penalty).filter(|(k, _)| !known.contains(k));
            told.extend(more.map(|(k, factor)| (k, factor, "penalty")));
        }
        let times = self.sampler.grid(schedule).times;
        let warning = |(k, factor, place): (usize, f64, &str)| {
            format!(
                "step {} (t = {:.3} to {:.3}) has {factor:.0} times the median's weight in the {place} and dominates the gradient: leave it \
                 out by likelihood.fraction, or take a grid without such a step, sampler.grid = \"uniform\"",
                k + 1,
                times[k],
                times[k + 1],
            )
        };
        told.into_iter().map(warning).collect()
    }

    /// What variants may know of each other.
    fn setting(&self, schedule: Schedule) -> Setting {
        let grid = self.sampler.grid(schedule);
        let walk = self.walk(&grid);
        let stochastic = sampler::stochastic(&walk);
        let scored = |step: &&Step| stochastic.is_empty() || step.std > 0.0;
        Setting {
            batch: self.batch,
            start_noise: self.start_noise,
            compared: self.compared(),
            stochastic_steps: stochastic.len(),
            remembers: walk.iter().filter(scored).any(|step| step.mean.remembers()),
            moves: self.sampler.rule.moves(),
            scored: self.likelihood.scored(),
            meaning: self.advantage.meaning(),
            compares_groups: self.advantage.compares_groups(),
            grid,
        }
    }

    /// Checks what types cannot: batch arithmetic, ranges, and whether the choices fit together.
    pub fn validate(&self, schedule: Schedule) -> Result<(), MethodError> {
        let mut problems = self.validate_batch();
        problems.extend(self.validate_ranges());
        let sampler = self.sampler.validate("sampler", schedule);
        let sampler_works = sampler.is_empty();
        problems.extend(sampler);
        problems.extend(self.advantage.validate());
        if sampler_works {
            let setting = self.setting(schedule);
            problems.extend(self.validate_starts(&setting));
            problems.extend(self.likelihood.validate(&setting));
            problems.extend(self.objective.validate(&setting));
            problems.extend(self.kl.validate(&setting));
            problems.extend(self.collection.validate(&setting));
        }
        if problems.is_empty() { Ok(()) } else { Err(MethodError { problems }) }
    }

    fn validate_batch(&self) -> Vec<String> {
        let BatchSize { groups, group_size, updates, micro_batch, .. } = self.batch;
        let mut problems = Vec::new();
        if group_size < 2 && self.advantage.compares_groups() {
            problems.push(format!(
                "batch.group_size = {group_size}: an advantage compares at least 2 samples of one prompt"
            ));
        }
        if group_size == 0 {
            problems.push("batch.group_size = 0: at least one sample a prompt".into());
        }
        if updates == 0 || groups == 0 || groups % updates != 0 {
            problems.push(format!(
                "batch.groups = {groups} cannot be split evenly into batch.updates = {updates} optimizer steps \
                 ({groups} groups × {group_size} samples = {} samples an epoch): make groups a multiple of updates",
                groups * group_size
            ));
        }
        if self.behavior.on_policy && updates > 1 {
            problems.push(format!(
                "behavior.on_policy = true and batch.updates = {updates}: after the first update nothing remembers the weights \
                 that drew the samples; set batch.updates = 1"
            ));
        }
        if micro_batch == 0 {
            problems.push("batch.micro_batch = 0: at least one sample goes through the network at a time".into());
        }
        problems
    }

    fn validate_starts(&self, setting: &Setting) -> Vec<String> {
        let (size, shared) = (self.batch.group_size, self.start_noise == StartNoise::PerGroup);
        let mut problems = Vec::new();
        if self.start_spread > 0.0 && !shared {
            problems
                .push("start_spread spreads the samples of one start noise: set start_noise = \"per-group\"".into());
        }
        if shared && self.start_spread == 0.0 && setting.stochastic_steps == 0 {
            problems.push(
                "start_noise = \"per-group\" and a sampler without noise: all samples of a prompt would be the same. Use a \
                 stochastic sampler, start_spread > 0, or \"per-sample\""
                    .into(),
            );
        }
        if let Some(branches) = self.sampler.rule.branches() {
            let (points, explorations) = (branches.points, branches.explorations);
            if self.start_spread > 0.0 {
                problems
                    .push("this sampler branches, and what branches starts at one point: set start_spread = 0".into());
            }
            if !shared {
                problems.push(
                    "this sampler branches, and compares samples that are one up to a step: set start_noise = \"per-group\""
                        .into(),
                );
            }
            if points * explorations != size {
                problems.push(format!(
                    "this sampler branches: points = {points} × explorations = {explorations} make {} samples of a prompt, and \
                     batch.group_size = {size}: make them equal",
                    points * explorations
                ));
            }
        }
        problems
    }

    fn validate_ranges(&self) -> Vec<String> {
        let mut problems = self.optimizer.validate();
        for (name, weight) in [
            ("kl.weight", self.kl.weight),
            ("proximal.weight", self.proximal.weight),
            ("tightness.weight", self.tightness.weight),
        ] {
            if !(weight >= 0.0 && weight.is_finite()) {
                problems.push(format!("{name} = {weight}: must be 0 (off) or a positive number"));
            }
        }
        for (name, share) in [("max_missing", self.patience.most), ("start_spread", self.start_spread)] {
            if !(0.0..=1.0).contains(&share) {
                problems.push(format!("{name} = {share}: must lie between 0 and 1"));
            }
        }
        // At 1 nothing would ever move.
        for (name, decay) in [("behavior.max", self.behavior.max), ("ema.max_decay", self.ema.max_decay)] {
            if !(0.0..1.0).contains(&decay) {
                problems.push(format!("{name} = {decay}: must be at least 0 and below 1"));
            }
        }
        problems.extend(zero_or_positive("behavior.rate", self.behavior.rate));
        problems
    }
}

/// The steps whose slope/std stands out from the median's, with their weight over its.
fn outliers(weights: &[(usize, f64)]) -> impl Iterator<Item = (usize, f64)> {
    let mut sorted: Vec<f64> = weights.iter().map(|(_, weight)| *weight).collect();
    sorted.sort_by(f64::total_cmp);
    let median = sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN);
    weights.iter().map(move |&(k, weight)| (k, weight / median)).filter(|(_, factor)| *factor > OUTLIER * OUTLIER)
}

#[cfg(test)]
mod tests;
