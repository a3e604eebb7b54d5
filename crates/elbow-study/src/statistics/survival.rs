//! Times to a threshold, where some never arrived while one looked: they are censored, and count as such.
//!
//! Kaplan and Meier 1958; the interval of the median by Brookmeyer and Crowley 1982 on the log-log scale; the restricted mean by
//! Irwin 1949; the log-rank test by Mantel 1966.

use super::{Estimate, normal, student};
use serde::{Deserialize, Serialize};
use statrs::distribution::{ChiSquared, ContinuousCDF};

/// One time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Arrival {
    /// When it arrived, or when one last looked.
    pub time: f64,
    /// Whether it arrived; otherwise it is censored.
    pub arrived: bool,
}

/// The curve of those not arrived yet, from one time of arrivals on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// The time.
    pub time: f64,
    /// Not arrived and not censored before it.
    pub at_risk: f64,
    /// Arrivals at it.
    pub arrived: f64,
    /// Share not arrived from it on.
    pub share: f64,
    /// Greenwood's sum Σ d / (n (n − d)) up to it; infinite where nobody is left.
    pub greenwood: f64,
}

/// The Kaplan–Meier curve, by times of arrivals. Who is censored at such a time was at risk there.
pub fn kaplan_meier(arrivals: &[Arrival]) -> Vec<Step> {
    let mut times: Vec<f64> = arrivals.iter().filter(|a| a.arrived).map(|a| a.time).collect();
    times.sort_by(f64::total_cmp);
    times.dedup();
    let (mut share, mut greenwood) = (1.0, 0.0);
    let step = |time: f64| {
        let [at_risk, arrived] = counts(arrivals, time);
        share *= 1.0 - arrived / at_risk;
        greenwood += arrived / (at_risk * (at_risk - arrived));
        Step { time, at_risk, arrived, share, greenwood }
    };
    times.into_iter().map(step).collect()
}

/// How many are at risk at a time, and how many arrive at it.
fn counts(arrivals: &[Arrival], time: f64) -> [f64; 2] {
    let at_risk = arrivals.iter().filter(|a| a.time >= time).count() as f64;
    let arrived = arrivals.iter().filter(|a| a.arrived && a.time <= time && a.time >= time).count() as f64;
    [at_risk, arrived]
}

impl Step {
    /// The interval of the share on the log-log scale: share^exp(±z √G / |ln share|). Unknown, from 0 to 1, where nobody is left, as R's
    /// `survfit` has it: with few seeds their all having arrived bounds the share from above by little.
    pub fn band(&self, level: f64) -> [f64; 2] {
        if self.share <= 0.0 {
            return [0.0, 1.0];
        }
        let spread = normal(level) * self.greenwood.sqrt() / self.share.ln().abs();
        [self.share.powf(spread.exp()), self.share.powf((-spread).exp())]
    }
}

/// The median time: the first at which at most half are left. Infinite where more than half never arrive, and so is a bound that lies
/// beyond the last arrival.
pub fn median(arrivals: &[Arrival], level: f64) -> Estimate {
    let curve = kaplan_meier(arrivals);
    let first = |of: &dyn Fn(&Step) -> f64| {
        curve.iter().find(|step| of(step) <= 0.5 + 1e-12).map_or(f64::INFINITY, |step| step.time)
    };
    Estimate {
        value: first(&|step| step.share),
        low: first(&|step| step.band(level)[0]),
        high: first(&|step| step.band(level)[1]),
    }
}

/// The mean time when nobody is waited for longer than `until`: the area under the curve up to there. Its variance is Greenwood's with
/// m / (m − 1), where m times are known up to there, and its interval Student's t with m − 1 degrees of freedom: where nobody is lost before,
/// the ordinary interval of the mean of times cut off at `until`. Without bounds where fewer than two are known.
pub fn restricted_mean(arrivals: &[Arrival], until: f64, level: f64) -> Estimate {
    let curve: Vec<Step> = kaplan_meier(arrivals).into_iter().filter(|step| step.time < until).collect();
    let end = |i: usize| curve.get(i + 1).map_or(until, |step| step.time);
    let areas: Vec<f64> = curve.iter().enumerate().map(|(i, step)| step.share * (end(i) - step.time)).collect();
    let value = curve.first().map_or(until, |step| step.time) + areas.iter().sum::<f64>();
    let mut variance = 0.0;
    for (i, step) in curve.iter().enumerate() {
        let left = step.at_risk - step.arrived;
        if left > 0.0 {
            let rest: f64 = areas[i..].iter().sum();
            variance += rest * rest * step.arrived / (step.at_risk * left);
        }
    }
    let known = arrivals.iter().filter(|a| a.arrived || a.time >= until).count() as f64;
    let half = student(known - 1.0, level).map_or(f64::INFINITY, |t| t * (variance * known / (known - 1.0)).sqrt());
    Estimate { value, low: value - half, high: value + half }
}

/// χ² of the log-rank test that two curves are one, and its p-value. `None` where nobody arrives or nobody could have arrived later.
pub fn log_rank(one: &[Arrival], other: &[Arrival]) -> Option<[f64; 2]> {
    let all = [one, other].concat();
    let (mut surplus, mut variance) = (0.0, 0.0);
    for step in kaplan_meier(&all) {
        let [mine, arrived] = counts(one, step.time);
        let (n, d) = (step.at_risk, step.arrived);
        surplus += arrived - d * mine / n;
        if n > 1.0 {
            variance += d * (mine / n) * (1.0 - mine / n) * (n - d) / (n - 1.0);
        }
    }
    let statistic = surplus * surplus / variance;
    let square = ChiSquared::new(1.0).expect("invariant: one degree of freedom");
    (variance > 0.0).then(|| [statistic, square.sf(statistic)])
}
