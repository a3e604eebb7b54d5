use burn::tensor::{DType, Device, Tensor};
use elbow_kernels::{composite, gelu_linear, linear};

use crate::support::{assert_same, assert_slope, inputs, read, tensor};

/// (rows, in, out)
const SIZES: [[usize; 3]; 8] = [
    [1, 1, 1],
    [3, 8, 5],
    [7, 48, 17],
    [70, 128, 384],
    [384, 128, 128],
    [64, 32, 768],
    [1030, 33, 40],
    [257, 512, 128],
];

#[test]
fn matches_the_composite_with_bias() {
    for [rows, inner, out] in SIZES {
        let shaped = |t: &[Tensor<1>]| (t[0].clone().reshape([rows, inner]), t[1].clone().reshape([out, inner]));
        assert_same(
            &format!("linear {rows}×{inner}→{out}"),
            &|t| {
                let (x, weight) = shaped(t);
                linear(x, weight, Some(t[2].clone())).reshape([-1])
            },
            &|t| {
                let (x, weight) = shaped(t);
                composite::linear(x, weight, Some(t[2].clone())).reshape([-1])
            },
            &[rows * inner, out * inner, out],
        );
    }
}

#[test]
fn matches_the_composite_without_bias() {
    for [rows, inner, out] in SIZES {
        let shaped = |t: &[Tensor<1>]| (t[0].clone().reshape([1, rows, inner]), t[1].clone().reshape([out, inner]));
        assert_same(
            &format!("linear {rows}×{inner}→{out} without bias"),
            &|t| {
                let (x, weight) = shaped(t);
                linear::<3>(x, weight, None).reshape([-1])
            },
            &|t| {
                let (x, weight) = shaped(t);
                composite::linear::<3>(x, weight, None).reshape([-1])
            },
            &[rows * inner, out * inner],
        );
    }
}

#[test]
fn gelu_before_it_matches_the_composite() {
    for [rows, inner, out] in SIZES {
        let shaped = |t: &[Tensor<1>]| (t[0].clone().reshape([rows, inner]), t[1].clone().reshape([out, inner]));
        assert_same(
            &format!("gelu, linear {rows}×{inner}→{out}"),
            &|t| {
                let (x, weight) = shaped(t);
                gelu_linear(x, weight, Some(t[2].clone())).reshape([-1])
            },
            &|t| {
                let (x, weight) = shaped(t);
                composite::gelu_linear(x, weight, Some(t[2].clone())).reshape([-1])
            },
            &[rows * inner, out * inner, out],
        );
    }
}

#[test]
fn gradients_with_gelu_are_slopes() {
    let (rows, inner, out) = (131, 6, 5);
    assert_slope(
        "gelu, linear",
        &|t| {
            let (x, weight) = (t[0].clone().reshape([rows, inner]), t[1].clone().reshape([out, inner]));
            gelu_linear::<2>(x, weight, None).reshape([-1])
        },
        &[rows * inner, out * inner],
    );
}

#[test]
fn reads_views_of_a_joint_sequence_and_transposed_weights() {
    let (batch, tokens, text, inner, out) = (3, 11, 4, 8, 12);
    let shaped = |t: &[Tensor<1>]| {
        let x: Tensor<3> = t[0].clone().reshape([batch, tokens, inner]).narrow(1, text, tokens - text);
        let weight: Tensor<2> = t[1].clone().reshape([inner, out]).transpose();
        (x, weight, Some(t[2].clone()))
    };
    assert_same(
        "linear of views",
        &|t| {
            let (x, weight, bias) = shaped(t);
            linear(x, weight, bias).reshape([-1])
        },
        &|t| {
            let (x, weight, bias) = shaped(t);
            composite::linear(x, weight, bias).reshape([-1])
        },
        &[batch * tokens * inner, inner * out, out],
    );
}

#[test]
fn a_vector_is_one_row() {
    let device = Device::flex();
    let data = inputs(&[8, 40]);
    let (x, weight) = (tensor(&data[0], &device), tensor(&data[1], &device).reshape([5, 8]));
    let (fused, plain) = (linear(x.clone(), weight.clone(), None), composite::linear(x, weight, None));
    fused.into_data().assert_approx_eq::<f32>(&plain.into_data(), burn::tensor::Tolerance::relative(1e-5));
}

#[test]
fn other_dtypes_take_the_composite() {
    let device = Device::flex();
    let data = inputs(&[24, 40]);
    let x: Tensor<2> = tensor(&data[0], &device).reshape([3, 8]).cast(DType::F64);
    let weight: Tensor<2> = tensor(&data[1], &device).reshape([5, 8]).cast(DType::F64);
    let y = linear(x, weight, None);
    assert_eq!(y.dtype(), DType::F64);
    assert_eq!(y.dims(), [3, 5]);
}

#[test]
fn tracked_inputs_meet_weights_that_never_were_on_an_autodiff_device() {
    let data = inputs(&[24, 40]);
    let x = tensor(&data[0], &Device::flex().autodiff()).require_grad();
    let weight: Tensor<2> = tensor(&data[1], &Device::flex()).reshape([5, 8]);
    let grads = linear::<2>(x.clone().reshape([3, 8]), weight.clone(), None).sum().backward();
    let expected = read(weight.sum_dim(0).repeat_dim(0, 3));
    let error = crate::support::difference(&read(x.grad(&grads).unwrap()), &expected);
    assert!(error < 1e-5, "{error}");
}
