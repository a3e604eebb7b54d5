//! Samplers against fields whose solution is known.

use super::*;
use crate::noise::Purpose;
use burn::tensor::Device;

/// The exact velocity of data ~ N(μ, s² I): `v = E[ε − x₀ | x_t]`, linear in x.
struct GaussianData {
    mean: f64,
    std: f64,
}

impl VelocityField for GaussianData {
    fn velocity(&self, x: Tensor<4>, t: Tensor<1>, _: &Conditioning) -> Tensor<4> {
        let t = t.into_data().try_to_vec::<f32>().expect("f32").into_iter().map(f64::from).next().expect("a row");
        let variance = (1.0 - t).powi(2) * self.std.powi(2) + t * t;
        // E[ε|x] − E[x₀|x], each by linear regression on x.
        let centered = x - (1.0 - t) * self.mean;
        centered * ((t - (1.0 - t) * self.std.powi(2)) / variance) - self.mean
    }
}

fn nothing(n: usize) -> Conditioning {
    let device = Device::flex();
    Conditioning { tokens: Tensor::zeros([n, 1, 1], &device), pooled: Tensor::zeros([n, 1], &device) }
}

fn keys(n: u64) -> Vec<Key> {
    (0..n).map(|i| Key::new(1, Purpose::Step, 0).sample(i)).collect()
}

fn end(rule: SamplerKind, steps: usize, shift: f64, start: Tensor<4>) -> Tensor<4> {
    let sampling = Sampling { rule, steps, shift, guidance: 1.0 };
    let n = start.dims()[0];
    let field = GaussianData { mean: 0.5, std: 0.5 };
    sample(&field, &sampling, Schedule::RectifiedFlow, start, &nothing(n), &keys(n as u64), false).remove(0)
}

/// The ODE maps N(0, 1) onto N(μ, s²) by x ↦ μ + s x.
fn error(rule: SamplerKind, steps: usize) -> f64 {
    let start = Tensor::<4>::full([1, 1, 1, 1], 1.5, &Device::flex());
    f64::from(end(rule, steps, 1.0, start).into_scalar::<f32>() - (0.5 + 0.5 * 1.5)).abs()
}

#[test]
fn solvers_converge_at_their_order() {
    for (rule, order) in [(SamplerKind::Euler(Euler {}), 1.0), (SamplerKind::Dpm2(Dpm2 {}), 2.0)] {
        let (coarse, fine) = (error(rule, 16), error(rule, 64));
        let measured = (coarse / fine).log2() / 2.0;
        assert!((measured - order).abs() < 0.35, "{rule:?}: order {measured}, errors {coarse} {fine}");
    }
}

#[test]
fn first_order_dpm_equals_euler() {
    let device = Device::flex();
    let (times, one) = (grid(10, 3.0), |v: f32| Tensor::<4>::full([1, 1, 1, 1], v, &device));
    for k in 0..10 {
        let steps = [Step { x: one(0.7), velocity: one(-1.3) }];
        let dpm1 = Dpm2 {}.transition(Schedule::RectifiedFlow, &times, k, &steps).mean.into_scalar::<f32>();
        let euler = Euler {}.transition(Schedule::RectifiedFlow, &times, k, &steps).mean.into_scalar::<f32>();
        assert!((dpm1 - euler).abs() < 2e-6, "step {k}: {dpm1} {euler}");
    }
}

#[test]
fn the_sde_keeps_the_variance_of_the_data() {
    let n = 4096;
    let start = noise::normal((0..n).map(|i| Key::new(2, Purpose::Start, 0).sample(i)), [1, 1, 4], &Device::flex());
    let rule = SamplerKind::FlowSde(FlowSde { noise_level: 0.7 });
    let x = end(rule, 400, 1.0, start).into_data().try_to_vec::<f32>().expect("f32");
    let mean = x.iter().map(|&v| f64::from(v)).sum::<f64>() / x.len() as f64;
    let variance = x.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / x.len() as f64;
    // Four standard errors of the variance of 16,384 numbers are 0.011; the discretization takes 0.002.
    assert!((mean - 0.5).abs() < 0.016 && (variance - 0.25).abs() < 0.013, "{mean} {variance}");
}

#[test]
fn an_sde_without_noise_is_euler() {
    let start = || Tensor::<4>::full([2, 1, 1, 1], -0.4, &Device::flex());
    let sde = end(SamplerKind::FlowSde(FlowSde { noise_level: 0.0 }), 7, 3.0, start());
    assert_eq!(sde.into_data(), end(SamplerKind::Euler(Euler {}), 7, 3.0, start()).into_data());
}

#[test]
fn every_step_is_finite_from_pure_noise() {
    for rule in [SamplerKind::Dpm2(Dpm2 {}), SamplerKind::FlowSde(FlowSde::default()), SamplerKind::Euler(Euler {})] {
        for steps in [1, 2, 10] {
            let start = Tensor::<4>::full([1, 1, 1, 1], 1.0, &Device::flex());
            assert!(end(rule, steps, 3.0, start).into_scalar::<f32>().is_finite(), "{rule:?} in {steps} steps");
        }
    }
}
