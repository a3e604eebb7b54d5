//! AdamW with decoupled weight decay and clipping by the global norm, on flat parameters.

use crate::params::Params;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// AdamW (Loshchilov & Hutter, arXiv 1711.05101) with `PyTorch`'s semantics and the field's defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct OptimizerConfig {
    /// Learning rate after warm-up.
    pub learning_rate: f64,
    /// Steps over which the learning rate rises linearly from 0.
    pub warmup_steps: u64,
    /// Steps over which it falls to half, again and again; infinite is never.
    #[serde(skip_serializing_if = "never")]
    pub half_life: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Gradients with a larger global norm are scaled down to it.
    pub max_grad_norm: f64,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self {
            learning_rate: 3e-4,
            warmup_steps: 0,
            half_life: f64::INFINITY,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 1e-4,
            max_grad_norm: 5.0,
        }
    }
}

/// Whether a half-life is infinite, which not every format can write.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn never(half_life: &f64) -> bool {
    half_life.is_infinite()
}

impl OptimizerConfig {
    /// The learning rate of step `step`, counted from 1.
    pub fn rate(&self, step: u64) -> f64 {
        let warmup = (step as f64 / self.warmup_steps.max(1) as f64).min(1.0);
        self.learning_rate * warmup * 0.5f64.powf((step - 1) as f64 / self.half_life)
    }
}

/// Moments and step count of AdamW.
#[derive(Clone, Debug, PartialEq)]
pub struct Optimizer {
    /// Steps taken.
    pub step: u64,
    /// First moment, laid out as the parameters.
    pub first: Params,
    /// Second moment, laid out as the parameters.
    pub second: Params,
}

impl Optimizer {
    /// No steps taken, moments zero.
    pub fn new(params: &Params) -> Self {
        Self { step: 0, first: params.zeros_like(), second: params.zeros_like() }
    }

    /// Clips `gradient` to the configured norm and takes one step. Returns the norm before clipping; if that is not
    /// finite, nothing is changed.
    pub fn step(&mut self, config: &OptimizerConfig, params: &mut Params, gradient: &mut Params) -> f64 {
        let norm = gradient.norm();
        if !norm.is_finite() {
            return norm;
        }
        if norm > config.max_grad_norm {
            gradient.scale((config.max_grad_norm / norm) as f32);
        }
        self.step += 1;
        let adam = elbow_kernels::AdamW {
            beta1: config.beta1,
            beta2: config.beta2,
            eps: config.epsilon,
            weight_decay: config.weight_decay,
        };
        let (first, second) = (self.first.values_mut(), self.second.values_mut());
        adam.step(self.step, config.rate(self.step), params.values_mut(), gradient.values(), first, second);
        norm
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(value: f32) -> Params {
        Params::new([("w".into(), vec![2], vec![value; 2])])
    }

    #[test]
    fn first_step_moves_by_the_learning_rate_against_the_sign() {
        let config = OptimizerConfig { weight_decay: 0.0, learning_rate: 0.1, ..Default::default() };
        let (mut w, mut g) = (one(1.0), one(0.25));
        Optimizer::new(&w).step(&config, &mut w, &mut g);
        assert!(w.values().iter().all(|v| (v - 0.9).abs() < 1e-6), "{w:?}");
    }

    #[test]
    fn the_rate_rises_and_halves() {
        let config = OptimizerConfig { learning_rate: 8.0, warmup_steps: 4, half_life: 10.0, ..Default::default() };
        let close = |step, expected: f64| assert!((config.rate(step) - expected).abs() < 1e-12, "{step}");
        close(1, 2.0);
        close(11, 4.0);
        close(31, 1.0);
        let constant = OptimizerConfig { warmup_steps: 0, half_life: f64::INFINITY, ..config };
        assert!((constant.rate(1_000_000) - 8.0).abs() < 1e-12);
    }

    #[test]
    fn clipping_scales_to_the_norm_and_reports_the_norm_before() {
        let config = OptimizerConfig { max_grad_norm: 1.0, ..Default::default() };
        let (mut w, mut g) = (one(1.0), one(3.0));
        let norm = Optimizer::new(&w).step(&config, &mut w, &mut g);
        assert!((norm - 18f64.sqrt()).abs() < 1e-9 && (g.norm() - 1.0).abs() < 1e-6);
    }

    #[test]
    fn a_gradient_that_is_not_finite_changes_nothing() {
        let (mut w, mut g) = (one(1.0), one(f32::NAN));
        let mut optimizer = Optimizer::new(&w);
        assert!(optimizer.step(&OptimizerConfig::default(), &mut w, &mut g).is_nan());
        assert_eq!((w, optimizer.step), (one(1.0), 0));
    }
}
