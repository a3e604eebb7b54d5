//! Every operation of this crate written with ordinary tensor operations.
//!
//! These functions define what the fused kernels compute. They run on every backend and dtype, are what the public
//! functions fall back to, and are the reference of the tests. Shapes are those of the functions of the same name in
//! the crate root.

use burn::tensor::{FloatDType, Tensor, activation, module};

use crate::precision::Precision;

/// `y = x Wᵀ + b`, in the type of `x`.
pub fn linear<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    precision: Precision,
) -> Tensor<D> {
    let weight = if weight.dtype() == x.dtype() { weight } else { weight.cast(x.dtype()) };
    match precision {
        Precision::F32 => module::linear(x, weight.transpose(), bias),
        Precision::Bf16 => module::linear(rounded(x), rounded(weight).transpose(), bias),
    }
}

/// `y = gelu(x) Wᵀ + b`.
pub fn gelu_linear<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    precision: Precision,
) -> Tensor<D> {
    linear(gelu_tanh(x), weight, bias, precision)
}

/// The nearest bf16, as `f32`.
fn rounded<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    x.cast(FloatDType::BF16).cast(FloatDType::F32)
}

/// `(x − μ) / √(σ² + eps) · (1 + scale) + shift`, with `μ` and `σ²` of each token.
pub fn layer_norm_modulate(x: Tensor<3>, shift: Tensor<2>, scale: Tensor<2>, eps: f64) -> Tensor<3> {
    let centered = x.clone() - x.mean_dim(2);
    let variance = (centered.clone() * centered.clone()).mean_dim(2);
    let normalized = centered / (variance + eps).sqrt();
    normalized * (scale.unsqueeze_dim::<3>(1) + 1.0) + shift.unsqueeze_dim::<3>(1)
}

/// `x + gate · y`.
pub fn gated_residual(x: Tensor<3>, gate: Tensor<2>, y: Tensor<3>) -> Tensor<3> {
    x + gate.unsqueeze_dim::<3>(1) * y
}

/// `x/2 · (1 + tanh(√(2/π) (x + 0.044715 x³)))`.
pub fn gelu_tanh<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    activation::gelu_approximate(x)
}

/// `softmax(Q Kᵀ / √d) V` for each head.
pub fn attention(q: Tensor<3>, k: Tensor<3>, v: Tensor<3>, heads: usize) -> Tensor<3> {
    let [batch, queries, hidden] = q.dims();
    let split = |t: Tensor<3>| {
        let tokens = t.dims()[1];
        t.reshape([batch, tokens, heads, hidden / heads]).swap_dims(1, 2) // [B, heads, N, d]
    };
    let scale = 1.0 / ((hidden / heads) as f64).sqrt();
    let scores = split(q).matmul(split(k).swap_dims(2, 3)) * scale; // [B, heads, N, N]
    let mixed = activation::softmax(scores, 3).matmul(split(v)); // [B, heads, N, d]
    mixed.swap_dims(1, 2).reshape([batch, queries, hidden])
}
