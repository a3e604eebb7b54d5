//! Samplers against fields whose solution is known.

use super::*;
use crate::{
    noise::Purpose,
    schedule::{Level, grid},
};
use burn::tensor::Device;

mod branch;
mod multistep;
mod window;

const VP: Schedule = Schedule::VariancePreserving { beta_min: 0.1, beta_max: 20.0 };
const FLOW: Schedule = Schedule::RectifiedFlow;

fn flow_sde(noise_level: f64) -> SamplerKind {
    SamplerKind::FlowSde(FlowSde { noise_level })
}

fn dance(eta: f64) -> SamplerKind {
    SamplerKind::Dance(Dance { eta })
}

fn ddim(eta: f64) -> SamplerKind {
    SamplerKind::Ddim(Ddim { eta })
}

fn cps(eta: f64) -> SamplerKind {
    SamplerKind::Cps(Cps { eta })
}

fn sa_solver(tau: f64, order: usize) -> SamplerKind {
    SamplerKind::SaSolver(SaSolver { tau, order, ..SaSolver::default() })
}

const UNIPC: SamplerKind = SamplerKind::Unipc(Unipc {});

/// The exact velocity of data ~ N(μ, s² I): `v = α′ E[x₀ | x_t] + σ′ E[ε | x_t]`, linear in x.
struct GaussianData {
    mean: f64,
    std: f64,
    schedule: Schedule,
}

impl VelocityField for GaussianData {
    fn velocity(&self, x: Tensor<2>, t: Tensor<1>, _: &Conditioning) -> Tensor<2> {
        let t = t.into_data().try_to_vec::<f32>().expect("f32").into_iter().map(f64::from).next().expect("a row");
        let Level { alpha, sigma, d_alpha, d_sigma } = self.schedule.level(t);
        let variance = (alpha * self.std).powi(2) + sigma * sigma;
        // Each by linear regression on x.
        let slope = (d_alpha * alpha * self.std.powi(2) + d_sigma * sigma) / variance;
        (x - alpha * self.mean) * slope + d_alpha * self.mean
    }
}

fn nothing(n: usize) -> Conditioning {
    let device = Device::flex();
    Conditioning { tokens: Tensor::zeros([n, 1, 1], &device), mask: None, pooled: None }
}

fn keys(n: u64) -> Vec<Key> {
    (0..n).map(|i| Key::new(1, Purpose::Step, 0).sample(i)).collect()
}

/// A recipe's defaults with this rule.
fn sampling(rule: impl Into<SamplerKind>) -> Sampling {
    SamplerConfig { rule: rule.into(), ..SamplerConfig::default() }.build()
}

/// All points on the way from `start`, row by row with the noise of its key.
fn drawn(sampling: &Sampling, field: &GaussianData, start: Tensor<2>, keys: &[Key]) -> Vec<Tensor<2>> {
    let grid = sampling.grid(field.schedule);
    let steps: Vec<Vec<Step>> = keys.iter().map(|&key| sampling.rule.walk(&grid, key)).collect();
    let walks: Vec<(Key, &[Step])> = keys.iter().copied().zip(steps.iter().map(Vec::as_slice)).collect();
    let keep = Keep { points: true, velocities: false };
    walk(field, &grid, start, &nothing(keys.len()), &walks, (0..keys.len()).collect(), keep).points
}

/// All points on the way from `start`.
fn path(rule: &SamplerKind, steps: usize, shift: f64, start: Tensor<2>, field: &GaussianData) -> Vec<Tensor<2>> {
    let sampling =
        SamplerConfig { rule: rule.clone(), steps, shift: Some(shift), guidance: 1.0, ..SamplerConfig::default() }
            .build();
    let keys = keys(start.dims()[0] as u64);
    drawn(&sampling, field, start, &keys)
}

fn end(rule: &SamplerKind, steps: usize, shift: f64, start: Tensor<2>) -> Tensor<2> {
    let field = GaussianData { mean: 0.5, std: 0.5, schedule: FLOW };
    path(rule, steps, shift, start, &field).pop().expect("an end")
}

/// Rows of standard normal numbers.
fn noise_of(rows: u64, dims: usize) -> Tensor<2> {
    noise::normal((0..rows).map(|i| Key::new(2, Purpose::Start, 0).sample(i)), dims, &Device::flex())
}

