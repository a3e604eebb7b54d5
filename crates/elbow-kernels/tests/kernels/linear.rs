use burn::tensor::{DType, Device, Tensor};
use elbow_kernels::{
    Isa,
    Precision::{Bf16, F32},
    composite, gelu_linear, isa, linear,
};
use half::bf16;

use crate::support::{assert_same, assert_slope, difference, evaluate, inputs, read, tensor};

/// (rows, in, out)
const SIZES: [[usize; 3]; 12] = [
    [1, 1, 1],
    [20, 1, 33],
    [20, 9, 1],
    [97, 1, 1],
    [16, 31, 31],
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
                linear(x, weight, Some(t[2].clone()), F32).reshape([-1])
            },
            &|t| {
                let (x, weight) = shaped(t);
                composite::linear(x, weight, Some(t[2].clone()), F32).reshape([-1])
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
                linear::<3>(x, weight, None, F32).reshape([-1])
            },
            &|t| {
                let (x, weight) = shaped(t);
                composite::linear::<3>(x, weight, None, F32).reshape([-1])
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
                gelu_linear(x, weight, Some(t[2].clone()), F32).reshape([-1])
            },
            &|t| {
                let (x, weight) = shaped(t);
                composite::gelu_linear(x, weight, Some(t[2].clone()), F32).reshape([-1])
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
            gelu_linear::<2>(x, weight, None, F32).reshape([-1])
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
            linear(x, weight, bias, F32).reshape([-1])
        },
        &|t| {
            let (x, weight, bias) = shaped(t);
            composite::linear(x, weight, bias, F32).reshape([-1])
        },
        &[batch * tokens * inner, inner * out, out],
    );
}

#[test]
fn a_vector_is_one_row() {
    let device = Device::flex();
    let data = inputs(&[8, 40]);
    let (x, weight) = (tensor(&data[0], &device), tensor(&data[1], &device).reshape([5, 8]));
    let (fused, plain) = (linear(x.clone(), weight.clone(), None, F32), composite::linear(x, weight, None, F32));
    fused.into_data().assert_approx_eq::<f32>(&plain.into_data(), burn::tensor::Tolerance::relative(1e-5));
}

#[test]
fn other_dtypes_take_the_composite() {
    let device = Device::flex();
    let data = inputs(&[24, 40]);
    let x: Tensor<2> = tensor(&data[0], &device).reshape([3, 8]).cast(DType::F64);
    let weight: Tensor<2> = tensor(&data[1], &device).reshape([5, 8]).cast(DType::F64);
    let y = linear(x, weight, None, F32);
    assert_eq!(y.dtype(), DType::F64);
    assert_eq!(y.dims(), [3, 5]);
}

#[test]
fn tracked_inputs_meet_weights_that_never_were_on_an_autodiff_device() {
    let data = inputs(&[24, 40]);
    let x = tensor(&data[0], &Device::flex().autodiff()).require_grad();
    let weight: Tensor<2> = tensor(&data[1], &Device::flex()).reshape([5, 8]);
    let grads = linear::<2>(x.clone().reshape([3, 8]), weight.clone(), None, F32).sum().backward();
    let expected = read(weight.sum_dim(0).repeat_dim(0, 3));
    let error = difference(&read(x.grad(&grads).unwrap()), &expected);
    assert!(error < 1e-5, "{error}");
}

/// `a [rows, inner] · b [inner, out]`, both rounded to bf16, in `f64`.
fn rounded_product(
    [rows, inner, out]: [usize; 3],
    a: impl Fn(usize, usize) -> f32,
    b: impl Fn(usize, usize) -> f32,
) -> Vec<f32> {
    let round = |value: f32| bf16::from_f32(value).to_f64();
    let element = |i: usize| (0..inner).map(|k| round(a(i / out, k)) * round(b(k, i % out))).sum::<f64>() as f32;
    (0..rows * out).map(element).collect()
}

#[test]
fn bf16_rounds_the_factors_of_all_three_products() {
    // The composite rounds gradients where they leave the product, not where they enter it.
    let exact = if isa() == Ok(Isa::Composite) { 1e-2 } else { 1e-5 };
    for [rows, inner, out] in SIZES {
        let data = inputs(&[rows * inner, out * inner, out]);
        let f = |t: &[Tensor<1>]| {
            let (x, weight) = (t[0].clone().reshape([rows, inner]), t[1].clone().reshape([out, inner]));
            linear::<2>(x, weight, Some(t[2].clone()), Bf16).reshape([-1])
        };
        let found = evaluate(&f, &data, &[true; 3]);
        let (x, w, dy) = (&data[0], &data[1], &found.weights);
        let mut y = rounded_product([rows, inner, out], |i, k| x[i * inner + k], |k, j| w[j * inner + k]);
        y.iter_mut().enumerate().for_each(|(i, y)| *y += data[2][i % out]);
        let dx = rounded_product([rows, out, inner], |i, k| dy[i * out + k], |k, j| w[k * inner + j]);
        let dw = rounded_product([out, rows, inner], |i, k| dy[k * out + i], |k, j| x[k * inner + j]);
        let db: Vec<f32> = (0..out).map(|j| dy.iter().skip(j).step_by(out).sum()).collect();
        let expected = [Some(dx), Some(dw), Some(db)];
        let error = difference(&found.value, &y);
        assert!(error < 1e-6, "{rows}×{inner}→{out}: the value is off by {error:.1e}");
        for (i, (found, expected)) in found.gradients.iter().zip(&expected).enumerate() {
            let error = difference(found.as_ref().unwrap(), expected.as_ref().unwrap());
            assert!(error < exact, "{rows}×{inner}→{out}: gradient {i} is off by {error:.1e}");
        }
    }
}

#[test]
fn bf16_matches_its_composite_to_its_precision() {
    for [rows, inner, out] in SIZES {
        let run = |f: fn(Tensor<2>, Tensor<2>, Option<Tensor<1>>, elbow_kernels::Precision) -> Tensor<2>| {
            let f = move |t: &[Tensor<1>]| {
                let (x, weight) = (t[0].clone().reshape([rows, inner]), t[1].clone().reshape([out, inner]));
                f(x, weight, Some(t[2].clone()), Bf16).reshape([-1])
            };
            evaluate(&f, &inputs(&[rows * inner, out * inner, out]), &[true; 3])
        };
        for (fused, plain) in [(run(linear), run(composite::linear)), (run(gelu_linear), run(composite::gelu_linear))] {
            let error = difference(&fused.value, &plain.value);
            assert!(error < 1e-4, "{rows}×{inner}→{out}: the value is off by {error:.1e}");
            for (i, (a, b)) in fused.gradients.iter().zip(&plain.gradients).enumerate() {
                let error = difference(a.as_ref().unwrap(), b.as_ref().unwrap());
                assert!(error < 1e-2, "{rows}×{inner}→{out}: gradient {i} is off by {error:.1e}");
            }
        }
    }
}

#[test]
fn bf16_keeps_what_is_not_a_number() {
    let x = Tensor::<2>::from_data([[f32::NAN, 1.0], [f32::INFINITY, 1.0], [f32::MAX, 1.0]], &Device::flex());
    let y = read(linear(x, Tensor::from_data([[1.0, 1.0]], &Device::flex()), None, Bf16));
    assert!(y[0].is_nan() && y[1] == f32::INFINITY && y[2] == f32::INFINITY, "{y:?}");
}
