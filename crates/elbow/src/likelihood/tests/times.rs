//! Which times are looked at (arXiv 2602.04663, 2509.25050, 2403.03206).

use super::*;

#[test]
fn a_permutation_takes_nearly_all_times_once_per_sample() {
    for (steps, expected) in [(10, 9), (40, 39), (1, 1), (100, 99)] {
        let n = 8;
        let rollout = given(Tensor::zeros([n, 1], &Device::flex()), steps, 1.0);
        let grid = rollout.grid.times.clone();
        let queries: Vec<Query> = Elbo::default().queries(&rollout, &rollout).collect();
        assert_eq!(queries.len(), expected, "{steps} steps");
        let orders: Vec<Vec<f64>> = (0..n)
            .map(|i| queries.iter().map(|q| on_grid(numbers(q.t.clone())[i], &grid[..steps])).collect())
            .collect();
        for order in &orders {
            let mut sorted = order.clone();
            sorted.sort_by(f64::total_cmp);
            sorted.dedup();
            assert_eq!(sorted.len(), expected, "distinct times");
            assert!(sorted[0] > 0.0);
        }
        let equal = (0..n).flat_map(|i| (0..i).map(move |j| (i, j))).filter(|&(i, j)| orders[i] == orders[j]).count();
        assert!(steps == 1 || equal == 0, "{equal} pairs of samples share their order");
        let mut epoch = rollout.clone();
        epoch.samples.iter_mut().for_each(|sample| sample.key.epoch = 3);
        let later: Vec<f64> = Elbo::default().queries(&epoch, &epoch).map(|q| numbers(q.t)[0]).collect();
        let first: Vec<f64> = queries.iter().map(|q| numbers(q.t.clone())[0]).collect();
        assert!(steps == 1 || later != first, "an epoch has its own times");
    }
}

#[test]
fn one_and_all_times() {
    let n = 400;
    let rollout = given(Tensor::zeros([n, 1], &Device::flex()), 10, 1.0);
    let grid = rollout.grid.times.clone();
    let one: Vec<Query> = Elbo { timesteps: Timesteps::One, ..Elbo::default() }.queries(&rollout, &rollout).collect();
    assert_eq!(one.len(), 1);
    let mut counts = [0usize; 10];
    for t in numbers(one[0].t.clone()) {
        counts[grid.iter().position(|g| (g - t).abs() < 1e-6).expect("on the grid")] += 1;
    }
    // Binomial(400, 0.1) has deviation 6.
    assert!(counts.iter().all(|&c| (10..=70).contains(&c)), "{counts:?}");
    let all = Elbo { timesteps: Timesteps::All, ..Elbo::default() }.queries(&rollout, &rollout);
    let times: Vec<f64> = all.map(|q| on_grid(numbers(q.t)[n - 1], &grid)).collect();
    assert_eq!(times, grid[..10]);
}

#[test]
fn strata_take_one_level_each() {
    let n = 400;
    let rollout = given(Tensor::zeros([n, 1], &Device::flex()), 14, 1.0);
    let grid = rollout.grid.times.clone();
    // The reference's edges: ⌊1 + 12 j/6⌋ without the first level, which a seventh time can stand for.
    let edges = [1, 3, 5, 7, 9, 11, 13];
    for (first, count) in [(false, 6), (true, 7)] {
        let elbo = Elbo { timesteps: Timesteps::Stratified { count, first, fraction: 0.99 }, ..Elbo::default() };
        assert_eq!(refusal(&elbo, &rollout), None);
        let mut queries = elbo.queries(&rollout, &rollout);
        assert_eq!((queries.len(), elbo.count(&rollout.samples[0].walk)), (count, count));
        if first {
            assert!(numbers(queries.next().expect("the first level").t).iter().all(|t| (t - 1.0).abs() < f64::EPSILON));
        }
        for (j, query) in queries.enumerate() {
            let seen = numbers(query.t).into_iter().map(|t| on_grid(t, &grid));
            let levels = seen.map(|t| grid.partition_point(|&g| g > t)).collect::<Vec<_>>();
            let counts = [0, 1].map(|i| levels.iter().filter(|&&l| l == edges[j] + i).count());
            // Binomial(400, ½) has deviation 10.
            assert!(counts[0] + counts[1] == n && counts[0].abs_diff(200) < 50, "stratum {j}: {counts:?}");
        }
    }
    for (count, first, fraction, words) in [
        (13, false, 0.99, ["count = 13", "12 levels"]),
        (14, true, 0.99, ["count = 14", "12 levels"]),
        (0, true, 0.99, ["count = 0", "12 levels"]),
        (1, false, 0.1, ["count = 1", "0 levels"]),
    ] {
        let elbo = Elbo { timesteps: Timesteps::Stratified { count, first, fraction }, ..Elbo::default() };
        let message = refusal(&elbo, &rollout).expect("too many strata");
        assert!(words.iter().all(|word| message.contains(word)), "{message}");
    }
}

#[test]
fn logit_normal_times_have_their_moments_and_take_a_shift_as_a_mean() {
    let rollout = given(Tensor::zeros([500, 1], &Device::flex()), 10, 1.0);
    let times = |mean: f64, std: f64| -> Vec<f64> {
        let timesteps = Timesteps::LogitNormal { count: 4, mean, std };
        let queries = Elbo { timesteps, ..Elbo::default() }.queries(&rollout, &rollout);
        assert_eq!(queries.len(), 4);
        queries.flat_map(|q| numbers(q.t)).collect()
    };
    let logits = times(0.4, 0.5).into_iter().map(|t| (t / (1.0 - t)).ln()).collect::<Vec<_>>();
    let mean = logits.iter().sum::<f64>() / 2000.0;
    let variance = logits.iter().map(|l| (l - mean).powi(2)).sum::<f64>() / 2000.0;
    // Four standard errors each.
    assert!((mean - 0.4).abs() < 0.045 && (variance - 0.25).abs() < 0.032, "{mean} {variance}");
    for (t, shifted) in times(0.0, 1.0).into_iter().zip(times(3f64.ln(), 1.0)) {
        assert!((crate::schedule::shift(t, 3.0) - shifted).abs() < 1e-6 && t > 0.0 && t < 1.0);
    }
    for (count, mean, std) in [(0, 0.0, 1.0), (1, f64::NAN, 1.0), (1, 0.0, -1.0), (1, 0.0, f64::INFINITY)] {
        let elbo = Elbo { timesteps: Timesteps::LogitNormal { count, mean, std }, ..Elbo::default() };
        let message = refusal(&elbo, &rollout).expect("out of range");
        assert!(message.contains(&format!("count = {count}, mean = {mean}, std = {std}")), "{message}");
    }
}
