//! The UNet of Stable Diffusion 1 and 2 (arXiv 2112.10752), with the names of `diffusers`' `UNet2DConditionModel`.
//!
//! Levels of residual blocks go down to a fraction of the resolution and up again; what the way down leaves after each
//! block joins the way up at the same resolution. Transformers between the blocks let pixels attend to each other and to
//! the text. The time reaches every residual block as a vector.

mod config;
mod transformer;

pub use config::{DownBlock, Heads, UnetConfig, UpBlock};

use crate::{
    layout::{Layout, Start, Tokens},
    linear::Linear,
    network::{Architecture, Backbone, Family},
    recompute::Checkpointing,
    resnet::{Conv, GroupNorm, Groups, Resnet},
    text::CLIP_LENGTH,
    weight_source::WeightSource,
};
use burn::tensor::{Tensor, TensorData, activation};
use config::{Stage, pixels};
use elbow::{noise::Key, params::Params, policy::Conditioning, schedule::SCALED_LINEAR_STEPS};
use transformer::Transformer;

/// A UNet bound to weights.
#[derive(Clone, Debug)]
pub struct Unet {
    /// Channels at full resolution, and time features.
    width: usize,
    conv_in: Conv,
    time: [Linear; 2],
    down: Vec<Blocks>,
    middle: Blocks,
    up: Vec<Blocks>,
    norm_out: GroupNorm,
    conv_out: Conv,
}

/// One level bound to weights.
#[derive(Clone, Debug)]
struct Blocks {
    resnets: Vec<Resnet>,
    transformers: Vec<Transformer>,
    resample: Option<Conv>,
}

impl Unet {
    /// The network of these sizes.
    ///
    /// Its blocks are joined across the whole depth: it is one block, none of which is recomputed.
    pub fn new(config: &UnetConfig, w: &WeightSource<'_>) -> Self {
        let (channels, time) = (config.block_out_channels[0], config.time_width());
        let norms = Groups { number: config.norm_num_groups, epsilon: config.norm_eps };
        let w = w.clone().starting(Start::FanIn).on(pixels(0));
        w.begin_block(0);
        w.keeps(channels);
        let embedding = w.at("time_embedding").on(Tokens::One);
        let blocks = |stage: Stage| {
            let (resnets, resample) = stage.level.build(&w, Some(time), norms);
            Blocks { resnets, transformers: Transformer::all(config, &w, &stage), resample }
        };
        Self {
            width: channels,
            conv_in: w.at("conv_in").conv(config.in_channels, channels, 3),
            time: [embedding.at("linear_1").linear(channels, time), embedding.at("linear_2").linear(time, time)],
            down: config.down().into_iter().map(blocks).collect(),
            middle: blocks(config.middle()),
            up: config.up().into_iter().map(blocks).collect(),
            norm_out: w.at("conv_norm_out").group_norm(channels, norms),
            conv_out: w.at("conv_out").conv(channels, config.out_channels, 3),
        }
    }

    /// `x [N, C, H, W]`, `timestep [N]` of 1000, `text [N, L, E]` → what the network predicts, `[N, C, H, W]`.
    pub fn forward(&self, x: Tensor<4>, timestep: Tensor<1>, text: &Tensor<3>) -> Tensor<4> {
        let time = time_features(timestep, self.width);
        let time = self.time[1].forward(activation::silu(self.time[0].forward(time)));
        // Every residual block begins its use of the time with this activation.
        let time = activation::silu(time);
        let mut x = self.conv_in.forward(x);
        let mut left = vec![x.clone()];
        for level in &self.down {
            for (i, resnet) in level.resnets.iter().enumerate() {
                x = level.attend(i, resnet.forward(x, Some(&time)), text);
                left.push(x.clone());
            }
            if let Some(conv) = &level.resample {
                x = conv.halve(x);
                left.push(x.clone());
            }
        }
        for (i, resnet) in self.middle.resnets.iter().enumerate() {
            x = self.middle.attend(i, resnet.forward(x, Some(&time)), text);
        }
        for level in &self.up {
            for (i, resnet) in level.resnets.iter().enumerate() {
                let skipped = left.pop().expect("invariant: the way up has as many blocks as the way down left");
                x = level.attend(i, resnet.forward(Tensor::cat(vec![x, skipped], 1), Some(&time)), text);
            }
            if let Some(conv) = &level.resample {
                x = conv.double(x);
            }
        }
        self.conv_out.forward(self.norm_out.silu(x))
    }
}

impl Blocks {
    /// The transformer after residual block `i`, if there is one.
    fn attend(&self, i: usize, x: Tensor<4>, text: &Tensor<3>) -> Tensor<4> {
        match self.transformers.get(i) {
            None => x,
            Some(transformer) => transformer.forward(x, text),
        }
    }
}

/// `[N] → [N, width]`: cosines, then sines, of t / 10000^(2i/width).
fn time_features(timestep: Tensor<1>, width: usize) -> Tensor<2> {
    let half = width / 2;
    let frequencies: Vec<f32> = (0..half).map(|i| 10_000f64.powf(-(i as f64) / half as f64) as f32).collect();
    let frequencies = Tensor::<2>::from_data(TensorData::new(frequencies, [1, half]), &timestep.device());
    let angles = timestep.unsqueeze_dim::<2>(1) * frequencies;
    Tensor::cat(vec![angles.clone().cos(), angles.sin()], 1)
}

impl Backbone for Unet {
    /// Noise or an angle, which `elbow::prediction` turns into velocity. It sees timestep 1000 t − 1,
    /// between those it was trained on where t falls between them: t = 1 is timestep 999, t = 1/1000 is timestep 0, and
    /// t = 0, where nothing is evaluated, is clean data.
    fn predict(&self, x: Tensor<4>, t: Tensor<1>, cond: &Conditioning) -> Tensor<4> {
        self.forward(x, (t * SCALED_LINEAR_STEPS as f64 - 1.0).clamp_min(0.0), &cond.tokens)
    }
}

impl UnetConfig {
    /// Every tensor.
    pub fn layout(&self) -> Layout {
        Layout::of(|w| Unet::new(self, w))
    }

    /// Fresh weights.
    pub fn initial(&self, key: Key) -> Params {
        self.layout().initial(key)
    }
}

impl Architecture for UnetConfig {
    fn build(&self, w: &WeightSource<'_>, _: Checkpointing) -> Box<dyn Backbone> {
        Box::new(Unet::new(self, w))
    }

    fn identity(&self) -> String {
        format!("Unet({self:?})")
    }

    fn family(&self) -> Family {
        Family::Unet
    }

    fn model_name(&self) -> &'static str {
        match (self.cross_attention_dim, self.sample_size) {
            (768, _) => "stable-diffusion-v1",
            (_, Some(96)) => "stable-diffusion-v2-768-v",
            _ => "stable-diffusion-v2-512",
        }
    }

    fn latent_channels(&self) -> usize {
        self.in_channels
    }

    fn own_side(&self) -> usize {
        // Stable Diffusion 1: 512 pixels.
        self.sample_size.unwrap_or(64)
    }

    fn latent_problem(&self, latent: [usize; 3]) -> Option<String> {
        UnetConfig::latent_problem(self, latent)
    }

    fn text_widths(&self) -> (usize, Option<usize>) {
        (self.cross_attention_dim, None)
    }

    fn text_tokens(&self, _: usize) -> usize {
        CLIP_LENGTH
    }

    fn checkpointing_problem(&self) -> Option<&'static str> {
        Some("the blocks of a UNet are joined across its depth, none can be recomputed")
    }
}
