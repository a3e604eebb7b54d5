//! The sizes of a UNet.

use crate::{
    config_json::{self, ConfigError, Others, Told, other_channels, same_for_all},
    layout::Tokens,
    resnet::{Level, Resample},
};
use serde::{Deserialize, Deserializer, Serialize};

/// The sizes of a UNet, in the words of `diffusers`' `unet/config.json`, whose defaults these are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct UnetConfig {
    /// Height and width of the latent that the model was made for; of a list, which has both, the first.
    #[serde(deserialize_with = "first")]
    pub sample_size: Option<usize>,
    /// Channels of the latent.
    pub in_channels: usize,
    /// Channels of the output: those of the latent.
    pub out_channels: usize,
    /// Whether each level on the way down attends to the text.
    pub down_block_types: Vec<DownBlock>,
    /// The same on the way up.
    pub up_block_types: Vec<UpBlock>,
    /// Channels of each level.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks of a level on the way down; there is one more on the way up.
    #[serde(deserialize_with = "same_for_all")]
    pub layers_per_block: usize,
    /// Groups of every group norm.
    pub norm_num_groups: usize,
    /// ε of the group norms of residual blocks and of the output.
    pub norm_eps: f64,
    /// Width of a text token.
    #[serde(deserialize_with = "same_for_all")]
    pub cross_attention_dim: usize,
    /// Number of heads, in spite of its name: `diffusers` keeps the mistake for the sake of published files.
    pub attention_head_dim: Heads,
    /// Whether dense layers, not convolutions of one pixel, lead into and out of the transformers.
    pub use_linear_projection: bool,
    /// Attention in f32, which it always is here.
    pub upcast_attention: bool,
}

/// A level on the way down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DownBlock {
    /// Residual blocks, each followed by a transformer over pixels and text.
    #[serde(rename = "CrossAttnDownBlock2D")]
    CrossAttention,
    /// Residual blocks alone.
    #[serde(rename = "DownBlock2D")]
    Plain,
}

/// A level on the way up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum UpBlock {
    /// Residual blocks, each followed by a transformer over pixels and text.
    #[serde(rename = "CrossAttnUpBlock2D")]
    CrossAttention,
    /// Residual blocks alone.
    #[serde(rename = "UpBlock2D")]
    Plain,
}

/// Heads of attention.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Heads {
    /// As many at every level.
    Same(usize),
    /// By level.
    Each(Vec<usize>),
}

/// A level of the UNet.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Stage {
    pub(super) level: Level,
    /// Transformers, one after each of the first residual blocks.
    pub(super) transformers: usize,
    pub(super) heads: usize,
}

/// The value of Stable Diffusion is the one that is implemented. Heads of additional embeddings matter where there are such, and dropout
/// where diffusers trains.
const OTHERS: Others = Others {
    ignored: &[&["addition_embed_type_num_heads", "dropout"]],
    only: r#"{
    "act_fn": "silu", "addition_embed_type": null, "addition_time_embed_dim": null,
    "attention_type": "default", "center_input_sample": false, "class_embed_type": null, "class_embeddings_concat": false,
    "conv_in_kernel": 3, "conv_out_kernel": 3, "cross_attention_norm": null, "downsample_padding": 1,
    "dual_cross_attention": false, "encoder_hid_dim": null, "encoder_hid_dim_type": null, "flip_sin_to_cos": true,
    "freq_shift": 0, "mid_block_only_cross_attention": null, "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn", "num_attention_heads": null, "num_class_embeds": null,
    "only_cross_attention": false, "projection_class_embeddings_input_dim": null, "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": false, "resnet_time_scale_shift": "default", "reverse_transformer_layers_per_block": null,
    "time_cond_proj_dim": null, "time_embedding_act_fn": null, "time_embedding_dim": null,
    "time_embedding_type": "positional", "timestep_post_act": null, "transformer_layers_per_block": 1
}"#,
};

/// A number, none, or the first of a list.
fn first<'de, D: Deserializer<'de>>(from: D) -> Result<Option<usize>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected an integer of at least 0, or two of them")]
    enum Given {
        Side(Option<usize>),
        Size([usize; 2]),
    }
    Ok(match Given::deserialize(from)? {
        Given::Side(side) => side,
        Given::Size([height, _]) => Some(height),
    })
}

impl Default for UnetConfig {
    fn default() -> Self {
        Self {
            sample_size: None,
            in_channels: 4,
            out_channels: 4,
            down_block_types: [DownBlock::CrossAttention; 3].into_iter().chain([DownBlock::Plain]).collect(),
            up_block_types: [UpBlock::Plain].into_iter().chain([UpBlock::CrossAttention; 3]).collect(),
            block_out_channels: vec![320, 640, 1280, 1280],
            layers_per_block: 2,
            norm_num_groups: 32,
            norm_eps: 1e-5,
            cross_attention_dim: 1280,
            attention_head_dim: Heads::Same(8),
            use_linear_projection: false,
            upcast_attention: false,
        }
    }
}

