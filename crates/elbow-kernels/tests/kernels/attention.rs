use burn::tensor::Tensor;
use elbow_kernels::{attention, composite};

use crate::support::{assert_same, assert_slope};

/// (batch, queries, keys, heads, head width)
const SIZES: [[usize; 5]; 9] = [
    [1, 1, 1, 1, 1],
    [2, 3, 3, 1, 8],
    [2, 17, 17, 2, 8],
    [3, 70, 70, 4, 32],
    [2, 70, 70, 4, 64],
    [2, 64, 6, 2, 32],
    [1, 6, 131, 3, 16],
    [1, 300, 130, 1, 8],
    [2, 33, 16, 2, 5],
];

fn shaped(t: &[Tensor<1>], [batch, queries, keys, heads, width]: [usize; 5]) -> [Tensor<3>; 3] {
    let shape = |i: usize, tokens: usize| t[i].clone().reshape([batch, tokens, heads * width]);
    [shape(0, queries), shape(1, keys), shape(2, keys)]
}

#[test]
fn matches_the_composite() {
    for size in SIZES {
        let [batch, queries, keys, heads, width] = size;
        let hidden = heads * width;
        assert_same(
            &format!("attention {size:?}"),
            &|t| {
                let [q, k, v] = shaped(t, size);
                attention(q, k, v, heads).reshape([-1])
            },
            &|t| {
                let [q, k, v] = shaped(t, size);
                composite::attention(q, k, v, heads).reshape([-1])
            },
            &[batch * queries * hidden, batch * keys * hidden, batch * keys * hidden],
        );
    }
}

#[test]
fn reads_slices_of_one_tensor() {
    let (batch, tokens, heads, hidden) = (3, 19, 2, 16);
    let split = |t: &Tensor<1>| {
        let qkv: Tensor<3> = t.clone().reshape([batch, tokens, 3 * hidden]);
        [0, 1, 2].map(|i| qkv.clone().narrow(2, i * hidden, hidden))
    };
    assert_same(
        "attention of slices",
        &|t| {
            let [q, k, v] = split(&t[0]);
            attention(q, k, v, heads).reshape([-1])
        },
        &|t| {
            let [q, k, v] = split(&t[0]);
            composite::attention(q, k, v, heads).reshape([-1])
        },
        &[batch * tokens * 3 * hidden],
    );
}

#[test]
fn reads_transposed_tensors() {
    let (batch, tokens, heads, hidden) = (2, 9, 2, 8);
    let swapped = |t: &[Tensor<1>]| -> [Tensor<3>; 3] {
        [0, 1, 2].map(|i| t[i].clone().reshape([batch, hidden, tokens]).swap_dims(1, 2))
    };
    assert_same(
        "attention of transposed tensors",
        &|t| {
            let [q, k, v] = swapped(t);
            attention(q, k, v, heads).reshape([-1])
        },
        &|t| {
            let [q, k, v] = swapped(t);
            composite::attention(q, k, v, heads).reshape([-1])
        },
        &[batch * tokens * hidden; 3],
    );
}

#[test]
fn gradients_are_slopes() {
    for size in [[2, 3, 3, 1, 8], [2, 21, 21, 2, 8], [1, 5, 150, 2, 4]] {
        let [batch, queries, keys, heads, width] = size;
        let hidden = heads * width;
        assert_slope(
            &format!("attention {size:?}"),
            &|t| {
                let [q, k, v] = shaped(t, size);
                attention(q, k, v, heads).reshape([-1])
            },
            &[batch * queries * hidden, batch * keys * hidden, batch * keys * hidden],
        );
    }
}

#[test]
fn large_scores_do_not_overflow() {
    let device = burn::tensor::Device::flex();
    let x: Tensor<3> = Tensor::<3>::ones([1, 4, 8], &device) * 1e4;
    let y = attention(x.clone(), x.clone(), Tensor::ones([1, 4, 8], &device), 1);
    y.into_data().assert_approx_eq::<f32>(
        &Tensor::<3>::ones([1, 4, 8], &device).into_data(),
        burn::tensor::Tolerance::relative(1e-6),
    );
}
