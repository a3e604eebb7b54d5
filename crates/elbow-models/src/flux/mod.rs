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
    recompute::{Checkpointing, Part},
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
    blocks: Blocks,
    head: Head,
}

/// What [`Checkpointing`] makes of the blocks; each with those of one stream after those of two.
#[derive(Clone, Debug)]
enum Blocks {
    Kept(Vec<Block>, Vec<SingleBlock>),
    Recomputed(Vec<Part>, Vec<Part>),
}

impl Flux {
    /// Builds the network from weights laid out as [`FluxConfig::layout`] says. `guidance` is what a model with
    /// `guidance_embeds` is told (the field trains with 3.5); others have no use for it.
    pub fn new(config: &FluxConfig, guidance: f64, weights: Weights<'_>, checkpointing: Checkpointing) -> Self {
        let heads = config.num_attention_heads;
        let double = (0..config.num_layers).map(|i| format!("transformer_blocks.{i}"));
        let single = (0..config.num_single_layers).map(|i| format!("single_transformer_blocks.{i}"));
        let blocks = match checkpointing {
            Checkpointing::None => Blocks::Kept(
                double.map(|path| Block::new(weights, &path, heads, false)).collect(),
                single.map(|path| SingleBlock::new(weights, &path, heads)).collect(),
            ),
            Checkpointing::Block => {
                let part = |path| Part::new(weights, path);
                Blocks::Recomputed(double.map(part).collect(), single.map(part).collect())
            }
        };
        Self {
            guidance,
            time_text: TimeText::new(weights),
            context: Linear::new(weights, "context_embedder"),
            image: Linear::new(weights, "x_embedder"),
            blocks,
            head: Head::new(weights),
            config: config.clone(),
        }
    }

    /// All blocks: `image [N, I, H]`, `text [N, L, H]`, `c [N, H]` → `[N, I + L, H]`, the image first
    fn through_blocks(&self, mut image: Tensor<3>, mut text: Tensor<3>, c: &Tensor<2>, rope: &Rope) -> Tensor<3> {
        match &self.blocks {
            Blocks::Kept(double, single) => {
                for block in double {
                    let (next, tokens) = block.forward(image, text, c, Some(rope));
                    (image, text) = (next, tokens.expect("invariant: no block of FLUX drops the text"));
                }
                let joint = Tensor::cat(vec![image, text], 1);
                single.iter().fold(joint, |joint, block| block.forward(joint, c, rope))
            }
            Blocks::Recomputed(double, single) => {
                let (patches, heads) = (image.dims()[1], self.config.num_attention_heads);
                let joint = Tensor::cat(vec![image, text], 1);
                let joint = double.iter().fold(joint, |joint, part| {
                    let rope = rope.clone();
                    part.run(joint, c.clone(), move |weights, path, joint, c| {
                        Block::new(weights, path, heads, false).forward_joint(joint, patches, &c, Some(&rope))
                    })
                });
                single.iter().fold(joint, |joint, part| {
                    let rope = rope.clone();
                    part.run(joint, c.clone(), move |weights, path, joint, c| {
                        SingleBlock::new(weights, path, heads).forward(joint, &c, &rope)
                    })
                })
            }
        }
    }
}

impl VelocityField for Flux {
    /// The network sees 1000 t.
    fn velocity(&self, x: Tensor<4>, t: Tensor<1>, cond: &Conditioning) -> Tensor<4> {
        let [n, channels, height, width] = x.dims();
        let [rows, columns] = [height / PACK, width / PACK];
        let c = silu(self.time_text.forward(t * 1000.0, self.guidance, cond.pooled.clone()));
        let image = self.image.forward(patches(x, PACK));
        let text = self.context.forward(cond.tokens.clone());
        let device = text.device().without_autodiff();
        let rope = Rope::new(&self.config.axes_dims_rope, [rows, columns], text.dims()[1], &device);
        let joint = self.through_blocks(image, text, &c, &rope);
        let y = self.head.forward(joint.narrow(1, 0, rows * columns), c);
        let y: Tensor<6> = y.reshape([n, rows, columns, channels, PACK, PACK]);
        y.permute([0, 3, 1, 4, 2, 5]).reshape([n, channels, height, width])
    }
}