impl UnetConfig {
    /// Reads `unet/config.json` of a `UNet2DConditionModel`.
    pub fn from_json(json: &str) -> Result<Self, ConfigError> {
        Ok(Self::read(json)?.0)
    }

    /// The same, with what is worth a warning.
    pub(crate) fn read(json: &str) -> Result<Told<Self>, ConfigError> {
        let (config, warnings) = config_json::read::<Self>(json, "UNet2DConditionModel", OTHERS)?;
        let problems = config.validate();
        Ok((config_json::checked(config, problems)?, warnings))
    }

    /// What makes these sizes unusable, a line each.
    pub fn validate(&self) -> Vec<String> {
        let channels = &self.block_out_channels;
        let levels = channels.len();
        let mut problems = Vec::new();
        let lengths =
            [("down_block_types", self.down_block_types.len()), ("up_block_types", self.up_block_types.len())];
        let heads = match &self.attention_head_dim {
            Heads::Same(_) => levels,
            Heads::Each(heads) => heads.len(),
        };
        for (name, len) in lengths.into_iter().chain([("attention_head_dim", heads)]) {
            if len != levels || levels == 0 {
                problems.push(format!("{name} has {len} entries: block_out_channels has {levels} levels"));
            }
        }
        let sizes = [
            ("in_channels", self.in_channels),
            ("layers_per_block", self.layers_per_block),
            ("norm_num_groups", self.norm_num_groups),
            ("cross_attention_dim", self.cross_attention_dim),
        ];
        problems.extend(sizes.iter().filter(|(_, v)| *v == 0).map(|(name, _)| format!("{name} = 0: must be positive")));
        problems.extend(other_channels(self.out_channels, self.in_channels));
        if problems.is_empty() {
            problems.extend(channels.iter().enumerate().flat_map(|(i, &c)| self.level_problems(i, c)));
        }
        problems
    }

    /// What is wrong with the channels of level `i`.
    fn level_problems(&self, i: usize, channels: usize) -> Vec<String> {
        let (groups, heads) = (self.norm_num_groups, self.heads(i));
        let mut problems = Vec::new();
        if channels == 0 || !channels.is_multiple_of(groups) {
            problems
                .push(format!("block_out_channels has {channels}: must be a multiple of norm_num_groups = {groups}"));
        }
        if heads == 0 || !channels.is_multiple_of(heads) {
            problems
                .push(format!("attention_head_dim = {heads} heads: must divide the {channels} channels of level {i}"));
        }
        if i == 0 && !channels.is_multiple_of(2) {
            problems.push(format!("block_out_channels begins with {channels}: must be even, for sines and cosines"));
        }
        problems
    }

    /// Why latents `[channels, height, width]` do not fit, if they do not.
    pub fn latent_problem(&self, [channels, height, width]: [usize; 3]) -> Option<String> {
        let unit = 1 << (self.block_out_channels.len() - 1);
        let fits = |side: usize| side > 0 && side.is_multiple_of(unit);
        let good = channels == self.in_channels && fits(height) && fits(width);
        (!good).then(|| {
            format!(
                "latents of {channels} x {height} x {width}: this network takes {} channels, and height and width that \
                 are multiples of {unit}",
                self.in_channels
            )
        })
    }

    /// Width of the vector that tells the time.
    pub(super) fn time_width(&self) -> usize {
        4 * self.block_out_channels[0]
    }

    fn heads(&self, level: usize) -> usize {
        match &self.attention_head_dim {
            Heads::Same(heads) => *heads,
            Heads::Each(heads) => heads[level],
        }
    }

    /// From full resolution down.
    pub(super) fn down(&self) -> Vec<Stage> {
        let channels = &self.block_out_channels;
        let stage = |(i, kind): (usize, &DownBlock)| {
            let out = channels[i];
            let resnet = |j| [if j == 0 { channels[i.max(1) - 1] } else { out }, out];
            let resnets: Vec<[usize; 2]> = (0..self.layers_per_block).map(resnet).collect();
            Stage {
                transformers: if *kind == DownBlock::CrossAttention { resnets.len() } else { 0 },
                heads: self.heads(i),
                level: Level {
                    path: format!("down_blocks.{i}"),
                    pixels: pixels(i),
                    resnets,
                    resample: (i + 1 < channels.len())
                        .then(|| Resample { kind: "downsamplers", pixels: pixels(i + 1) }),
                },
            }
        };
        self.down_block_types.iter().enumerate().map(stage).collect()
    }

