//! Dense layers over weights in half precision: the bits of the same layers over the widened weights.

use burn::tensor::{DType, Device, Tensor, Tolerance};
use elbow_kernels::{
    Precision::{self, Bf16, F32},
    composite, linear,
};

use crate::support::{difference, inputs, read, tensor, values};

/// (rows, in, out): one row, partial tasks, few rows, and enough for rows to be divided.
const SIZES: [[usize; 3]; 5] = [[1, 1, 1], [7, 48, 17], [70, 128, 384], [1030, 33, 40], [1, 300, 500]];

type Layer = fn(Tensor<2>, Tensor<2>, Option<Tensor<1>>, Precision) -> Tensor<2>;

/// The value and the gradients of x and bias, with a weight that is not tracked.
fn evaluate(
    (layer, precision): (Layer, Precision),
    x: &[f32],
    weight: &Tensor<2>,
    bias: Option<&[f32]>,
) -> [Vec<f32>; 3] {
    let device = Device::flex().autodiff();
    let [out, inner] = weight.dims();
    let x = tensor(x, &device).require_grad();
    let bias = bias.map(|bias| tensor(bias, &device).require_grad());
    let y = layer(x.clone().reshape([-1, inner as i32]), weight.clone(), bias.clone(), precision);
    let direction: Tensor<2> = tensor(&values(x.dims()[0] / inner * out, 99), &device).reshape(y.dims());
    let grads = (y.clone() * direction).sum().backward();
    let bias = bias.map(|bias| read(bias.grad(&grads).unwrap()));
    [read(y.inner()), read(x.grad(&grads).unwrap()), bias.unwrap_or_default()]
}

fn bits(evaluation: &[Vec<f32>; 3]) -> Vec<u32> {
    evaluation.iter().flatten().map(|v| v.to_bits()).collect()
}

#[test]
fn bits_are_those_of_the_widened_weight_and_the_composite_is_near() {
    for [rows, inner, out] in SIZES {
        let data = inputs(&[rows * inner, out * inner, out]);
        for dtype in [DType::BF16, DType::F16] {
            let weight: Tensor<2> = tensor(&data[1], &Device::flex()).reshape([out, inner]).cast(dtype);
            let wide = weight.clone().cast(DType::F32);
            for bias in [None, Some(&*data[2])] {
                let at = format!("{rows}×{inner}→{out} {dtype:?}");
                let rounded = |weight| bits(&evaluate((linear, Bf16), &data[0], weight, bias));
                assert!(rounded(&weight) == rounded(&wide), "{at}");
                let got = evaluate((linear, F32), &data[0], &weight, bias);
                assert!(bits(&got) == bits(&evaluate((linear, F32), &data[0], &wide, bias)), "{at}");
                let plain = evaluate((composite::linear, F32), &data[0], &weight, bias);
                let errors = [0, 1, 2].map(|i| difference(&got[i], &plain[i]));
                assert!(errors.iter().all(|error| *error < 1e-5), "{at}: {errors:?}");
            }
        }
    }
}

#[test]
fn views_are_read_where_they_are() {
    let data = inputs(&[5 * 8, 12 * 8]);
    let x: Tensor<2> = tensor(&data[0], &Device::flex()).reshape([5, 8]);
    let whole: Tensor<2> = tensor(&data[1], &Device::flex()).reshape([12, 8]).cast(DType::BF16);
    let turned: Tensor<2> = tensor(&data[1], &Device::flex()).reshape([8, 12]).cast(DType::BF16).transpose();
    for weight in [whole.clone().narrow(0, 0, 7), whole.narrow(0, 3, 7), turned] {
        let wide = linear(x.clone(), weight.clone().cast(DType::F32), None, F32);
        let got = linear(x.clone(), weight, None, F32);
        assert_eq!(read(got), read(wide));
    }
}

#[test]
fn a_tracked_weight_has_a_gradient() {
    let data = inputs(&[24, 40]);
    let device = Device::flex().autodiff();
    let leaf = tensor(&data[1], &device).require_grad();
    let weight: Tensor<2> = leaf.clone().reshape([5, 8]).cast(DType::BF16);
    let x: Tensor<2> = tensor(&data[0], &device).reshape([3, 8]);
    let grads = linear(x.clone(), weight, None, F32).sum().backward();
    let expected = x.inner().sum_dim(0).repeat_dim(0, 5).reshape([40]);
    leaf.grad(&grads).unwrap().into_data().assert_approx_eq::<f32>(&expected.into_data(), Tolerance::relative(1e-2));
}

#[test]
#[should_panic(expected = "the last dimension of x is not the weight's second")]
fn shapes_must_agree() {
    let x: Tensor<2> = tensor(&values(32, 1), &Device::flex()).reshape([4, 8]);
    let weight: Tensor<2> = tensor(&values(32, 2), &Device::flex()).reshape([8, 4]).cast(DType::F16);
    linear(x, weight, None, F32);
}
