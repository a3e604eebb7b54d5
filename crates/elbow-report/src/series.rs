//! Curves: what a run recorded, epoch by epoch, averaged, thinned, and over seeds.

use crate::{
    chart::Points,
    interval::Interval,
    run::{Epoch, Run},
};
use std::collections::BTreeMap;

/// Weight of what was before in an average.
pub(crate) const SMOOTHING: f64 = 0.6;

/// Points that a curve keeps on a page.
pub(crate) const MOST: usize = 500;

/// What curves are drawn against.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum X {
    Epochs,
    Images,
    /// Time in units of so many seconds.
    Time(f64),
}

impl X {
    /// Epochs, images and, where times were recorded, time in a unit that suits the longest run.
    pub(crate) fn all(runs: &[Run]) -> Vec<Self> {
        let longest = runs.iter().filter_map(|run| run.epochs.last()).map(|epoch| epoch.seconds).fold(0.0, f64::max);
        let unit = if longest < 5400.0 { 60.0 } else { 3600.0 };
        [Self::Epochs, Self::Images].into_iter().chain((longest > 0.0).then_some(Self::Time(unit))).collect()
    }

    pub(crate) fn of(self, epoch: &Epoch) -> f64 {
        match self {
            Self::Epochs => epoch.number as f64,
            Self::Images => epoch.images,
            Self::Time(unit) => epoch.seconds / unit,
        }
    }

    /// The label of its axis.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Epochs => "epoch",
            Self::Images => "images drawn",
            Self::Time(3600.0) => "hours of drawing and training",
            Self::Time(_) => "minutes of drawing and training",
        }
    }

    /// What is chosen by.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Epochs => "epochs",
            Self::Images => "images",
            Self::Time(3600.0) => "hours",
            Self::Time(_) => "minutes",
        }
    }
}

/// Exponential moving average that starts without a bias, as TensorBoard draws it with a smoothing of 0.6: the mean of all values until
/// now, each counting 0.6 times the next. What is missing counts nothing and stays missing.
pub fn averaged(values: &[Option<f64>]) -> Vec<Option<f64>> {
    let (mut sum, mut weight) = (0.0, 0.0);
    let mut average = |value: f64| {
        sum = SMOOTHING * sum + value;
        weight = SMOOTHING * weight + 1.0;
        sum / weight
    };
    values.iter().map(|value| value.map(&mut average)).collect()
}

/// The epochs that have a key. An epoch that lacks it had nothing to say, as of a task that it drew no prompt of; one
/// whose number is null had none that is finite.
pub(crate) fn recorded<'a>(run: &'a Run, key: &str) -> impl Iterator<Item = &'a Epoch> {
    run.epochs.iter().filter(move |epoch| epoch.record.contains_key(key))
}

/// A key of the epochs that have it, against `x`.
pub(crate) fn curve(run: &Run, key: &str, x: X) -> Points {
    recorded(run, key).map(|epoch| (x.of(epoch), epoch.number(key))).collect()
}

/// The average of a curve.
pub(crate) fn smooth(points: &Points) -> Points {
    let values: Vec<Option<f64>> = points.iter().map(|(_, y)| *y).collect();
    points.iter().zip(averaged(&values)).map(|((x, _), y)| (*x, y)).collect()
}

/// Held-out scores against `x`: only where they were measured.
pub(crate) fn held_out(run: &Run, key: &str, x: X) -> Points {
    let scores = run.held_out(key);
    let at = |number: u64| run.epochs.iter().find(|epoch| epoch.number == number).map_or(0.0, |epoch| x.of(epoch));
    scores.into_iter().map(|(number, score)| (at(number), Some(score))).collect()
}

/// A mean over runs, and how far it is to be trusted.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Band {
    pub(crate) mean: Points,
    /// x, lower and upper end, where at least three runs have a value. The interval of two is 12.7 standard errors wide: as a band it
    /// would hide the rest.
    pub(crate) ends: Vec<(f64, f64, f64)>,
}

/// Means over runs, epoch by epoch. Each run gives its points by epoch: x and y.
pub(crate) fn band(runs: &[BTreeMap<u64, (f64, Option<f64>)>]) -> Band {
    let mut epochs: Vec<u64> = runs.iter().flat_map(|run| run.keys().copied()).collect();
    epochs.sort_unstable();
    epochs.dedup();
    let (mut mean, mut ends) = (Vec::new(), Vec::new());
    for epoch in epochs {
        let there: Vec<(f64, f64)> =
            runs.iter().filter_map(|run| run.get(&epoch)).filter_map(|(x, y)| Some((*x, (*y)?))).collect();
        let [x, y] =
            [|p: &(f64, f64)| p.0, |p: &(f64, f64)| p.1].map(|part| there.iter().map(part).collect::<Vec<_>>());
        let Some(interval) = Interval::of(&y) else { continue };
        let x = x.iter().sum::<f64>() / x.len() as f64;
        mean.push((x, Some(interval.mean)));
        ends.extend(
            interval.half.filter(|_| interval.count > 2).map(|half| (x, interval.mean - half, interval.mean + half)),
        );
    }
    Band { mean, ends }
}

