//! MMDiT, the network of Stable Diffusion 3 (arXiv 2403.03206), with the names of `diffusers`'
//! `SD3Transformer2DModel`.
//!
//! Image patches and text tokens have weights of their own and meet in joint attention. Time and pooled text make one
//! vector c that modulates every layer norm (AdaLN-Zero): x ← x + gate(c) · f(norm(x) · (1 + scale(c)) + shift(c)).

mod block;
mod embed;
mod init;

use crate::linear::{Linear, Weights};
use block::{Block, silu};
use burn::tensor::Tensor;
use elbow::policy::Conditioning;
use embed::{PatchEmbed, TimeText};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The sizes of an MMDiT, in the words of `diffusers`' `config.json`. The default is the embedded nano model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MmditConfig {
    /// Height and width of the latent.
    pub sample_size: usize,
    /// Height and width of a patch.
    pub patch_size: usize,
    /// Channels of the latent.
    pub in_channels: usize,
    /// Joint blocks.
    pub num_layers: usize,
    /// Width of one head.
    pub attention_head_dim: usize,
    /// Heads; the width of the network is heads × head width.
    pub num_attention_heads: usize,
    /// Width of a text token.
    pub joint_attention_dim: usize,
    /// Width of the pooled text.
    pub pooled_projection_dim: usize,
    /// Side of the square grid of position embeddings, of which the middle is used.
    pub pos_embed_max_size: usize,
    /// RMS-normalize queries and keys per head.
    pub qk_norm: bool,
}

impl Default for MmditConfig {
    fn default() -> Self {
        Self {
            sample_size: 32,
            patch_size: 4,
            in_channels: 3,
            num_layers: 4,
            attention_head_dim: 32,
            num_attention_heads: 4,
            joint_attention_dim: 192,
            pooled_projection_dim: 64,
            pos_embed_max_size: 8,
            qk_norm: false,
        }
    }
}

impl MmditConfig {
    /// Width of the network.
    pub fn width(&self) -> usize {
        self.attention_head_dim * self.num_attention_heads
    }
}

/// An MMDiT bound to weights.
#[derive(Clone, Debug)]
pub struct Mmdit {
    config: MmditConfig,
    patches: PatchEmbed,
    time_text: TimeText,
    context: Linear,
    blocks: Vec<Block>,
    norm_out: Linear,
    proj_out: Linear,
}

impl Mmdit {
    /// Builds the network from weights laid out as [`MmditConfig::initial`] does.
    pub fn new(config: &MmditConfig, weights: Weights<'_>) -> Self {
        let last = config.num_layers - 1;
        Self {
            patches: PatchEmbed::new(config, weights),
            time_text: TimeText::new(weights),
            context: Linear::new(weights, "context_embedder"),
            blocks: (0..config.num_layers).map(|i| Block::new(config, weights, i, i == last)).collect(),
            norm_out: Linear::new(weights, "norm_out.linear"),
            proj_out: Linear::new(weights, "proj_out"),
            config: config.clone(),
        }
    }

    /// `x [N, C, H, W]`, `t [N]` in [0, 1] (the network sees 1000 t), N rows of text → `[N, C, H, W]`.
    pub fn forward(&self, x: Tensor<4>, t: Tensor<1>, cond: &Conditioning) -> Tensor<4> {
        let [_, _, height, width] = x.dims();
        let c = silu(self.time_text.forward(t * 1000.0, cond.pooled.clone()));
        let mut image = self.patches.forward(x);
        let mut text = Some(self.context.forward(cond.tokens.clone()));
        for block in &self.blocks {
            (image, text) = block.forward(image, text.expect("invariant: only the last block drops the text"), &c);
        }
        // AdaLayerNormContinuous: scale first, then shift.
        let h = self.config.width();
        let modulation = self.norm_out.forward(c);
        let (scale, shift) = (modulation.clone().narrow(1, 0, h), modulation.narrow(1, h, h));
        let y = self.proj_out.forward(elbow_kernels::layer_norm_modulate(image, shift, scale, block::EPSILON));
        self.unpatchify(y, height, width)
    }

    /// `[N, h·w, p·p·C] → [N, C, h·p, w·p]`
    fn unpatchify(&self, y: Tensor<3>, height: usize, width: usize) -> Tensor<4> {
        let (p, c, n) = (self.config.patch_size, self.config.in_channels, y.dims()[0]);
        let y: Tensor<6> = y.reshape([n, height / p, width / p, p, p, c]);
        y.permute([0, 5, 1, 3, 2, 4]).reshape([n, c, height, width])
    }
}
