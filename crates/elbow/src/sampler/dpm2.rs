//! DPM-Solver++(2M), second-order multistep in the clean sample (arXiv 2211.01095, algorithm 2); arXiv 2602.04663's choice
//! for rollouts, `dpm2` in its code.
//!
//! With λ = ln(α/σ), h = λ' − λ, m the clean sample predicted now, m₋ the one before and r = h₋/h:
//!
//! x' = (σ'/σ) x − α' (e^{−h} − 1) [m + (m − m₋)/(2r)].
//!
//! The first and the last step are first order (no m₋; h is infinite at t = 0). Departure from the reference: at t = 1
//! λ = −∞, so the second step would divide by r = ∞ and silently become first order; here that is explicit.

use super::{Sampler, Step, span};
use crate::{gaussian::Gaussian, schedule::Schedule};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Second order, deterministic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Dpm2 {}

impl Sampler for Dpm2 {
    fn transition(&self, schedule: Schedule, times: &[f64], k: usize, steps: &[Step]) -> Gaussian {
        let (t, next) = (times[k], times[k + 1]);
        let (from, to) = (schedule.level(t), schedule.level(next));
        let Step { x, velocity } = &steps[0];
        let clean = schedule.clean(x.clone(), velocity.clone(), t);
        let (h, shrink) = span(schedule, times, k);
        let last = k + 2 == times.len();
        let previous = steps.get(1).filter(|_| !last).map(|step| {
            let r = span(schedule, times, k - 1).0 / h;
            (schedule.clean(step.x.clone(), step.velocity.clone(), times[k - 1]), r)
        });
        let target = match previous {
            Some((previous, r)) if r.is_finite() => clean.clone() + (clean - previous) * (0.5 / r),
            _ => clean,
        };
        Gaussian { mean: x.clone() * (to.sigma / from.sigma) + target * (to.alpha * (1.0 - shrink)), std: 0.0 }
    }
}
