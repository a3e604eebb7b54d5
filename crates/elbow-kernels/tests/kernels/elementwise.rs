use burn::tensor::{Device, Tensor};
use elbow_kernels::{composite, gated_residual, gelu_tanh};

use crate::support::{assert_same, assert_slope, evaluate, read, tensor};

#[test]
fn gelu_matches_the_composite() {
    for len in [1, 7, 16, 1000, 40_000] {
        assert_same(
            &format!("gelu {len}"),
            &|t| gelu_tanh(t[0].clone()),
            &|t| composite::gelu_tanh(t[0].clone()),
            &[len],
        );
    }
}

#[test]
fn gelu_matches_the_closed_form() {
    let x: Vec<f32> = (-1200..=1200).map(|i| i as f32 / 100.0).collect();
    let result = evaluate(&|t| gelu_tanh(t[0].clone()), std::slice::from_ref(&x), &[true]);
    let gradient = result.gradients[0].as_ref().unwrap();
    for (i, &x) in x.iter().enumerate() {
        let x = f64::from(x);
        let inner = std::f64::consts::FRAC_2_PI.sqrt() * (x + 0.044_715 * x.powi(3));
        let slope = std::f64::consts::FRAC_2_PI.sqrt() * (1.0 + 3.0 * 0.044_715 * x * x);
        let value = 0.5 * x * (1.0 + inner.tanh());
        let derivative = 0.5 * (1.0 + inner.tanh()) + 0.5 * x * slope / inner.cosh().powi(2);
        assert!((f64::from(result.value[i]) - value).abs() < 2e-6 * x.abs().max(1.0), "gelu({x})");
        let expected = derivative * f64::from(result.weights[i]);
        assert!((f64::from(gradient[i]) - expected).abs() < 1e-5, "gelu'({x})");
    }
}

#[test]
fn gelu_stays_finite_and_keeps_nan() {
    let x = tensor(&[f32::MAX, f32::MIN, 1e4, -1e4, f32::NAN], &Device::flex());
    let y = read(gelu_tanh(x));
    assert!((y[2] - 1e4).abs() < 1e-2 && y[3].abs() < 1e-30, "{y:?}");
    assert!(y[4].is_nan());
}

#[test]
fn gelu_does_not_overwrite_a_gradient_others_hold() {
    let device = Device::flex().autodiff();
    let x = tensor(&[0.5, -1.0, 2.0], &device).require_grad();
    let y = tensor(&[1.0, 1.0, 1.0], &device).require_grad();
    let grads = (gelu_tanh(x.clone()) + y.clone()).sum().backward();
    assert_eq!(read(y.grad(&grads).unwrap()), [1.0; 3]);
}

#[test]
fn gated_residual_matches_the_composite() {
    for [batch, tokens, hidden] in [[1, 3, 8], [2, 1, 5], [3, 17, 33], [4, 70, 128]] {
        let shaped = |t: &[Tensor<1>]| -> (Tensor<3>, Tensor<2>, Tensor<3>) {
            let stream = |i: usize| t[i].clone().reshape([batch, tokens, hidden]);
            (stream(0), t[1].clone().reshape([batch, hidden]), stream(2))
        };
        let lengths = [batch * tokens * hidden, batch * hidden, batch * tokens * hidden];
        let fused = |t: &[Tensor<1>]| {
            let (x, gate, y) = shaped(t);
            gated_residual(x, gate, y).reshape([-1])
        };
        let name = format!("gated_residual {batch}×{tokens}×{hidden}");
        assert_same(
            &name,
            &fused,
            &|t| {
                let (x, gate, y) = shaped(t);
                composite::gated_residual(x, gate, y).reshape([-1])
            },
            &lengths,
        );
        assert_slope(&name, &fused, &lengths);
    }
}

#[test]
fn gated_residual_reads_slices() {
    let (batch, tokens, text, hidden) = (3, 10, 4, 24);
    let slices = |t: &[Tensor<1>]| {
        let stream =
            |i: usize| -> Tensor<3> { t[i].clone().reshape([batch, tokens, hidden]).narrow(1, text, tokens - text) };
        let modulation: Tensor<2> = t[1].clone().reshape([batch, 6 * hidden]);
        (stream(0), modulation.narrow(1, 2 * hidden, hidden), stream(2))
    };
    assert_same(
        "gated_residual of slices",
        &|t| {
            let (x, gate, y) = slices(t);
            gated_residual(x, gate, y).reshape([-1])
        },
        &|t| {
            let (x, gate, y) = slices(t);
            composite::gated_residual(x, gate, y).reshape([-1])
        },
        &[batch * tokens * hidden, batch * 6 * hidden, batch * tokens * hidden],
    );
}
