//! The closed forms of the lab, each against another way to the same number, and what the lab's tables rest on.

use burn::tensor::{Device, Tensor};
use elbow::{
    Policy, Prompt,
    likelihood::Weighting,
    noise::{Key, Purpose},
    sampler::{Ddim, FlowSde},
};
use elbow_study::{
    lab::{
        Cell, Report, Size, convergence,
        estimator::{self, Estimator, LEVELS, numbers, points, redrawn, score},
        gradient::{self, Task, cosine, signal_to_noise},
        ode,
        ratio::{Pair, pairs},
        sparse::{self, Sparse},
        world::{Mixture, NAMES, World, divergence, rows},
    },
    statistics::{mean, rank::slope, variance},
};

fn key(sample: u64) -> Key {
    Key::new(3, Purpose::Step, 0).sample(sample)
}

#[track_caller]
fn close(got: f64, expected: f64, tolerance: f64) {
    assert!((got - expected).abs() <= tolerance, "{got} for {expected}");
}

/// Within five standard errors of a known mean.
#[track_caller]
fn near(values: &[f64], expected: f64, slack: f64) {
    close(mean(values), expected, 5.0 * (variance(values) / values.len() as f64).sqrt() + slack);
}

/// A mixture of two in the plane.
fn two() -> Mixture {
    Mixture {
        logits: vec![0.3, -0.2],
        means: vec![vec![-0.7, 0.4], vec![0.9, -0.1]],
        log_stds: vec![vec![-0.5, -0.9], vec![-0.3, -1.1]],
    }
}

/// The same with one of its parameters changed, in the order of gradients.
fn changed(mixture: &Mixture, place: usize, by: f64) -> Mixture {
    let mut all = mixture.clone();
    let (modes, dims) = (mixture.logits.len(), mixture.dims());
    match place {
        i if i < modes * dims => all.log_stds[i / dims][i % dims] += by,
        i if i < modes * dims + modes => all.logits[i - modes * dims] += by,
        i => all.means[(i - modes * dims - modes) / dims][(i - modes * dims - modes) % dims] += by,
    }
    all
}

/// The slope of a function of a mixture by each parameter, by central differences.
fn slopes(mixture: &Mixture, of: impl Fn(&Mixture) -> f64) -> Vec<f64> {
    let h = 1e-5;
    let count = mixture.params(1).values().len();
    (0..count).map(|i| (of(&changed(mixture, i, h)) - of(&changed(mixture, i, -h))) / (2.0 * h)).collect()
}

/// E[ε − x₀ | x_t] of a mixture on the line, by numerical integration over x₀.
#[test]
fn the_velocity_is_the_conditional_mean() {
    let mixture =
        Mixture { logits: vec![0.2, -0.3], means: vec![vec![-0.6], vec![0.8]], log_stds: vec![vec![-0.7], vec![-0.2]] };
    for (x, t) in [(0.3, 0.5), (-1.2, 0.9), (0.7, 0.2), (0.1, 1.0)] {
        let (mut mass, mut sum) = (0.0, 0.0);
        for i in -4000..4000 {
            let clean = f64::from(i) * 0.002;
            let noise = (x - (1.0 - t) * clean) / t;
            let density = (mixture.log_density(&[clean]) - noise * noise / 2.0).exp();
            mass += density;
            sum += density * (noise - clean);
        }
        close(mixture.velocity(&[x], t)[0], sum / mass, 1e-6);
    }
}

