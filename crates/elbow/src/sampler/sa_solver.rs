//! SA-Solver, stochastic Adams in the clean sample (arXiv 2309.05019, eqs. 14 to 17), with constant noise τ.
//!
//! With m₀, m₁, m₂ the clean samples predicted at the last three points, newest first, h = λ′ − λ the step in λ = ln(α/σ), h₋
//! and h₋₋ the ones before, c = 1 + τ² and the integrals of the Adams formulas A(h) = 1 − e^{−ch}, M(h) = h − A(h)/c,
//!
//! x′ ~ N( (σ′/σ) e^{−τ²h} (x + δ) + α′ [ A(h) m₀ + (M(h)/h₋)(m₀ − m₁) ],  σ′² (1 − e^{−2τ²h}) I ),
//!
//! where the corrector, an Adams–Moulton formula with the noise of the predictor, moved the point by
//!
//! δ = α M(h₋) [ (m₀ − m₁)/h₋ − (m₁ − m₂)/h₋₋ ].
//!
//! The first and the last step are of order 1, and the last has no noise: σ′ = 0. Steps from pure noise are infinitely long:
//! M(h)/h = 1 and 1/h = 0. With `order = 1` there are neither m₁ nor δ, so that a step depends on its own velocity alone
//! and has a density given the point: that of [`super::Ddim`] with another deviation. τ = 0 is an ODE.
//!
//! Departure from diffusers: without the term of third order that it adds to M for few steps, and which grows without bound
//! in a step from pure noise.

use super::{Sampler, Step, redrawn, span};
use crate::{gaussian::Gaussian, schedule::Schedule};
use burn::tensor::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// First or second order, stochastic.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SaSolver {
    /// τ: 0 is an ODE, 1 the reverse SDE of the path.
    pub tau: f64,
    /// 2: with a corrector, for likelihoods of finished images. 1: with a density, for likelihood `trajectory`.
    pub order: usize,
}

impl Default for SaSolver {
    fn default() -> Self {
        Self { tau: 1.0, order: 2 }
    }
}

impl SaSolver {
    /// A(h) and M(h) of step `k`, and M(h)/h.
    fn integrals(self, schedule: Schedule, times: &[f64], k: usize) -> [f64; 3] {
        let ((h, shrink), c) = (span(schedule, times, k), 1.0 + self.tau * self.tau);
        let a = 1.0 - shrink.powf(c);
        let m = h - a / c;
        [a, m, if h.is_finite() { m / h } else { 1.0 }]
    }

    /// δ at step `k`.
    fn correction(self, schedule: Schedule, times: &[f64], k: usize, clean: &[Tensor<4>]) -> Option<Tensor<4>> {
        let (newest, before) = (clean.first()?.clone(), clean.get(1)?.clone());
        let [_, m, slope] = self.integrals(schedule, times, k - 1);
        let alpha = schedule.level(times[k]).alpha;
        let added = (newest - before.clone()) * (alpha * slope);
        let Some(oldest) = clean.get(2) else { return Some(added) };
        let (earlier, _) = span(schedule, times, k - 2);
        Some(added - (before - oldest.clone()) * (alpha * m / earlier))
    }
}

impl Sampler for SaSolver {
    fn std(&self, schedule: Schedule, times: &[f64], k: usize) -> f64 {
        let (_, shrink) = span(schedule, times, k);
        let redrawn = (1.0 - shrink.powf(2.0 * self.tau * self.tau)).sqrt();
        if k + 2 == times.len() { 0.0 } else { schedule.level(times[k + 1]).sigma * redrawn }
    }

    fn transition(&self, schedule: Schedule, times: &[f64], k: usize, steps: &[Step]) -> Gaussian {
        let std = self.std(schedule, times, k);
        if self.order == 1 || k + 2 == times.len() {
            return redrawn(schedule, times, k, &steps[0], std);
        }
        let clean =
            |(back, Step { x, velocity }): (usize, &Step)| schedule.clean(x.clone(), velocity.clone(), times[k - back]);
        let clean: Vec<Tensor<4>> = steps.iter().enumerate().map(clean).collect();
        let ((_, shrink), [a, m, _]) = (span(schedule, times, k), self.integrals(schedule, times, k));
        let (from, to) = (schedule.level(times[k]), schedule.level(times[k + 1]));
        let x = match self.correction(schedule, times, k, &clean) {
            Some(delta) => steps[0].x.clone() + delta,
            None => steps[0].x.clone(),
        };
        let mean = x * (to.sigma / from.sigma * shrink.powf(self.tau * self.tau)) + clean[0].clone() * (to.alpha * a);
        let Some(before) = clean.get(1) else { return Gaussian { mean, std } };
        let (earlier, _) = span(schedule, times, k - 1);
        Gaussian { mean: mean + (clean[0].clone() - before.clone()) * (to.alpha * m / earlier), std }
    }

    fn remembers(&self) -> bool {
        self.order > 1
    }

    fn refuses(&self, _: Schedule, _: usize) -> Option<String> {
        let Self { tau, order } = *self;
        if !(tau >= 0.0 && tau.is_finite()) {
            return Some(format!("sampler `sa-solver`: tau = {tau}: must be 0 (an ODE) or a positive number"));
        }
        (!(1..=2).contains(&order)).then(|| format!("sampler `sa-solver`: order = {order}: must be 1 or 2"))
    }
}
