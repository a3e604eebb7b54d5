//! How large a difference is, in deviations.

use super::{Estimate, mean, normal, variance};

/// Hedges' g of two samples: the difference of means over the pooled deviation, times 1 − 3 / (4 N − 9) for N values in all, with the normal
/// interval of variance N / (n₁ n₂) + g² / (2 (N − 3.94)) (Hedges 1981; Hartung, Knapp and Sinha 2008). `None` of fewer than two values on a
/// side, or without variance.
pub fn hedges(one: &[f64], other: &[f64], level: f64) -> Option<Estimate> {
    if one.len() < 2 || other.len() < 2 {
        return None;
    }
    let (m, n) = (one.len() as f64, other.len() as f64);
    let all = m + n;
    let pooled = ((m - 1.0) * variance(one) + (n - 1.0) * variance(other)) / (all - 2.0);
    if pooled <= 0.0 {
        return None;
    }
    let value = (mean(one) - mean(other)) / pooled.sqrt() * (1.0 - 3.0 / (4.0 * all - 9.0));
    let half = normal(level) * (all / (m * n) + value * value / (2.0 * (all - 3.94))).sqrt();
    Some(Estimate { value, low: value - half, high: value + half })
}
