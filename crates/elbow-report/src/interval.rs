//! Means over seeds, and how far to trust them.

use statrs::distribution::{ContinuousCDF, StudentsT};

/// The mean of some runs, and half the width of its 95 % interval: t(0.975, n − 1) s / √n with the sample deviation s.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Interval {
    pub(crate) mean: f64,
    /// Nothing for a single run.
    pub(crate) half: Option<f64>,
    pub(crate) count: usize,
}

/// How this interval is called on a page.
pub(crate) const KIND: &str = "95 % t interval of the mean over seeds";

impl Interval {
    /// Of numbers that there are; nothing of none.
    pub(crate) fn of(values: &[f64]) -> Option<Self> {
        let count = values.len();
        let n = count as f64;
        let mean = values.iter().sum::<f64>() / n;
        let half = (count > 1).then(|| {
            let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (n - 1.0);
            t975(count - 1) * (variance / n).sqrt()
        });
        (count > 0).then_some(Self { mean, half, count })
    }
}

/// The 0.975 quantile of Student's t.
fn t975(freedom: usize) -> f64 {
    let t = StudentsT::new(0.0, 1.0, freedom as f64).expect("invariant: at least one degree of freedom");
    t.inverse_cdf(0.975)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Quantiles in closed form for 1, 2 and 4 degrees of freedom (W. T. Shaw, Journal of Computational Finance 9, 2006, §3).
    fn closed_form(freedom: usize) -> f64 {
        let p: f64 = 0.975;
        let a = 4.0 * p * (1.0 - p);
        match freedom {
            1 => (std::f64::consts::PI * (p - 0.5)).tan(),
            2 => (2.0 * p - 1.0) * (2.0 / a).sqrt(),
            4 => 2.0 * ((a.sqrt().acos() / 3.0).cos() / a.sqrt() - 1.0).sqrt(),
            _ => unreachable!("no closed form here"),
        }
    }

    #[test]
    fn quantiles_are_those_of_the_closed_forms() {
        for freedom in [1, 2, 4] {
            let (found, expected) = (t975(freedom), closed_form(freedom));
            assert!((found - expected).abs() < 1e-8 * expected, "{freedom}: {found} and {expected}");
        }
        // Beyond them, against a printed table.
        for (freedom, expected) in [(3, 3.182), (9, 2.262), (29, 2.045)] {
            assert!((t975(freedom) - expected).abs() < 5e-4);
        }
    }

    #[test]
    fn the_interval_of_few_numbers_is_the_closed_one() {
        let three = Interval::of(&[1.0, 2.0, 6.0]).unwrap();
        // Mean 3, squares 4 + 1 + 9 = 14, deviation √7.
        assert!((three.mean - 3.0).abs() < 1e-12 && three.count == 3);
        assert!((three.half.unwrap() - closed_form(2) * (7.0f64 / 3.0).sqrt()).abs() < 1e-7);
        assert_eq!(Interval::of(&[5.0]).unwrap().half, None);
        assert_eq!(Interval::of(&[]), None);
        assert!(Interval::of(&[2.0, 2.0]).unwrap().half.unwrap().abs() < 1e-12);
    }
}
