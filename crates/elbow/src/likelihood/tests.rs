//! Likelihoods against formulas worked out by hand, in `f64`.

use super::*;
use crate::{
    batch::{Batch, Sample},
    evaluation::{Evaluation, Fields, Weights},
    gaussian::{Reduction, to_f64},
    noise::{self, Key, Purpose},
    sampler::{self, Dpm2, FlowSde, SamplerConfig, SamplerKind},
    schedule::{Grid, Schedule},
    setting::{BatchSize, Meaning, StartNoise},
};
use std::sync::Arc;

mod normalizer;
mod options;
mod precision;
mod times;

const ROWS: usize = 3;
const SHIFT: f64 = 3.0;
const BEHAVIOR: [f32; 3] = [0.9, -0.7, 0.4];
const PROMPTS: [f32; ROWS] = [0.3, -0.8, 1.1];
const SDE: SamplerKind = SamplerKind::FlowSde(FlowSde { noise_level: 0.7 });
const WEIGHTINGS: [Weighting; 8] = [
    Weighting::Adaptive,
    Weighting::Simple,
    Weighting::PathKl,
    Weighting::T,
    Weighting::Noise,
    Weighting::AwmT,
    Weighting::Huber,
    Weighting::Ghuber,
];
const RATIOS: [Ratio; 3] = [Ratio::PerDraw, Ratio::PerSample, Ratio::PerSampleMean];
const REDUCTIONS: [Reduction; 2] = [Reduction::Mean, Reduction::Sum];

/// v = w tanh(a x + t) + b p, with p the prompt's one number and weights \[w, a, b\].
struct Tanh(Tensor<1>);

impl Tanh {
    fn new(weights: [f32; 3], device: &Device) -> Self {
        let weights = Tensor::from_data(weights, device);
        Self(if device.is_autodiff() { weights.require_grad() } else { weights })
    }

    /// The velocities at a query's points, in `f64`.
    fn exact(weights: [f32; 3], query: &Query) -> Vec<f64> {
        let [w, a, b] = weights.map(f64::from);
        let [x, t, prompt] = [
            numbers(query.x.clone()),
            numbers(query.t.clone()),
            numbers(query.cond.pooled.clone().expect("a number a prompt")),
        ];
        let dims = x.len() / t.len();
        x.iter().enumerate().map(|(i, x)| w * (a * x + t[i / dims]).tanh() + b * prompt[i / dims]).collect()
    }
}

impl VelocityField for Tanh {
    fn velocity(&self, x: Tensor<2>, t: Tensor<1>, cond: &Conditioning) -> Tensor<2> {
        let weight = |i| self.0.clone().narrow(0, i, 1).reshape([1, 1]);
        let rows = t.dims()[0];
        let inside = x * weight(1) + t.reshape([rows, 1]);
        inside.tanh() * weight(0) + cond.pooled.clone().expect("a number a prompt") * weight(2)
    }
}

/// A field that may not be asked.
struct Never;

impl VelocityField for Never {
    fn velocity(&self, _: Tensor<2>, _: Tensor<1>, _: &Conditioning) -> Tensor<2> {
        unreachable!("nothing asked for these weights")
    }
}

/// Samples of prompts with one number each, in groups of two, before they are drawn.
fn samples(n: usize, grid: &Grid, rule: &dyn sampler::Sampler) -> Vec<Sample> {
    let key = |i: usize| Key::new(5, Purpose::Step, 2).sample(i as u64);
    let sample = |i: usize| Sample {
        row: i,
        group: i / 2,
        shared_key: key(i / 2 * 2),
        walk: rule.walk(grid, key(i)).into(),
        ..Sample::new(Arc::new("a prompt".into()), key(i))
    };
    (0..n).map(sample).collect()
}

fn cond(pooled: &[f32]) -> Conditioning {
    let (n, device) = (pooled.len(), Device::flex());
    let pooled = Tensor::from_data(TensorData::new(pooled.to_vec(), [n, 1]), &device);
    Conditioning { tokens: Tensor::zeros([n, 1, 1], &device), mask: None, pooled: Some(pooled) }
}

