//! The statistics against SciPy, statsmodels and lifelines on the same numbers (`fixtures/make/statistics.py`), and closed forms.

use elbow::noise::{Key, Purpose};
use elbow_study::statistics::{
    Estimate, LEVEL,
    anova::{self, AnovaError, Share},
    bootstrap, effect, mean, mean_interval, rank,
    survival::{self, Arrival},
    tests, variance,
};
use serde_json::Value;
use std::{fs, path::Path};

fn golden() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/study/statistics.json");
    serde_json::from_str(&fs::read_to_string(path).expect("a fixture")).expect("JSON")
}

fn list(value: &Value) -> &Vec<Value> {
    value.as_array().expect("a list")
}

fn numbers(value: &Value) -> Vec<f64> {
    list(value).iter().map(|v| v.as_f64().expect("a number")).collect()
}

/// Equal to nine digits; null is an infinite bound, of either sign.
#[track_caller]
fn close(got: f64, expected: &Value, what: &str) {
    match expected.as_f64() {
        None => assert!(got.is_infinite(), "{what}: {got} and nothing"),
        Some(expected) => {
            assert!((got - expected).abs() <= 1e-9 * expected.abs().max(1.0), "{what}: {got} and {expected}");
        }
    }
}

#[track_caller]
fn same(got: Estimate, expected: &Value, what: &str) {
    for (got, expected) in [got.value, got.low, got.high].into_iter().zip(list(expected)) {
        close(got, expected, what);
    }
}

fn key() -> Key {
    Key::new(0, Purpose::Resampling, 0)
}

#[test]
fn differences_are_those_of_scipy_and_statsmodels() {
    let golden = golden();
    for (i, case) in list(&golden["differences"]).iter().enumerate() {
        let (one, other) = (numbers(&case["one"]), numbers(&case["other"]));
        same(mean_interval(&one, LEVEL).expect("values"), &case["mean"], &format!("mean {i}"));
        let welch = tests::welch(&one, &other, LEVEL).expect("variance");
        same(welch.difference, &case["difference"], &format!("difference {i}"));
        close(welch.p, &case["welch_p"], &format!("Welch {i}"));
        same(effect::hedges(&one, &other, LEVEL).expect("variance"), &case["hedges"], &format!("Hedges {i}"));
        if case["permutation_p"].is_f64() {
            let p = tests::permutation(&one, &other, key()).expect("values");
            close(p, &case["permutation_p"], &format!("permutation {i}"));
        }
    }
    let ties = &golden["ties"];
    let p = tests::permutation(&numbers(&ties["one"]), &numbers(&ties["other"]), key()).expect("values");
    close(p, &ties["permutation_p"], "ties");
}

/// Random splits agree with all splits: 12 against 12 have 2.7 million.
#[test]
fn random_permutations_come_close_to_the_t_test() {
    let golden = golden();
    let case = list(&golden["differences"]).last().expect("a case");
    let (one, other) = (numbers(&case["one"]), numbers(&case["other"]));
    let p = tests::permutation(&one, &other, key()).expect("values");
    let welch = case["welch_p"].as_f64().expect("a number");
    assert!((p - welch).abs() < 0.02, "{p} and {welch}");
    assert_eq!(Some(p), tests::permutation(&one, &other, key()), "the same every time");
}

#[test]
fn corrected_p_values_are_those_of_statsmodels() {
    for case in list(&golden()["corrections"]) {
        let got = tests::holm(&numbers(&case["p"]));
        for (got, expected) in got.into_iter().zip(list(&case["holm"])) {
            close(got, expected, "Holm");
        }
    }
    assert!(tests::holm(&[]).is_empty());
}

