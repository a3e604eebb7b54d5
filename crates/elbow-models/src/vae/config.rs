//! The sizes of an autoencoder.

use crate::{
    config_json::{self, ConfigError, Others, Told},
    layout::Tokens,
    resnet::{Level, Resample},
};
use serde::{Deserialize, Serialize};

/// The sizes of an autoencoder, in the words of `diffusers`' `vae/config.json`, whose defaults these are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct VaeConfig {
    /// Channels of a picture, which is RGB.
    pub in_channels: usize,
    /// The same.
    pub out_channels: usize,
    /// The kind of each level of the encoder; there is one.
    pub down_block_types: Vec<DownBlock>,
    /// The kind of each level of the decoder; there is one.
    pub up_block_types: Vec<UpBlock>,
    /// Channels of each level.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks of a level of the encoder; the decoder has one more.
    pub layers_per_block: usize,
    /// Channels of a latent.
    pub latent_channels: usize,
    /// Groups of every group norm.
    pub norm_num_groups: usize,
    /// Height and width of the pictures that the model was made for.
    pub sample_size: usize,
    /// What a latent is multiplied by before a diffusion model sees it.
    pub scaling_factor: f64,
    /// What is taken from a latent before that.
    pub shift_factor: Option<f64>,
    /// Float32 even where the rest is half, which it always is here.
    pub force_upcast: bool,
    /// A convolution of one pixel after the encoder.
    pub use_quant_conv: bool,
    /// The same before the decoder.
    pub use_post_quant_conv: bool,
}

/// A level of the encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DownBlock {
    /// Residual blocks.
    #[serde(rename = "DownEncoderBlock2D")]
    Encoder,
}

/// A level of the decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum UpBlock {
    /// Residual blocks.
    #[serde(rename = "UpDecoderBlock2D")]
    Decoder,
}

/// The value of every published latent diffusion model is the one that is implemented.
const OTHERS: Others = Others {
    ignored: &[],
    only: r#"{"act_fn": "silu", "latents_mean": null, "latents_std": null, "mid_block_add_attention": true}"#,
};

impl Default for VaeConfig {
    fn default() -> Self {
        Self {
            in_channels: 3,
            out_channels: 3,
            down_block_types: vec![DownBlock::Encoder],
            up_block_types: vec![UpBlock::Decoder],
            block_out_channels: vec![64],
            layers_per_block: 1,
            latent_channels: 4,
            norm_num_groups: 32,
            sample_size: 32,
            scaling_factor: 0.18215,
            shift_factor: None,
            force_upcast: true,
            use_quant_conv: true,
            use_post_quant_conv: true,
        }
    }
}

impl VaeConfig {
    /// Reads `vae/config.json` of an `AutoencoderKL`.
    pub fn from_json(json: &str) -> Result<Self, ConfigError> {
        Ok(Self::read(json)?.0)
    }

    /// The same, with what is worth a warning.
    pub(crate) fn read(json: &str) -> Result<Told<Self>, ConfigError> {
        let (config, warnings) = config_json::read::<Self>(json, "AutoencoderKL", OTHERS)?;
        let problems = config.validate();
        Ok((config_json::checked(config, problems)?, warnings))
    }

    /// What makes these sizes unusable, a line each.
    pub fn validate(&self) -> Vec<String> {
        let (levels, groups) = (self.block_out_channels.len(), self.norm_num_groups);
        let mut problems = Vec::new();
        for (name, len) in
            [("down_block_types", self.down_block_types.len()), ("up_block_types", self.up_block_types.len())]
        {
            if len != levels || levels == 0 {
                problems.push(format!("{name} has {len} entries: block_out_channels has {levels} levels"));
            }
        }
        for (name, channels) in [("in_channels", self.in_channels), ("out_channels", self.out_channels)] {
            if channels != 3 {
                problems.push(format!("{name} = {channels}: pictures have 3 channels"));
            }
        }
        let sizes = [
            ("layers_per_block", self.layers_per_block),
            ("latent_channels", self.latent_channels),
            ("norm_num_groups", groups),
        ];
        problems.extend(sizes.iter().filter(|(_, v)| *v == 0).map(|(name, _)| format!("{name} = 0: must be positive")));
        if !self.scaling_factor.is_normal() {
            problems.push(format!("scaling_factor = {}: latents are divided by it", self.scaling_factor));
        }
        let uneven = |c: &&usize| **c == 0 || groups > 0 && !c.is_multiple_of(groups);
        problems.extend(
            self.block_out_channels
                .iter()
                .filter(uneven)
                .map(|c| format!("block_out_channels has {c}: must be a multiple of norm_num_groups = {groups}")),
        );
        problems
    }

