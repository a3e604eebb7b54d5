use elbow_kernels::AdamW;

use crate::support::{difference, values};

/// `torch.optim.AdamW` on one element, in double precision: (parameter, m, v).
fn reference(rule: AdamW, step: i32, lr: f64, (mut p, mut m, mut v): (f64, f64, f64), g: f64) -> (f64, f64, f64) {
    p *= 1.0 - lr * rule.weight_decay;
    m += (1.0 - rule.beta1) * (g - m);
    v = rule.beta2 * v + (1.0 - rule.beta2) * g * g;
    let step_size = lr / (1.0 - rule.beta1.powi(step));
    let denominator = v.sqrt() / (1.0 - rule.beta2.powi(step)).sqrt() + rule.eps;
    (p - step_size * m / denominator, m, v)
}

#[test]
fn adamw_follows_the_reference() {
    for (len, weight_decay) in [(1, 0.0), (37, 0.01), (50_001, 0.1)] {
        let rule = AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay };
        let mut param = values(len, 1);
        let (mut m, mut v) = (vec![0.0; len], vec![0.0; len]);
        let mut expected: Vec<_> = param.iter().map(|&p| (f64::from(p), 0.0, 0.0)).collect();
        for step in 1..=20 {
            let grad = values(len, 100 + step);
            rule.step(step, 1e-2, &mut param, &grad, &mut m, &mut v);
            for (state, &g) in expected.iter_mut().zip(&grad) {
                *state = reference(rule, step as i32, 1e-2, *state, f64::from(g));
            }
        }
        let column = |f: fn(&(f64, f64, f64)) -> f64| expected.iter().map(|s| f(s) as f32).collect::<Vec<f32>>();
        assert!(difference(&param, &column(|s| s.0)) < 1e-6, "parameter");
        assert!(difference(&m, &column(|s| s.1)) < 1e-6, "first moment");
        assert!(difference(&v, &column(|s| s.2)) < 1e-6, "second moment");
    }
}

#[test]
fn the_first_step_moves_by_the_learning_rate() {
    let rule = AdamW { beta1: 0.9, beta2: 0.999, eps: 0.0, weight_decay: 0.0 };
    let (mut param, mut m, mut v) = ([1.0, 1.0], [0.0; 2], [0.0; 2]);
    rule.step(1, 0.5, &mut param, &[3.0, -1e-3], &mut m, &mut v);
    assert!((param[0] - 0.5).abs() < 1e-5 && (param[1] - 1.5).abs() < 1e-5, "{param:?}");
}

#[test]
#[should_panic(expected = "differ in length")]
fn adamw_refuses_slices_of_different_lengths() {
    let rule = AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 };
    rule.step(1, 0.1, &mut [0.0; 3], &[0.0; 2], &mut [0.0; 3], &mut [0.0; 3]);
}
