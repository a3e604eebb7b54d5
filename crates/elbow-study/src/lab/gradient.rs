//! How far an estimated policy gradient is from the true one.
//!
//! The reward is −½ ‖x − c‖², whose mean and its gradient are known. Of a sample with advantage A = R − E R the estimate is g = A ∇L, of
//! which the true one is E[A ∇ ln π]. A factor on L is a step size, so direction and noise are compared: the cosine of the mean with the
//! truth, and ‖mean‖²/trace of the covariance. N samples have N times that ratio.

use super::{
    Size,
    estimator::{Estimator, LEVELS, WEIGHTINGS, even, full_trajectories, trajectories},
    ratio::{Pair, pairs},
    table::{Measured, Table},
    world::rows,
};
use elbow::{
    likelihood::Weighting,
    noise::{Key, Purpose},
    sampler::Dpm2,
};

/// A reward on the policy of a pair, and the true gradient of its mean.
#[derive(Clone, Debug)]
pub struct Task {
    target: Vec<f64>,
    mean: f64,
    /// The true gradient, by all parameters.
    pub truth: Vec<f64>,
}

impl Task {
    /// The task of the report.
    pub fn new(pair: &Pair) -> Self {
        let target: Vec<f64> = [1.0, 0.2, -0.6, 0.5][..pair.old.dims()].to_vec();
        let (mean, truth) = pair.old.expected_square(&target);
        Self { target, mean, truth }
    }

    /// A ∇L of each sample.
    pub fn policy(&self, points: &[Vec<f64>], gradients: Vec<Vec<f64>>) -> Vec<Vec<f64>> {
        let advantage =
            |x: &Vec<f64>| -0.5 * x.iter().zip(&self.target).map(|(x, c)| (x - c).powi(2)).sum::<f64>() - self.mean;
        let scaled = |(x, gradient): (&Vec<f64>, Vec<f64>)| {
            let a = advantage(x);
            gradient.into_iter().map(|g| a * g).collect()
        };
        points.iter().zip(gradients).map(scaled).collect()
    }

    /// The cosine with the truth, and the signal-to-noise ratio of one sample.
    pub fn quality(&self, gradients: &[Vec<f64>]) -> [Measured; 2] {
        let n = gradients.len();
        [
            Measured::of(n, |range| cosine(&mean(&gradients[range]), &self.truth)),
            Measured::of(n, |range| signal_to_noise(&gradients[range])),
        ]
    }
}

/// The mean of vectors.
pub fn mean(vectors: &[Vec<f64>]) -> Vec<f64> {
    (0..vectors[0].len()).map(|j| vectors.iter().map(|v| v[j]).sum::<f64>() / vectors.len() as f64).collect()
}

/// The cosine of two vectors.
pub fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    product(a, b) / (product(a, a) * product(b, b)).sqrt()
}

/// ‖mean‖²/trace of the covariance, of one vector. That the mean is known by as many vectors only is subtracted.
pub fn signal_to_noise(vectors: &[Vec<f64>]) -> f64 {
    let (center, n) = (mean(vectors), vectors.len() as f64);
    let square = |v: &[f64]| v.iter().map(|v| v * v).sum::<f64>();
    let off = |v: &Vec<f64>| v.iter().zip(&center).map(|(v, c)| (v - c).powi(2)).sum::<f64>();
    let trace = vectors.iter().map(off).sum::<f64>() / (n - 1.0);
    (square(&center) - trace / n) / trace
}

/// Gradients of every estimator against the truth.
pub fn table(size: &Size, seed: u64) -> Vec<Table> {
    pairs()
        .iter()
        .enumerate()
        .map(|(p, pair)| of_pair(pair, size, Key::new(seed, Purpose::Step, 20 + p as u64)))
        .collect()
}

fn estimators() -> Vec<Estimator> {
    let mut all = Vec::new();
    for (name, weighting) in WEIGHTINGS {
        for draws in [1, 2, 4, 8, LEVELS] {
            all.push(Estimator::elbo(&format!("{name}, K = {draws}"), weighting, draws));
        }
    }
    for (name, weighting) in [("path-kl", Weighting::PathKl), ("adaptive", Weighting::Adaptive)] {
        let of = |told: &str| Estimator::elbo(&format!("{name}, {told}"), weighting, 4);
        all.push(of("K = 4 antithetic pairs").elbo_with(|elbo| elbo.antithetic = true));
        let drawn =
            Estimator { exact: false, sampler: even(Dpm2::default().into(), LEVELS), ..of("K = 4, samples of dpm2") };
        all.push(drawn);
    }
    all.extend(full_trajectories());
    all.extend(trajectories());
    all
}

fn of_pair(pair: &Pair, size: &Size, key: Key) -> Table {
    let (n, world, task) = (size.gradient, pair.world(), Task::new(pair));
    let note = format!(
        "n = {n} samples; errors from {} blocks. K: evaluations a sample that the gradient takes; the sample itself takes as many as the sampler \
         has steps. Cosine: of the mean estimate with the true gradient. Signal-to-noise: ‖mean‖²/trace of the covariance of one sample; of 1000 \
         evaluations, by those of the gradient alone, and by those that draw the sample too (16 for an ELBO).",
        super::table::BLOCKS
    );
    let columns = ["estimator", "K", "cosine", "a sample", "1000 of the gradient", "1000 in all"];
    let mut table = Table::new(&format!("Gradients: {}", pair.name), &note, &columns);
    let reference = Estimator::elbo("", Weighting::Simple, 1).batch(&world, &pair.old, n, key);
    let points = rows(reference.clean().clone());
    let scores: Vec<Vec<f64>> = points.iter().map(|x| pair.old.score(x)).collect();
    let [angle, signal] = task.quality(&task.policy(&points, scores));
    table.rows.push(vec!["∇ ln π itself".into(), "–".into(), angle.into(), signal.into(), "–".into(), "–".into()]);
    for estimator in estimators() {
        let batch = estimator.batch(&world, &pair.old, n, key);
        let points = rows(batch.clean().clone());
        let gradients = task.policy(&points, estimator.gradients(&world, &batch, &pair.old));
        let [angle, signal] = task.quality(&gradients);
        let evaluations = estimator.evaluations(&batch);
        let per = |count: usize| {
            let scale = 1000.0 / count as f64;
            Measured { value: signal.value * scale, error: signal.error * scale }
        };
        table.rows.push(vec![
            estimator.name.as_str().into(),
            evaluations.into(),
            angle.into(),
            signal.into(),
            per(evaluations).into(),
            per(evaluations + estimator.drawing()).into(),
        ]);
    }
    table
}