    /// Pixels of a picture to one of its latent, along each side.
    pub fn reduction(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }

    /// The pixels of a picture.
    pub(super) fn picture(&self) -> Tokens {
        Tokens::Pixels { side: self.reduction() }
    }

    /// Channels of the lowest resolution.
    pub(super) fn deepest(&self) -> usize {
        *self.block_out_channels.last().expect("invariant: `validate` asks for a level")
    }

    /// Levels of the encoder, from full resolution down.
    pub(super) fn down(&self) -> Vec<Level> {
        let channels = &self.block_out_channels;
        let last = channels.len() - 1;
        let level = |(i, &out): (usize, &usize)| {
            let resnet = |j| [if j == 0 { channels[i.max(1) - 1] } else { out }, out];
            Level {
                path: format!("down_blocks.{i}"),
                pixels: pixels(last - i),
                resnets: (0..self.layers_per_block).map(resnet).collect(),
                resample: (i < last).then(|| Resample { kind: "downsamplers", pixels: pixels(last - i - 1) }),
            }
        };
        channels.iter().enumerate().map(level).collect()
    }

    /// Levels of the decoder, from the lowest resolution up.
    pub(super) fn up(&self) -> Vec<Level> {
        let last = self.block_out_channels.len() - 1;
        let channels: Vec<usize> = self.block_out_channels.iter().rev().copied().collect();
        let level = |(i, &out): (usize, &usize)| {
            let resnet = |j| [if j == 0 { channels[i.max(1) - 1] } else { out }, out];
            Level {
                path: format!("up_blocks.{i}"),
                pixels: pixels(i),
                resnets: (0..=self.layers_per_block).map(resnet).collect(),
                resample: (i < last).then(|| Resample { kind: "upsamplers", pixels: pixels(i + 1) }),
            }
        };
        channels.iter().enumerate().map(level).collect()
    }

    /// The two residual blocks around the attention, which are the same in encoder and decoder.
    pub(super) fn middle(&self) -> Level {
        let (path, resnets) = ("mid_block".into(), vec![[self.deepest(); 2]; 2]);
        Level { path, pixels: pixels(0), resnets, resample: None }
    }
}

/// The pixels of a resolution, that of latents doubled so often.
pub(super) fn pixels(doubled: usize) -> Tokens {
    Tokens::Pixels { side: 1 << doubled }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(json: &str) -> String {
        VaeConfig::from_json(json).expect_err("refused").to_string()
    }

    #[test]
    fn what_is_not_implemented_is_named_with_its_value() {
        let message = error(r#"{"act_fn": "relu", "mid_block_add_attention": false, "_note": 1}"#);
        for part in [r#"act_fn = "relu": only "silu""#, "mid_block_add_attention = false: only true"] {
            assert!(message.contains(part), "{message}");
        }
        let message = error(r#"{"up_block_types": ["AttnUpDecoderBlock2D"]}"#);
        assert!(message.starts_with("up_block_types[0]: unknown variant `AttnUpDecoderBlock2D`"), "{message}");
        assert!(error(r#"{"_class_name": "AutoencoderTiny"}"#).contains("expected `AutoencoderKL`"));
    }

    #[test]
    fn sizes_that_do_not_fit_each_other_are_named_at_once() {
        let message = error(r#"{"block_out_channels": [64, 72], "in_channels": 1, "scaling_factor": 0}"#);
        for part in
            ["down_block_types has 1", "up_block_types has 1", "in_channels = 1", "scaling_factor = 0", "has 72"]
        {
            assert!(message.contains(part), "{message}");
        }
    }
}
