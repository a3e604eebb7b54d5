//! Which points are looked at, and how: steps with a density (arXiv 2507.21802), AWM's weightings (arXiv 2509.25050), pairs of
//! opposite noise, and the sampler's own points.

use super::*;
use crate::{
    kl::{Kl, Proximal},
    sampler::{Branch, Cps, Ddim, Window},
};

fn trajectory(fraction: f64) -> Trajectory {
    Trajectory { fraction, ..Trajectory::default() }
}

/// The levels of the grid that a likelihood asks the first row about.
fn levels(rollout: &Batch, queries: &[Query]) -> Vec<usize> {
    let grid = rollout.grid.times.clone();
    let level = |q: &Query| {
        let t = on_grid(numbers(q.t.clone())[0], &grid);
        grid.partition_point(|&g| g > t)
    };
    queries.iter().map(level).collect()
}

#[test]
fn only_steps_with_a_density_are_scored() {
    // In epoch 2 its first step is 2 strides from the start.
    let window = |stride| SamplerKind::Window(Window { every: 1, stride, ..Window::default() });
    let ddim = || SamplerKind::from(Ddim::default());
    for (rule, fraction, expected) in [
        (SDE, 1.0, 0..10),
        (SDE, 0.99, 0..9),
        (ddim(), 1.0, 0..9),
        (ddim(), 0.5, 0..5),
        (window(1), 0.99, 2..6),
        (window(2), 0.7, 4..7),
        (window(2), 0.2, 4..5),
    ] {
        let rollout = drawn(rule.clone(), 10, [1, 2, 2]);
        let kind = LikelihoodKind::Trajectory(trajectory(fraction));
        assert_eq!(refusal(kind.get(), &rollout), None);
        let queries: Vec<Query> = kind.get().queries(&rollout, &rollout).collect();
        assert_eq!(levels(&rollout, &queries), expected.clone().collect::<Vec<_>>(), "{rule:?} {fraction}");
        assert_eq!(kind.get().count(&rollout.samples[0].walk), expected.len());
        for (k, query) in expected.zip(&queries) {
            assert_eq!(query.x.clone().into_data(), rollout.points[k].clone().into_data());
        }
    }
    // One step to the image has no noise.
    let message = refusal(&trajectory(1.0), &drawn(ddim(), 1, [1, 2, 2])).expect("no step has a density");
    assert!(message.contains("`ddim`") && message.contains("at least 2 steps"), "{message}");
}

#[test]
fn a_squared_error_is_the_density_without_its_deviation() {
    let (rollout, device) = (drawn(SamplerKind::Cps(Cps::default()), 10, [1, 2, 2]), Device::flex());
    let (grid, field) = (rollout.grid.times.clone(), Tanh::new([0.8, -0.6, 0.5], &device));
    for reduction in REDUCTIONS {
        let queries = |density| Trajectory { density, reduction, ..Trajectory::default() }.queries(&rollout, &rollout);
        let scale = if reduction == Reduction::Mean { 1.0 } else { 4.0 };
        for (k, (density, error)) in queries(Density::Gaussian).zip(queries(Density::SquaredError)).enumerate() {
            let velocities = numbers(error.velocity(&field));
            let [from, to] = [k, k + 1].map(|k| numbers(rollout.points[k].clone()));
            let [density, error] = [density, error].map(|q| numbers(q.log_prob(q.velocity(&field))));
            let (t, next, angle) = (grid[k], grid[k + 1], 0.4 * std::f64::consts::PI);
            let square = |i: usize| {
                let (x, v) = (from[i], velocities[i]);
                (to[i] - (1.0 - next) * (x - t * v) - next * angle.cos() * (x + (1.0 - t) * v)).powi(2)
            };
            let std = next * angle.sin();
            for row in 0..ROWS {
                let expected = -scale * (row * 4..row * 4 + 4).map(square).sum::<f64>() / 4.0;
                assert!((error[row] - expected).abs() < 1e-9 * (1.0 + expected.abs()), "{} {expected}", error[row]);
                let expected = expected / (2.0 * std * std) - scale * (std.ln() + std::f64::consts::TAU.ln() / 2.0);
                assert!((density[row] - expected).abs() < 1e-8 * (1.0 + expected.abs()), "{} {expected}", density[row]);
            }
        }
    }
}

