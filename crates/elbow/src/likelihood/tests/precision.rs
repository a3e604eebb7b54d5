//! Log-ratios of nearby weights (arXiv 2602.04663, §3.2) against exact ones.

use super::*;

/// ln p of a draw of `row` under the given velocities.
fn elbo(rollout: &Batch, query: &Query, draw: usize, row: usize, weighting: Weighting, velocities: &[f64]) -> f64 {
    let (noise, clean) = (noise_of(rollout, query, draw as u32), numbers(rollout.clean().clone()));
    let dims = noise.len() / ROWS;
    let t = on_grid(numbers(query.t.clone())[row], &rollout.grid.times.clone());
    let errors: Vec<f64> = (row * dims..(row + 1) * dims).map(|i| velocities[i] - (noise[i] - clean[i])).collect();
    let square = errors.iter().map(|e| e * e).sum::<f64>() / dims as f64;
    let size = errors.iter().map(|e| e.abs()).sum::<f64>() / dims as f64;
    match weighting {
        Weighting::Adaptive => -t * square / size,
        Weighting::Simple => -square,
        Weighting::PathKl => -(1.0 - t) / (t + 1e-3) * square,
        Weighting::T => -t * t * square,
        Weighting::Noise => -(1.0 - t) * (1.0 - t) * square,
        Weighting::AwmT => -t * square,
        Weighting::Huber => -t * square.sqrt(),
        Weighting::Ghuber => -4.0 * t * square.sqrt().sqrt(),
    }
}

/// How far log-ratios of nearby weights are from exact ones.
#[derive(Debug, Default)]
struct Off {
    /// The largest exact log-ratio.
    size: f64,
    /// From `f64` arithmetic on the network's `f32` velocities.
    scoring: f64,
    /// From `f64` arithmetic all through, network included.
    all: f64,
}

impl Off {
    fn add(&mut self, query: &Query, exact: &dyn Fn(usize, &[f64]) -> f64) {
        let device = Device::flex();
        let moved = BEHAVIOR.map(|w| w + 1e-4);
        let [v, v_b] = [moved, BEHAVIOR].map(|weights| query.velocity(&Tanh::new(weights, &device)));
        let got = numbers(query.log_prob(v.clone()) - query.log_prob(v_b.clone()));
        let [seen, seen_b] = [v, v_b].map(numbers);
        let [true_v, true_b] = [moved, BEHAVIOR].map(|weights| Tanh::exact(weights, query));
        for (row, got) in got.into_iter().enumerate() {
            let [scoring, all] = [(&seen, &seen_b), (&true_v, &true_b)].map(|(v, v_b)| exact(row, v) - exact(row, v_b));
            self.size = self.size.max(all.abs());
            self.scoring = self.scoring.max((got - scoring).abs());
            self.all = self.all.max((got - all).abs());
        }
    }

    #[expect(clippy::print_stderr, reason = "seen with --nocapture")]
    fn check(&self, what: &str, weight: f64, tolerance: f64) {
        let Self { size, scoring, all } = self;
        eprintln!("{what}: up to {size:.1e}, off by {scoring:.1e} in scoring, {all:.1e} in all");
        // Targets are f32, and felt in proportion to the difference of the velocities.
        assert!(*size > 1e-5 && *scoring < 1e-10 * weight && *all < tolerance * weight, "{what}: {self:?}");
    }
}

#[test]
fn small_log_ratios_keep_their_digits() {
    for (shape, tolerance) in [([1, 2, 2], 3e-7), ([4, 8, 8], 3e-8)] {
        let rollout = drawn(SDE, 10, shape);
        for weighting in WEIGHTINGS {
            let mut off = Off::default();
            for (draw, query) in (Elbo { weighting, ..Elbo::default() }).queries(&rollout, &rollout).enumerate() {
                off.add(&query, &|row, v| elbo(&rollout, &query, draw, row, weighting, v));
            }
            // (1 − t)/(t + 10⁻³) is 100 near data.
            let weight = if weighting == Weighting::PathKl { 100.0 } else { 1.0 };
            off.check(&format!("{shape:?} {weighting:?}"), weight, tolerance);
        }
        let mut off = Off::default();
        for (k, query) in Trajectory::default().queries(&rollout, &rollout).enumerate() {
            off.add(&query, &|row, v| transition(&rollout, k, row, v));
        }
        off.check(&format!("{shape:?} trajectory"), 1.0, tolerance);
    }
}