#[test]
fn the_policy_is_the_closed_form_and_so_are_its_slopes() {
    let mixture = two();
    let world = World { base: mixture.clone(), trained: &NAMES };
    let places = vec![vec![0.2, -0.4], vec![-1.0, 0.6], vec![1.3, 0.1]];
    let times = [0.15f32, 0.5, 0.95];
    let cond = world.encode(&vec![Prompt::from(""); 3]).unwrap();
    let leaves = mixture.params(3).tensors(&Device::flex().autodiff());
    let t = Tensor::<1>::from_data(times, &Device::flex());
    let velocity = world.bind(Some(&leaves)).velocity(points(&places), t.clone(), &cond);
    let base = rows(world.bind(None).velocity(points(&places), t, &cond));
    let got = rows(velocity.clone().inner());
    for ((x, t), (got, base)) in places.iter().zip(times).zip(got.iter().zip(&base)) {
        for (j, exact) in mixture.velocity(x, f64::from(t)).into_iter().enumerate() {
            close(got[j], exact, 1e-5);
            close(base[j], exact, 1e-5);
        }
    }
    // The sum over rows and dimensions, of which every row has its own parameters.
    let gradient = leaves.gradients(&mut velocity.sum().backward()).unwrap();
    let values: Vec<f64> = gradient.into_data().iter::<f64>().collect();
    for (i, (x, t)) in places.iter().zip(times).enumerate() {
        let expected = slopes(&mixture, |m| m.velocity(x, f64::from(t)).iter().sum());
        let row = [&values[i * 4..][..4], &values[12 + i * 2..][..2], &values[18 + i * 4..][..4]].concat();
        row.into_iter().zip(expected).for_each(|(got, expected)| close(got, expected, 2e-4));
    }
}

#[test]
fn scores_and_means_of_rewards_have_the_slopes_that_they_say() {
    for mixture in [two(), pairs().remove(0).old] {
        let x: Vec<f64> = [0.4, -0.2, 0.3, 0.1][..mixture.dims()].to_vec();
        let expected = slopes(&mixture, |m| m.log_density(&x));
        mixture.score(&x).into_iter().zip(expected).for_each(|(got, expected)| close(got, expected, 1e-6));
        let target = vec![0.5; mixture.dims()];
        let (value, gradient) = mixture.expected_square(&target);
        let expected = slopes(&mixture, |m| m.expected_square(&target).0);
        gradient.into_iter().zip(expected).for_each(|(got, expected)| close(got, expected, 1e-6));
        let reward = |x: &Vec<f64>| -0.5 * x.iter().zip(&target).map(|(x, c)| (x - c).powi(2)).sum::<f64>();
        near(&mixture.samples((0..20_000).map(key)).iter().map(reward).collect::<Vec<_>>(), value, 0.0);
    }
}

#[test]
fn samples_are_of_the_density() {
    let (p, q) = (pairs().remove(0).old, pairs().remove(0).theta);
    let ratio = |x: &Vec<f64>| p.log_density(x) - q.log_density(x);
    let ratios: Vec<f64> = p.samples((0..20_000).map(key)).iter().map(ratio).collect();
    near(&ratios, divergence(&p, &q), 0.0);
    let mixture = two();
    let first = mixture.samples((0..20_000).map(key)).iter().map(|x| x[0]).collect::<Vec<_>>();
    let weights = mixture.weights();
    near(&first, weights[0] * mixture.means[0][0] + weights[1] * mixture.means[1][0], 0.0);
    close(weights[0], 1.0 / (1.0 + (-0.5f64).exp()), 1e-12);
}

/// The divergence along the ODE gives the density, of a Gaussian and of a mixture.
#[test]
fn the_ode_gives_the_exact_log_density() {
    for mixture in [pairs().remove(0).old, two()] {
        let world = World { base: mixture.clone(), trained: &NAMES };
        let samples = mixture.samples((0..16).map(key));
        let cond = world.encode(&vec![Prompt::from(""); 16]).unwrap();
        let got = ode::log_density(&|| world.bind(None), &samples, &cond, 60);
        got.iter().zip(&samples).for_each(|(got, x)| close(*got, mixture.log_density(x), 2e-3));
        let coarse = ode::log_density(&|| world.bind(None), &samples, &cond, 2);
        let off = coarse.iter().zip(&samples).map(|(got, x)| (got - mixture.log_density(x)).abs()).fold(0.0, f64::max);
        assert!(off > 1e-2, "two steps are too few: {off}");
    }
}

