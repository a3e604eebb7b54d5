//! The sizes of a FLUX transformer.

use crate::{
    config_json::{self, ConfigError, Others, Told, other_channels},
    joint::Sizes,
    layout::Tokens,
};
use serde::{Deserialize, Serialize};

/// Height and width of the square of latents that makes one token.
pub(super) const PACK: usize = 2;
/// What image tokens stand for.
pub(super) const IMAGE: Tokens = Tokens::Image { side: PACK };
/// Image and text in one sequence.
pub(super) const JOINT: Tokens = Tokens::Joint { side: PACK };

/// What decides the tensors of a block with one stream.
#[derive(Clone, Copy, Debug)]
pub(super) struct SingleSizes {
    /// Width of the network, all heads together.
    pub(super) width: usize,
    /// Heads of its attention.
    pub(super) heads: usize,
}

/// The sizes of a FLUX transformer, in the words of `diffusers`' `transformer/config.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FluxConfig {
    /// Tokens a side of a patch: 1, since latents come packed.
    pub patch_size: usize,
    /// Width of an image token: channels of the latent × 2 × 2.
    pub in_channels: usize,
    /// Width of an output token: `in_channels`, which is also meant if absent.
    #[serde(default)]
    pub out_channels: Option<usize>,
    /// Blocks with weights of their own for image and text.
    pub num_layers: usize,
    /// Blocks that image and text share, after those.
    pub num_single_layers: usize,
    /// Width of one head.
    pub attention_head_dim: usize,
    /// Heads; the width of the network is heads × head width.
    pub num_attention_heads: usize,
    /// Width of a text token.
    pub joint_attention_dim: usize,
    /// Width of the pooled text.
    pub pooled_projection_dim: usize,
    /// The model was distilled from guided ones and is told how strong the guidance shall be (FLUX.1-dev).
    pub guidance_embeds: bool,
    /// Channels of each head that are rotated by the three coordinates of a token: they add up to the head.
    #[serde(default = "published_axes")]
    pub axes_dims_rope: Vec<usize>,
}

/// The axes of all published models, which older files leave out.
fn published_axes() -> Vec<usize> {
    vec![16, 56, 56]
}

impl FluxConfig {
    /// Reads `transformer/config.json` of a `FluxTransformer2DModel`.
    pub fn from_json(json: &str) -> Result<Self, ConfigError> {
        Ok(Self::read(json)?.0)
    }

    /// The same, with what is worth a warning.
    pub(crate) fn read(json: &str) -> Result<Told<Self>, ConfigError> {
        let (config, warnings) = config_json::read::<Self>(json, "FluxTransformer2DModel", Others::default())?;
        let problems = config.validate();
        Ok((config_json::checked(config, problems)?, warnings))
    }

    /// Width of the network.
    pub fn width(&self) -> usize {
        self.attention_head_dim * self.num_attention_heads
    }

    /// Channels of the latent.
    pub fn latent_channels(&self) -> usize {
        self.in_channels / (PACK * PACK)
    }

    /// The sizes of every block with two streams.
    pub(super) fn double_block(&self) -> Sizes {
        let (width, heads) = (self.width(), self.num_attention_heads);
        Sizes { width, heads, patch: PACK, norms: true, dual: false, last: false }
    }

    /// The sizes of every block with one stream.
    pub(super) fn single_block(&self) -> SingleSizes {
        SingleSizes { width: self.width(), heads: self.num_attention_heads }
    }

    /// What makes these sizes unusable, a line each.
    pub fn validate(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let (axes, head) = (&self.axes_dims_rope, self.attention_head_dim);
        if self.patch_size != 1 {
            problems.push(format!("patch_size = {}: must be 1, latents are packed before", self.patch_size));
        }
        if self.in_channels == 0 || !self.in_channels.is_multiple_of(PACK * PACK) {
            problems.push(format!("in_channels = {}: must be a multiple of 4, for latents of 2 x 2", self.in_channels));
        }
        if self.width() == 0 {
            problems.push("num_attention_heads and attention_head_dim must be positive".to_owned());
        }
        if axes.len() != 3 || axes.iter().any(|a| !a.is_multiple_of(2)) || axes.iter().sum::<usize>() != head {
            problems.push(format!(
                "axes_dims_rope = {axes:?}: must be three even numbers that add up to attention_head_dim = {head}"
            ));
        }
        problems.extend(self.out_channels.and_then(|out| other_channels(out, self.in_channels)));
        problems
    }

    /// Why latents `[channels, height, width]` do not fit, if they do not.
    pub fn latent_problem(&self, [channels, height, width]: [usize; 3]) -> Option<String> {
        let fits = |side: usize| side > 0 && side.is_multiple_of(PACK);
        let good = channels == self.latent_channels() && fits(height) && fits(width);
        (!good).then(|| {
            let own = self.latent_channels();
            format!(
                "latents of {channels} x {height} x {width}: this network takes {own} channels and even height and width"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As published with FLUX.1-dev.
    const DEV: &str = r#"{"_class_name": "FluxTransformer2DModel", "_diffusers_version": "0.30.0.dev0",
        "_name_or_path": "../checkpoints/flux-dev/transformer", "attention_head_dim": 128, "guidance_embeds": true,
        "in_channels": 64, "joint_attention_dim": 4096, "num_attention_heads": 24, "num_layers": 19,
        "num_single_layers": 38, "patch_size": 1, "pooled_projection_dim": 768}"#;

    #[test]
    fn a_published_config_is_read() {
        let config = FluxConfig::from_json(DEV).expect("reads");
        assert_eq!(
            (config.width(), config.latent_channels(), &config.axes_dims_rope[..]),
            (3072, 16, &[16, 56, 56][..])
        );
        assert_eq!(config.latent_problem([16, 64, 96]), None);
        assert!(config.latent_problem([16, 64, 95]).is_some() && config.latent_problem([4, 64, 64]).is_some());
    }

    #[test]
    fn all_values_that_do_not_fit_are_named_at_once() {
        let wrong = DEV.replace("\"patch_size\": 1", "\"patch_size\": 2, \"out_channels\": 16").replace("128", "64");
        let message = FluxConfig::from_json(&wrong).expect_err("refused").to_string();
        for part in ["patch_size = 2", "out_channels = 16", "axes_dims_rope = [16, 56, 56]"] {
            assert!(message.contains(part), "{message}");
        }
    }
}
