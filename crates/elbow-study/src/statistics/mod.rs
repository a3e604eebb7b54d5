//! What numbers of a few seeds allow to say.
//!
//! Functions of plain numbers, one file a topic: [`bootstrap`] bands and intervals by resampling, [`survival`] times to a threshold of
//! which some are unknown, [`tests`] of a difference and their correction for many, [`anova`] shares of variance, [`effect`] sizes,
//! [`rank`] correlations.
//! Every one is compared with SciPy, statsmodels or lifelines in `tests/statistics.rs`.

pub mod anova;
pub mod bootstrap;
pub mod effect;
pub mod rank;
pub mod survival;
pub mod tests;

use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, Normal, StudentsT};

/// Confidence of every interval of a report.
pub const LEVEL: f64 = 0.95;

/// A number and its interval. A bound that is unknown is infinite; in JSON it is null.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The number.
    #[serde(with = "null_is_infinite")]
    pub value: f64,
    /// The lower end of its interval.
    #[serde(with = "null_is_minus_infinite")]
    pub low: f64,
    /// The upper end.
    #[serde(with = "null_is_infinite")]
    pub high: f64,
}

/// Mean; NaN of nothing.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Unbiased variance, Σ (x − mean)² / (n − 1); NaN of fewer than two.
pub fn variance(values: &[f64]) -> f64 {
    let center = mean(values);
    values.iter().map(|value| (value - center).powi(2)).sum::<f64>() / (values.len() as f64 - 1.0)
}

/// Mean with Student's t interval at a level; without bounds of a single value. `None` of nothing.
pub fn mean_interval(values: &[f64], level: f64) -> Option<Estimate> {
    if values.is_empty() {
        return None;
    }
    let (center, n) = (mean(values), values.len() as f64);
    let half = student(n - 1.0, level).map_or(f64::INFINITY, |t| t * (variance(values) / n).sqrt());
    Some(Estimate { value: center, low: center - half, high: center + half })
}

/// The two-sided quantile of the standard normal distribution at a level: 1.96 at 0.95.
pub fn normal(level: f64) -> f64 {
    Normal::standard().inverse_cdf(0.5 + level / 2.0)
}

/// The two-sided quantile of Student's t at a level; `None` without a degree of freedom.
pub fn student(freedom: f64, level: f64) -> Option<f64> {
    (freedom > 0.0).then(|| t(freedom).inverse_cdf(0.5 + level / 2.0))
}

/// Student's t distribution of positive degrees of freedom.
fn t(freedom: f64) -> StudentsT {
    StudentsT::new(0.0, 1.0, freedom).expect("invariant: positive degrees of freedom")
}

mod null_is_infinite {
    use serde::{Deserialize, Deserializer, Serializer};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
    pub(super) fn serialize<S: Serializer>(value: &f64, to: S) -> Result<S::Ok, S::Error> {
        if value.is_finite() { to.serialize_f64(*value) } else { to.serialize_none() }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
        Ok(Option::<f64>::deserialize(from)?.unwrap_or(f64::INFINITY))
    }
}

mod null_is_minus_infinite {
    use serde::{Deserialize, Deserializer};

    pub(super) use super::null_is_infinite::serialize;

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
        Ok(Option::<f64>::deserialize(from)?.unwrap_or(f64::NEG_INFINITY))
    }
}