/// Samples with their paths; a latent has as many numbers as `shape`.
fn drawn(rule: impl Into<SamplerKind>, steps: usize, shape: [usize; 3]) -> Batch {
    let (prompts, device) = (cond(&PROMPTS), Device::flex());
    let sampling =
        SamplerConfig { rule: rule.into(), steps, shift: Some(SHIFT), guidance: 1.0, ..SamplerConfig::default() }
            .build();
    let grid = sampling.grid(Schedule::RectifiedFlow);
    let samples = samples(ROWS, &grid, &*sampling.rule);
    let starts = samples.iter().map(|sample| Key { purpose: Purpose::Start, ..sample.key });
    let start = noise::normal(starts, shape.iter().product(), &device);
    let walks: Vec<_> = samples.iter().map(|sample| (sample.key, &*sample.walk)).collect();
    let points = sampler::walk(
        &Tanh::new(BEHAVIOR, &device),
        &grid,
        start,
        &prompts,
        &walks,
        (0..walks.len()).collect(),
        sampler::Keep { points: true, velocities: false },
    )
    .points;
    let stds = (0..steps).map(|k| sampling.rule.step(&grid, k).std).collect();
    Batch { samples, prompts, points, velocities: Vec::new(), stds, grid: grid.into(), guidance: 1.0 }
}

/// Given samples `[N, D]` on the grid of `steps`, as if some ODE sampler had drawn them.
fn given(clean: Tensor<2>, steps: usize, guidance: f64) -> Batch {
    let n = clean.dims()[0];
    let sampling =
        SamplerConfig { rule: Dpm2 {}.into(), steps, shift: Some(SHIFT), guidance, ..SamplerConfig::default() }.build();
    let grid = sampling.grid(Schedule::RectifiedFlow);
    let (samples, prompts) = (samples(n, &grid, &*sampling.rule), cond(&vec![0.0; n]));
    Batch {
        samples,
        prompts,
        points: vec![clean],
        velocities: Vec::new(),
        stds: vec![0.0; steps].into(),
        grid: grid.into(),
        guidance,
    }
}

/// What a likelihood complains of where samples were drawn as those of `batch`.
fn refusal(likelihood: &dyn Likelihood, batch: &Batch) -> Option<String> {
    let walk = &batch.samples[0].walk;
    let stochastic = sampler::stochastic(walk);
    let setting = Setting {
        grid: (*batch.grid).clone(),
        batch: BatchSize {
            groups: 2,
            group_size: 2,
            updates: 1,
            micro_batch: 4,
            drop_zero_variance: false,
            reuse_velocities: false,
        },
        start_noise: StartNoise::PerSample,
        compared: 2,
        stochastic_steps: stochastic.len(),
        remembers: stochastic.iter().any(|&k| walk[k].mean.remembers()),
        moves: false,
        scored: likelihood.scored(),
        meaning: Meaning::Relative,
        compares_groups: true,
    };
    likelihood.validate(&setting).into_iter().next()
}

/// Of samples that were drawn under the behavior weights: what they, and others, say of a query.
fn fields<'a>(behavior: Option<&'a dyn VelocityField>, reference: &'a dyn VelocityField) -> Fields<'a> {
    Fields { behavior, lagged: None, reference, guided_reference: None, teachers: &[] }
}

fn likelihoods(timesteps: Timesteps) -> Vec<LikelihoodKind> {
    let mut all = Vec::new();
    for (ratio, reduction) in RATIOS.into_iter().flat_map(|r| REDUCTIONS.map(|n| (r, n))) {
        all.extend(
            WEIGHTINGS.map(|weighting| {
                LikelihoodKind::Elbo(Elbo { weighting, timesteps, ratio, reduction, ..Elbo::default() })
            }),
        );
        for density in [Density::Gaussian, Density::SquaredError] {
            all.push(LikelihoodKind::Trajectory(Trajectory { density, ratio, reduction, ..Trajectory::default() }));
        }
    }
    all
}

fn numbers<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.inner().into_data().iter::<f64>().collect()
}

/// The grid's time that a query's `f32` time stands for.
fn on_grid(t: f64, grid: &[f64]) -> f64 {
    let found = grid.iter().copied().find(|g| (g - t).abs() < 1e-6);
    found.unwrap_or_else(|| panic!("{t} is not on the grid {grid:?}"))
}

/// ε of draw `draw`, and the check that the query looks at (1 − t) x₀ + t ε.
fn noise_of(rollout: &Batch, query: &Query, draw: u32) -> Vec<f64> {
    let [n, dims] = rollout.clean().dims();
    let keys = rollout.samples.iter().map(|sample| Key { purpose: Purpose::Draw, ..sample.key }.draw(draw));
    let noise = numbers(noise::normal(keys, dims, &Device::flex()));
    let (clean, t) = (numbers(rollout.clean().clone()), numbers(query.t.clone()));
    for (i, x) in numbers(query.x.clone()).into_iter().enumerate() {
        let t = t[i / dims];
        let expected = (1.0 - t) * clean[i] + t * noise[i];
        assert!((x - expected).abs() < 1e-6, "row {} of {n}: {x} {expected}", i / dims);
    }
    noise
}

