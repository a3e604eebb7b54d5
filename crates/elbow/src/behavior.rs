//! The lagged policy that draws rollouts, and the averaged one that is evaluated.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// After update s (counted from 1) the behavior weights move: b ← η b + (1 − η) θ with η = min(rate · (s − start), max),
/// 0 before `start` (arXiv 2602.04663's code; arXiv 2509.16117, §3.3). η is the weight on the *old* value, so 0 is on-policy.
///
/// The reference code's decay types: 0 `max = 0`; 1 the default; 2 `start = 75, rate = 0.0075, max = 0.999`;
/// 3 `start = 10, rate = 0.01, max = 0.5`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct BehaviorLag {
    /// Updates before the lag begins.
    pub start: u64,
    /// Growth of η per update.
    pub rate: f64,
    /// Largest η, in [0, 1).
    pub max: f64,
    /// Draw rollouts from the current weights all the same; the lagged ones then serve the penalties alone, as AWM's do
    /// (arXiv 2509.25050). For one update an epoch.
    pub on_policy: bool,
}

impl Default for BehaviorLag {
    fn default() -> Self {
        Self { start: 0, rate: 1e-3, max: 0.5, on_policy: false }
    }
}

impl BehaviorLag {
    /// Whether some of an epoch's `updates` see current weights that are not the lagged ones.
    pub fn moves_apart(self, updates: usize) -> bool {
        updates > 1 || self.max > 0.0
    }

    /// η after update `step`.
    pub fn decay(self, step: u64) -> f64 {
        (self.rate * step.saturating_sub(self.start) as f64).clamp(0.0, self.max)
    }
}

/// Moving average of the trained weights: decay min(max, (1 + s)/(10 + s)) after update s. Evaluation uses it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Ema {
    /// Largest decay, in [0, 1).
    pub max_decay: f64,
}

impl Default for Ema {
    fn default() -> Self {
        Self { max_decay: 0.9 }
    }
}

impl Ema {
    /// The decay after update `step`.
    pub fn decay(self, step: u64) -> f64 {
        self.max_decay.min((1 + step) as f64 / (10 + step) as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_codes_schedules() {
        let lag = |start, rate, max| BehaviorLag { start, rate, max, on_policy: false };
        let close = |lag: BehaviorLag, step, expected: f64| assert!((lag.decay(step) - expected).abs() < 1e-12);
        close(lag(0, 1e-3, 0.0), 1000, 0.0);
        close(BehaviorLag::default(), 100, 0.1);
        close(BehaviorLag::default(), 1000, 0.5);
        close(lag(75, 0.0075, 0.999), 74, 0.0);
        close(lag(75, 0.0075, 0.999), 175, 0.75);
        close(lag(10, 0.01, 0.5), 30, 0.2);
    }

    #[test]
    fn the_average_warms_up() {
        let ema = Ema::default();
        assert!((ema.decay(1) - 2.0 / 11.0).abs() < 1e-12 && (ema.decay(10_000) - 0.9).abs() < 1e-12);
    }
}
