//! A transformer over the pixels of one level, which also attend to the text.

use super::config::{Stage, UnetConfig};
use crate::{
    layout::{Start, Tokens},
    linear::Linear,
    resnet::{GroupNorm, Groups},
    weight_source::WeightSource,
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
    pub(super) fn all(config: &UnetConfig, w: &WeightSource<'_>, stage: &Stage) -> Vec<Self> {
        let level = w.at(&stage.level.path).on(stage.level.pixels);
        let transformer = |i: usize| Self::new(config, &level.at(&format!("attentions.{i}")), stage);
        (0..stage.transformers).map(transformer).collect()
    }

    fn new(config: &UnetConfig, w: &WeightSource<'_>, stage: &Stage) -> Self {
        let (width, pixels, heads) = (stage.level.width(), stage.level.pixels, stage.heads);
        let (itself, text) = (Source { width, tokens: pixels }, Source::text(config));
        let block = w.at("transformer_blocks.0");
        let project = |name: &str| {
            w.keeps(width);
            let w = w.at(name);
            if config.use_linear_projection { w.linear(width, width) } else { w.squares(width, width, 1) }
        };
        // The input of the gated activation and what comes of it.
        w.keeps(2 * 8 * width);
        w.widens_to(8 * width);
        let norm = w.at("norm").group_norm(width, Groups { number: config.norm_num_groups, epsilon: GROUP_EPSILON });
        let project_in = project("proj_in");
        let norm1 = block.at("norm1").layer_norm(width);
        let attention1 = Attention::new(&block.at("attn1"), itself, itself, heads);
        let norm2 = block.at("norm2").layer_norm(width);
        let attention2 = Attention::new(&block.at("attn2"), itself, text, heads);
        let norm3 = block.at("norm3").layer_norm(width);
        let up = block.at("ff.net.0.proj").linear(width, 8 * width);
        let down = block.at("ff.net.2").linear(4 * width, width);
        let project_out = project("proj_out");
        Self {
            norm,
            project: [project_in, project_out],
            norms: [norm1, norm2, norm3],
            attention: [attention1, attention2],
            up,
            down,
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

/// Tokens that attend or are attended to.
#[derive(Clone, Copy, Debug)]
struct Source {
    width: usize,
    tokens: Tokens,
}

impl Source {
    fn text(config: &UnetConfig) -> Self {
        Self { width: config.cross_attention_dim, tokens: Tokens::Text }
    }
}

impl Attention {
    fn new(w: &WeightSource<'_>, queries: Source, source: Source, heads: usize) -> Self {
        let w = w.clone().naming_adapters().usually_adapted();
        let (width, keys) = (queries.width, w.clone().on(source.tokens));
        w.attention(width, queries.tokens, source.tokens);
        // The inputs of the norm, of the layers and of the output, queries, keys and values.
        w.keeps(6 * width);
        Self {
            q: w.at("to_q").linear_without_bias(width, width),
            k: keys.at("to_k").linear_without_bias(source.width, width),
            v: keys.at("to_v").linear_without_bias(source.width, width),
            out: w.at("to_out.0").linear(width, width),
            heads,
        }
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

impl WeightSource<'_> {
    /// A layer norm of so many features: `weight` and `bias`.
    fn layer_norm(&self, width: usize) -> LayerNorm {
        LayerNorm { weight: self.tensor("weight", [width], Start::Ones), bias: self.bias(width) }
    }
}

impl LayerNorm {
    /// `[N, P, C]`; the fused operation multiplies by 1 + scale.
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let [n, _, c] = x.dims();
        let rows = |v: Tensor<1>| v.reshape([1, c]).expand([n, c]);
        let (shift, scale) = (rows(self.bias.clone()), rows(self.weight.clone() - 1.0));
        elbow_kernels::layer_norm_modulate(x, shift, scale, LAYER_EPSILON)
    }
}