#[test]
fn equal_weights_have_a_ratio_of_exactly_one() {
    let rollout = drawn(SDE, 10, [2, 2, 2]);
    let device = Device::flex();
    for kind in likelihoods(Timesteps::default()) {
        let (current, behavior) = (Tanh::new(BEHAVIOR, &device.clone().autodiff()), Tanh::new(BEHAVIOR, &device));
        for query in kind.get().queries(&rollout, &rollout) {
            for behavior in [None, Some(&behavior as &dyn VelocityField)] {
                let fields = fields(behavior, &Never);
                let e = Evaluation::new(&query, &current, &fields);
                assert_eq!(numbers(e.log_ratio()), [0.0; ROWS], "{kind:?}");
                assert_eq!(numbers(e.ratio()), [1.0; ROWS], "{kind:?}");
            }
        }
    }
}

/// ln p of one pixel with velocity error e at time t, for guidance g.
fn one_pixel(weighting: Weighting, t: f64, e: f64, g: f64) -> f64 {
    let d = t * e;
    match weighting {
        Weighting::Adaptive => -d * d / d.abs().max(1e-5) / g,
        Weighting::Simple => -e * e / (g * g),
        Weighting::PathKl => -(1.0 - t) / (t + 1e-3) * e * e,
        Weighting::T => -d * d,
        Weighting::Noise => -((1.0 - t) * e).powi(2),
        Weighting::AwmT => -t * e * e,
        Weighting::Huber => -t * (e.hypot(1e-5) - 1e-5),
        Weighting::Ghuber => -4.0 * t * ((e * e + 1e-10).sqrt().sqrt() - 1e-5f64.sqrt()),
    }
}

#[test]
fn elbo_of_one_pixel() {
    let device = Device::flex();
    let n = 6;
    for (weighting, guidance) in WEIGHTINGS.into_iter().flat_map(|w| [1.0, 4.5].map(|g| (w, g))) {
        let rollout = given(Tensor::from_data([[0.5f32], [-0.25], [1.0], [0.0], [0.75], [2.0]], &device), 10, guidance);
        let elbo = Elbo { weighting, timesteps: Timesteps::All, ..Elbo::default() };
        let queries = elbo.queries(&rollout, &rollout);
        assert_eq!(queries.len(), 10);
        for (draw, query) in queries.enumerate() {
            let noise = noise_of(&rollout, &query, draw as u32);
            let (t, clean) = (rollout.grid.times.clone()[draw], numbers(rollout.clean().clone()));
            assert_eq!(numbers(query.t.clone()), vec![f64::from(t as f32); n]);
            // Both signs, ordinary sizes, and two that are at or below the normalizer's floor.
            let errors = [0.8f64, -1.7, 0.01, 1e-6, -3e-7, 0.0];
            let velocity: Vec<f32> = (0..n).map(|i| ((noise[i] - clean[i]) as f32) + errors[i] as f32).collect();
            let got = numbers(query.log_prob(Tensor::from_data(TensorData::new(velocity.clone(), [n, 1]), &device)));
            for i in 0..n {
                let target = f64::from((noise[i] - clean[i]) as f32);
                let expected = one_pixel(weighting, t, f64::from(velocity[i]) - target, guidance);
                let close = (got[i] - expected).abs() <= 1e-12 + 1e-9 * expected.abs();
                assert!(close, "{weighting:?} t {t} error {}: {} {expected}", errors[i], got[i]);
            }
        }
    }
}

