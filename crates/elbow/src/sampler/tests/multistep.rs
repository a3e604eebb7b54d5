//! Samplers that look back (arXiv 2302.04867, 2309.05019).

use super::*;

/// With order 1 and τ = 1 it is DDIM with all noise; with another τ the same with the share η of
/// η² (1 − e^{−2h}) = 1 − e^{−2τ²h}.
#[test]
fn sa_solver_of_first_order_is_ddim() {
    let times = grid(10, 3.0);
    for (schedule, k) in [FLOW, VP].into_iter().flat_map(|s| (0..10).map(move |k| (s, k))) {
        for tau in [0.3, 1.0] {
            let (mean, std) = step(&sa_solver(tau, 1), schedule, &times, k);
            let (_, shrink) = Grid::new(schedule, times.clone()).span(k);
            let eta = ((1.0 - shrink.powf(2.0 * tau * tau)) / (1.0 - shrink * shrink)).sqrt();
            let (expected, deviation) = step(&ddim(eta), schedule, &times, k);
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
    let (times, k, tau) = (grid(10, 1.0), 4, 0.6);
    let c: f64 = 1.0 + tau * tau;
    // Points and velocities, newest first.
    let (x, v) = ([0.3, 0.5], [-0.8, 0.4]);
    for schedule in [FLOW, VP] {
        let grid = Grid::new(schedule, times.clone());
        let clean = |back: usize| {
            let level = grid.level(k - back);
            (level.d_sigma * x[back] - level.sigma * v[back]) / level.determinant()
        };
        let (m0, m1) = (clean(0), clean(1));
        let ((h, shrink), (earlier, _)) = (grid.span(k), grid.span(k - 1));
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
        let rule = SaSolver { tau, order: 2, ..SaSolver::default() };
        let step = rule.step(&grid, k);
        // An oldest point whose clean sample is m₁: (x, v) = (α m₁, α′ m₁), so that the corrector has nothing to add for it.
        let oldest = grid.level(k - 2);
        let (x2, v2) = (m1 * oldest.alpha, m1 * oldest.d_alpha);
        let (got, _) = weighed(step, [x[0], x[1], x2], [v[0], v[1], v2]);
        assert!((got - expected).abs() < 1e-9, "{schedule:?}: {got} {expected}");
    }
}

#[test]
fn a_corrector_brings_the_end_nearer() {
    let (plain, corrected) = (error(&SamplerKind::Dpm2(Dpm2 {}), 64), error(&UNIPC, 64));
    assert!(corrected < 0.8 * plain, "{corrected} {plain}");
}

/// AWM's: noise only between two times, and no correction after the first step.
#[test]
fn sa_solver_as_awm_has_it() {
    let grid = Grid::new(FLOW, Spacing::Uniform.times(10, 1.0));
    let plain = SaSolver { tau: 0.4, ..SaSolver::default() };
    let awm = SaSolver { noise_between: Some([0.3, 0.9]), first_correction: false, ..plain };
    let silent = SaSolver { tau: 0.0, ..plain };
    let noisy: Vec<bool> = (0..10).map(|k| awm.step(&grid, k).std > 0.0).collect();
    // Steps leave 1, 0.9, …, 0.1.
    assert_eq!(noisy, [false, true, true, true, true, true, true, true, false, false]);
    assert_eq!(awm.step(&grid, 0), silent.step(&grid, 0));
    assert_eq!(awm.step(&grid, 5), plain.step(&grid, 5), "inside, all is as without");
    // Without the correction the point counts as it is, and what moves is the predictor's part alone.
    let (with, without) = (plain.step(&grid, 1), awm.step(&grid, 1));
    let kept = |step: Step| step.mean.x[0] + step.mean.x[1];
    assert!((with.std - without.std).abs() < 1e-15 && (kept(with) - kept(without)).abs() < 1e-12);
    let level = grid.level(1);
    let (h, shrink) = grid.span(1);
    let (a, c) = (1.0 - shrink.powf(1.16), 1.16);
    let slope = (h - a / c) / grid.span(0).0;
    let clean = [level.d_sigma / level.determinant(), -level.sigma / level.determinant()];
    let alpha = grid.level(2).alpha;
    assert!((without.mean.v[0] - alpha * (a + slope) * clean[1]).abs() < 1e-12, "{without:?}");
    assert!((with.mean.v[0] - without.mean.v[0]).abs() > 1e-3, "the correction looks at the velocity: {with:?}");
    for wrong in [[0.5, 0.3], [-0.1, 0.5], [0.5, 1.1]] {
        let problems = SaSolver { noise_between: Some(wrong), ..plain }.validate(&grid);
        assert!(problems.len() == 1 && problems[0].contains("noise_between"), "{problems:?}");
    }
}
