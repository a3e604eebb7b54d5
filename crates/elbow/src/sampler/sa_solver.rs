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
//! With `noise_between = [a, b]` steps that leave a time outside [a, b] have τ = 0, and with `first_correction = false` the point after the
//! first step is not corrected: both as AWM (arXiv 2509.25050).
//!
//! The first and the last step are of order 1, and the last has no noise: σ′ = 0. Steps from pure noise are infinitely long:
//! M(h)/h = 1 and 1/h = 0. With `order = 1` there are neither m₁ nor δ, so that a step depends on its own velocity alone
//! and has a density given the point: that of [`super::Ddim`] with another deviation. τ = 0 is an ODE.
//!
//! Departure from diffusers: without the term of third order that it adds to M for few steps, and which grows without bound
//! in a step from pure noise.

use super::{Mean, Sampler, Step, noise};
use crate::schedule::Grid;
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
    /// The times between which steps have noise; without it all have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub noise_between: Option<[f64; 2]>,
    /// Whether the point after the first step is corrected.
    pub first_correction: bool,
}

impl Default for SaSolver {
    fn default() -> Self {
        Self { tau: 1.0, order: 2, noise_between: None, first_correction: true }
    }
}

impl SaSolver {
    /// τ² of step `k`.
    fn tau_squared(self, grid: &Grid, k: usize) -> f64 {
        let silent = self.noise_between.is_some_and(|[from, to]| grid.times[k] < from || grid.times[k] > to);
        if silent { 0.0 } else { self.tau * self.tau }
    }

    /// A(h) and M(h) of step `k`, and M(h)/h.
    fn integrals(self, grid: &Grid, k: usize) -> [f64; 3] {
        let ((h, shrink), c) = (grid.span(k), 1.0 + self.tau_squared(grid, k));
        let a = 1.0 - shrink.powf(c);
        let m = h - a / c;
        [a, m, if h.is_finite() { m / h } else { 1.0 }]
    }

    /// δ at step `k`, if there is a step to correct.
    fn correction(self, grid: &Grid, k: usize) -> Option<Mean> {
        if k == 0 || (k == 1 && !self.first_correction) {
            return None;
        }
        let (newest, before) = (Mean::clean(grid, k, 0), Mean::clean(grid, k, 1));
        let [_, m, slope] = self.integrals(grid, k - 1);
        let alpha = grid.level(k).alpha;
        let added = (newest - before) * (alpha * slope);
        if k == 1 {
            return Some(added);
        }
        let (earlier, _) = grid.span(k - 2);
        Some(added - (before - Mean::clean(grid, k, 2)) * (alpha * m / earlier))
    }
}

impl Sampler for SaSolver {
    fn step(&self, grid: &Grid, k: usize) -> Step {
        let (from, to) = (grid.level(k), grid.level(k + 1));
        let (_, shrink) = grid.span(k);
        let tau_squared = self.tau_squared(grid, k);
        let redrawn = (1.0 - shrink.powf(2.0 * tau_squared)).sqrt();
        let std = if grid.is_last(k) { 0.0 } else { to.sigma * redrawn };
        if self.order == 1 || grid.is_last(k) {
            return Step::redrawn(grid, k, std);
        }
        let [a, m, _] = self.integrals(grid, k);
        let corrected = Mean::point(0) + self.correction(grid, k).unwrap_or_default();
        let clean = Mean::clean(grid, k, 0);
        let kept = to.sigma / from.sigma * shrink.powf(tau_squared);
        let mut mean = corrected * kept + clean * (to.alpha * a);
        if k > 0 {
            let (earlier, _) = grid.span(k - 1);
            mean = mean + (clean - Mean::clean(grid, k, 1)) * (to.alpha * m / earlier);
        }
        Step { mean, std }
    }

    fn validate(&self, _: &Grid) -> Vec<String> {
        let Self { tau, order, noise_between, .. } = *self;
        let mut problems: Vec<String> = noise("sa-solver", "tau", tau).into_iter().collect();
        if !(1..=2).contains(&order) {
            problems.push(format!("sampler `sa-solver`: order = {order}: must be 1 or 2"));
        }
        if let Some([from, to]) = noise_between
            && !(0.0 <= from && from <= to && to <= 1.0)
        {
            problems.push(format!(
                "sampler `sa-solver`: noise_between = [{from}, {to}]: two times between 0 and 1, the lower first"
            ));
        }
        problems
    }
}