#[test]
fn only_the_numerator_of_the_adaptive_weighting_has_a_gradient() {
    let (guidance, d) = (1.5, 4);
    let device = Device::flex().autodiff();
    let clean = Tensor::<2>::from_data([[0.5f32, -0.2, 0.1, 0.9], [-1.0, 0.3, 0.0, 0.4]], &Device::flex());
    let rollout = given(clean, 5, guidance);
    for reduction in REDUCTIONS {
        let scale = if reduction == Reduction::Mean { 1.0 } else { d as f64 };
        let elbo = Elbo { timesteps: Timesteps::All, reduction, ..Elbo::default() };
        for (draw, query) in elbo.queries(&rollout, &rollout).enumerate() {
            let (noise, clean) = (noise_of(&rollout, &query, draw as u32), numbers(rollout.clean().clone()));
            let values: Vec<f32> = (0..2 * d).map(|i| 0.3 * (i as f32 - 2.5)).collect();
            let v = Tensor::<2>::from_data(TensorData::new(values.clone(), [2, 4]), &device).require_grad();
            let log_prob = query.log_prob(v.clone());
            let gradients = log_prob.clone().sum().backward();
            let gradient = numbers(v.grad(&gradients).expect("a gradient"));
            let t = rollout.grid.times.clone()[draw];
            for (row, got) in numbers(log_prob).into_iter().enumerate() {
                let own = row * d..(row + 1) * d;
                let dv: Vec<f64> = own.clone().map(|i| f64::from(values[i]) - (noise[i] - clean[i])).collect();
                let size = dv.iter().map(|e| e.abs()).sum::<f64>() / d as f64;
                let value = -t * dv.iter().map(|e| e * e).sum::<f64>() / (d as f64 * size) / guidance;
                assert!((got - scale * value).abs() < 1e-6, "{got} {}", scale * value);
                for (e, got) in dv.iter().zip(&gradient[own]) {
                    let expected = scale * -2.0 * t * e / (d as f64 * size) / guidance;
                    assert!((got - expected).abs() < 1e-6, "{got} {expected}");
                }
            }
        }
    }
}

/// ln p of step `k` of `row` under the given velocities, each dimension's normal density written out.
fn transition(rollout: &Batch, k: usize, row: usize, velocities: &[f64]) -> f64 {
    let (grid, dims) = (rollout.grid.times.clone(), velocities.len() / ROWS);
    let (t, dt) = (grid[k], grid[k + 1] - grid[k]);
    let sigma = 0.7 * (t / (1.0 - t.min(grid[1]))).sqrt();
    let (from, to) = (numbers(rollout.points[k].clone()), numbers(rollout.points[k + 1].clone()));
    let density = |i: usize| {
        let (x, v) = (from[i], velocities[i]);
        let mean = x * (1.0 + sigma * sigma * dt / (2.0 * t)) + v * (1.0 + sigma * sigma * (1.0 - t) / (2.0 * t)) * dt;
        let std = sigma * (-dt).sqrt();
        (-(to[i] - mean).powi(2) / (2.0 * std * std)).exp() / (std * std::f64::consts::TAU.sqrt())
    };
    (row * dims..(row + 1) * dims).map(|i| density(i).ln()).sum::<f64>() / dims as f64
}

#[test]
fn a_step_of_the_trajectory_has_the_density_of_a_normal() {
    let (rollout, device) = (drawn(SDE, 10, [1, 2, 2]), Device::flex());
    let other = [0.8, -0.6, 0.5];
    for (reduction, scale) in [(Reduction::Mean, 1.0), (Reduction::Sum, 4.0)] {
        let queries = Trajectory { reduction, ..Trajectory::default() }.queries(&rollout, &rollout);
        assert_eq!(queries.len(), 9, "0.99 of 10 steps, rounded down");
        for (k, query) in queries.enumerate() {
            let got = numbers(query.log_prob(query.velocity(&Tanh::new(other, &device))));
            for (row, got) in got.into_iter().enumerate() {
                let expected = scale * transition(&rollout, k, row, &Tanh::exact(other, &query));
                assert!((got - expected).abs() < 3e-6 * (1.0 + expected.abs()), "step {k}: {got} {expected}");
            }
        }
    }
    let all = Trajectory { fraction: 1.0, ..Trajectory::default() };
    assert_eq!(all.queries(&rollout, &rollout).len(), 10);
}

#[test]
fn images_of_a_group_share_times_and_noise_if_asked() {
    let mut values = Vec::new();
    Key::new(1, Purpose::Draw, 9).extend_normals(4 * 8, &mut values);
    let images = Tensor::from_data(TensorData::new(values, [4, 8]), &Device::flex());
    let rollout = given(images.clone(), 10, 1.0);
    let elbo = Elbo { draws: Draws::PerGroup, ..Elbo::default() };
    let (mut times, clean) = (Vec::new(), numbers(images));
    for query in elbo.queries(&rollout, &rollout) {
        let (t, x) = (numbers(query.t.clone()), numbers(query.x.clone()));
        // x − (1 − t) x₀ = t ε of each image.
        let noise: Vec<f64> = x.iter().zip(&clean).enumerate().map(|(i, (x, c))| x - (1.0 - t[i / 8]) * c).collect();
        let t: Vec<u64> = t.into_iter().map(f64::to_bits).collect();
        assert!(t[0] == t[1] && t[2] == t[3], "{t:?}");
        let close = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6);
        assert!(close(&noise[..8], &noise[8..16]) && close(&noise[16..24], &noise[24..]));
        assert!(!close(&noise[..8], &noise[16..24]), "groups differ");
        times.push(t);
    }
    assert!(times.iter().any(|t| t[0] != t[2]), "groups have their own times");
    // The first image of a group has the draws it would have had alone.
    let alone = Elbo::default().queries(&rollout, &rollout);
    assert!(elbo.queries(&rollout, &rollout).zip(alone).all(|(a, b)| numbers(a.x)[..8] == numbers(b.x)[..8]));
}

