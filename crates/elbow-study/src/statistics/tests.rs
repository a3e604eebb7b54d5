//! Whether two methods differ, and what many such questions do to the answer.

use super::{Estimate, mean, student, t, variance};
use elbow::noise::Key;
use serde::{Deserialize, Serialize};
use statrs::distribution::ContinuousCDF;

/// A difference of means and how well it is known.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// The first mean minus the second, with Welch's interval.
    pub difference: Estimate,
    /// Of the test that both are the same, two-sided.
    pub p: f64,
}

/// Welch's t test of two means whose variances need not be the same (Welch 1947). `None` of fewer than two values on a side, or without
/// any variance.
pub fn welch(one: &[f64], other: &[f64], level: f64) -> Option<Difference> {
    if one.len() < 2 || other.len() < 2 {
        return None;
    }
    let [a, b] = [one, other].map(|values| variance(values) / values.len() as f64);
    if a + b <= 0.0 {
        return None;
    }
    let freedom = (a + b).powi(2) / (a * a / (one.len() as f64 - 1.0) + b * b / (other.len() as f64 - 1.0));
    let (value, deviation) = (mean(one) - mean(other), (a + b).sqrt());
    let half = student(freedom, level)? * deviation;
    let p = 2.0 * t(freedom).sf((value / deviation).abs());
    Some(Difference { difference: Estimate { value, low: value - half, high: value + half }, p })
}

/// Most splits of which a permutation test looks at every one.
pub const SPLITS: usize = 20_000;

/// p of the permutation test of a difference of means, two-sided as SciPy has it: twice the smaller of two shares, that of splits of all
/// values into groups of the same sizes whose difference is at most what was seen, and that of those where it is at least that. Every split is looked
/// at where there are at most [`SPLITS`], and otherwise as many random ones and the one that was seen. `None` of an empty side.
pub fn permutation(one: &[f64], other: &[f64], key: Key) -> Option<f64> {
    if one.is_empty() || other.is_empty() {
        return None;
    }
    let (all, size) = ([one, other].concat(), one.len());
    let sum: f64 = all.iter().sum();
    let rest = (all.len() - size) as f64;
    let difference = |taken: &[usize]| {
        let mine: f64 = taken.iter().map(|&i| all[i]).sum();
        mine / size as f64 - (sum - mine) / rest
    };
    let mut taken: Vec<usize> = (0..size).collect();
    let seen = difference(&taken);
    // Splits of the same means are equal, whatever the order of their sums.
    let near = 1e-12 * all.iter().fold(0.0f64, |largest, value| largest.max(value.abs()));
    let [mut count, mut below, mut above] = [0usize; 3];
    let mut look = |taken: &[usize]| {
        let difference = difference(taken);
        count += 1;
        below += usize::from(difference <= seen + near);
        above += usize::from(difference >= seen - near);
    };
    look(&taken);
    if splits(all.len(), size) <= SPLITS as f64 {
        while let Some(i) = (0..size).rev().find(|&i| taken[i] < all.len() - size + i) {
            taken[i] += 1;
            for j in i + 1..size {
                taken[j] = taken[j - 1] + 1;
            }
            look(&taken);
        }
    } else {
        (0..SPLITS).for_each(|r| look(&key.sample(r as u64).permutation(all.len())[..size]));
    }
    Some((2.0 * below.min(above) as f64 / count as f64).min(1.0))
}

/// In how many ways `size` of `n` can be taken.
fn splits(n: usize, size: usize) -> f64 {
    (0..size).map(|i| (n - i) as f64 / (size - i) as f64).product()
}

/// p-values corrected so that the chance of one false alarm among all of them is that of one test (Holm 1979), in their order.
pub fn holm(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let (mut corrected, mut least) = (vec![0.0; values.len()], 0.0f64);
    for (rank, &i) in order.iter().enumerate() {
        least = least.max((values[i] * (values.len() - rank) as f64).min(1.0));
        corrected[i] = least;
    }
    corrected
}
