//! How much estimates of the embedded model differ. Its dimensions are too many for the ODE's divergence: there is no truth, and every ELBO is
//! compared with the mean of many draws of its own.

use super::{
    LabError, Size,
    estimator::{Estimator, LEVELS, numbers, redrawn, score},
    table::{Measured, Table, exact},
};
use crate::statistics::{mean, rank::spearman, variance};
use burn::tensor::Device;
use elbow::{
    Policy, Prompt,
    likelihood::{Query, Weighting},
    noise::{Key, Purpose},
    params::Params,
    policy::VelocityField,
    sampler::FlowSde,
    schedule::Schedule,
};
use elbow_run::model::Model;
use std::ops::Range;

/// Draws of all levels that stand for the truth: K = 64.
const REPEATS: u64 = 4;
/// How far weights are from those that drew, in their own sizes.
const APART: f32 = 0.01;

/// Estimates of the embedded model, and the share of each time.
pub fn table(size: &Size, seed: u64) -> Result<Vec<Table>, LabError> {
    let model: Model = toml::from_str("kind = \"nano\"").expect("invariant: the embedded model needs no more");
    let (policy, _) = model.policy(seed, &Device::flex(), |_, _| Ok(()))?;
    let n = size.pictures;
    let prompts: Vec<Prompt> =
        elbow_world::prompts::benchmark(n.div_ceil(6)).iter().map(Prompt::from).take(n).collect();
    let (old, theta) = (policy.initial(), moved(&policy.initial(), seed));
    let [old, theta] = [old, theta].map(|weights| policy.bind(Some(&weights.tensors(&Device::flex()))));
    let key = Key::new(seed, Purpose::Step, 80);
    let weightings = [("path-kl", Weighting::PathKl), ("simple", Weighting::Simple), ("adaptive", Weighting::Adaptive)];
    let note = format!(
        "The embedded model and one whose weights differ by {APART} of their size at random; {n} pictures of held-out prompts, dpm2 of {LEVELS} \
         steps (flow-sde of 10 for the trajectory). Reference: the same weighting with K = {}. Noise: deviation of an estimate over draws, over the \
         deviation of the reference over pictures. Spearman: with the reference; and with that of path-kl.",
        REPEATS as usize * LEVELS
    );
    let columns = ["estimator", "K", "noise", "Spearman", "Spearman, path-kl"];
    let mut table = Table::new("The embedded model: log-ratios", &note, &columns);
    let note = format!("As above, {n} pictures: mean and noise of the log-ratio, a sum over dimensions, at one time.");
    let mut profile = Table::new("The embedded model: by time", &note, &["t", "weighting", "mean", "noise"]);
    let mut common = Vec::new();
    for (name, weighting) in weightings {
        let all = Estimator { exact: true, ..Estimator::elbo(name, weighting, LEVELS) };
        let batch = all.drawn(&policy, &*old, &prompts, key);
        let mut reference = vec![0.0; n];
        for repeat in 0..REPEATS {
            let ratios = all.log_ratios(&redrawn(&batch, 1 << (12 + repeat)), &*theta, &*old);
            reference.iter_mut().zip(ratios).for_each(|(sum, ratio)| *sum += ratio / REPEATS as f64);
        }
        if common.is_empty() {
            common.clone_from(&reference);
        }
        let spread = variance(&reference).sqrt();
        for draws in [1, 2, 4, 8, LEVELS] {
            let estimator = Estimator::elbo(&format!("{name}, K = {draws}"), weighting, draws);
            let first = estimator.log_ratios(&batch, &*theta, &*old);
            let second = estimator.log_ratios(&redrawn(&batch, 1 << 10), &*theta, &*old);
            table.rows.push(vec![
                estimator.name.as_str().into(),
                draws.into(),
                Measured::of(n, |range| noise(&first, &second, range) / spread).into(),
                Measured::of(n, |range| rank(&first, &reference, range)).into(),
                Measured::of(n, |range| rank(&first, &common, range)).into(),
            ]);
        }
        let again = redrawn(&batch, 1 << 10);
        let likelihood = all.likelihood.get();
        for (first, second) in likelihood.queries(&batch, &batch).zip(likelihood.queries(&again, &again)) {
            let t = numbers(first.t.clone())[0];
            let [first, second] = [first, second].map(|query| ratio(&query, &*theta, &*old));
            profile.rows.push(vec![
                exact(t),
                name.into(),
                Measured::of(n, |range| mean(&first[range])).into(),
                Measured::of(n, |range| noise(&first, &second, range)).into(),
            ]);
        }
    }
    let walk = Estimator::trajectory(FlowSde::default().into(), "trajectory, flow-sde, 10 steps", 10);
    let batch = walk.drawn(&policy, &*old, &prompts, key);
    let ratios = walk.log_ratios(&batch, &*theta, &*old);
    let bound = Estimator::elbo("", Weighting::PathKl, LEVELS);
    let mut reference = vec![0.0; n];
    for repeat in 0..REPEATS {
        let own = bound.log_ratios(&redrawn(&final_points(&batch), 1 << (12 + repeat)), &*theta, &*old);
        reference.iter_mut().zip(own).for_each(|(sum, ratio)| *sum += ratio / REPEATS as f64);
    }
    table.rows.push(vec![
        walk.name.as_str().into(),
        walk.evaluations(&batch).into(),
        "–".into(),
        "–".into(),
        Measured::of(n, |range| rank(&ratios, &reference, range)).into(),
    ]);
    Ok(vec![table, profile])
}

/// The same samples without their paths, on the levels of an ELBO.
fn final_points(batch: &elbow::batch::Batch) -> elbow::batch::Batch {
    let mut batch = batch.clone();
    batch.points.drain(..batch.points.len() - 1);
    let sampler = Estimator::elbo("", Weighting::Simple, LEVELS).sampler.build();
    batch.grid = sampler.grid(Schedule::RectifiedFlow).into();
    let step = sampler.rule.walk(&batch.grid, batch.samples[0].key);
    batch.samples.iter_mut().for_each(|sample| sample.walk = step.clone().into());
    batch
}

/// Weights a little apart.
fn moved(weights: &Params, seed: u64) -> Params {
    let mut normals = Vec::new();
    Key::new(seed, Purpose::Initialization, 9).extend_normals(weights.values().len(), &mut normals);
    let mut moved = weights.clone();
    moved.values_mut().iter_mut().zip(normals).for_each(|(weight, n)| *weight *= 1.0 + APART * n);
    moved
}

fn ratio(query: &Query, theta: &dyn VelocityField, old: &dyn VelocityField) -> Vec<f64> {
    let [current, before] = [theta, old].map(|field| numbers(score(query, query.velocity(field), old)));
    current.iter().zip(before).map(|(a, b)| a - b).collect()
}

fn noise(first: &[f64], second: &[f64], range: Range<usize>) -> f64 {
    mean(&range.map(|i| (first[i] - second[i]).powi(2) / 2.0).collect::<Vec<_>>()).sqrt()
}

fn rank(one: &[f64], other: &[f64], range: Range<usize>) -> f64 {
    spearman(&one[range.clone()], &other[range]).unwrap_or(f64::NAN)
}