/// What becomes of a key over several runs, whose curves are made by `of`.
pub(crate) fn over_seeds(runs: &[&Run], key: &str, of: impl Fn(&Run) -> Points) -> Band {
    let by_epoch = |run: &&Run| recorded(run, key).map(|epoch| epoch.number).zip(of(run)).collect();
    band(&runs.iter().map(by_epoch).collect::<Vec<_>>())
}

/// Thins a long curve to about `most` points: of every stretch its lowest and its highest stay, and so do the ends.
pub(crate) fn thinned(points: &Points, most: usize) -> Points {
    if points.len() <= most {
        return points.clone();
    }
    let stretch = points.len().div_ceil((most / 2).max(1));
    let mut kept = vec![0, points.len() - 1];
    for start in (0..points.len()).step_by(stretch) {
        let range = start..(start + stretch).min(points.len());
        let there = || range.clone().filter(|&i| points[i].1.is_some());
        let by = |a: &usize, b: &usize| points[*a].1.unwrap_or(f64::NAN).total_cmp(&points[*b].1.unwrap_or(f64::NAN));
        match there().min_by(by).zip(there().max_by(by)) {
            Some((lowest, highest)) => kept.extend([lowest, highest]),
            // A stretch without a value stays a gap.
            None => kept.push(start),
        }
    }
    kept.sort_unstable();
    kept.dedup();
    kept.into_iter().map(|i| points[i]).collect()
}

/// Thins a band with its curve.
pub(crate) fn thinned_ends(ends: &[(f64, f64, f64)], most: usize) -> Vec<(f64, f64, f64)> {
    let every = ends.len().div_ceil(most.max(1)).max(1);
    let last = ends.len().saturating_sub(1);
    ends.iter().enumerate().filter(|(i, _)| i.is_multiple_of(every) || *i == last).map(|(_, end)| *end).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_average_begins_with_the_first_value_and_is_the_closed_form() {
        let values = [Some(1.0), Some(3.0), None, Some(2.0)];
        let expected = [1.0, (0.6 + 3.0) / 1.6, (0.36 + 0.6 * 3.0 + 2.0) / (0.36 + 0.6 + 1.0)];
        let found: Vec<f64> = averaged(&values).into_iter().flatten().collect();
        assert_eq!(averaged(&values)[2], None);
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{found:?}");
        let same = averaged(&[Some(0.25); 40]);
        assert!(same.iter().flatten().all(|y| (y - 0.25).abs() < 1e-12));
    }

    #[test]
    fn a_band_is_the_interval_of_each_epoch_where_there_are_several_runs() {
        let run = |y: [Option<f64>; 3]| -> BTreeMap<u64, (f64, Option<f64>)> {
            (1..).zip(y).map(|(epoch, y)| (epoch, (epoch as f64, y))).collect()
        };
        let mut runs = vec![
            run([Some(0.5), None, Some(0.7)]),
            run([Some(0.7), Some(0.4), None]),
            run([Some(0.6), Some(0.2), None]),
        ];
        runs[2].remove(&3);
        let Band { mean, ends } = band(&runs);
        assert_eq!(mean.iter().map(|(x, _)| *x).collect::<Vec<_>>(), [1.0, 2.0, 3.0]);
        assert!(mean.iter().zip([0.6, 0.3, 0.7]).all(|((_, y), expected)| (y.unwrap() - expected).abs() < 1e-12));
        // Of three numbers a tenth apart s is a tenth; t with two degrees of freedom is 0.95 √(2 / 0.0975).
        let half = 0.95 * (2.0f64 / 0.0975).sqrt() * 0.1 / 3.0f64.sqrt();
        assert_eq!(ends.len(), 1, "of two runs there is no band");
        assert!((ends[0].1 - (0.6 - half)).abs() < 1e-7 && (ends[0].2 - (0.6 + half)).abs() < 1e-7);
    }

    #[test]
    fn thinning_keeps_ends_extremes_and_gaps() {
        let mut points: Points = (0..10_000).map(|i| (f64::from(i), Some(f64::from(i % 7)))).collect();
        points[4321].1 = Some(99.0);
        points[4322].1 = Some(-99.0);
        points[7000..7200].iter_mut().for_each(|point| point.1 = None);
        let thin = thinned(&points, 500);
        assert!(thin.len() <= 510, "{}", thin.len());
        assert_eq!((thin[0], *thin.last().unwrap()), (points[0], points[9999]));
        assert!(thin.contains(&points[4321]) && thin.contains(&points[4322]));
        assert!(thin.iter().any(|(x, y)| y.is_none() && (7000.0..7200.0).contains(x)));
        assert!(thin.windows(2).all(|pair| pair[0].0 < pair[1].0));
        assert_eq!(thinned(&points[..100].to_vec(), 500), points[..100]);
        let ends: Vec<(f64, f64, f64)> = (0..1234).map(|i| (f64::from(i), 0.0, 1.0)).collect();
        assert!(thinned_ends(&ends, 100).len() <= 101 && thinned_ends(&ends, 100).last() == ends.last());
        assert_eq!(thinned_ends(&[], 100), []);
    }
}
