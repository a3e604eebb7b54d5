//! The UNet of Stable Diffusion 1 and 2 (arXiv 2112.10752), with the names of `diffusers`' `UNet2DConditionModel`.
//!
//! Levels of residual blocks go down to a fraction of the resolution and up again; what the way down leaves after each
//! block joins the way up at the same resolution. Transformers between the blocks let pixels attend to each other and to
//! the text. The time reaches every residual block as a vector.

mod config;
mod layout;
mod transformer;

pub use config::{DownBlock, Heads, UnetConfig, UpBlock};

use crate::{
    linear::{Linear, Weights},
    resnet::{Conv, GroupNorm, Resnet},
};
use burn::tensor::{Tensor, TensorData, activation};
use config::Stage;
use elbow::{
    policy::{Conditioning, VelocityField},
    schedule::SCALED_LINEAR_STEPS,
};
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
    /// Builds the network from weights laid out as [`UnetConfig::layout`] says.
    pub fn new(config: &UnetConfig, weights: Weights<'_>) -> Self {
        let (groups, epsilon) = (config.norm_num_groups, config.norm_eps);
        let blocks = |stage: Stage| Blocks {
            resnets: stage.level.resnets(weights, groups, epsilon),
            transformers: Transformer::all(config, weights, &stage),
            resample: stage.level.resample(weights),
        };
        Self {
            width: config.block_out_channels[0],
            conv_in: Conv::new(weights, "conv_in"),
            time: [1, 2].map(|i| Linear::new(weights, &format!("time_embedding.linear_{i}"))),
            down: config.down().into_iter().map(blocks).collect(),
            middle: blocks(config.middle()),
            up: config.up().into_iter().map(blocks).collect(),
            norm_out: GroupNorm::new(weights, "conv_norm_out", groups, epsilon),
            conv_out: Conv::new(weights, "conv_out"),
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

impl VelocityField for Unet {
    /// What the network predicts, which `elbow::prediction::Predicting` turns into velocity. It sees timestep 1000 t − 1,
    /// between those it was trained on where t falls between them: t = 1 is timestep 999, t = 1/1000 is timestep 0, and
    /// t = 0, where nothing is evaluated, is clean data.
    fn velocity(&self, x: Tensor<4>, t: Tensor<1>, cond: &Conditioning) -> Tensor<4> {
        self.forward(x, (t * SCALED_LINEAR_STEPS as f64 - 1.0).clamp_min(0.0), &cond.tokens)
    }
}