    /// At the lowest resolution: a transformer between two residual blocks.
    pub(super) fn middle(&self) -> Stage {
        let last = self.block_out_channels.len() - 1;
        let out = self.block_out_channels[last];
        let (path, resnets) = ("mid_block".into(), vec![[out, out]; 2]);
        let level = Level { path, pixels: pixels(last), resnets, resample: None };
        Stage { level, transformers: 1, heads: self.heads(last) }
    }

    /// From the lowest resolution up. Every block also takes what the way down left, last in first out.
    pub(super) fn up(&self) -> Vec<Stage> {
        let channels = &self.block_out_channels;
        let last = channels.len() - 1;
        let stage = |(i, kind): (usize, &UpBlock)| {
            let from = last - i;
            let (before, out, below) = (channels[(from + 1).min(last)], channels[from], channels[from.max(1) - 1]);
            let resnet = |j: usize| {
                let left = if j == self.layers_per_block { below } else { out };
                [if j == 0 { before } else { out } + left, out]
            };
            let resnets: Vec<[usize; 2]> = (0..=self.layers_per_block).map(resnet).collect();
            Stage {
                transformers: if *kind == UpBlock::CrossAttention { resnets.len() } else { 0 },
                heads: self.heads(from),
                level: Level {
                    path: format!("up_blocks.{i}"),
                    pixels: pixels(from),
                    resnets,
                    resample: (i < last).then(|| Resample { kind: "upsamplers", pixels: pixels(from - 1) }),
                },
            }
        };
        self.up_block_types.iter().enumerate().map(stage).collect()
    }
}

/// The pixels of a level, halved so often.
pub(super) fn pixels(halved: usize) -> Tokens {
    Tokens::Image { side: 1 << halved }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(json: &str) -> String {
        UnetConfig::from_json(json).expect_err("refused").to_string()
    }

    #[test]
    fn fields_that_are_not_implemented_are_named_with_their_value() {
        let message =
            error(r#"{"_class_name": "UNet2DConditionModel", "act_fn": "gelu", "addition_embed_type": "text"}"#);
        for part in [r#"act_fn = "gelu": only "silu""#, r#"addition_embed_type = "text": only null"#] {
            assert!(message.contains(part), "{message}");
        }
        let message = error(r#"{"down_block_types": ["DownBlock2D", "AttnDownBlock2D"]}"#);
        assert!(message.starts_with("down_block_types[1]: unknown variant `AttnDownBlock2D`"), "{message}");
        assert!(error(r#"{"new_field": 1}"#).ends_with("new_field = 1"));
        assert!(error(r#"{"in_channels": 9}"#).contains("9 channels are those of inpainting"));
        assert!(error(r#"{"_class_name": "UNet2DModel"}"#).contains("expected `UNet2DConditionModel`"));
        assert!(UnetConfig::from_json(r#"{"_note": 1, "dropout": 0.1, "mid_block_scale_factor": 1.0}"#).is_ok());
        let lists = r#"{"sample_size": [64, 96], "layers_per_block": [2, 2, 2, 2], "cross_attention_dim": [768, 768, 768, 768],
            "only_cross_attention": [false, false, false, false], "transformer_layers_per_block": [1, 1, 1, 1]}"#;
        let config = UnetConfig::from_json(lists).expect("one value for all levels");
        assert_eq!((config.sample_size, config.layers_per_block, config.cross_attention_dim), (Some(64), 2, 768));
        assert!(
            error(r#"{"layers_per_block": [2, 1, 2, 2]}"#)
                .starts_with("layers_per_block: [2, 1, 2, 2]: only one number")
        );
    }

    #[test]
    fn sizes_that_do_not_fit_each_other_are_named_at_once() {
        let message =
            error(r#"{"block_out_channels": [320, 640], "attention_head_dim": [5, 10, 20], "out_channels": 8}"#);
        for part in ["down_block_types has 4", "up_block_types has 4", "attention_head_dim has 3", "out_channels = 8"] {
            assert!(message.contains(part), "{message}");
        }
        let message = error(r#"{"attention_head_dim": 7, "norm_num_groups": 48}"#);
        for part in ["multiple of norm_num_groups = 48", "7 heads: must divide the 320 channels of level 0"] {
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn latents_that_cannot_be_halved_often_enough_are_refused() {
        let config = UnetConfig::default();
        assert_eq!(config.latent_problem([4, 64, 96]), None);
        for wrong in [[16, 64, 64], [4, 60, 64], [4, 64, 0]] {
            assert!(config.latent_problem(wrong).is_some(), "{wrong:?}");
        }
    }
}
