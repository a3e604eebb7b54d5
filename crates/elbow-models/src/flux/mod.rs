//! The transformer of FLUX.1 (Black Forest Labs, 2024; no paper), with the names of `diffusers`' `FluxTransformer2DModel`.
//!
//! Squares of 2 × 2 latents are the image tokens. The first blocks are those of the MMDiT, with positions rotated into
//! queries and keys; in the others image and text are one sequence with one set of weights. FLUX.1-dev is told how strong
//! the guidance it was distilled from shall be; FLUX.1-schnell knows none.

mod config;
mod single;

pub use config::FluxConfig;

use crate::{
    joint::{Block, Head, Rope, TimeText, TimeTextSizes, patches, silu},
    layout::{Layout, Tokens},
    linear::Linear,
    network::{Architecture, Backbone, Family},
    recompute::{Checkpointing, Part},
    weight_source::WeightSource,
};
use burn::tensor::Tensor;
use config::{IMAGE, PACK};
use elbow::{noise::Key, params::Params, policy::Conditioning};
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
    /// The network of these sizes. `guidance` is what a model with `guidance_embeds` is told (the field trains with 3.5);
    /// others have no use for it.
    ///
    /// Fresh weights are Xavier for dense layers, zero for every modulation and for the output, 0.02 for time, guidance and
    /// text embeddings.
    pub fn new(config: &FluxConfig, guidance: f64, w: &WeightSource<'_>, checkpointing: Checkpointing) -> Self {
        let h = config.width();
        let time_text =
            TimeTextSizes { width: h, guidance: config.guidance_embeds, pooled: config.pooled_projection_dim };
        let context = w.at("context_embedder").on(Tokens::Text);
        Self {
            guidance,
            time_text: TimeText::new(w, time_text),
            context: context.linear(config.joint_attention_dim, h),
            image: w.at("x_embedder").on(IMAGE).linear(config.in_channels, h),
            blocks: Blocks::new(config, w, checkpointing),
            head: Head::new(w, h, config.in_channels, IMAGE),
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
                let (double_sizes, single_sizes) = (self.config.double_block(), self.config.single_block());
                let patches = image.dims()[1];
                let mut joint = Tensor::cat(vec![image, text], 1);
                for part in double {
                    let rope = rope.clone();
                    joint = part.run(joint, c.clone(), move |w, joint, c| {
                        Block::new(w, double_sizes).forward_joint(joint, patches, &c, Some(&rope))
                    });
                }
                for part in single {
                    let rope = rope.clone();
                    joint = part.run(joint, c.clone(), move |w, joint, c| {
                        SingleBlock::new(w, single_sizes).forward(joint, &c, &rope)
                    });
                }
                joint
            }
        }
    }
}

impl Blocks {
    fn new(config: &FluxConfig, w: &WeightSource<'_>, checkpointing: Checkpointing) -> Self {
        let double = (0..config.num_layers).map(|i| w.at(&format!("transformer_blocks.{i}")));
        let single = (0..config.num_single_layers).map(|i| w.at(&format!("single_transformer_blocks.{i}")));
        match checkpointing {
            Checkpointing::None => Self::Kept(
                double.map(|w| Block::new(&w, config.double_block())).collect(),
                single.map(|w| SingleBlock::new(&w, config.single_block())).collect(),
            ),
            Checkpointing::Block => {
                Self::Recomputed(double.map(|w| Part::new(&w)).collect(), single.map(|w| Part::new(&w)).collect())
            }
        }
    }
}

impl Backbone for Flux {
    /// A velocity. The network sees 1000 t.
    fn predict(&self, x: Tensor<4>, t: Tensor<1>, cond: &Conditioning) -> Tensor<4> {
        let [n, channels, height, width] = x.dims();
        let [rows, columns] = [height / PACK, width / PACK];
        let c = silu(self.time_text.forward(t * 1000.0, self.guidance, cond));
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

impl FluxConfig {
    /// Every tensor.
    pub fn layout(&self) -> Layout {
        Layout::of(|w| Flux::new(self, 0.0, w, Checkpointing::None))
    }

    /// Fresh weights.
    pub fn initial(&self, key: Key) -> Params {
        self.layout().initial(key)
    }
}

/// FLUX.1, told to guide itself as strongly as `guidance` says if it can.
#[derive(Clone, Debug)]
pub struct Guided {
    /// Its sizes.
    pub config: FluxConfig,
    /// Ignored by models without `guidance_embeds`.
    pub guidance: f64,
}

impl Architecture for Guided {
    fn build(&self, w: &WeightSource<'_>, checkpointing: Checkpointing) -> Box<dyn Backbone> {
        Box::new(Flux::new(&self.config, self.guidance, w, checkpointing))
    }

    fn identity(&self) -> String {
        format!("Flux {{ config: {:?}, guidance: {:?} }}", self.config, self.guidance)
    }

    fn family(&self) -> Family {
        Family::Flux
    }

    fn model_name(&self) -> &'static str {
        if self.config.guidance_embeds { "flux-1-dev" } else { "flux-1-schnell" }
    }

    fn latent_channels(&self) -> usize {
        self.config.latent_channels()
    }

    fn own_side(&self) -> usize {
        // As its pipeline has it: 1024 pixels.
        128
    }

    fn latent_problem(&self, latent: [usize; 3]) -> Option<String> {
        self.config.latent_problem(latent)
    }

    fn text_widths(&self) -> (usize, Option<usize>) {
        (self.config.joint_attention_dim, Some(self.config.pooled_projection_dim))
    }

    fn text_tokens(&self, t5: usize) -> usize {
        t5
    }
}
