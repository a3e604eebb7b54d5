//! A transformer over the pixels of one level, which also attend to the text.

use super::{UnetConfig, config::Stage};
use crate::{
    linear::{Linear, Weights},
    resnet::GroupNorm,
};
use burn::tensor::{Tensor, activation};

/// Of the group norm before a transformer, whatever the others have.
const GROUP_EPSILON: f64 = 1e-6;
/// Of the layer norms inside.
const LAYER_EPSILON: f64 = 1e-5;

/// `Transformer2DModel` with one `BasicTransformerBlock`: x + out(block(in(norm(x)))) over pixels as tokens.
#[derive(Clone, Debug)]
pub(super) struct Transformer {
    norm: GroupNorm,
    project: [Linear; 2],
    norms: [LayerNorm; 3],
    /// Of the pixels to themselves, then to the text.
    attention: [Attention; 2],
    up: Linear,
    down: Linear,
}

impl Transformer {
    /// The transformers of a level.
    pub(super) fn all(config: &UnetConfig, weights: Weights<'_>, stage: &Stage) -> Vec<Self> {
        let path = |i: usize| format!("{}.attentions.{i}", stage.level.path);
        (0..stage.transformers).map(|i| Self::new(config, weights, &path(i), stage.heads)).collect()
    }

    fn new(config: &UnetConfig, weights: Weights<'_>, path: &str, heads: usize) -> Self {
        let block = format!("{path}.transformer_blocks.0");
        let project = |name: &str| {
            let path = format!("{path}.{name}");
            if config.use_linear_projection { Linear::new(weights, &path) } else { Linear::pointwise(weights, &path) }
        };
        Self {
            norm: GroupNorm::new(weights, &format!("{path}.norm"), config.norm_num_groups, GROUP_EPSILON),
            project: ["proj_in", "proj_out"].map(project),
            norms: [1, 2, 3].map(|i| LayerNorm::new(weights, &format!("{block}.norm{i}"))),
            attention: [1, 2].map(|i| Attention::new(weights, &format!("{block}.attn{i}"), heads)),
            up: Linear::new(weights, &format!("{block}.ff.net.0.proj")),
            down: Linear::new(weights, &format!("{block}.ff.net.2")),
        }
    }

    /// `x [N, C, H, W]`, `text [N, L, E]` → `[N, C, H, W]`
    pub(super) fn forward(&self, x: Tensor<4>, text: &Tensor<3>) -> Tensor<4> {
        let [n, c, h, w] = x.dims();
        let tokens: Tensor<3> = self.norm.forward(x.clone()).reshape([n, c, h * w]).swap_dims(1, 2);
        let mut y = self.project[0].forward(tokens);
        let normal = self.norms[0].forward(y.clone());
        y = y + self.attention[0].forward(normal.clone(), normal);
        y = y.clone() + self.attention[1].forward(self.norms[1].forward(y), text.clone());
        y = y.clone() + self.feed_forward(self.norms[2].forward(y));
        let y: Tensor<4> = self.project[1].forward(y).swap_dims(1, 2).reshape([n, c, h, w]);
        x + y
    }

    /// GEGLU (arXiv 2002.05202): half of the features gates the other.
    fn feed_forward(&self, x: Tensor<3>) -> Tensor<3> {
        let y = self.up.forward(x);
        let half = y.dims()[2] / 2;
        let gate = activation::gelu(y.clone().narrow(2, half, half));
        self.down.forward(y.narrow(2, 0, half) * gate)
    }
}

/// Queries of the pixels to keys and values of a source; no bias but the output's.
#[derive(Clone, Debug)]
struct Attention {
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    heads: usize,
}

impl Attention {
    fn new(weights: Weights<'_>, path: &str, heads: usize) -> Self {
        let linear = |name: &str| Linear::new(weights, &format!("{path}.{name}"));
        Self { q: linear("to_q"), k: linear("to_k"), v: linear("to_v"), out: linear("to_out.0"), heads }
    }

    /// `x [N, P, C]`, `source [N, M, S]` → `[N, P, C]`
    fn forward(&self, x: Tensor<3>, source: Tensor<3>) -> Tensor<3> {
        let (k, v) = (self.k.forward(source.clone()), self.v.forward(source));
        self.out.forward(elbow_kernels::attention(self.q.forward(x), k, v, self.heads))
    }
}

/// Layer norm with a weight and a bias a feature.
#[derive(Clone, Debug)]
struct LayerNorm {
    weight: Tensor<1>,
    bias: Tensor<1>,
}

impl LayerNorm {
    fn new(weights: Weights<'_>, path: &str) -> Self {
        let tensor = |part: &str| weights.base.tensor(&format!("{path}.{part}"));
        Self { weight: tensor("weight"), bias: tensor("bias") }
    }

    /// `[N, P, C]`; the fused operation multiplies by 1 + scale.
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let [n, _, c] = x.dims();
        let rows = |v: Tensor<1>| v.reshape([1, c]).expand([n, c]);
        let (shift, scale) = (rows(self.bias.clone()), rows(self.weight.clone() - 1.0));
        elbow_kernels::layer_norm_modulate(x, shift, scale, LAYER_EPSILON)
    }
}
