//! AdamW with decoupled weight decay and clipping by the global norm, on flat parameters.

use crate::{
    params::Params,
    setting::{positive_number, zero_or_positive},
};
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
    /// How it goes on from there to the run's last step.
    pub schedule: RateSchedule,
    /// Steps over which it falls to half, again and again, beside that; infinite is never.
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
            schedule: RateSchedule::Constant,
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

/// How the learning rate goes on after warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RateSchedule {
    /// It stays.
    #[default]
    Constant,
    /// It falls linearly to 0 at the run's end.
    Linear,
    /// It falls to 0 at the run's end by half a wave of the cosine (arXiv 1608.03983).
    Cosine,
}

impl RateSchedule {
    /// What is left of the rate after this share of the steps that follow warm-up.
    fn factor(self, share: f64) -> f64 {
        match self {
            Self::Constant => 1.0,
            Self::Linear => 1.0 - share,
            Self::Cosine => f64::midpoint(1.0, (std::f64::consts::PI * share).cos()),
        }
    }
}

impl OptimizerConfig {
    /// The learning rate of step `step` of `total`, counted from 1.
    pub fn rate(&self, step: u64, total: u64) -> f64 {
        let warmup = (step as f64 / self.warmup_steps.max(1) as f64).min(1.0);
        let rest = total.saturating_sub(self.warmup_steps).max(1);
        let share = (step.saturating_sub(self.warmup_steps.max(1)) as f64 / rest as f64).min(1.0);
        let halved = 0.5f64.powf((step - 1) as f64 / self.half_life);
        self.learning_rate * warmup * self.schedule.factor(share) * halved
    }

    /// What is wrong with it, one sentence each.
    pub fn validate(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for (name, value) in
            [("learning_rate", self.learning_rate), ("max_grad_norm", self.max_grad_norm), ("epsilon", self.epsilon)]
        {
            problems.extend(positive_number(&format!("optimizer.{name}"), value));
        }
        if self.half_life.is_nan() || self.half_life <= 0.0 {
            problems.push(format!("optimizer.half_life = {}: must be above 0", self.half_life));
        }
        for (name, value) in [("beta1", self.beta1), ("beta2", self.beta2)] {
            if !(0.0..1.0).contains(&value) {
                problems.push(format!("optimizer.{name} = {value}: must be at least 0 and below 1"));
            }
        }
        problems.extend(zero_or_positive("optimizer.weight_decay", self.weight_decay));
        problems
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
    /// What every rate is multiplied with: 1, or less once a run went back to earlier weights.
    pub rate_factor: f64,
}

impl Optimizer {
    /// No steps taken, moments zero.
    pub fn new(params: &Params) -> Self {
        Self { step: 0, first: params.zeros_like(), second: params.zeros_like(), rate_factor: 1.0 }
    }

    /// Clips `gradient` to the configured norm and takes one step of the `total` that the run is to have. Returns the norm before
    /// clipping; if that is not finite, nothing is changed.
    pub fn step(&mut self, config: &OptimizerConfig, total: u64, params: &mut Params, gradient: &mut Params) -> f64 {
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
        let rate = self.rate_factor * config.rate(self.step, total);
        adam.step(self.step, rate, params.values_mut(), gradient.values(), first, second);
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
        Optimizer::new(&w).step(&config, 1, &mut w, &mut g);
        assert!(w.values().iter().all(|v| (v - 0.9).abs() < 1e-6), "{w:?}");
    }

    #[test]
    fn the_rate_rises_and_halves() {
        let config = OptimizerConfig { learning_rate: 8.0, warmup_steps: 4, half_life: 10.0, ..Default::default() };
        let close = |step, expected: f64| assert!((config.rate(step, 100) - expected).abs() < 1e-12, "{step}");
        close(1, 2.0);
        close(11, 4.0);
        close(31, 1.0);
        let constant = OptimizerConfig { warmup_steps: 0, half_life: f64::INFINITY, ..config };
        assert!((constant.rate(1_000_000, 100) - 8.0).abs() < 1e-12);
    }

    /// From the first full step to the last, whatever the warm-up.
    #[test]
    fn the_rate_falls_to_nothing_at_the_end() {
        let config =
            |schedule| OptimizerConfig { learning_rate: 4.0, warmup_steps: 10, schedule, ..Default::default() };
        for (schedule, middle, quarter) in [
            (RateSchedule::Constant, 4.0, 4.0),
            (RateSchedule::Linear, 2.0, 3.0),
            (RateSchedule::Cosine, 2.0, 2.0 + 2f64.sqrt()),
        ] {
            let rate = |step| config(schedule).rate(step, 110);
            assert!((rate(5) - 2.0).abs() < 1e-12 && (rate(10) - 4.0).abs() < 1e-12, "{schedule:?}");
            assert!((rate(60) - middle).abs() < 1e-12 && (rate(35) - quarter).abs() < 1e-12, "{schedule:?}");
            let end = if schedule == RateSchedule::Constant { 4.0 } else { 0.0 };
            assert!((rate(110) - end).abs() < 1e-12 && (rate(200) - end).abs() < 1e-12, "{schedule:?}");
        }
    }

    #[test]
    fn clipping_scales_to_the_norm_and_reports_the_norm_before() {
        let config = OptimizerConfig { max_grad_norm: 1.0, ..Default::default() };
        let (mut w, mut g) = (one(1.0), one(3.0));
        let norm = Optimizer::new(&w).step(&config, 1, &mut w, &mut g);
        assert!((norm - 18f64.sqrt()).abs() < 1e-9 && (g.norm() - 1.0).abs() < 1e-6);
    }

    #[test]
    fn a_gradient_that_is_not_finite_changes_nothing() {
        let (mut w, mut g) = (one(1.0), one(f32::NAN));
        let mut optimizer = Optimizer::new(&w);
        assert!(optimizer.step(&OptimizerConfig::default(), 1, &mut w, &mut g).is_nan());
        assert_eq!((w, optimizer.step), (one(1.0), 0));
    }
}
