//! Rewards of 0 or 1 that few samples earn.
//!
//! The policy is a Gaussian, the reward 1 where a · x exceeds a level, so that the chance of success and its gradient are known:
//! P = Φ(−z), z = (level − a · μ)/s, s² = Σ a² σ².

use super::{
    LabError, Size,
    estimator::{Estimator, even},
    gradient::{cosine, mean, signal_to_noise},
    table::{Measured, Table, exact},
    world::{Function, Mixture, World, rows},
};
use burn::tensor::Device;
use elbow::{
    Policy, Prompt,
    advantage::Standard,
    config::{BatchConfig, Config, MicroBatch},
    kl::Kl,
    likelihood::{Elbo, LikelihoodKind, Timesteps, Trajectory, Weighting},
    noise::{Key, Purpose},
    objective::Epg,
    optimizer::OptimizerConfig,
    sampler::{Dpm2, FlowSde, SamplerKind},
    train::Trainer,
};
use statrs::distribution::{Continuous, ContinuousCDF, Normal};

/// Chances of success.
pub const CHANCES: [f64; 5] = [0.5, 0.2, 0.1, 0.05, 0.01];
/// Samples of a group.
pub const GROUP: usize = 24;
/// A policy has learned that succeeds so often.
const LEARNED: f64 = 0.9;
const DIRECTION: [f64; 4] = [1.0, 0.5, -0.5, 0.25];

/// A Gaussian of which a share succeeds.
#[derive(Clone, Copy, Debug)]
pub struct Sparse {
    /// a · x from here on is a success.
    pub level: f64,
}

/// The policy.
pub fn world() -> World {
    World { base: Mixture::gaussian(&[0.0; 4], &[0.8, 0.6, 0.5, 0.7]), trained: &["log_std", "mean"] }
}

/// Σ a² σ², and a · μ.
fn moments(policy: &Mixture) -> (f64, f64) {
    let variance = |(a, l): (f64, &f64)| a * a * (2.0 * l).exp();
    let square = DIRECTION.into_iter().zip(&policy.log_stds[0]).map(variance).sum::<f64>();
    (square, projection(&policy.means[0]))
}

fn projection(x: &[f64]) -> f64 {
    x.iter().zip(DIRECTION).map(|(x, a)| a * x).sum()
}

impl Sparse {
    /// The reward that this share of a policy's samples earns.
    pub fn of(policy: &Mixture, chance: f64) -> Self {
        let (square, center) = moments(policy);
        Self { level: center - square.sqrt() * Normal::standard().inverse_cdf(chance) }
    }

    /// 1 for a success.
    pub fn reward(self, x: &[f64]) -> f64 {
        f64::from(projection(x) > self.level)
    }

    /// The chance of success, and its gradient by `log_std`, `logits` (0) and `mean`.
    pub fn chance(self, policy: &Mixture) -> (f64, Vec<f64>) {
        let (square, center) = moments(policy);
        let z = (self.level - center) / square.sqrt();
        let density = Normal::standard().pdf(z);
        let log_std = |(a, l): (f64, &f64)| density * z * a * a * (2.0 * l).exp() / square;
        let by_std = DIRECTION.into_iter().zip(&policy.log_stds[0]).map(log_std).collect();
        let by_mean = DIRECTION.map(|a| density * a / square.sqrt()).to_vec();
        (Normal::standard().sf(z), [by_std, vec![0.0], by_mean].concat())
    }
}

/// The share of groups that learn nothing, all of their samples having the same reward.
pub fn without_variance(chance: f64) -> f64 {
    chance.powi(GROUP as i32) + (1.0 - chance).powi(GROUP as i32)
}

/// All tables.
pub fn table(size: &Size, seed: u64) -> Result<Vec<Table>, LabError> {
    Ok(vec![gradients(size, seed), learning(size, seed)?])
}