/// E_ε ‖v − u‖² of N(m, s²) at a point δ away from m: (δ² t² + (1 − t)² s⁴)/V².
fn error(delta: f64, s: f64, t: f64) -> f64 {
    let variance = (1.0 - t).powi(2) * s * s + t * t;
    (delta * delta * t * t + (1.0 - t).powi(2) * s.powi(4)) / (variance * variance)
}

/// By the weight (1 − t)/t the ELBO of a velocity that is exact is no bound: its log-ratio is that of the densities.
#[test]
fn the_exact_weight_gives_the_exact_log_ratio() {
    let (x, [m, s], [n, r]) = (0.4, [0.1, 0.5], [-0.2, 0.7]);
    let steps = 200_000;
    let term = |i: usize| {
        let t = (i as f64 + 0.5) / steps as f64;
        (1.0 - t) / t * (error(x - m, s, t) - error(x - n, r, t))
    };
    let elbo = -(0..steps).map(term).sum::<f64>() / steps as f64;
    let truth = Mixture::gaussian(&[m], &[s]).log_density(&[x]) - Mixture::gaussian(&[n], &[r]).log_density(&[x]);
    close(elbo, truth, 1e-6);
}

/// The weight of a time.
type Weight = fn(f64) -> f64;

/// What the library's weightings say at each time, on average, is known in closed form.
#[test]
fn weightings_are_what_they_say_at_every_time() {
    let pair = pairs().remove(0);
    let (world, [old, theta], n) = (pair.world(), pair.fields(), 4000);
    let x = pair.old.samples([key(5)].into_iter()).remove(0);
    let weights: [(Weighting, Weight); 5] = [
        (Weighting::PathKl, |t| (1.0 - t) / (t + 1e-3)),
        (Weighting::Simple, |_| 1.0),
        (Weighting::T, |t| t * t),
        (Weighting::Noise, |t| (1.0 - t).powi(2)),
        (Weighting::AwmT, |t| t),
    ];
    for (weighting, weight) in weights {
        let estimator = Estimator::elbo("", weighting, LEVELS);
        let mut batch = estimator.batch(&world, &pair.old, n, key(0));
        batch.points = vec![points(&vec![x.clone(); n])];
        for query in estimator.likelihood.get().queries(&batch, &batch) {
            let t = numbers(query.t.clone())[0];
            let l = [&theta, &old].map(|field| numbers(score(&query, query.velocity(&**field), &*old)));
            let ratios: Vec<f64> = l[0].iter().zip(&l[1]).map(|(a, b)| a - b).collect();
            let of =
                |m: &Mixture| -> f64 { (0..4).map(|j| error(x[j] - m.means[0][j], m.log_stds[0][j].exp(), t)).sum() };
            near(&ratios, -weight(t) * (of(&pair.theta) - of(&pair.old)), 1e-6);
        }
    }
}

#[test]
fn more_draws_and_shared_noise_have_less_of_it() {
    let pair = pairs().remove(0);
    let (world, [old, theta], n) = (pair.world(), pair.fields(), 600);
    let noise = |estimator: &Estimator| {
        let batch = estimator.batch(&world, &pair.old, n, key(0));
        let [a, b] = [0, 1 << 10].map(|by| estimator.log_ratios(&redrawn(&batch, by), &*theta, &*old));
        mean(&a.iter().zip(b).map(|(a, b)| (a - b).powi(2) / 2.0).collect::<Vec<_>>())
    };
    let of = |draws| Estimator::elbo("", Weighting::PathKl, draws);
    let (one, all) = (noise(&of(1)), noise(&of(LEVELS)));
    let apart = noise(&Estimator { separate: true, ..of(LEVELS) });
    assert!(one > 4.0 * all && apart > 10.0 * all, "{one} {all} {apart}");
}