#[test]
fn an_antithetic_draw_has_the_same_time_and_the_opposite_noise() {
    let mut rollout = drawn(SDE, 10, [1, 2, 2]);
    rollout.points.drain(..10);
    for draws in [Draws::PerSample, Draws::PerGroup] {
        let once = Elbo { draws, ..Elbo::default() };
        let pairs = Elbo { antithetic: true, ..once };
        let walk = &rollout.samples[0].walk;
        assert_eq!((once.count(walk), pairs.count(walk)), (9, 18));
        let [once, pairs] = [once, pairs].map(|elbo| elbo.queries(&rollout, &rollout).collect::<Vec<_>>());
        let clean = numbers(rollout.clean().clone());
        assert_eq!((once.len(), pairs.len()), (9, 18));
        for (query, pair) in once.iter().zip(pairs.chunks(2)) {
            assert_eq!(query.x.clone().into_data(), pair[0].x.clone().into_data());
            assert_eq!(pair[0].t.clone().into_data(), pair[1].t.clone().into_data());
            let [t, plus, minus] = [numbers(query.t.clone()), numbers(pair[0].x.clone()), numbers(pair[1].x.clone())];
            for i in 0..clean.len() {
                assert!((plus[i] + minus[i] - 2.0 * (1.0 - t[i / 4]) * clean[i]).abs() < 1e-6);
            }
            // Where the target is −ε − x₀, the error is zero.
            let noise = minus.iter().zip(&clean).enumerate().map(|(i, (x, c))| (x - (1.0 - t[i / 4]) * c) / t[i / 4]);
            let target = noise.zip(&clean).map(|(e, c)| (e - c) as f32).collect::<Vec<_>>();
            let target = Tensor::from_data(TensorData::new(target, [ROWS, 4]), &Device::flex());
            let simple = Elbo { weighting: Weighting::Simple, antithetic: true, draws, ..Elbo::default() };
            let index = 2 * once.iter().position(|q| std::ptr::eq(q, query)).expect("one of them") + 1;
            let negative = simple.queries(&rollout, &rollout).nth(index).expect("a pair");
            assert!(numbers(negative.log_prob(target)).iter().all(|l| l.abs() < 1e-8));
        }
    }
}

#[test]
fn the_samplers_own_points_have_the_noise_that_leads_to_them() {
    let (rollout, device) = (drawn(SDE, 10, [1, 2, 2]), Device::flex());
    let weighting = Weighting::Simple;
    let elbo = Elbo { points: Points::Sampler, weighting, ..Elbo::default() };
    assert!(elbo.needs_path() && !Elbo::default().needs_path());
    let (grid, clean, velocity) =
        (rollout.grid.times.clone(), numbers(rollout.clean().clone()), [0.3f32, -1.2, 0.8, 0.1]);
    let v = Tensor::from_data(TensorData::new(velocity.repeat(ROWS), [ROWS, 4]), &device);
    for (query, renoised) in
        elbo.queries(&rollout, &rollout).zip(Elbo { weighting, ..Elbo::default() }.queries(&rollout, &rollout))
    {
        assert_eq!(query.t.clone().into_data(), renoised.t.into_data(), "the same times as ever");
        let [x, t, got] = [numbers(query.x.clone()), numbers(query.t.clone()), numbers(query.log_prob(v.clone()))];
        for row in 0..ROWS {
            let t = on_grid(t[row], &grid);
            let stored = numbers(rollout.points[grid.partition_point(|&g| g > t)].clone());
            let error = |i: usize| {
                let noise = (stored[row * 4 + i] - (1.0 - t) * clean[row * 4 + i]) / t;
                f64::from(velocity[i]) - (noise - clean[row * 4 + i])
            };
            assert_eq!(x[row * 4..row * 4 + 4], stored[row * 4..row * 4 + 4]);
            let expected = -(0..4).map(|i| error(i).powi(2)).sum::<f64>() / 4.0;
            assert!((got[row] - expected).abs() < 1e-6 * (1.0 + expected.abs()), "{} {expected}", got[row]);
        }
    }
    let continuous = Timesteps::LogitNormal { count: 1, mean: 0.0, std: 1.0 };
    for illegal in [Elbo { antithetic: true, ..elbo }, Elbo { timesteps: continuous, ..elbo }] {
        let message = refusal(&illegal, &rollout).expect("no such points");
        assert!(message.contains("renoised") && message.contains("antithetic"), "{message}");
    }
}

