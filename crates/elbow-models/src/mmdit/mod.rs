//! MMDiT, the network of Stable Diffusion 3 and 3.5 (arXiv 2403.03206), with the names of `diffusers`'
//! `SD3Transformer2DModel`.
//!
//! Image patches and text tokens have weights of their own and meet in joint attention. Time and pooled text make one
//! vector c that modulates every layer norm (AdaLN-Zero): x ← x + gate(c) · f(norm(x) · (1 + scale(c)) + shift(c)).
//! In some blocks of SD3.5 medium the image also attends to itself alone, with a norm and a gate of its own.

mod config;
mod embed;

pub use config::{MmditConfig, QkNorm};

use crate::{
    joint::{Block, Head, TimeText, TimeTextSizes, silu},
    layout::{Layout, Tokens},
    linear::Linear,
    network::{Architecture, Backbone, Family},
    recompute::{Checkpointing, Part},
    text::CLIP_LENGTH,
    weight_source::WeightSource,
};
use burn::tensor::Tensor;
use elbow::{noise::Key, params::Params, policy::Conditioning};
use embed::PatchEmbed;

/// An MMDiT bound to weights.
#[derive(Clone, Debug)]
pub struct Mmdit {
    config: MmditConfig,
    patches: PatchEmbed,
    time_text: TimeText,
    context: Linear,
    blocks: Blocks,
    head: Head,
}

/// What [`Checkpointing`] makes of the blocks.
#[derive(Clone, Debug)]
enum Blocks {
    Kept(Vec<Block>),
    Recomputed(Vec<Part>),
}

impl Mmdit {
    /// The network of these sizes. Fresh weights are Xavier for dense layers, zero for every modulation and for the output
    /// (AdaLN-Zero: each block starts as the identity and the network as v = 0), 0.02 for time and text embeddings.
    pub fn new(config: &MmditConfig, w: &WeightSource<'_>, checkpointing: Checkpointing) -> Self {
        let (h, image) = (config.width(), config.image_tokens());
        let time_text = TimeTextSizes { width: h, guidance: false, pooled: config.pooled_projection_dim };
        let context = w.at("context_embedder").on(Tokens::Text);
        let outputs = config.patch_size.pow(2) * config.in_channels;
        Self {
            patches: PatchEmbed::new(config, &w.at("pos_embed")),
            time_text: TimeText::new(w, time_text),
            context: context.linear(config.joint_attention_dim, h),
            blocks: Blocks::new(config, &w.at("transformer_blocks"), checkpointing),
            head: Head::new(w, h, outputs, image),
            config: config.clone(),
        }
    }

    /// All blocks: `image [N, I, H]`, `text [N, L, H]`, `c [N, H]` → `[N, I, H]`
    fn through_blocks(&self, mut image: Tensor<3>, text: Tensor<3>, c: &Tensor<2>) -> Tensor<3> {
        match &self.blocks {
            Blocks::Kept(blocks) => {
                let mut text = Some(text);
                for block in blocks {
                    let tokens = text.expect("invariant: only the last block drops the text");
                    (image, text) = block.forward(image, tokens, c, None);
                }
                image
            }
            Blocks::Recomputed(parts) => {
                let patches = image.dims()[1];
                let mut joint = Tensor::cat(vec![image, text], 1);
                for (i, part) in parts.iter().enumerate() {
                    let sizes = self.config.block(i);
                    joint = part.run(joint, c.clone(), move |w, joint, c| {
                        Block::new(w, sizes).forward_joint(joint, patches, &c, None)
                    });
                }
                joint
            }
        }
    }

    /// `[N, h·w, p·p·C] → [N, C, h·p, w·p]`
    fn unpatchify(&self, y: Tensor<3>, height: usize, width: usize) -> Tensor<4> {
        let (p, c, n) = (self.config.patch_size, self.config.in_channels, y.dims()[0]);
        let y: Tensor<6> = y.reshape([n, height / p, width / p, p, p, c]);
        y.permute([0, 5, 1, 3, 2, 4]).reshape([n, c, height, width])
    }
}

impl Blocks {
    fn new(config: &MmditConfig, w: &WeightSource<'_>, checkpointing: Checkpointing) -> Self {
        let places = (0..config.num_layers).map(|i| w.at(&i.to_string()));
        match checkpointing {
            Checkpointing::None => {
                Self::Kept(places.enumerate().map(|(i, w)| Block::new(&w, config.block(i))).collect())
            }
            Checkpointing::Block => Self::Recomputed(places.map(|w| Part::new(&w)).collect()),
        }
    }
}

impl Backbone for Mmdit {
    /// A velocity. The network sees 1000 t.
    fn predict(&self, x: Tensor<4>, t: Tensor<1>, cond: &Conditioning) -> Tensor<4> {
        let [_, _, height, width] = x.dims();
        let c = silu(self.time_text.forward(t * 1000.0, 0.0, cond));
        let image = self.through_blocks(self.patches.forward(x), self.context.forward(cond.tokens.clone()), &c);
        self.unpatchify(self.head.forward(image, c), height, width)
    }
}

impl MmditConfig {
    /// Every tensor.
    pub fn layout(&self) -> Layout {
        Layout::of(|w| Mmdit::new(self, w, Checkpointing::None))
    }

    /// Fresh weights.
    pub fn initial(&self, key: Key) -> Params {
        self.layout().initial(key)
    }
}

impl Architecture for MmditConfig {
    fn build(&self, w: &WeightSource<'_>, checkpointing: Checkpointing) -> Box<dyn Backbone> {
        Box::new(Mmdit::new(self, w, checkpointing))
    }

    fn identity(&self) -> String {
        format!("Mmdit({self:?})")
    }

    fn family(&self) -> Family {
        Family::Sd3
    }

    fn model_name(&self) -> &'static str {
        if *self == Self::default() {
            return "elbow-nano";
        }
        match (self.num_layers, self.width(), self.qk_norm.is_some()) {
            (24, 1536, false) => "stable-diffusion-3-m",
            (24, 1536, true) => "stable-diffusion-3-5-medium",
            (38, 2432, true) => "stable-diffusion-3-5-large",
            _ => "stable-diffusion-3",
        }
    }

    fn latent_channels(&self) -> usize {
        self.in_channels
    }

    fn own_side(&self) -> usize {
        self.sample_size
    }

    fn latent_problem(&self, latent: [usize; 3]) -> Option<String> {
        MmditConfig::latent_problem(self, latent)
    }

    fn text_widths(&self) -> (usize, Option<usize>) {
        (self.joint_attention_dim, Some(self.pooled_projection_dim))
    }

    fn text_tokens(&self, t5: usize) -> usize {
        CLIP_LENGTH + t5
    }
}
