//! What both kinds of text encoder are made of.

use burn::tensor::{DType, Int, Tensor, TensorData, activation};
use elbow::params::Tensors;

/// Token ids `[N, L]`, all rows of one length.
pub type Ids = [Vec<u32>];

/// Rows of the table `name` `[V, H]`, in f32: `[M, H]`.
pub(super) fn rows(weights: &Tensors, name: &str, numbers: Vec<i32>) -> Tensor<2> {
    let (table, len) = (weights.tensor::<2>(name), numbers.len());
    let numbers = Tensor::<1, Int>::from_data(TensorData::new(numbers, [len]), &table.device());
    table.select(0, numbers).cast(DType::F32)
}

/// Rows of the table `name` `[V, H]` by id: `[N, L] → [N, L, H]`.
pub(super) fn embed(weights: &Tensors, name: &str, ids: &Ids) -> Tensor<3> {
    let chosen = rows(weights, name, ids.iter().flatten().map(|&id| id as i32).collect());
    let [tokens, width] = chosen.dims();
    chosen.reshape([ids.len(), tokens / ids.len(), width])
}

/// softmax(Q Kᵀ s + bias) V for each of `heads` heads: `[N, L, H]` each, bias `[1, heads or 1, L, L]`.
pub(super) fn attention(qkv: [Tensor<3>; 3], heads: usize, scale: f64, bias: Tensor<4>) -> Tensor<3> {
    let [n, l, width] = qkv[0].dims();
    let split = |x: Tensor<3>| x.reshape([n, l, heads, width / heads]).swap_dims(1, 2); // [N, heads, L, d]
    let [q, k, v] = qkv.map(split);
    let scores = q.matmul(k.swap_dims(2, 3)) * scale + bias;
    activation::softmax(scores, 3).matmul(v).swap_dims(1, 2).reshape([n, l, width])
}

/// (x − mean) / √(variance + ε) · w + b over the last axis.
pub(super) fn layer_norm(weights: &Tensors, path: &str, x: Tensor<3>, epsilon: f64) -> Tensor<3> {
    let centered = x.clone() - x.mean_dim(2);
    let variance = centered.clone().powi_scalar(2).mean_dim(2);
    let vector = |name: &str| weights.tensor::<1>(&format!("{path}.{name}")).unsqueeze::<3>();
    centered / (variance + epsilon).sqrt() * vector("weight") + vector("bias")
}

/// x / √(mean of squares + ε) · w over the last axis.
pub(super) fn rms_norm(weights: &Tensors, path: &str, x: Tensor<3>, epsilon: f64) -> Tensor<3> {
    let size = (x.clone().powi_scalar(2).mean_dim(2) + epsilon).sqrt();
    x / size * weights.tensor::<1>(&format!("{path}.weight")).unsqueeze::<3>()
}

/// One row of each `ids` row: `[N, L, H] → [N, H]`, row `places[i]` of sample i.
pub(super) fn pick(x: Tensor<3>, places: &[usize]) -> Tensor<2> {
    let [n, l, width] = x.dims();
    let rows: Vec<i32> = places.iter().enumerate().map(|(i, &p)| (i * l + p) as i32).collect();
    let rows = Tensor::<1, Int>::from_data(TensorData::new(rows, [n]), &x.device());
    x.reshape([n * l, width]).select(0, rows)
}
