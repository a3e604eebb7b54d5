//! What policies converge to, on a policy of six outcomes where every expectation is exact.

use super::*;
use crate::advantage::{Advantage, Exact, History};
use burn::tensor::activation::log_softmax;

const REWARDS: [f64; B] = [0.0, 1.0, 0.5, -0.5, 2.0, 1.2];
const BASE: [f64; B] = [0.2, -0.4, 0.9, 0.0, -1.0, 0.3];

fn probabilities(logits: &[f64]) -> Vec<f64> {
    let sum: f64 = logits.iter().map(|l| l.exp()).sum();
    logits.iter().map(|l| l.exp() / sum).collect()
}

/// π ∝ π_ref e^{R/T}
fn tilted(temperature: f64) -> Vec<f64> {
    let logits: Vec<f64> = BASE.iter().zip(REWARDS).map(|(l, r)| l + r / temperature).collect();
    probabilities(&logits)
}

/// One sample of each outcome, scored.
fn outcomes() -> Batch {
    let mut batch = batch(1);
    for (sample, reward) in batch.samples.iter_mut().zip(REWARDS) {
        (sample.group, sample.reward) = (0, Ok(reward.into()));
    }
    batch
}

/// Where gradient descent on Σ_i b_i loss_i + w KL(π ‖ π_ref) ends, with behavior weights b that lag behind.
fn limit(objective: &dyn Objective, advantage: Exact, weight: f64) -> Vec<f64> {
    let (device, batch) = (Device::flex(), outcomes());
    let known = advantage.advantages(&batch.samples, &History::default());
    let advantages: Vec<f64> = known.into_iter().map(|a| a.expect("all are scored")).collect();
    let groups = Groups::new(&advantages, &batch.samples, &batch, &device);
    let log_probs = |logits: Tensor<1>| log_softmax(logits, 0);
    let base = log_probs(gaussian::rows(&BASE, &device));
    let (mut current, mut behavior) = (BASE.to_vec(), BASE.to_vec());
    for _ in 0..1500 {
        let leaf = gaussian::rows(&current, &device).autodiff().require_grad();
        let (l, b) = (log_probs(leaf.clone()), log_probs(gaussian::rows(&behavior, &device)));
        let ask = |weights| match weights {
            Weights::Current => l.clone(),
            _ => b.clone(),
        };
        let e = Evaluation::of_numbers(&ask);
        let policy = (objective.loss(&e, &groups) * b.clone().exp()).sum();
        let kl = (l.clone().exp() * (l.clone() - base.clone())).sum();
        let slope = leaf.grad(&(policy + kl * weight).backward()).expect("depends on the logits");
        for ((logit, lagged), slope) in current.iter_mut().zip(&mut behavior).zip(numbers(slope.autodiff())) {
            *logit -= 5.0 * slope;
            *lagged = 0.5 * (*lagged + *logit);
        }
    }
    probabilities(&current)
}

/// The temperature is w β/η, and neither β nor w.
#[test]
fn the_temperature_is_weight_times_beta_over_eta() {
    let (advantage, weight) = (Exact { eta: 0.08, beta: 0.5 }, 0.2);
    let (temperature, others) = (weight * advantage.beta / advantage.eta, [advantage.beta, weight]);
    let far = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    let objectives: [&dyn Objective; 3] = [&Epg { ratio: true }, &Pepg { ratio: true }, &Par { ratio: true }];
    for objective in objectives {
        let limit = limit(objective, advantage, weight);
        let off = far(&limit, &tilted(temperature));
        assert!(off < 1e-3, "off by {off}: {limit:?} {:?}", tilted(temperature));
        for other in others {
            assert!(far(&limit, &tilted(other)) > 0.1, "{other}: {limit:?}");
        }
    }
}