fn moments(x: Tensor<2>) -> [f64; 2] {
    let x: Vec<f64> = x.into_data().iter::<f64>().collect();
    let mean = x.iter().sum::<f64>() / x.len() as f64;
    [mean, x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / x.len() as f64]
}

/// The ODE maps N(0, 1) onto N(μ, s²) by x ↦ μ + s x.
fn error(rule: &SamplerKind, steps: usize) -> f64 {
    let start = Tensor::<2>::full([1, 1], 1.5, &Device::flex());
    f64::from(end(rule, steps, 1.0, start).into_scalar::<f32>() - (0.5 + 0.5 * 1.5)).abs()
}

/// Steps with a corrector are of third order, but the first and the last are not.
#[test]
fn solvers_converge_at_their_order() {
    for (rule, order) in [
        (SamplerKind::Euler(Euler {}), 1.0),
        (SamplerKind::Dpm2(Dpm2 {}), 2.0),
        (UNIPC, 2.5),
        (sa_solver(0.0, 1), 1.0),
        (sa_solver(0.0, 2), 2.5),
    ] {
        let (coarse, fine) = (error(&rule, 16), error(&rule, 64));
        let measured = (coarse / fine).log2() / 2.0;
        assert!((measured - order).abs() < 0.35, "{rule:?}: order {measured}, errors {coarse} {fine}");
    }
}

/// The mean of step `k` and how noisy it is.
fn step(rule: &SamplerKind, schedule: Schedule, times: &[f64], k: usize) -> (f64, f64) {
    let grid = Grid::new(schedule, times.to_vec());
    weighed(rule.get().step(&grid, k), [0.7; HISTORY], [-1.3; HISTORY])
}

/// The mean of a step from these points and velocities, newest first, and its deviation.
fn weighed(step: Step, x: [f64; HISTORY], v: [f64; HISTORY]) -> (f64, f64) {
    let sum = |weights: [f64; HISTORY], values: [f64; HISTORY]| -> f64 {
        weights.iter().zip(values).map(|(weight, value)| weight * value).sum()
    };
    (sum(step.mean.x, x) + sum(step.mean.v, v), step.std)
}

#[test]
fn samplers_without_noise_are_first_order_solvers() {
    let times = grid(10, 3.0);
    for k in 0..10 {
        // Rules of second order are of first at the first step.
        let second = [sa_solver(0.0, 2), UNIPC, SamplerKind::Dpm2(Dpm2 {})];
        let both = [&[ddim(0.0), cps(0.0), sa_solver(0.0, 1)][..], &second[..if k == 0 { 3 } else { 0 }]].concat();
        let flow = [&both[..], &[SamplerKind::Euler(Euler {}), flow_sde(0.0), dance(0.0)]].concat();
        for (schedule, rules) in [(FLOW, &flow[..]), (VP, &both)] {
            // DPM-Solver++ of first order: (σ′/σ) x + α′ (1 − e^{−h}) x̂₀.
            let grid = Grid::new(schedule, times.clone());
            let (from, to) = (grid.level(k), grid.level(k + 1));
            let (clean, _) = weighed(Step::deterministic(Mean::clean(&grid, k, 0)), [0.7; HISTORY], [-1.3; HISTORY]);
            let expected = to.sigma / from.sigma * 0.7 + to.alpha * (1.0 - grid.span(k).1) * clean;
            for rule in rules {
                let (mean, std) = step(rule, schedule, &times, k);
                assert!((mean - expected).abs() < 1e-9, "{rule:?} {schedule:?} step {k}: {mean} {expected}");
                assert!(std.abs() < f64::MIN_POSITIVE, "{rule:?}");
            }
        }
    }
}

#[test]
fn the_deviation_of_ddim_is_the_papers_on_a_variance_preserving_path() {
    let times = grid(10, 3.0);
    let alpha_bar = |t: f64| VP.level(t).alpha.powi(2);
    for (k, eta) in (0..9).flat_map(|k| [0.3, 1.0].map(|eta| (k, eta))) {
        let (now, next) = (alpha_bar(times[k]), alpha_bar(times[k + 1]));
        let expected = eta * ((1.0 - next) / (1.0 - now) * (1.0 - now / next)).sqrt();
        let (_, std) = step(&ddim(eta), VP, &times, k);
        assert!((std - expected).abs() < 1e-12, "step {k}: {std} {expected}");
    }
}