#[test]
fn bootstrap_intervals_are_those_of_scipy_on_the_same_resamples() {
    let median = |values: &[f64]| bootstrap::quantiles(&mut values.to_vec(), [0.5])[0];
    for case in list(&golden()["bootstraps"]) {
        let values = numbers(&case["values"]);
        let taken = |row: &Value| list(row).iter().map(|i| i.as_u64().expect("an index") as usize).collect();
        let resamples: Vec<Vec<usize>> = list(&case["indices"]).iter().map(taken).collect();
        let name = case["statistic"].as_str().expect("a name");
        let of = |values: &[f64]| match name {
            "mean" => mean(values),
            "variance" => variance(values),
            _ => median(values),
        };
        same(bootstrap::percentile(&values, of, &resamples, LEVEL), &case["percentile"], name);
        same(bootstrap::bca(&values, of, &resamples, LEVEL).expect("defined"), &case["BCa"], name);
    }
}

/// The mean over resamples of n values has the mean of the values and 1/n of their variance (with n, not n − 1).
#[test]
fn resamples_are_uniform_and_the_same_every_time() {
    let (n, count) = (5, 20_000);
    let resamples = bootstrap::indices(key(), n, count);
    assert_eq!(resamples, bootstrap::indices(key(), n, count));
    assert_ne!(resamples, bootstrap::indices(key().draw(1), n, count));
    let mut seen = vec![0usize; n];
    resamples.iter().flatten().for_each(|&i| seen[i] += 1);
    assert!(seen.iter().all(|&s| (s as f64 / count as f64 - 1.0).abs() < 0.03), "{seen:?}");
    let values = [0.0, 1.0, 2.0, 3.0, 4.0];
    let means: Vec<f64> =
        resamples.iter().map(|taken| mean(&taken.iter().map(|&i| values[i]).collect::<Vec<_>>())).collect();
    assert!((mean(&means) - 2.0).abs() < 0.02 && (variance(&means) - 0.4).abs() < 0.02);
    assert_eq!(bootstrap::bca(&[1.0; 4], mean, &bootstrap::indices(key(), 4, 50), LEVEL), None);
}

#[test]
fn censored_times_are_those_of_lifelines_and_statsmodels() {
    let golden = golden();
    let arrivals = |case: &Value| -> Vec<Arrival> {
        let arrived = list(&case["arrived"]).iter().map(|a| a.as_bool().expect("yes or no"));
        numbers(&case["times"]).into_iter().zip(arrived).map(|(time, arrived)| Arrival { time, arrived }).collect()
    };
    let cases = list(&golden["survivals"]);
    for (i, case) in cases.iter().enumerate() {
        let arrivals = arrivals(case);
        let curve = survival::kaplan_meier(&arrivals);
        assert_eq!(curve.len(), list(&case["curve"]).len(), "case {i}");
        for (step, expected) in curve.iter().zip(list(&case["curve"])) {
            close(step.time, &expected["time"], "time");
            close(step.share, &expected["share"], "share");
            match expected["band"].as_array() {
                None => assert!(step.band(LEVEL)[0] <= 0.0 && step.band(LEVEL)[1] >= 1.0),
                Some(band) => step.band(LEVEL).into_iter().zip(band).for_each(|(got, band)| close(got, band, "band")),
            }
        }
        let median = survival::median(&arrivals, LEVEL);
        close(median.value, &case["median"], &format!("median {i}"));
        close(median.low, &case["median_low"], &format!("median {i}, low"));
        close(median.high, &case["median_high"], &format!("median {i}, high"));
        let until = case["until"].as_f64().expect("a number");
        let mean = survival::restricted_mean(&arrivals, until, LEVEL);
        same(mean, &case["restricted_mean"], &format!("restricted mean {i}"));
    }
    for pair in list(&golden["log_ranks"]) {
        let [one, other] = ["one", "other"].map(|name| arrivals(&cases[pair[name].as_u64().expect("a case") as usize]));
        let [statistic, p] = survival::log_rank(&one, &other).expect("someone arrives");
        close(statistic, &pair["statistic"], "log-rank");
        close(p, &pair["p"], "log-rank p");
    }
}