#[test]
fn every_draw_has_fresh_noise() {
    // Without data, x / t is the noise itself.
    let rollout = given(Tensor::zeros([2, 4], &Device::flex()), 10, 1.0);
    let mut seen: Vec<f64> = Vec::new();
    for (draw, query) in Elbo::default().queries(&rollout, &rollout).enumerate() {
        seen.extend(noise_of(&rollout, &query, draw as u32));
    }
    let drawn = seen.len();
    seen.sort_by(f64::total_cmp);
    seen.dedup();
    assert_eq!(seen.len(), drawn, "no number is used twice");
}

#[test]
fn queries_of_a_row_are_rows_of_the_queries() {
    let (rollout, field) = (drawn(SDE, 6, [2, 1, 2]), Tanh::new([0.8, -0.6, 0.5], &Device::flex()));
    let stratified = Timesteps::Stratified { count: 3, first: true, fraction: 1.0 };
    let normal = Timesteps::LogitNormal { count: 2, mean: 0.0, std: 1.0 };
    let timesteps = [Timesteps::default(), Timesteps::One, Timesteps::All, stratified, normal];
    for kind in timesteps.into_iter().flat_map(likelihoods) {
        let whole: Vec<Query> = kind.get().queries(&rollout, &rollout).collect();
        for (start, len) in [(0, 1), (1, 1), (2, 1), (1, 2)] {
            let rollout = rollout.select(&(start..start + len).collect::<Vec<_>>());
            let part = kind.get().queries(&rollout, &rollout);
            assert_eq!(part.len(), whole.len());
            for (part, whole) in part.zip(&whole) {
                let draws = whole.t.dims()[0] / ROWS;
                let rows = |x: Tensor<2>| {
                    Tensor::cat((0..draws).map(|d| x.clone().narrow(0, d * ROWS + start, len)).collect(), 0)
                };
                assert_eq!(part.x.clone().into_data(), rows(whole.x.clone()).into_data(), "{kind:?}");
                let log_prob = |query: &Query| query.log_prob(query.velocity(&field));
                let expected = log_prob(whole).narrow(0, start, len);
                assert_eq!(log_prob(&part).into_data(), expected.into_data(), "{kind:?}");
            }
        }
    }
}

#[test]
fn a_sample_has_the_mean_of_its_elbos_and_the_sum_of_its_steps() {
    let (rollout, field) = (drawn(SDE, 6, [2, 1, 2]), Tanh::new([0.8, -0.6, 0.5], &Device::flex()));
    let log_probs = |kind: LikelihoodKind| -> Vec<Vec<f64>> {
        kind.get().queries(&rollout, &rollout).map(|q| numbers(q.log_prob(q.velocity(&field)))).collect()
    };
    let check = |draws: LikelihoodKind, sample: LikelihoodKind, mean: bool| {
        let (draws, sample) = (log_probs(draws), log_probs(sample));
        assert_eq!(sample.len(), 1);
        let count = if mean { draws.len() as f64 } else { 1.0 };
        for (row, got) in sample[0].iter().enumerate() {
            let expected = draws.iter().map(|d| d[row]).sum::<f64>() / count;
            assert!((got - expected).abs() < 1e-13 * (1.0 + expected.abs()), "{got} {expected}");
        }
    };
    for (weighting, timesteps) in
        WEIGHTINGS.into_iter().flat_map(|w| [Timesteps::default(), Timesteps::All].map(|t| (w, t)))
    {
        let elbo = |ratio| LikelihoodKind::Elbo(Elbo { weighting, timesteps, ratio, ..Elbo::default() });
        check(elbo(Ratio::PerDraw), elbo(Ratio::PerSample), true);
    }
    let trajectory = |ratio| LikelihoodKind::Trajectory(Trajectory { ratio, ..Trajectory::default() });
    check(trajectory(Ratio::PerDraw), trajectory(Ratio::PerSample), false);
    check(trajectory(Ratio::PerDraw), trajectory(Ratio::PerSampleMean), true);
}
