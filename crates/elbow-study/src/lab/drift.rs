//! What training does to the bound of a network.
//!
//! The velocity of a mixture is that of its own density, so that the ELBO with its exact weighting is no bound but the log-probability itself
//! (up to a constant). A network that is trained by rewards need not stay such a velocity. Here a small one is trained on the plane, and its
//! ELBO's log-ratio to the base is compared with that of the ODE's density.

use super::{
    LabError, Size,
    estimator::{Estimator, LEVELS, redrawn},
    ode,
    table::{Measured, Table},
    world::{Function, rows},
};
use crate::statistics::{
    mean,
    rank::{slope, spearman},
};
use burn::tensor::Device;
use elbow::{
    Policy, Prompt,
    advantage::Standard,
    config::{BatchConfig, Config, MicroBatch},
    kl::Kl,
    likelihood::Weighting,
    noise::{Key, Purpose},
    optimizer::OptimizerConfig,
    params::Params,
    toy::Toy,
    train::Trainer,
};

/// Draws of all levels that an ELBO is averaged over.
const REPEATS: u64 = 8;

/// The ELBO against the ODE over training.
pub fn table(size: &Size, seed: u64) -> Result<Table, LabError> {
    let n = size.points;
    let note = format!(
        "A network of 32 units on the plane (base N(0, ¼ I)), PEPG with the adaptive ELBO and no penalty, reward −‖x − (1, 0)‖², 4 groups of 64 \
         an epoch. n = {n} samples of the policy at that epoch. Truth: ln π_θ/π_ref by the divergence along the ODE, 40 steps. Estimate: the mean \
         over {REPEATS} × {LEVELS} draws. Bias: in nats."
    );
    let columns = ["epoch", "reward", "truth", "weighting", "bias", "slope", "Spearman"];
    let mut table = Table::new("Drift over training", &note, &columns);
    let policy = Toy::default();
    let config = Config {
        seed,
        batch: BatchConfig { groups: 4, group_size: 64, micro_batch: MicroBatch::Size(256), ..BatchConfig::default() },
        advantage: Standard::default().into(),
        kl: Kl { weight: 0.0, ..Kl::default() },
        optimizer: OptimizerConfig { learning_rate: 0.01, weight_decay: 0.0, ..OptimizerConfig::default() },
        ..Config::default()
    };
    let reward = |x: &[f64]| -(x[0] - 1.0).powi(2) - x[1].powi(2);
    let (prompts, scored) = (vec![Prompt::from("")], Function(reward));
    let mut trainer = Trainer::new(config.build(policy.schedule())?, &policy, &prompts, &scored, Device::flex())?;
    let marks = [size.epochs / 24, size.epochs / 8, size.epochs / 4, size.epochs / 2, size.epochs];
    for epoch in 1..=size.epochs {
        trainer.epoch(&())?;
        if marks.contains(&epoch) {
            let key = Key::new(seed, Purpose::Step, 60 + epoch);
            at(policy, &trainer.state.current, (epoch, n, key), reward, &mut table);
        }
    }
    Ok(table)
}

fn at(policy: Toy, theta: &Params, (epoch, n, key): (u64, usize, Key), reward: fn(&[f64]) -> f64, table: &mut Table) {
    let device = Device::flex();
    let trained = theta.tensors(&device);
    let bind = || policy.bind(Some(&trained));
    for (name, weighting) in
        [("path-kl", Weighting::PathKl), ("simple", Weighting::Simple), ("adaptive", Weighting::Adaptive)]
    {
        let estimator = Estimator::elbo(name, weighting, LEVELS);
        let batch = estimator.drawn(&policy, &*bind(), &vec![Prompt::from(""); n], key);
        let points = rows(batch.clean().clone());
        let cond = batch.conditioning();
        let density = |field: &dyn Fn() -> _| ode::log_density(field, &points, &cond, 40);
        let (current, before) = (density(&bind), density(&|| policy.bind(None)));
        let truth: Vec<f64> = current.iter().zip(before).map(|(a, b)| a - b).collect();
        let mut estimate = vec![0.0; n];
        for repeat in 0..REPEATS {
            let ratios = estimator.log_ratios(&redrawn(&batch, repeat << 10), &*bind(), &*policy.bind(None));
            estimate.iter_mut().zip(ratios).for_each(|(sum, ratio)| *sum += ratio / REPEATS as f64);
        }
        let rewards: Vec<f64> = points.iter().map(|x| reward(x)).collect();
        table.rows.push(vec![
            (epoch as usize).into(),
            Measured::mean(&rewards).into(),
            Measured::mean(&truth).into(),
            name.into(),
            Measured::of(n, |range| mean(&estimate[range.clone()]) - mean(&truth[range])).into(),
            Measured::of(n, |range| slope(&truth[range.clone()], &estimate[range]).unwrap_or(f64::NAN)).into(),
            Measured::of(n, |range| spearman(&truth[range.clone()], &estimate[range]).unwrap_or(f64::NAN)).into(),
        ]);
    }
}