/// Nobody arrives: nothing is known but that it takes longer.
#[test]
fn a_threshold_that_nobody_reaches_has_no_time() {
    let never = [Arrival { time: 9.0, arrived: false }; 5];
    assert!(survival::kaplan_meier(&never).is_empty());
    let median = survival::median(&never, LEVEL);
    assert!([median.value, median.low, median.high].iter().all(|value| value.is_infinite()));
    assert!((survival::restricted_mean(&never, 9.0, LEVEL).value - 9.0).abs() < 1e-12);
    assert_eq!(survival::log_rank(&never, &never), None);
}

#[test]
fn shares_of_variance_are_those_of_statsmodels() {
    for (i, case) in list(&golden()["variances"]).iter().enumerate() {
        let grid: Vec<Vec<Vec<f64>>> =
            list(&case["grid"]).iter().map(|row| list(row).iter().map(numbers).collect()).collect();
        let parts = anova::two_way(&grid).expect("balanced");
        for (part, expected) in [parts.first, parts.second, parts.interaction].into_iter().zip(list(&case["parts"])) {
            let Share { squares, freedom, f, p, eta, omega } = part;
            let all = [("squares", squares), ("freedom", freedom), ("f", f), ("p", p), ("eta", eta), ("omega", omega)];
            for (name, value) in all {
                close(value, &expected[name], &format!("case {i}, {name}"));
            }
        }
        close(parts.residual, &case["residual"], "residual");
        let sum = parts.first.eta + parts.second.eta + parts.interaction.eta + parts.residual / parts.total;
        assert!((sum - 1.0).abs() < 1e-12, "shares add up");
        let intervals = anova::eta_intervals(&grid, key(), 200, LEVEL).expect("balanced");
        assert!(intervals.iter().all(|eta| 0.0 <= eta.low && eta.low <= eta.high && eta.high <= 1.0), "{intervals:?}");
    }
}

#[test]
fn a_grid_that_is_not_balanced_has_no_shares() {
    let two = || vec![1.0, 2.0];
    let cases = [
        (vec![vec![two(), two()]], AnovaError::Levels(1, 2)),
        (vec![vec![two()], vec![two()]], AnovaError::Levels(2, 1)),
        (vec![vec![two(), vec![1.0]], vec![two(), two()]], AnovaError::Unbalanced { least: 1, most: 2 }),
        (vec![vec![vec![1.0]; 2]; 2], AnovaError::NoResidual),
        (vec![vec![vec![1.0, 1.0]; 2]; 2], AnovaError::NoResidual),
    ];
    for (grid, expected) in cases {
        assert_eq!(anova::two_way(&grid), Err(expected));
    }
}

#[test]
fn too_few_values_give_no_answer() {
    assert_eq!(mean_interval(&[], LEVEL), None);
    let one = mean_interval(&[3.0], LEVEL).expect("a value");
    assert!(one.low.is_infinite() && one.high.is_infinite());
    assert!(tests::welch(&[1.0], &[1.0, 2.0], LEVEL).is_none() && tests::welch(&[1.0; 3], &[2.0; 3], LEVEL).is_none());
    assert!(effect::hedges(&[1.0; 3], &[2.0; 3], LEVEL).is_none() && tests::permutation(&[], &[1.0], key()).is_none());
}

#[test]
fn correlations_are_those_of_scipy() {
    for (i, case) in list(&golden()["correlations"]).iter().enumerate() {
        let (one, other) = (numbers(&case["one"]), numbers(&case["other"]));
        rank::ranks(&one).into_iter().zip(list(&case["ranks"])).for_each(|(got, rank)| close(got, rank, "rank"));
        close(rank::pearson(&one, &other).expect("both vary"), &case["pearson"], &format!("Pearson {i}"));
        close(rank::spearman(&one, &other).expect("both vary"), &case["spearman"], &format!("Spearman {i}"));
        close(rank::slope(&one, &other).expect("it varies"), &case["slope"], &format!("slope {i}"));
    }
    assert_eq!(rank::spearman(&[1.0, 1.0], &[1.0, 2.0]), None);
    assert_eq!((rank::pearson(&[1.0], &[2.0]), rank::slope(&[3.0, 3.0], &[1.0, 2.0])), (None, None));
}