fn gradients(size: &Size, seed: u64) -> Table {
    let (world, n) = (world(), size.gradient);
    let note = format!(
        "A Gaussian in 4 dimensions, reward 1 above a level, groups of {GROUP}, n = {n} samples. Groups without variance: pᴳ + (1 − p)ᴳ, and as \
         counted. Cosine and signal-to-noise ratio of a sample: of A ∇L with A = R − p, as above; “a group” is the ratio times {GROUP}.",
    );
    let columns = ["p", "estimator", "groups without variance", "counted", "cosine", "a sample", "a group"];
    let mut table = Table::new("Sparse rewards: gradients", &note, &columns);
    let estimators = [
        Estimator::elbo("path-kl, K = 8", Weighting::PathKl, 8),
        Estimator::elbo("simple, K = 8", Weighting::Simple, 8),
        Estimator::elbo("adaptive, K = 8", Weighting::Adaptive, 8),
        Estimator::trajectory(FlowSde::default().into(), "trajectory, flow-sde, 10 steps", 10),
        Estimator::trajectory(FlowSde::default().into(), "trajectory, flow-sde, 50 steps", 50),
    ];
    let mut measure = |name: &str, points: &[Vec<f64>], slopes: &[Vec<f64>]| {
        for chance in CHANCES {
            let sparse = Sparse::of(&world.base, chance);
            let (_, truth) = sparse.chance(&world.base);
            let rewards: Vec<f64> = points.iter().map(|x| sparse.reward(x)).collect();
            let agree = |group: &&[f64]| group.iter().all(|r| r.total_cmp(&group[0]).is_eq());
            let agreeing = rewards.chunks_exact(GROUP).filter(agree).count();
            let weigh = |(slope, reward): (&Vec<f64>, &f64)| slope.iter().map(|g| g * (reward - chance)).collect();
            let weighed: Vec<Vec<f64>> = slopes.iter().zip(&rewards).map(weigh).collect();
            let signal = Measured::of(n, |range| signal_to_noise(&weighed[range]));
            let group = Measured { value: signal.value * GROUP as f64, error: signal.error * GROUP as f64 };
            table.rows.push(vec![
                exact(chance),
                name.into(),
                exact(without_variance(chance)),
                Measured::share(agreeing, n / GROUP).into(),
                Measured::of(n, |range| cosine(&mean(&weighed[range]), &truth)).into(),
                signal.into(),
                group.into(),
            ]);
        }
    };
    let key = |e: usize| Key::new(seed, Purpose::Step, 40 + e as u64);
    let samples = world.base.samples((0..n as u64).map(|i| key(9).sample(i)));
    measure("∇ ln π itself", &samples, &samples.iter().map(|x| world.base.score(x)).collect::<Vec<_>>());
    for (e, estimator) in estimators.iter().enumerate() {
        let batch = estimator.batch(&world, &world.base, n, key(e));
        measure(&estimator.name, &rows(batch.clean().clone()), &estimator.gradients(&world, &batch, &world.base));
    }
    table.rows.sort_by(|a, b| order(b).total_cmp(&order(a)));
    table
}

/// The chance of a row.
fn order(row: &[super::table::Cell]) -> f64 {
    match &row[0] {
        super::table::Cell::Text(text) => text.parse().unwrap_or(0.0),
        super::table::Cell::Number(measured) => measured.value,
    }
}

/// The chance of success after training, of a seed.
pub fn learned(
    chance: f64,
    (rule, likelihood): (SamplerKind, LikelihoodKind),
    seed: u64,
    epochs: u64,
) -> Result<f64, LabError> {
    let world = world();
    let sparse = Sparse::of(&world.base, chance);
    let config = Config {
        seed,
        epochs,
        batch: BatchConfig {
            groups: 4,
            group_size: GROUP,
            micro_batch: MicroBatch::Size(4 * GROUP),
            ..BatchConfig::default()
        },
        sampler: even(rule, 10),
        likelihood,
        objective: Epg::default().into(),
        advantage: Standard { deviation: elbow::advantage::Deviation::Group, ..Standard::default() }.into(),
        kl: Kl { weight: 0.0, ..Kl::default() },
        optimizer: OptimizerConfig { learning_rate: 0.02, weight_decay: 0.0, ..OptimizerConfig::default() },
        ..Config::default()
    };
    let (prompts, reward) = (vec![Prompt::from("")], Function(move |x: &[f64]| sparse.reward(x)));
    let mut trainer = Trainer::new(config.build(world.schedule())?, &world, &prompts, &reward, Device::flex())?;
    for _ in 0..epochs {
        trainer.epoch(&())?;
    }
    Ok(sparse.chance(&world.base.with(&trainer.state.current)).0)
}

fn learning(size: &Size, seed: u64) -> Result<Table, LabError> {
    let (epochs, seeds) = (size.learning, size.trials);
    let note = format!(
        "EPG without penalty, 4 groups of {GROUP} and 10 steps an epoch, {epochs} epochs, {seeds} seeds, learning rate 0.02; a gradient takes 9 \
         evaluations a sample by either likelihood. Final chance of success: the policy's own, in closed form. Learned: the share of seeds where it \
         is {LEARNED} or more."
    );
    let columns = ["p at the start", "likelihood", "final chance", "learned"];
    let mut table = Table::new("Sparse rewards: learning", &note, &columns);
    let nine = Timesteps::Permutation { fraction: 0.99 };
    for chance in CHANCES {
        let elbo = |weighting| -> (SamplerKind, LikelihoodKind) {
            (Dpm2::default().into(), Elbo { weighting, timesteps: nine, ..Elbo::default() }.into())
        };
        let methods = [
            ("elbo, adaptive", elbo(Weighting::Adaptive)),
            ("elbo, path-kl", elbo(Weighting::PathKl)),
            ("trajectory, flow-sde", (FlowSde::default().into(), Trajectory::default().into())),
        ];
        for (name, method) in methods {
            let ends: Vec<f64> = (0..seeds as u64)
                .map(|s| learned(chance, method.clone(), seed + s, epochs))
                .collect::<Result<_, _>>()?;
            let learned = ends.iter().filter(|&&end| end >= LEARNED).count();
            table.rows.push(vec![
                exact(chance),
                name.into(),
                Measured::mean(&ends).into(),
                Measured::share(learned, seeds).into(),
            ]);
        }
    }
    Ok(table)
}
