//! How far an estimated log-ratio is from the true one.

use super::{
    Size,
    estimator::{Estimator, LEVELS, WEIGHTINGS, full_trajectories, numbers, redrawn, score, trajectories},
    table::{Measured, Table},
    world::{Mixture, NAMES, World, rows},
};
use crate::statistics::{
    mean,
    rank::{slope, spearman},
};
use burn::tensor::Device;
use elbow::{
    Policy,
    likelihood::{Timesteps, Weighting},
    noise::{Key, Purpose},
    policy::VelocityField,
};

/// The policy that draws, one that has moved a little, and what a report calls them.
#[derive(Clone, Debug)]
pub struct Pair {
    /// What a report calls it.
    pub name: &'static str,
    /// The policy that draws.
    pub old: Mixture,
    /// The policy after an update.
    pub theta: Mixture,
}

/// A Gaussian in four dimensions, and three of them in the plane.
pub fn pairs() -> Vec<Pair> {
    let old = Mixture::gaussian(&[0.5, -0.3, 0.0, 0.8], &[0.4, 0.6, 0.8, 0.5]);
    let mut theta = old.clone();
    for (j, by) in [0.06, -0.05, 0.04, 0.05].into_iter().enumerate() {
        theta.means[0][j] += by;
        theta.log_stds[0][j] -= 0.5 * by;
    }
    let gaussian = Pair { name: "Gaussian, 4 dimensions", old, theta };
    let old = Mixture {
        logits: vec![0.0, 0.5, -0.5],
        means: vec![vec![-1.0, 0.0], vec![0.8, 0.6], vec![0.5, -0.9]],
        log_stds: vec![vec![-1.0, -0.8], vec![-1.2, -0.7], vec![-0.9, -1.0]],
    };
    let mut theta = old.clone();
    theta.logits = vec![0.1, 0.4, -0.4];
    for (k, by) in [0.04, -0.05, 0.05].into_iter().enumerate() {
        theta.means[k][0] += by;
        theta.means[k][1] -= 0.5 * by;
        theta.log_stds[k][0] += 0.5 * by;
    }
    vec![gaussian, Pair { name: "mixture of 3, 2 dimensions", old, theta }]
}

impl Pair {
    /// The policy of both.
    pub fn world(&self) -> World {
        World { base: self.old.clone(), trained: &NAMES }
    }

    /// The field of the policy that draws, and of the other.
    pub fn fields(&self) -> [Box<dyn VelocityField>; 2] {
        let world = self.world();
        [&self.old, &self.theta].map(|of| world.bind(Some(&of.params(1).tensors(&Device::flex()))))
    }

    /// ln π_θ(x)/π_old(x).
    pub fn truth(&self, points: &[Vec<f64>]) -> Vec<f64> {
        points.iter().map(|x| self.theta.log_density(x) - self.old.log_density(x)).collect()
    }
}

/// The ELBOs of the report: every weighting at 1 to all of the levels, draws that θ and the old policy share and draws of their own, and other
/// choices of times.
pub fn estimators() -> Vec<Estimator> {
    let mut all = Vec::new();
    for (name, weighting) in WEIGHTINGS {
        for draws in [1, 2, 4, 8, LEVELS] {
            for separate in [false, true] {
                let told = if separate { ", separate noise" } else { "" };
                let elbo = Estimator::elbo(&format!("{name}, K = {draws}{told}"), weighting, draws);
                all.push(Estimator { separate, ..elbo });
            }
        }
    }
    for (name, weighting) in [("path-kl", Weighting::PathKl), ("adaptive", Weighting::Adaptive)] {
        let stratified = Timesteps::Stratified { count: 4, first: false, fraction: 1.0 };
        let normal = Timesteps::LogitNormal { count: 4, mean: 0.0, std: 1.0 };
        let of = |told: &str| Estimator::elbo(&format!("{name}, {told}"), weighting, 4);
        all.push(of("K = 4, stratified").elbo_with(|elbo| elbo.timesteps = stratified));
        all.push(of("K = 4, logit-normal").elbo_with(|elbo| elbo.timesteps = normal));
        all.push(of("K = 4 antithetic pairs").elbo_with(|elbo| elbo.antithetic = true));
    }
    let shared = |elbo: &mut elbow::likelihood::Elbo| elbo.normalizer = elbow::likelihood::Normalizer::Shared;
    let adaptive = Estimator::elbo("adaptive, shared normalizer, K = 16", Weighting::Adaptive, LEVELS);
    all.push(adaptive.elbo_with(shared));
    all.extend(full_trajectories());
    all.extend(trajectories());
    all
}

/// Log-ratios of every estimator against the truth.
pub fn table(size: &Size, seed: u64) -> Vec<Table> {
    pairs().iter().enumerate().map(|(p, pair)| of_pair(pair, size, Key::new(seed, Purpose::Step, p as u64))).collect()
}

