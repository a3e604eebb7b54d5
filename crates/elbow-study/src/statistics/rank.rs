//! How two lists of numbers go together.

use super::mean;

/// Ranks from 1 on; equal values share the mean of theirs.
pub fn ranks(values: &[f64]) -> Vec<f64> {
    // Zero has no sign here.
    let values: Vec<f64> = values.iter().map(|value| value + 0.0).collect();
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let (mut ranks, mut first) = (vec![0.0; values.len()], 0);
    for tied in order.chunk_by(|&a, &b| values[a].total_cmp(&values[b]).is_eq()) {
        let shared = first as f64 + f64::midpoint(tied.len() as f64, 1.0);
        for &i in tied {
            ranks[i] = shared;
        }
        first += tied.len();
    }
    ranks
}

/// Pearson's correlation; `None` of fewer than two pairs, or where one side does not vary.
///
/// # Panics
/// If the lists differ in length.
pub fn pearson(one: &[f64], other: &[f64]) -> Option<f64> {
    assert_eq!(one.len(), other.len(), "invariant: pairs");
    let (a, b) = (mean(one), mean(other));
    let sum = |of: &dyn Fn(f64, f64) -> f64| one.iter().zip(other).map(|(x, y)| of(x - a, y - b)).sum::<f64>();
    let (square, other_square) = (sum(&|x, _| x * x), sum(&|_, y| y * y));
    (one.len() > 1 && square > 0.0 && other_square > 0.0).then(|| sum(&|x, y| x * y) / (square * other_square).sqrt())
}

/// Spearman's rank correlation: Pearson's of the ranks; `None` where that is.
pub fn spearman(one: &[f64], other: &[f64]) -> Option<f64> {
    pearson(&ranks(one), &ranks(other))
}

/// The slope of the least-squares line of `y` over `x`; `None` where `x` does not vary.
pub fn slope(x: &[f64], y: &[f64]) -> Option<f64> {
    assert_eq!(x.len(), y.len(), "invariant: pairs");
    let (a, b) = (mean(x), mean(y));
    let squares: f64 = x.iter().map(|x| (x - a).powi(2)).sum();
    (x.len() > 1 && squares > 0.0).then(|| x.iter().zip(y).map(|(x, y)| (x - a) * (y - b)).sum::<f64>() / squares)
}