/// With all noise, the step of flow-DDIM is the posterior of the point given the one before and the clean sample, where noise is
/// added by x_t = a x_t' + b z; with the share η, its variance is η² of that.
#[test]
fn ddim_on_a_rectified_flow_is_the_posterior_of_its_path() {
    let times = grid(10, 3.0);
    for (k, eta) in (0..9).flat_map(|k| [0.4, 1.0].map(|eta| (k, eta))) {
        let (t, next, x, v) = (times[k], times[k + 1], 0.7, -1.3);
        let a = (1.0 - t) / (1.0 - next);
        let variance = next * next * (t * t - a * a * next * next) / (t * t);
        let (clean, noise) = (x - t * v, x + (1.0 - t) * v);
        let (mean, std) = step(&ddim(eta), FLOW, &times, k);
        assert!((std * std - eta * eta * variance).abs() < 1e-12, "step {k}, η = {eta}: {std}");
        let kept = (next * next - eta * eta * variance).sqrt();
        assert!((mean - ((1.0 - next) * clean + kept * noise)).abs() < 1e-9, "step {k}, η = {eta}: {mean}");
        let posterior = (1.0 - next) * clean + a * next * next / (t * t) * (x - (1.0 - t) * clean);
        assert!((mean - posterior).abs() < 1e-9 || eta < 1.0, "step {k}: {mean} {posterior}");
    }
}

#[test]
fn steps_with_noise_have_a_density_and_the_last_of_most_has_none() {
    let steps = |rule: &SamplerKind, schedule| {
        let sampling = sampling(rule.clone());
        stochastic(&sampling.rule.walk(&sampling.grid(schedule), keys(1)[0]))
    };
    let none = Vec::<usize>::new();
    assert_eq!(steps(&flow_sde(0.7), FLOW), (0..10).collect::<Vec<_>>());
    for (rule, schedule) in [
        (dance(0.3), FLOW),
        (ddim(1.0), FLOW),
        (ddim(0.2), VP),
        (cps(0.8), FLOW),
        (cps(1.0), VP),
        (sa_solver(0.4, 1), FLOW),
        (sa_solver(1.0, 2), VP),
    ] {
        assert_eq!(steps(&rule, schedule), (0..9).collect::<Vec<_>>(), "{rule:?}");
    }
    let solvers = [SamplerKind::Euler(Euler {}), SamplerKind::Dpm2(Dpm2 {}), UNIPC];
    for rule in [&solvers[..], &[flow_sde(0.0), dance(0.0), ddim(0.0), cps(0.0), sa_solver(0.0, 2)]].concat() {
        assert_eq!(steps(&rule, FLOW), none, "{rule:?}");
    }
}

#[test]
fn sdes_keep_the_moments_of_the_data() {
    let start = noise_of(4096, 4);
    for (rule, schedule) in [
        (flow_sde(0.7), FLOW),
        (dance(0.3), FLOW),
        (dance(1.0), FLOW),
        (ddim(0.5), FLOW),
        (ddim(1.0), FLOW),
        (ddim(1.0), VP),
        (sa_solver(0.5, 1), FLOW),
        (sa_solver(0.4, 2), FLOW),
        (sa_solver(1.0, 2), VP),
    ] {
        let field = GaussianData { mean: 0.5, std: 0.5, schedule };
        let [mean, variance] = moments(path(&rule, 400, 1.0, start.clone(), &field).pop().expect("an end"));
        // Four standard errors of the variance of 16,384 numbers are 0.011; the discretization takes 0.002.
        let close = (mean - 0.5).abs() < 0.016 && (variance - 0.25).abs() < 0.013;
        assert!(close, "{rule:?} {schedule:?}: {mean} {variance}");
    }
}

