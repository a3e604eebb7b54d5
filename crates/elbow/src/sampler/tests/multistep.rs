//! Samplers that look back (arXiv 2302.04867, 2309.05019).

use super::*;

/// With order 1 and τ = 1 it is DDIM with all noise; with another τ the same with the share η of
/// η² (1 − e^{−2h}) = 1 − e^{−2τ²h}.
#[test]
fn sa_solver_of_first_order_is_ddim() {
    let times = grid(10, 3.0);
    for (schedule, k) in [FLOW, VP].into_iter().flat_map(|s| (0..10).map(move |k| (s, k))) {
        for tau in [0.3, 1.0] {
            let (mean, std) = step(sa_solver(tau, 1), schedule, &times, k);
            let (_, shrink) = span(schedule, &times, k);
            let eta = ((1.0 - shrink.powf(2.0 * tau * tau)) / (1.0 - shrink * shrink)).sqrt();
            let (expected, deviation) = step(ddim(eta), schedule, &times, k);
            assert!(
                (mean - expected).abs() < 1e-9 && (std - deviation).abs() < 1e-12,
                "{schedule:?} step {k}, τ = {tau}"
            );
        }
    }
}

/// The integrals of its formulas by a sum over thin slices: c ∫ e^{c(λ − λ')} p(λ) dλ over the step, p the line through the clean
/// samples.
#[test]
fn sa_solver_of_second_order_integrates_a_line_exactly() {
    let (times, k, tau, one) = (grid(10, 1.0), 4, 0.6, |v: f64| Tensor::<4>::full([1, 1, 1, 1], v, &Device::flex()));
    let c: f64 = 1.0 + tau * tau;
    for schedule in [FLOW, VP] {
        let newest = Step { x: one(0.3), velocity: one(-0.8) };
        let before = Step { x: one(0.5), velocity: one(0.4) };
        let clean = |s: &Step, k: usize| {
            f64::from(schedule.clean(s.x.clone(), s.velocity.clone(), times[k]).into_scalar::<f32>())
        };
        let (m0, m1) = (clean(&newest, k), clean(&before, k - 1));
        let ((h, shrink), (earlier, _)) = (span(schedule, &times, k), span(schedule, &times, k - 1));
        let integral = |line: &dyn Fn(f64) -> f64, h: f64| {
            let slices = 20_000;
            let slice = |i: i32| {
                let u = (f64::from(i) + 0.5) / f64::from(slices) * h;
                c * (c * (u - h)).exp() * line(u) * h / f64::from(slices)
            };
            (0..slices).map(slice).sum::<f64>()
        };
        // The corrector puts the line through both clean samples in the place of the constant that predicted the point.
        let moved = schedule.level(times[k]).alpha * integral(&|u| (m0 - m1) * u / earlier, earlier);
        let (from, to) = (schedule.level(times[k]), schedule.level(times[k + 1]));
        let expected = to.sigma / from.sigma * shrink.powf(tau * tau) * (0.3 + moved)
            + to.alpha * integral(&|u| m0 + (m0 - m1) * u / earlier, h);
        let got = SaSolver { tau, order: 2 }.transition(schedule, &times, k, &[newest, before]).mean;
        let got = f64::from(got.into_scalar::<f32>());
        assert!((got - expected).abs() < 1e-5, "{schedule:?}: {got} {expected}");
    }
}

#[test]
fn a_corrector_brings_the_end_nearer() {
    let (plain, corrected) = (error(SamplerKind::Dpm2(Dpm2 {}), 64), error(UNIPC, 64));
    assert!(corrected < 0.8 * plain, "{corrected} {plain}");
}