#[test]
fn awms_powers_meet_its_other_weightings() {
    let (rollout, field) = (drawn(SDE, 6, [2, 1, 2]), Tanh::new([0.8, -0.6, 0.5], &Device::flex()));
    let log_probs = |weighting, power| -> Vec<f64> {
        let elbo = Elbo { weighting, power, timesteps: Timesteps::All, ..Elbo::default() };
        elbo.queries(&rollout, &rollout).flat_map(|q| numbers(q.log_prob(q.velocity(&field)))).collect()
    };
    for (power, other, factor) in [(1.0, Weighting::AwmT, 1.0), (0.5, Weighting::Huber, 2.0)] {
        for (got, other) in log_probs(Weighting::Ghuber, power).into_iter().zip(log_probs(other, 0.25)) {
            assert!((got - factor * other).abs() < 1e-9, "{power}: {got} {other}");
        }
    }
    for power in [0.0, -1.0, f64::NAN] {
        let message = refusal(&Elbo { power, ..Elbo::default() }, &rollout).expect("no power");
        assert!(message.contains("power"), "{message}");
    }
}

/// TempFlow-GRPO's code weighs a step of its grid of 10 by 2.25 s_k.
#[test]
fn steps_can_count_by_their_noise() {
    let rollout = drawn(SDE, 10, [1, 2, 2]);
    let grid = (*rollout.grid).clone();
    let queries = Trajectory { weights: StepWeights::Noise, ..Trajectory::default() }.queries(&rollout, &rollout);
    assert_eq!(queries.len(), 9);
    let mut total = 0.0;
    for (k, query) in queries.enumerate() {
        let std = SDE.get().step(&grid, k).std;
        let one = numbers(query.weighted(rows(&[1.0; ROWS], &Device::flex())));
        assert!(one.iter().all(|w| (w / (2.25 * std) - 1.0).abs() < 2e-3), "step {k}: {one:?} {std}");
        total += one[0];
    }
    assert!((total - 9.0).abs() < 1e-12, "{total}");
    for query in trajectory(0.99).queries(&rollout, &rollout) {
        let one = numbers(query.weighted(rows(&[0.3; ROWS], &Device::flex())));
        assert!(one.iter().all(|w| w.to_bits() == 0.3f64.to_bits()), "evenly: {one:?}");
    }
}

/// Samples that branch at different steps are scored at their own, in one query.
#[test]
fn each_sample_is_scored_where_it_branches() {
    let branch = Branch { points: 3, explorations: 1, ..Branch::default() };
    let rollout = drawn(SamplerKind::Branch(branch), 10, [1, 2, 2]);
    let branches = |sample: &Sample| sampler::stochastic(&sample.walk)[0];
    let steps: Vec<usize> = rollout.samples.iter().map(branches).collect();
    assert!(steps.windows(2).all(|w| w[0] < w[1]) && steps.len() == ROWS, "{steps:?}");
    let (grid, field) = (rollout.grid.times.clone(), Tanh::new([0.8, -0.6, 0.5], &Device::flex()));
    for likelihood in [trajectory(0.99), Trajectory { ratio: Ratio::PerSample, ..trajectory(0.99) }] {
        let queries: Vec<Query> = likelihood.queries(&rollout, &rollout).collect();
        assert_eq!(queries.len(), 1);
        let velocity = queries[0].velocity(&field);
        let together = numbers(queries[0].log_prob(velocity));
        for (row, &k) in steps.iter().enumerate() {
            assert!((numbers(queries[0].t.clone())[row] - grid[k]).abs() < 1e-6, "row {row}");
            let rollout = rollout.select(&[row]);
            let alone = likelihood.queries(&rollout, &rollout).next().expect("one of all points");
            let alone = numbers(alone.log_prob(alone.velocity(&field)));
            assert_eq!(together[row].to_bits(), alone[0].to_bits(), "row {row}");
        }
    }
}

