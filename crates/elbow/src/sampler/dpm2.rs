//! DPM-Solver++(2M), second-order multistep in the clean sample (arXiv 2211.01095, algorithm 2); arXiv 2602.04663's choice
//! for rollouts, `dpm2` in its code.
//!
//! With λ = ln(α/σ), h = λ' − λ, m the clean sample predicted now, m₋ the one before and r = h₋/h:
//!
//! x' = (σ'/σ) x − α' (e^{−h} − 1) [m + (m − m₋)/(2r)].
//!
//! The first and the last step are first order (no m₋; h is infinite at t = 0). Departure from the reference: at t = 1
//! λ = −∞, so the second step would divide by r = ∞ and silently become first order; here that is explicit.

use super::{Mean, Sampler, Step};
use crate::schedule::Grid;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Second order, deterministic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Dpm2 {}

impl Sampler for Dpm2 {
    fn step(&self, grid: &Grid, k: usize) -> Step {
        let (from, to) = (grid.level(k), grid.level(k + 1));
        let clean = Mean::clean(grid, k, 0);
        let (h, shrink) = grid.span(k);
        let second_order = k > 0 && !grid.is_last(k);
        let ratio = if second_order { grid.span(k - 1).0 / h } else { f64::INFINITY };
        let target = if ratio.is_finite() { clean + (clean - Mean::clean(grid, k, 1)) * (0.5 / ratio) } else { clean };
        Step::deterministic(Mean::point(0) * (to.sigma / from.sigma) + target * (to.alpha * (1.0 - shrink)))
    }
}
