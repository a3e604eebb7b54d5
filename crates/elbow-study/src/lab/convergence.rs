//! Where training goes: to π* ∝ π_ref exp(R/T) with T = w β/η, and by which steps.
//!
//! The reference is N(0, I), the reward a · x. Then π* = N(a/T, I), and PEPG's iterate
//! π_{k+1} ∝ (e^{R/β} π_ref)^{η/(1+η)} π_k^{1/(1+η)} under a penalty of weight w = η is N(m_{k+1}, I),
//! m_{k+1} = (η a/β + m_k)/(1 + η).

use super::{
    LabError, Size,
    estimator::{LEVELS, WHOLE, even},
    table::{Measured, Table, exact},
    world::{Function, Mixture, World, divergence, normalized},
};
use burn::tensor::Device;
use elbow::{
    Policy, Prompt,
    advantage::Exact,
    behavior::BehaviorLag,
    config::{BatchConfig, Config, MicroBatch},
    gaussian::Reduction,
    kl::{Kl, KlKind},
    likelihood::{Elbo, Timesteps, Weighting},
    objective::Pepg,
    optimizer::OptimizerConfig,
    sampler::Dpm2,
    train::Trainer,
};

/// The slope of the reward.
pub const SLOPE: [f64; 2] = [1.0, -0.5];
/// η of the advantage.
pub const ETA: f64 = 0.25;
/// β of the advantage.
pub const BETA: f64 = 0.5;
/// w of the penalty.
pub const WEIGHT: f64 = 1.0;

/// The base of the Gaussian task.
pub fn world() -> World {
    World { base: Mixture::gaussian(&[0.0; 2], &[1.0; 2]), trained: &["log_std", "mean"] }
}

/// N(a/T, I).
pub fn tilted(temperature: f64) -> Mixture {
    Mixture::gaussian(&SLOPE.map(|a| a / temperature), &[1.0; 2])
}

/// PEPG by the exact ELBO of final samples, a ratio a sample, and the penalty whose gradient is that of KL(π_θ ‖ π_ref).
pub fn config(seed: u64, samples: usize, epochs: u64) -> Config {
    Config {
        seed,
        epochs,
        batch: BatchConfig {
            groups: 1,
            group_size: samples,
            micro_batch: MicroBatch::Size(samples),
            ..BatchConfig::default()
        },
        sampler: even(Dpm2::default().into(), LEVELS),
        likelihood: Elbo {
            weighting: Weighting::PathKl,
            timesteps: Timesteps::All,
            ratio: WHOLE,
            reduction: Reduction::Sum,
            ..Elbo::default()
        }
        .into(),
        objective: Pepg::default().into(),
        advantage: Exact { eta: ETA, beta: BETA }.into(),
        kl: Kl { kind: KlKind::K1, weight: WEIGHT, importance: true, ..Kl::default() },
        behavior: BehaviorLag { max: 0.5, rate: 0.02, ..BehaviorLag::default() },
        optimizer: OptimizerConfig { learning_rate: 0.03, weight_decay: 0.0, ..OptimizerConfig::default() },
        ..Config::default()
    }
}

/// Reward a · x.
fn linear(x: &[f64]) -> f64 {
    x.iter().zip(SLOPE).map(|(x, a)| a * x).sum()
}

/// Trains, and gives the policy of each epoch from the start on.
pub fn path(config: &Config, world: &World, reward: fn(&[f64]) -> f64) -> Result<Vec<Mixture>, LabError> {
    let (prompts, reward) = (vec![Prompt::from("")], Function(reward));
    let method = config.build(world.schedule())?;
    let mut trainer = Trainer::new(method, world, &prompts, &reward, Device::flex())?;
    let mut path = vec![world.base.clone()];
    for _ in 0..config.epochs {
        trainer.epoch(&())?;
        path.push(world.base.with(&trainer.state.current));
    }
    Ok(path)
}

/// KL(π_θ ‖ π*) over epochs, for the right temperature and wrong ones.
pub fn table(size: &Size, seed: u64) -> Result<Vec<Table>, LabError> {
    Ok(vec![temperatures(size, seed)?, modes(size, seed)?, iterates(size, seed)?])
}

