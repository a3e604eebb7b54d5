use burn::tensor::Tensor;
use elbow_kernels::{composite, layer_norm_modulate};

use crate::support::{assert_same, assert_slope};

const EPS: f64 = 1e-6;

/// (batch, tokens, features)
const SIZES: [[usize; 3]; 7] =
    [[1, 3, 8], [2, 1, 16], [3, 17, 33], [2, 70, 128], [64, 6, 128], [4, 64, 256], [5, 9, 5]];

fn shaped(t: &[Tensor<1>], [batch, tokens, hidden]: [usize; 3]) -> (Tensor<3>, Tensor<2>, Tensor<2>) {
    let vector = |i: usize| t[i].clone().reshape([batch, hidden]);
    (t[0].clone().reshape([batch, tokens, hidden]), vector(1), vector(2))
}

#[test]
fn matches_the_composite() {
    for size in SIZES {
        let [batch, tokens, hidden] = size;
        assert_same(
            &format!("layer_norm_modulate {size:?}"),
            &|t| {
                let (x, shift, scale) = shaped(t, size);
                layer_norm_modulate(x, shift, scale, EPS).reshape([-1])
            },
            &|t| {
                let (x, shift, scale) = shaped(t, size);
                composite::layer_norm_modulate(x, shift, scale, EPS).reshape([-1])
            },
            &[batch * tokens * hidden, batch * hidden, batch * hidden],
        );
    }
}

#[test]
fn reads_slices() {
    let (batch, tokens, text, hidden) = (3, 10, 4, 24);
    let slices = |t: &[Tensor<1>]| {
        let x: Tensor<3> = t[0].clone().reshape([batch, tokens, hidden]);
        let modulation: Tensor<2> = t[1].clone().reshape([batch, 6 * hidden]);
        let part = |i: usize| modulation.clone().narrow(1, i * hidden, hidden);
        (x.narrow(1, text, tokens - text), part(3), part(4))
    };
    assert_same(
        "layer_norm_modulate of slices",
        &|t| {
            let (x, shift, scale) = slices(t);
            layer_norm_modulate(x, shift, scale, EPS).reshape([-1])
        },
        &|t| {
            let (x, shift, scale) = slices(t);
            composite::layer_norm_modulate(x, shift, scale, EPS).reshape([-1])
        },
        &[batch * tokens * hidden, batch * 6 * hidden],
    );
}

#[test]
fn gradients_are_slopes() {
    for size in [[1, 3, 8], [2, 5, 33]] {
        let [batch, tokens, hidden] = size;
        assert_slope(
            &format!("layer_norm_modulate {size:?}"),
            &|t| {
                let (x, shift, scale) = shaped(t, size);
                layer_norm_modulate(x, shift, scale, EPS).reshape([-1])
            },
            &[batch * tokens * hidden, batch * hidden, batch * hidden],
        );
    }
}