/// Whatever the policy, E ρ = 1 over paths of the old one; and E ln ρ is below that of final samples, which say less than paths.
#[test]
fn ratios_of_paths_have_mean_one() {
    let pair = pairs().remove(0);
    let (world, [old, theta]) = (pair.world(), pair.fields());
    for rule in [FlowSde::default().into(), Ddim::default().into()] {
        let estimator = Estimator::trajectory(rule, "", 10);
        let batch = estimator.batch(&world, &pair.old, 20_000, key(0));
        let ratios = estimator.log_ratios(&batch, &*theta, &*old);
        near(&ratios.iter().map(|r| r.exp()).collect::<Vec<_>>(), 1.0, 0.0);
        let truth = pair.truth(&rows(batch.clean().clone()));
        assert!(mean(&ratios) < mean(&truth), "{} {}", mean(&ratios), mean(&truth));
    }
}

fn gradients(estimator: &Estimator, pair: &Pair, n: usize) -> (Vec<Vec<f64>>, Task) {
    let (world, task) = (pair.world(), Task::new(pair));
    let batch = estimator.batch(&world, &pair.old, n, key(0));
    let points = rows(batch.clean().clone());
    (task.policy(&points, estimator.gradients(&world, &batch, &pair.old)), task)
}

/// A row of parameters a sample gives the gradient of every sample: their sum is that of the policy's own parameters.
#[test]
fn gradients_of_samples_add_up_to_that_of_the_batch() {
    let pair = pairs().remove(1);
    let (world, n) = (pair.world(), 50);
    let estimator = Estimator::elbo("", Weighting::Adaptive, 1);
    let batch = estimator.batch(&world, &pair.old, n, key(0));
    let query = estimator.likelihood.get().queries(&batch, &batch).next().unwrap();
    let each = estimator::gradients(&world, &query, &pair.old);
    let leaves = pair.old.params(1).tensors(&Device::flex().autodiff());
    let l = query.log_prob(query.velocity(&*world.bind(Some(&leaves))));
    let whole = leaves.gradients(&mut l.sum().backward()).unwrap();
    let sums = gradient::mean(&each).into_iter().map(|m| m * n as f64);
    whole.into_data().iter::<f64>().zip(sums).for_each(|(whole, sum)| close(sum, whole, 2e-3 * whole.abs().max(1.0)));
}

/// The score of the density has the true gradient as its mean, and so has the ELBO by its exact weight, up to its levels; a gradient of another
/// reward is another one.
#[test]
fn policy_gradients_point_where_the_truth_does() {
    for pair in pairs() {
        let task = Task::new(&pair);
        let samples = pair.old.samples((0..20_000).map(key));
        let exact = task.policy(&samples, samples.iter().map(|x| pair.old.score(x)).collect());
        for (j, &truth) in task.truth.iter().enumerate() {
            near(&exact.iter().map(|g| g[j]).collect::<Vec<_>>(), truth, 1e-9);
        }
        let (elbo, _) = gradients(&Estimator::elbo("", Weighting::PathKl, LEVELS), &pair, 4000);
        let angle = cosine(&gradient::mean(&elbo), &task.truth);
        assert!(angle > 0.95, "{}: {angle}", pair.name);
        let other: Vec<f64> = task.truth.iter().map(|g| g * g).collect();
        assert!(cosine(&gradient::mean(&elbo), &other) < 0.95);
    }
}

/// Of a Gaussian of mean m and covariance C the ratio is ‖m‖²/tr C, and 0 on average where there is no signal.
#[test]
fn the_signal_to_noise_ratio_is_that_of_its_definition() {
    let vector = |i: u64, by: f64| {
        let mut noise = Vec::new();
        key(i).extend_normals(3, &mut noise);
        vec![by + f64::from(noise[0]), 2.0 * f64::from(noise[1]), -by + 0.5 * f64::from(noise[2])]
    };
    let of = |by: f64| signal_to_noise(&(0..20_000).map(|i| vector(i, by)).collect::<Vec<_>>());
    close(of(1.0), 2.0 / 5.25, 0.015);
    close(of(0.0), 0.0, 3e-4);
}

