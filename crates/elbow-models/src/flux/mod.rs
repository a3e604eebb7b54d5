//! The transformer of FLUX.1 (Black Forest Labs, 2024; no paper), with the names of `diffusers`' `FluxTransformer2DModel`.
//!
//! Squares of 2 × 2 latents are the image tokens. The first blocks are those of the MMDiT, with positions rotated into
//! queries and keys; in the others image and text are one sequence with one set of weights. FLUX.1-dev is told how strong
//! the guidance it was distilled from shall be; FLUX.1-schnell knows none.

mod config;
mod layout;
mod rope;
mod single;

pub use config::FluxConfig;

pub(crate) use rope::Rope;

use crate::{
    linear::{Linear, Weights},
    mmdit::{Block, Head, TimeText, patches, silu},
};
use burn::tensor::Tensor;
use config::PACK;
use elbow::policy::{Conditioning, VelocityField};
use single::SingleBlock;

/// A FLUX transformer bound to weights.
#[derive(Clone, Debug)]
pub struct Flux {
    config: FluxConfig,
    guidance: f64,
    time_text: TimeText,
    context: Linear,
    image: Linear,
    blocks: Vec<Block>,
    single_blocks: Vec<SingleBlock>,
    head: Head,
}

impl Flux {
    /// Builds the network from weights laid out as [`FluxConfig::layout`] says. `guidance` is what a model with
    /// `guidance_embeds` is told (the field trains with 3.5); others have no use for it.
    pub fn new(config: &FluxConfig, guidance: f64, weights: Weights<'_>) -> Self {
        let heads = config.num_attention_heads;
        let block = |i| Block::new(weights, &format!("transformer_blocks.{i}"), heads, false);
        let single = |i| SingleBlock::new(weights, &format!("single_transformer_blocks.{i}"), heads);
        Self {
            guidance,
            time_text: TimeText::new(weights),
            context: Linear::new(weights, "context_embedder"),
            image: Linear::new(weights, "x_embedder"),
            blocks: (0..config.num_layers).map(block).collect(),
            single_blocks: (0..config.num_single_layers).map(single).collect(),
            head: Head::new(weights),
            config: config.clone(),
        }
    }
}

impl VelocityField for Flux {
    /// The network sees 1000 t.
    fn velocity(&self, x: Tensor<4>, t: Tensor<1>, cond: &Conditioning) -> Tensor<4> {
        let [n, channels, height, width] = x.dims();
        let [rows, columns] = [height / PACK, width / PACK];
        let c = silu(self.time_text.forward(t * 1000.0, self.guidance, cond.pooled.clone()));
        let mut image = self.image.forward(patches(x, PACK));
        let mut text = self.context.forward(cond.tokens.clone());
        let rope = Rope::new(&self.config.axes_dims_rope, [rows, columns], text.dims()[1], &text.device());
        for block in &self.blocks {
            let (next, tokens) = block.forward(image, text, &c, Some(&rope));
            (image, text) = (next, tokens.expect("invariant: no block of FLUX drops the text"));
        }
        let mut joint = Tensor::cat(vec![image, text], 1);
        for block in &self.single_blocks {
            joint = block.forward(joint, &c, &rope);
        }
        let y = self.head.forward(joint.narrow(1, 0, rows * columns), c);
        let y: Tensor<6> = y.reshape([n, rows, columns, channels, PACK, PACK]);
        y.permute([0, 3, 1, 4, 2, 5]).reshape([n, channels, height, width])
    }
}
