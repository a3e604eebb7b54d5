//! Whose error normalizes the adaptive weighting (arXiv 2602.04663): that of each set of weights, or the behavior policy's for all.

use super::*;

fn elbo(normalizer: Normalizer) -> Elbo {
    Elbo { normalizer, timesteps: Timesteps::All, ..Elbo::default() }
}

/// A query's velocities of which all errors are `factor` times those of `weights`.
fn stretched(query: &Query, weights: [f32; 3], factor: f64) -> Tensor<2> {
    let target = to_f64(query.target.clone().expect("an ELBO"));
    let error = to_f64(query.velocity(&Tanh::new(weights, &Device::flex()))) - target.clone();
    target + error * factor
}

#[test]
fn a_shared_normalizer_is_the_behavior_policys() {
    let (rollout, other) = (drawn(SDE, 6, [2, 1, 2]), [0.8f32, -0.6, 0.5]);
    for query in elbo(Normalizer::Shared).queries(&rollout, &rollout) {
        assert!(query.shared);
        let behavior = Tanh::new(BEHAVIOR, &Device::flex());
        let [v, v_b] = [other, BEHAVIOR].map(|w| Tanh::exact(w, &query));
        let (u, gain) = (numbers(query.target.clone().expect("an ELBO")), numbers(query.gain.clone()));
        let dims = u.len() / ROWS;
        let mean =
            |row: usize, f: &dyn Fn(usize) -> f64| (row * dims..(row + 1) * dims).map(f).sum::<f64>() / dims as f64;
        let fields = fields(Some(&behavior), &behavior);
        let e = Evaluation::new(&query, &Tanh::new(other, &Device::flex()), &fields);
        let (l, log_ratio) = (numbers(e.log_prob(Weights::Current)), numbers(e.log_ratio()));
        for row in 0..ROWS {
            let size = mean(row, &|i| (v_b[i] - u[i]).abs() * gain[row].abs());
            let log_prob = |v: &[f64]| -mean(row, &|i| ((v[i] - u[i]) * gain[row]).powi(2)) / size;
            let expected = log_prob(&v);
            assert!((l[row] - expected).abs() < 1e-5 * (1.0 + expected.abs()), "{} {expected}", l[row]);
            let expected = expected - log_prob(&v_b);
            assert!((log_ratio[row] - expected).abs() < 1e-5 * (1.0 + expected.abs()), "{} {expected}", log_ratio[row]);
        }
    }
}

// Where all errors grow by s, L grows by s with a normalizer of its own and by s² with a shared one. The gradient of both is that of s²:
// along s, the value of the former moves half as far as its gradient says.
#[test]
fn the_value_of_an_own_normalizer_moves_half_as_far_as_its_gradient() {
    let (rollout, h) = (drawn(SDE, 6, [2, 1, 2]), 1e-4);
    for (normalizer, degree) in [(Normalizer::Own, 1.0), (Normalizer::Shared, 2.0)] {
        for query in elbo(normalizer).queries(&rollout, &rollout) {
            let log_probs = |s: f64| {
                let v_b = stretched(&query, BEHAVIOR, 1.0);
                let shared = query.shared.then_some(&v_b);
                numbers(query.row_log_prob(stretched(&query, BEHAVIOR, s), shared))
            };
            for ((one, more), less) in log_probs(1.0).into_iter().zip(log_probs(1.0 + h)).zip(log_probs(1.0 - h)) {
                let slope = (more - less) / (2.0 * h);
                assert!((slope / one - degree).abs() < 1e-6, "{normalizer:?}: {slope} {one}");
            }
            // dL/ds by the chain rule over dL/dv, which holds the normalizer still.
            let device = Device::flex().autodiff();
            let v: Tensor<2> = Tensor::from_data(stretched(&query, BEHAVIOR, 1.0).into_data(), &device).require_grad();
            let v_b = v.clone().detach();
            let l = query.row_log_prob(v.clone(), query.shared.then_some(&v_b));
            let gradient = v.grad(&l.clone().sum().backward()).expect("depends on it");
            let error = stretched(&query, BEHAVIOR, 1.0) - to_f64(query.target.clone().expect("an ELBO"));
            let slope: f64 = numbers(to_f64(gradient) * error).iter().sum();
            let total: f64 = numbers(l.inner()).iter().sum();
            assert!((slope / total - 2.0).abs() < 1e-5, "{normalizer:?}: {slope} {total}");
        }
    }
}

#[test]
fn on_policy_the_two_are_one() {
    let rollout = drawn(SDE, 6, [2, 1, 2]);
    let field = Tanh::new(BEHAVIOR, &Device::flex());
    let log_probs = |normalizer| -> Vec<f64> {
        let fields = fields(None, &Never);
        let log_prob = |q: Query| numbers(Evaluation::new(&q, &field, &fields).log_prob(Weights::Current));
        elbo(normalizer).queries(&rollout, &rollout).flat_map(log_prob).collect()
    };
    assert_eq!(log_probs(Normalizer::Own), log_probs(Normalizer::Shared));
}