fn of_pair(pair: &Pair, size: &Size, key: Key) -> Table {
    let n = size.ratio;
    let note = format!(
        "n = {n} samples of the old policy; errors from {} blocks of them. K: network evaluations a sample, under each of the two policies. \
         Bias: mean of estimate minus truth, in nats. Slope: of the least-squares line of estimates over truths; 1 is right. Noise: deviation of \
         the estimate of one sample over its draws (none for a path, which is given). The deviation of the truth over samples is {:.3}. \
         Spearman: rank correlation of estimates with truths.",
        super::table::BLOCKS,
        deviation(&pair.truth(&rows(
            Estimator::elbo("", Weighting::Simple, 1).batch(&pair.world(), &pair.old, n, key).clean().clone()
        ))),
    );
    let columns = ["estimator", "K", "bias", "slope", "noise", "Spearman"];
    let mut table = Table::new(&format!("Log-ratios: {}", pair.name), &note, &columns);
    let (world, [old, theta]) = (pair.world(), pair.fields());
    for estimator in estimators() {
        let batch = estimator.batch(&world, &pair.old, n, key);
        let truth = pair.truth(&rows(batch.clean().clone()));
        let first = estimator.log_ratios(&batch, &*theta, &*old);
        let second = estimator.log_ratios(&redrawn(&batch, 1 << 10), &*theta, &*old);
        let noise = |range: std::ops::Range<usize>| {
            let squares: Vec<f64> = range.map(|i| (first[i] - second[i]).powi(2) / 2.0).collect();
            mean(&squares).sqrt()
        };
        table.rows.push(vec![
            estimator.name.as_str().into(),
            estimator.evaluations(&batch).into(),
            Measured::of(n, |range| mean(&first[range.clone()]) - mean(&truth[range])).into(),
            Measured::of(n, |range| slope(&truth[range.clone()], &first[range]).unwrap_or(f64::NAN)).into(),
            if estimator.exact { Measured::of(n, noise).into() } else { "–".into() },
            Measured::of(n, |range| spearman(&truth[range.clone()], &first[range]).unwrap_or(f64::NAN)).into(),
        ]);
    }
    table
}

fn deviation(values: &[f64]) -> f64 {
    crate::statistics::variance(values).sqrt()
}

/// The share of each time.
pub fn profile(size: &Size, seed: u64) -> Vec<Table> {
    let pair = &pairs()[0];
    let (n, key) = (size.ratio, Key::new(seed, Purpose::Step, 10));
    let (world, [old, theta]) = (pair.world(), pair.fields());
    let gradient = super::gradient::Task::new(pair);
    let weightings = [("path-kl", Weighting::PathKl), ("simple", Weighting::Simple), ("adaptive", Weighting::Adaptive)];
    let of = |(name, weighting): (&str, Weighting)| {
        let note = format!(
            "{}, n = {n}; what a draw at this time alone says. Mean: of the estimated log-ratio. Noise: its deviation over draws. Cosine and \
             signal-to-noise ratio: of the gradient of a sample, as below.",
            pair.name
        );
        let columns = ["t", "mean", "noise", "Spearman", "cosine", "signal-to-noise"];
        let mut table = Table::new(&format!("By time: {name}"), &note, &columns);
        let estimator = Estimator::elbo(name, weighting, LEVELS);
        let batch = estimator.batch(&world, &pair.old, n, key);
        let points = rows(batch.clean().clone());
        let truth = pair.truth(&points);
        let again = redrawn(&batch, 1 << 10);
        let queries = estimator.likelihood.get().queries(&batch, &batch);
        for (query, second) in queries.zip(estimator.likelihood.get().queries(&again, &again)) {
            let ratio = |query: &elbow::likelihood::Query| -> Vec<f64> {
                let l = [&theta, &old].map(|field| numbers(score(query, query.velocity(&**field), &*old)));
                l[0].iter().zip(&l[1]).map(|(a, b)| a - b).collect()
            };
            let (first, second) = (ratio(&query), ratio(&second));
            let noise = |range: std::ops::Range<usize>| {
                let squares: Vec<f64> = range.map(|i| (first[i] - second[i]).powi(2) / 2.0).collect();
                mean(&squares).sqrt()
            };
            let t = numbers(query.t.clone())[0];
            let gradients = gradient.policy(&points, super::estimator::gradients(&world, &query, &pair.old));
            let [cosine, signal] = gradient.quality(&gradients);
            table.rows.push(vec![
                super::table::exact(t),
                Measured::of(n, |range| mean(&first[range])).into(),
                Measured::of(n, noise).into(),
                Measured::of(n, |range| spearman(&truth[range.clone()], &first[range]).unwrap_or(f64::NAN)).into(),
                cosine.into(),
                signal.into(),
            ]);
        }
        table
    };
    weightings.map(of).into()
}