/// Its noise does not shrink with the step, so that it keeps marginals only where the clean sample is predicted exactly.
#[test]
fn coefficients_preserving_sampling_keeps_the_noise_of_each_time() {
    let (eta, steps, times) = (0.8, 10, grid(10, 1.0));
    let start = noise_of(4096, 4);
    let points = path(&cps(eta), steps, 1.0, start.clone(), &GaussianData { mean: 0.5, std: 0.0, schedule: FLOW });
    for (x, t) in points.into_iter().zip(&times) {
        let [mean, variance] = moments(x);
        assert!((mean - (1.0 - t) * 0.5).abs() < 0.032 * t + 1e-6, "{t}: {mean}");
        assert!((variance - t * t).abs() < 0.045 * t * t + 1e-9, "{t}: {variance}");
    }
    // Of data with a deviation s the variance follows c′ = (α′ α s² + σ′ σ cos(ηπ/2)) / (α² s² + σ²) c + σ′ sin(ηπ/2) z.
    let (sin, cos) = (eta * std::f64::consts::FRAC_PI_2).sin_cos();
    let variance = (0..steps).fold(1.0, |variance, k| {
        let (t, next) = (times[k], times[k + 1]);
        let (redrawn, kept) = if k + 1 == steps { (0.0, 1.0) } else { (sin, cos) };
        let slope = ((1.0 - next) * (1.0 - t) * 0.25 + next * t * kept) / ((1.0 - t).powi(2) * 0.25 + t * t);
        slope * slope * variance + (next * redrawn).powi(2)
    });
    let [_, measured] = moments(end(&cps(eta), steps, 1.0, start));
    assert!((measured - variance).abs() < 0.05 * variance && variance < 0.2, "{measured} {variance}");
}

#[test]
fn every_step_is_finite_from_pure_noise() {
    let deterministic = [SamplerKind::Dpm2(Dpm2 {}), SamplerKind::Euler(Euler {}), UNIPC, sa_solver(0.0, 2)];
    let both = [ddim(1.0), ddim(0.0), cps(0.8), cps(1.0), sa_solver(0.4, 1), sa_solver(1.3, 2)];
    let window = SamplerKind::Window(Window { size: 1, ..Window::default() });
    let flow = [flow_sde(0.7), dance(0.3), window, SamplerKind::Branch(Branch { points: 1, ..Branch::default() })];
    for steps in [1, 2, 10] {
        let start = || Tensor::<2>::full([1, 1], 1.0, &Device::flex());
        let schedules =
            [(FLOW, [&deterministic[..], &both, &flow].concat()), (VP, [&deterministic[..], &both].concat())];
        for (schedule, rules) in schedules {
            let field = GaussianData { mean: 0.5, std: 0.5, schedule };
            for rule in rules {
                for x in path(&rule, steps, 3.0, start(), &field) {
                    assert!(x.into_scalar::<f32>().is_finite(), "{rule:?} in {steps} steps on {schedule:?}");
                }
            }
        }
    }
}

#[test]
fn values_out_of_range_are_refused_with_their_range() {
    let refusal =
        |rule: &SamplerKind, schedule| sampling(rule.clone()).validate("sampler", schedule).into_iter().next();
    for (rule, words) in [
        (flow_sde(-0.1), ["flow-sde", "noise_level = -0.1", "positive"]),
        (flow_sde(f64::INFINITY), ["flow-sde", "noise_level = inf", "positive"]),
        (dance(-0.3), ["dance", "eta = -0.3", "positive"]),
        (ddim(1.5), ["ddim", "eta = 1.5", "between 0 and 1"]),
        (cps(f64::NAN), ["cps", "eta = NaN", "between 0 and 1"]),
        (sa_solver(-1.0, 2), ["sa-solver", "tau = -1", "positive"]),
        (sa_solver(0.4, 3), ["sa-solver", "order = 3", "1 or 2"]),
    ] {
        let message = refusal(&rule, FLOW).expect("out of range");
        assert!(words.iter().all(|word| message.contains(word)), "{message}");
    }
    for rule in [flow_sde(0.7), dance(0.3)] {
        let message = refusal(&rule, VP).expect("not on this schedule");
        assert!(message.contains("rectified flow") && message.contains("ddim"), "{message}");
        assert_eq!(refusal(&rule, FLOW), None);
    }
    for rule in [ddim(0.0), ddim(1.0), cps(0.8), UNIPC, sa_solver(1.6, 1), sa_solver(0.0, 2)] {
        assert_eq!([refusal(&rule, FLOW), refusal(&rule, VP)], [None, None]);
    }
}