/// The number of a level.
fn level_of(t: f64, grid: &[f64]) -> usize {
    grid.iter().position(|g| (g - t).abs() < 1e-6).expect("a level")
}

/// DanceGRPO's: a permutation of the steps for each image, of which it scores the first 60 %.
#[test]
fn each_image_may_be_scored_at_steps_of_its_own() {
    let rollout = drawn(SDE, 10, [1, 2, 2]);
    let random = Trajectory { fraction: 0.6, choice: Choice::Random, ..Trajectory::default() };
    let grid = rollout.grid.times.clone();
    let queries: Vec<Query> = random.queries(&rollout, &rollout).collect();
    assert_eq!((queries.len(), random.count(&rollout.samples[0].walk)), (6, 6));
    let times =
        |row: usize| -> Vec<usize> { queries.iter().map(|q| level_of(numbers(q.t.clone())[row], &grid)).collect() };
    let mut all = std::collections::BTreeSet::new();
    for row in 0..ROWS {
        let steps = times(row);
        let different: std::collections::BTreeSet<usize> = steps.iter().copied().collect();
        assert_eq!(different.len(), 6, "none twice: {steps:?}");
        assert_eq!(steps, random.places(&rollout.samples[row]));
        all.extend(steps);
    }
    assert!(times(0) != times(1) && times(1) != times(2), "each its own");
    assert!(all.len() > 6, "{all:?}");
    // A row's score is that of its own step.
    let field = Tanh::new([0.8, -0.6, 0.5], &Device::flex());
    let whole = trajectory(1.0);
    let ordered: Vec<Vec<f64>> =
        whole.queries(&rollout, &rollout).map(|q| numbers(q.log_prob(q.velocity(&field)))).collect();
    for query in &queries {
        let scores = numbers(query.log_prob(query.velocity(&field)));
        for (row, score) in scores.into_iter().enumerate() {
            let k = level_of(numbers(query.t.clone())[row], &grid);
            assert!((score - ordered[k][row]).abs() < 1e-9, "row {row}, step {k}");
        }
    }
}

/// Both penalties are means over draws, whether log-probabilities are added up or not.
#[test]
fn penalties_are_reduced_alike_under_every_ratio() {
    let rollout = drawn(SDE, 10, [1, 2, 2]);
    let [current, lagged] = [[0.8, -0.6, 0.5], [0.7, -0.5, 0.4]].map(|w| Tanh::new(w, &Device::flex()));
    let fields =
        Fields { behavior: Some(&lagged), lagged: None, reference: &lagged, guided_reference: None, teachers: &[] };
    let mut seen = Vec::new();
    for ratio in RATIOS {
        let likelihood = Trajectory { ratio, ..Trajectory::default() };
        let values = |value: &dyn Fn(&Evaluation<'_>) -> Tensor<1>| {
            let queries: Vec<Query> = likelihood.queries(&rollout, &rollout).collect();
            let sums = queries.iter().map(|q| numbers(value(&Evaluation::new(q, &current, &fields))));
            let sums: Vec<Vec<f64>> = sums.collect();
            (0..ROWS).map(|row| sums.iter().map(|s| s[row]).sum::<f64>() / sums.len() as f64).collect::<Vec<_>>()
        };
        let kl = Kl { weight: 1.0, ..Kl::default() };
        let kl = values(&|e| kl.value(e).expect("on"));
        let proximal = values(&|e| Proximal { weight: 1.0, clean: false }.value(e).expect("on"));
        assert!(kl.iter().zip(&proximal).all(|(a, b)| (a - b).abs() < 1e-12), "{ratio:?}: {kl:?} {proximal:?}");
        seen.push(kl);
    }
    assert!(seen.windows(2).all(|w| w[0].iter().zip(&w[1]).all(|(a, b)| (a / b - 1.0).abs() < 1e-9)), "{seen:?}");
}