fn temperatures(size: &Size, seed: u64) -> Result<Table, LabError> {
    let temperature = WEIGHT * BETA / ETA;
    let note = format!(
        "PEPG, w = {WEIGHT}, β = {BETA}, η = {ETA}, reference N(0, I), reward a · x: π* = N(a/T, I). {} seeds, {} samples an epoch; the policy of \
         an epoch is the mean over the last quarter of those up to it, since Adam's steps do not shrink. Columns: KL(π_θ ‖ π*) in nats for \
         T = w β/η = {temperature} and for the wrong T = β and T = w. The penalty of the first two methods has the gradient of \
         KL(π_θ ‖ π_ref) where log-ratios are without noise, as antithetic pairs make them here; the last is the library's default weighting and \
         penalty.",
        size.seeds, size.samples
    );
    let columns = ["method", "epoch", "T = w β/η", "T = β", "T = w"];
    let mut table = Table::new("Where training goes", &note, &columns);
    let methods: [(&str, Weighting, Reduction, KlKind, bool); 4] = [
        ("path-kl, k1 with importance, antithetic", Weighting::PathKl, Reduction::Sum, KlKind::K1, true),
        ("path-kl, k1 with importance", Weighting::PathKl, Reduction::Sum, KlKind::K1, false),
        ("path-kl, path", Weighting::PathKl, Reduction::Mean, KlKind::Path, false),
        ("adaptive, girsanov", Weighting::Adaptive, Reduction::Mean, KlKind::Girsanov, false),
    ];
    for (name, weighting, reduction, kind, antithetic) in methods {
        let mut paths = Vec::new();
        for s in 0..size.seeds as u64 {
            let base = config(seed + s, size.samples, size.epochs);
            let elbo = Elbo { weighting, timesteps: Timesteps::All, ratio: WHOLE, reduction, ..Elbo::default() };
            let likelihood = Elbo { antithetic, ..elbo }.into();
            let kl = Kl { kind, importance: kind == KlKind::K1, ..base.kl };
            paths.push(path(&Config { likelihood, kl, ..base }, &world(), linear)?);
        }
        for epoch in [0, size.epochs / 8, size.epochs / 4, size.epochs / 2, size.epochs] {
            let distance = |temperature: f64| {
                let of = |path: &Vec<Mixture>| divergence(&averaged(&path[..=epoch as usize]), &tilted(temperature));
                Measured::mean(&paths.iter().map(of).collect::<Vec<_>>())
            };
            table.rows.push(vec![
                name.into(),
                (epoch as usize).into(),
                distance(temperature).into(),
                distance(BETA).into(),
                distance(WEIGHT).into(),
            ]);
        }
    }
    Ok(table)
}

/// The mean of the parameters over the last quarter of a path.
pub fn averaged(path: &[Mixture]) -> Mixture {
    let last = &path[path.len() - path.len().div_ceil(4)..];
    let mut mean = last[0].params(1).zeros_like();
    for policy in last {
        let share = 1.0 / last.len() as f32;
        mean.values_mut().iter_mut().zip(policy.params(1).values()).for_each(|(sum, v)| *sum += share * v);
    }
    last[0].with(&mean)
}

/// Three modes of the line, whose weights alone are trained.
fn three() -> World {
    let base = Mixture {
        logits: vec![0.4, 0.0, -0.4],
        means: vec![vec![-2.0], vec![0.0], vec![2.0]],
        log_stds: vec![vec![-1.2]; 3],
    };
    World { base, trained: &["logits"] }
}

/// What a sample near each of the modes is worth.
const WORTH: [f64; 3] = [-0.5, 0.5, 1.0];

fn nearest(x: &[f64]) -> f64 {
    WORTH[if x[0] < -1.0 { 0 } else { usize::from(x[0] > 1.0) + 1 }]
}

fn modes(size: &Size, seed: u64) -> Result<Table, LabError> {
    let (world, temperature) = (three(), WEIGHT * BETA / ETA);
    let weights = |temperature: f64| {
        let logits: Vec<f64> = world.base.logits.iter().zip(WORTH).map(|(l, r)| l + r / temperature).collect();
        normalized(&logits)
    };
    let note = format!(
        "The same on three modes of the line, whose weights alone are trained, with the reward {WORTH:?} by mode: π* has the weights \
         π_ref exp(R/T). Weights are the mean over the last quarter of {} epochs; {} seeds. KL: of the weights from those of π*.",
        size.epochs, size.seeds
    );
    let columns = ["method", "first", "second", "third", "KL, T = w β/η", "KL, T = β", "KL, T = w"];
    let mut table = Table::new("Weights of modes", &note, &columns);
    let known = weights(temperature);
    let mut row = vec!["π*, T = w β/η".into()];
    row.extend(known.iter().map(|&w| exact(w)));
    row.extend([temperature, BETA, WEIGHT].map(|t| exact(categorical(&known, &weights(t)))));
    table.rows.push(row);
    let methods = [
        ("path-kl, k1 with importance", Weighting::PathKl, KlKind::K1),
        ("simple, k1 with importance", Weighting::Simple, KlKind::K1),
        ("adaptive, k1 with importance", Weighting::Adaptive, KlKind::K1),
    ];
    for (name, weighting, kind) in methods {
        let mut ends = Vec::new();
        for s in 0..size.seeds as u64 {
            let base = config(seed + s, size.samples, size.epochs);
            let likelihood = Elbo {
                weighting,
                timesteps: Timesteps::All,
                ratio: WHOLE,
                reduction: Reduction::Sum,
                ..Elbo::default()
            }
            .into();
            let kl = Kl { kind, ..base.kl };
            ends.push(averaged(&path(&Config { likelihood, kl, ..base }, &world, nearest)?).weights());
        }
        let over = |of: &dyn Fn(&Vec<f64>) -> f64| Measured::mean(&ends.iter().map(of).collect::<Vec<_>>()).into();
        let mut row = vec![name.into()];
        row.extend((0..3).map(|k| over(&|end| end[k])));
        row.extend([temperature, BETA, WEIGHT].map(|t| over(&|end| categorical(end, &weights(t)))));
        table.rows.push(row);
    }
    Ok(table)
}