/// Training ends at the temperature w β/η, and not at β or w.
#[test]
fn training_ends_at_the_tilted_reference() {
    let config = convergence::config(0, 128, 160);
    let linear = |x: &[f64]| x[0] * convergence::SLOPE[0] + x[1] * convergence::SLOPE[1];
    let path = convergence::path(&config, &convergence::world(), linear).unwrap();
    let end = convergence::averaged(&path);
    let far = |temperature: f64| divergence(&end, &convergence::tilted(temperature));
    let right = far(convergence::WEIGHT * convergence::BETA / convergence::ETA);
    let (beta, weight) = (far(convergence::BETA), far(convergence::WEIGHT));
    assert!(right < 0.02 && beta > 10.0 * right && weight > 3.0 * right, "{right} {beta} {weight}");
}

#[test]
fn iterates_are_those_of_the_formula() {
    let found = convergence::iterates_of(0, (256, 60), 2, true).unwrap();
    let mut m = [0.0; 2];
    for policy in found {
        m = convergence::iterate(m);
        for (j, expected) in m.into_iter().enumerate() {
            close(policy.means[0][j], expected, 0.05);
        }
    }
    assert!(m[0] > 0.6, "they are far apart: {m:?}");
}

#[test]
fn chances_of_success_have_the_slopes_that_they_say() {
    let world = sparse::world();
    for chance in sparse::CHANCES {
        let task = Sparse::of(&world.base, chance);
        let (value, gradient) = task.chance(&world.base);
        close(value, chance, 1e-9);
        let expected = slopes(&world.base, |m| task.chance(m).0);
        gradient.into_iter().zip(expected).for_each(|(got, expected)| close(got, expected, 1e-7));
        let rewards: Vec<f64> = world.base.samples((0..20_000).map(key)).iter().map(|x| task.reward(x)).collect();
        near(&rewards, chance, 0.0);
    }
    close(sparse::without_variance(0.5), 2.0 * 0.5f64.powi(24), 1e-12);
    close(sparse::without_variance(0.01), 0.99f64.powi(24), 1e-12);
}

#[test]
fn a_success_in_two_is_learned() {
    let method = (FlowSde::default().into(), elbow::likelihood::Trajectory::default().into());
    let end = sparse::learned(0.5, method, 0, 20).unwrap();
    assert!(end > 0.7, "{end}");
}

/// Everything once, and some of it again.
#[test]
fn a_report_is_decided_by_its_seed() {
    let size = Size {
        ratio: 40,
        gradient: 240,
        seeds: 2,
        samples: 8,
        epochs: 24,
        trials: 2,
        learning: 1,
        points: 20,
        pictures: 10,
    };
    let report = Report::make(size, 1, &|_| {}).unwrap();
    // As text: a number that is not known does not equal itself.
    let text = report.json();
    let again = |seed| serde_json::to_value(elbow_study::lab::ratio::profile(&size, seed)).unwrap();
    let known: serde_json::Value = serde_json::from_str(&text).unwrap();
    let known = known["tables"].as_array().unwrap();
    let same = |seed| again(seed).as_array().unwrap().iter().filter(|table| known.contains(table)).count();
    assert_eq!((same(1), same(2)), (3, 0));
    let text = report.markdown("Made here.");
    for table in &report.tables {
        assert!(text.contains(&format!("### {}\n", table.title)) && !table.rows.is_empty(), "{}", table.title);
        assert!(table.rows.iter().all(|row| row.len() == table.columns.len()), "{}", table.title);
    }
    let number = |cell: &Cell| matches!(cell, Cell::Number(measured) if measured.value.is_finite());
    assert!(report.tables.iter().all(|table| table.rows.iter().flatten().any(number)));
    assert!(slope(&[0.0, 1.0, 2.0], &[1.0, 3.0, 5.0]) == Some(2.0));
}
