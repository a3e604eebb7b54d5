//! MMDiT, the network of Stable Diffusion 3 and 3.5 (arXiv 2403.03206), with the names of `diffusers`'
//! `SD3Transformer2DModel`.
//!
//! Image patches and text tokens have weights of their own and meet in joint attention. Time and pooled text make one
//! vector c that modulates every layer norm (AdaLN-Zero): x ← x + gate(c) · f(norm(x) · (1 + scale(c)) + shift(c)).
//! In some blocks of SD3.5 medium the image also attends to itself alone, with a norm and a gate of its own.

mod block;
mod config;
mod embed;
mod layout;

pub use config::{MmditConfig, QkNorm};

pub(crate) use block::{Block, EPSILON, Head, Qkv, part, silu};
pub(crate) use config::other_channels;
pub(crate) use embed::{TimeText, patches, sinusoids_2d};
pub(crate) use layout::JointBlock;

use crate::linear::{Linear, Weights};
use burn::tensor::Tensor;
use elbow::policy::{Conditioning, VelocityField};
use embed::PatchEmbed;

/// An MMDiT bound to weights.
#[derive(Clone, Debug)]
pub struct Mmdit {
    config: MmditConfig,
    patches: PatchEmbed,
    time_text: TimeText,
    context: Linear,
    blocks: Vec<Block>,
    head: Head,
}

impl Mmdit {
    /// Builds the network from weights laid out as [`MmditConfig::layout`] says.
    pub fn new(config: &MmditConfig, weights: Weights<'_>) -> Self {
        let block = |i| {
            let (path, last) = (format!("transformer_blocks.{i}"), i + 1 == config.num_layers);
            Block::new(weights, &path, config.num_attention_heads, last)
        };
        Self {
            patches: PatchEmbed::new(config, weights),
            time_text: TimeText::new(weights),
            context: Linear::new(weights, "context_embedder"),
            blocks: (0..config.num_layers).map(block).collect(),
            head: Head::new(weights),
            config: config.clone(),
        }
    }

    /// `[N, h·w, p·p·C] → [N, C, h·p, w·p]`
    fn unpatchify(&self, y: Tensor<3>, height: usize, width: usize) -> Tensor<4> {
        let (p, c, n) = (self.config.patch_size, self.config.in_channels, y.dims()[0]);
        let y: Tensor<6> = y.reshape([n, height / p, width / p, p, p, c]);
        y.permute([0, 5, 1, 3, 2, 4]).reshape([n, c, height, width])
    }
}

impl VelocityField for Mmdit {
    /// The network sees 1000 t.
    fn velocity(&self, x: Tensor<4>, t: Tensor<1>, cond: &Conditioning) -> Tensor<4> {
        let [_, _, height, width] = x.dims();
        let c = silu(self.time_text.forward(t * 1000.0, 0.0, cond.pooled.clone()));
        let mut image = self.patches.forward(x);
        let mut text = Some(self.context.forward(cond.tokens.clone()));
        for block in &self.blocks {
            let tokens = text.expect("invariant: only the last block drops the text");
            (image, text) = block.forward(image, tokens, &c, None);
        }
        self.unpatchify(self.head.forward(image, c), height, width)
    }
}
