//! Intervals by resampling (Efron and Tibshirani, *An Introduction to the Bootstrap*, 1993).
//!
//! Which values a resample takes is decided by a key, so that the same numbers give the same interval every time.

use super::{Estimate, mean};
use elbow::noise::Key;
use statrs::distribution::{ContinuousCDF, Normal};

/// Resamples behind an interval of a report.
pub const RESAMPLES: usize = 2000;

/// For each resample, which of `n` values it takes, `n` of them with repetition.
pub fn indices(key: Key, n: usize, resamples: usize) -> Vec<Vec<usize>> {
    let draw = |r: usize| key.sample(r as u64).uniforms().take(n).map(|u| (u * n as f64) as usize).collect();
    (0..resamples).map(draw).collect()
}

/// A statistic with its percentile interval over resamples: the quantiles of its value in each.
pub fn percentile(values: &[f64], of: impl Fn(&[f64]) -> f64, resamples: &[Vec<usize>], level: f64) -> Estimate {
    let [low, high] = quantiles(&mut replicates(values, &of, resamples), [0.5 - level / 2.0, 0.5 + level / 2.0]);
    Estimate { value: of(values), low, high }
}

/// A statistic with its bias-corrected and accelerated interval (Efron 1987). `None` where it is undefined: all resamples give one
/// value, or all lie on one side of the statistic.
pub fn bca(values: &[f64], of: impl Fn(&[f64]) -> f64, resamples: &[Vec<usize>], level: f64) -> Option<Estimate> {
    let value = of(values);
    let mut replicates = replicates(values, &of, resamples);
    // A resample that takes every value once is a tie, whatever the order of its sums.
    let near = 1e-12 * value.abs();
    let count = |bound: f64| replicates.iter().filter(|&&replicate| replicate <= bound).count() as f64;
    let below = (count(value - near) + count(value + near)) / (2.0 * replicates.len() as f64);
    let normal = Normal::standard();
    let bias = normal.inverse_cdf(below);
    let without: Vec<f64> = (0..values.len()).map(|i| of(&[&values[..i], &values[i + 1..]].concat())).collect();
    let center = mean(&without);
    let power = |p: i32| without.iter().map(|w| (center - w).powi(p)).sum::<f64>();
    let acceleration = power(3) / (6.0 * power(2).powf(1.5));
    let at = |tail: f64| {
        let moved = bias + normal.inverse_cdf(tail);
        normal.cdf(bias + moved / (1.0 - acceleration * moved))
    };
    let tails = [at(0.5 - level / 2.0), at(0.5 + level / 2.0)];
    if tails.iter().any(|tail| tail.is_nan()) || bias.is_infinite() {
        return None;
    }
    let [low, high] = quantiles(&mut replicates, tails);
    Some(Estimate { value, low, high })
}

/// The statistic of each resample.
fn replicates(values: &[f64], of: &impl Fn(&[f64]) -> f64, resamples: &[Vec<usize>]) -> Vec<f64> {
    let one = |taken: &Vec<usize>| of(&taken.iter().map(|&i| values[i]).collect::<Vec<_>>());
    resamples.iter().map(one).collect()
}

/// Quantiles with linear interpolation between order statistics, as NumPy's. The values are sorted; NaN without any.
pub fn quantiles<const N: usize>(values: &mut [f64], shares: [f64; N]) -> [f64; N] {
    values.sort_by(f64::total_cmp);
    shares.map(|share| {
        let Some(last) = values.len().checked_sub(1) else { return f64::NAN };
        let place = share * last as f64;
        let (below, rest) = (place.floor() as usize, place.fract());
        // An infinite neighbor that does not count must not make it NaN.
        if rest == 0.0 { values[below] } else { values[below] * (1.0 - rest) + values[(below + 1).min(last)] * rest }
    })
}