/// KL of two lists of probabilities.
fn categorical(p: &[f64], q: &[f64]) -> f64 {
    p.iter().zip(q).map(|(p, q)| p * (p / q).ln()).sum()
}

/// The mean of PEPG's iterate after one from the mean `m`.
pub fn iterate(m: [f64; 2]) -> [f64; 2] {
    std::array::from_fn(|j| (ETA * SLOPE[j] / BETA + m[j]) / (1.0 + ETA))
}

/// So many iterates of the library, each of `inner` epochs: the behavior weights stand still until the current ones have converged. With
/// antithetic pairs the log-ratio of two means is without noise.
pub fn iterates_of(
    seed: u64,
    (samples, inner): (usize, u64),
    outer: usize,
    antithetic: bool,
) -> Result<Vec<Mixture>, LabError> {
    let world = World { trained: &["mean"], ..world() };
    let base = config(seed, samples, inner * outer as u64);
    let elbo = Elbo {
        weighting: Weighting::PathKl,
        timesteps: Timesteps::All,
        ratio: WHOLE,
        reduction: Reduction::Sum,
        antithetic,
        ..Elbo::default()
    };
    let config = Config { kl: Kl { weight: ETA, ..base.kl }, likelihood: elbo.into(), ..base };
    let (prompts, reward) = (vec![Prompt::from("")], Function(linear));
    let mut trainer = Trainer::new(config.build(world.schedule())?, &world, &prompts, &reward, Device::flex())?;
    let mut found = Vec::new();
    for _ in 0..outer {
        let mut path = Vec::new();
        for _ in 0..inner {
            let behavior = trainer.state.behavior.clone();
            trainer.epoch(&())?;
            trainer.state.behavior = behavior;
            path.push(world.base.with(&trainer.state.current));
        }
        let end = averaged(&path);
        trainer.state.current = end.params(1).filtered(|name| name == "mean");
        trainer.state.behavior = trainer.state.current.clone();
        found.push(end);
    }
    Ok(found)
}

fn iterates(size: &Size, seed: u64) -> Result<Table, LabError> {
    let inner = size.epochs / 2;
    let note = format!(
        "Means after PEPG's iterations, w = η = {ETA}: the behavior weights stand still for {inner} epochs, of which the mean of the last quarter \
         is the iterate. {} seeds. Formula: m ← (η a/β + m)/(1 + η). With antithetic pairs ln ρ is without noise here; without them its noise, \
         squared, adds to the penalties that ln ρ and k1 are.",
        size.seeds
    );
    let columns = ["draws", "iteration", "first, formula", "first", "second, formula", "second"];
    let mut table = Table::new("PEPG's iterates", &note, &columns);
    for (name, antithetic) in [("antithetic", true), ("plain", false)] {
        let all: Vec<Vec<Mixture>> = (0..size.seeds as u64)
            .map(|s| iterates_of(seed + s, (size.samples, inner), 3, antithetic))
            .collect::<Result<_, _>>()?;
        let mut m = [0.0; 2];
        for k in 0..3 {
            m = iterate(m);
            let mean = |j: usize| Measured::mean(&all.iter().map(|found| found[k].means[0][j]).collect::<Vec<_>>());
            table.rows.push(vec![
                name.into(),
                (k + 1).into(),
                exact(m[0]),
                mean(0).into(),
                exact(m[1]),
                mean(1).into(),
            ]);
        }
    }
    Ok(table)
}
