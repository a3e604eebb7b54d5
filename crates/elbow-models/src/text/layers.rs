//! What both kinds of text encoder are made of.

use crate::{layout::Start, weight_source::WeightSource};
use burn::tensor::{DType, Int, Tensor, TensorData, activation};

/// Token ids `[N, L]`, all rows of one length.
pub type Ids = [Vec<u32>];

/// A table of vectors, `weight` `[V, H]`, in whatever type of number it is stored.
#[derive(Clone, Debug)]
pub(super) struct Table(Tensor<2>);

impl Table {
    pub(super) fn new(w: &WeightSource<'_>, entries: usize, width: usize) -> Self {
        Self(w.tensor("weight", [entries, width], Start::Normal(0.02)))
    }

    /// The rows of these numbers, in f32: `[M, H]`.
    pub(super) fn rows(&self, numbers: Vec<i32>) -> Tensor<2> {
        let len = numbers.len();
        let numbers = Tensor::<1, Int>::from_data(TensorData::new(numbers, [len]), &self.0.device());
        self.0.clone().select(0, numbers).cast(DType::F32)
    }

    /// The first rows, in f32: `[L, H]`.
    pub(super) fn first(&self, length: usize) -> Tensor<2> {
        self.0.clone().narrow(0, 0, length).cast(DType::F32)
    }

    /// Rows by id: `[N, L] → [N, L, H]`.
    pub(super) fn embed(&self, ids: &Ids) -> Tensor<3> {
        let chosen = self.rows(ids.iter().flatten().map(|&id| id as i32).collect());
        let [tokens, width] = chosen.dims();
        chosen.reshape([ids.len(), tokens / ids.len(), width])
    }
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
#[derive(Clone, Debug)]
pub(super) struct LayerNorm {
    weight: Tensor<1>,
    bias: Tensor<1>,
    epsilon: f64,
}

impl LayerNorm {
    pub(super) fn new(w: &WeightSource<'_>, width: usize, epsilon: f64) -> Self {
        let weight = w.tensor("weight", [width], Start::Ones);
        Self { weight, bias: w.tensor("bias", [width], Start::Zeros), epsilon }
    }

    /// `[N, L, H]`, shape stays.
    pub(super) fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let centered = x.clone() - x.mean_dim(2);
        let variance = centered.clone().powi_scalar(2).mean_dim(2);
        let (weight, bias) = (self.weight.clone().unsqueeze::<3>(), self.bias.clone().unsqueeze::<3>());
        centered / (variance + self.epsilon).sqrt() * weight + bias
    }
}

/// x / √(mean of squares + ε) · w over the last axis.
#[derive(Clone, Debug)]
pub(super) struct RmsNorm {
    weight: Tensor<1>,
    epsilon: f64,
}

impl RmsNorm {
    pub(super) fn new(w: &WeightSource<'_>, width: usize, epsilon: f64) -> Self {
        Self { weight: w.tensor("weight", [width], Start::Ones), epsilon }
    }

    /// `[N, L, H]`, shape stays.
    pub(super) fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let size = (x.clone().powi_scalar(2).mean_dim(2) + self.epsilon).sqrt();
        x / size * self.weight.clone().unsqueeze::<3>()
    }
}

/// One row of each `ids` row: `[N, L, H] → [N, H]`, row `places[i]` of sample i.
pub(super) fn pick(x: Tensor<3>, places: &[usize]) -> Tensor<2> {
    let [n, l, width] = x.dims();
    let rows: Vec<i32> = places.iter().enumerate().map(|(i, &p)| (i * l + p) as i32).collect();
    let rows = Tensor::<1, Int>::from_data(TensorData::new(rows, [n]), &x.device());
    x.reshape([n * l, width]).select(0, rows)
}
