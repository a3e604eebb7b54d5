//! The sizes of an MMDiT.

use crate::{
    config_json::{self, ConfigError, Others, Told, other_channels},
    joint::Sizes,
    layout::Tokens,
};
use serde::{Deserialize, Serialize};

/// The sizes of an MMDiT, in the words of `diffusers`' `transformer/config.json`. The default is the embedded nano model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MmditConfig {
    /// Height and width of the latent that the model was made for.
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
    /// Width that text tokens are projected to: that of the network, which is also meant if absent.
    #[serde(default)]
    pub caption_projection_dim: Option<usize>,
    /// Width of the pooled text.
    pub pooled_projection_dim: usize,
    /// Channels of the output: those of the latent, which is also meant if absent.
    #[serde(default)]
    pub out_channels: Option<usize>,
    /// Side of the square grid of position embeddings, of which the middle is used.
    pub pos_embed_max_size: usize,
    /// Blocks whose image tokens also attend to themselves alone (SD3.5 medium: 0 to 12).
    #[serde(default)]
    pub dual_attention_layers: Vec<usize>,
    /// How queries and keys are normalized per head, if they are (SD3.5).
    #[serde(default)]
    pub qk_norm: Option<QkNorm>,
}

/// Normalization of queries and keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QkNorm {
    /// x / √(mean(x²) + ε), times a weight.
    RmsNorm,
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
            caption_projection_dim: None,
            pooled_projection_dim: 64,
            out_channels: None,
            pos_embed_max_size: 8,
            dual_attention_layers: Vec::new(),
            qk_norm: None,
        }
    }
}

impl MmditConfig {
    /// Reads `transformer/config.json` of an `SD3Transformer2DModel`.
    pub fn from_json(json: &str) -> Result<Self, ConfigError> {
        Ok(Self::read(json)?.0)
    }

    /// The same, with what is worth a warning.
    pub(crate) fn read(json: &str) -> Result<Told<Self>, ConfigError> {
        let (config, warnings) = config_json::read::<Self>(json, "SD3Transformer2DModel", Others::default())?;
        let problems = config.validate();
        Ok((config_json::checked(config, problems)?, warnings))
    }

    /// Width of the network.
    pub fn width(&self) -> usize {
        self.attention_head_dim * self.num_attention_heads
    }

    /// `[C, H, W]` of the latents that the model was made for.
    pub fn latent(&self) -> [usize; 3] {
        [self.in_channels, self.sample_size, self.sample_size]
    }

    /// What image tokens stand for.
    pub(super) fn image_tokens(&self) -> Tokens {
        Tokens::Image { side: self.patch_size }
    }

    /// The sizes of block `i`.
    pub(super) fn block(&self, i: usize) -> Sizes {
        Sizes {
            width: self.width(),
            heads: self.num_attention_heads,
            patch: self.patch_size,
            norms: self.qk_norm.is_some(),
            dual: self.dual_attention_layers.contains(&i),
            last: i + 1 == self.num_layers,
        }
    }

    /// What makes these sizes unusable, a line each.
    pub fn validate(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let sizes = [
            ("patch_size", self.patch_size),
            ("in_channels", self.in_channels),
            ("num_layers", self.num_layers),
            ("attention_head_dim", self.attention_head_dim),
            ("num_attention_heads", self.num_attention_heads),
            ("pos_embed_max_size", self.pos_embed_max_size),
        ];
        problems.extend(sizes.iter().filter(|(_, v)| *v == 0).map(|(name, _)| format!("{name} = 0: must be positive")));
        if let Some(width) = self.caption_projection_dim
            && width != self.width()
        {
            let (heads, head) = (self.num_attention_heads, self.attention_head_dim);
            problems.push(format!("caption_projection_dim = {width}: must be the network's width, {heads} x {head}"));
        }
        if !self.width().is_multiple_of(4) {
            problems.push(format!("width {}: must be divisible by 4, for positions in two dimensions", self.width()));
        }
        problems.extend(self.out_channels.and_then(|out| other_channels(out, self.in_channels)));
        problems.extend(
            self.dual_attention_layers
                .iter()
                .filter(|&&layer| layer >= self.num_layers)
                .map(|layer| format!("dual_attention_layers has {layer}: there are {} layers", self.num_layers)),
        );
        problems
    }

    /// Why latents `[channels, height, width]` do not fit, if they do not.
    pub fn latent_problem(&self, [channels, height, width]: [usize; 3]) -> Option<String> {
        let (p, most) = (self.patch_size, self.patch_size * self.pos_embed_max_size);
        let fits = |side: usize| side > 0 && side.is_multiple_of(p) && side <= most;
        let good = channels == self.in_channels && fits(height) && fits(width);
        (!good).then(|| {
            format!(
                "latents of {channels} x {height} x {width}: this network takes {} channels, and height and width that \
                 are multiples of {p} up to {most}",
                self.in_channels
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As published with Stable Diffusion 3.5 medium, with `more` fields.
    fn json(more: &str) -> String {
        format!(
            r#"{{"_class_name": "SD3Transformer2DModel", "_diffusers_version": "0.31.0", "attention_head_dim": 64,
            "caption_projection_dim": 1536, "dual_attention_layers": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12],
            "in_channels": 16, "joint_attention_dim": 4096, "num_attention_heads": 24, "num_layers": 24,
            "out_channels": 16, "patch_size": 2, "pooled_projection_dim": 2048, "pos_embed_max_size": 384,
            "qk_norm": "rms_norm", "sample_size": 128{more}}}"#
        )
    }

    fn error(json: &str) -> String {
        MmditConfig::from_json(json).expect_err("refused").to_string()
    }

    #[test]
    fn a_published_config_is_read() {
        let config = MmditConfig::from_json(&json("")).expect("reads");
        assert_eq!((config.width(), config.qk_norm), (1536, Some(QkNorm::RmsNorm)));
        assert_eq!(config.dual_attention_layers, (0..13).collect::<Vec<_>>());
    }

    #[test]
    fn every_unknown_field_is_named() {
        let message = error(&json(r#", "use_pos_embed": true, "_note": 1, "pos_embed_type": "learned""#));
        assert!(message.ends_with(r#"use_pos_embed = true, pos_embed_type = "learned""#), "{message}");
        let (_, warnings) =
            MmditConfig::read(&json(r#", "use_pos_embed": false, "pos_embed_type": null"#)).expect("reads");
        assert!(warnings.len() == 2 && warnings[0].starts_with("use_pos_embed = false: "), "{warnings:?}");
    }

    #[test]
    fn missing_fields_other_classes_and_other_norms_are_refused() {
        assert!(error(&json("").replace("\"num_layers\": 24,", "")).contains("missing field `num_layers`"));
        let message = error(&json("").replace("SD3Tr", "FluxTr"));
        assert_eq!(message, "`_class_name` is `FluxTransformer2DModel`: expected `SD3Transformer2DModel`");
        let message = error(&json("").replace("rms_norm", "layer_norm"));
        assert!(message.contains("unknown variant `layer_norm`, expected `rms_norm`"), "{message}");
    }

    #[test]
    fn all_values_that_do_not_fit_are_named_at_once() {
        let wrong = json("").replace("1536", "1152").replace("\"out_channels\": 16", "\"out_channels\": 8");
        let message = error(&wrong.replace("12]", "24]"));
        for part in ["caption_projection_dim = 1152", "out_channels = 8", "dual_attention_layers has 24"] {
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn latents_that_do_not_fit_are_refused() {
        let config = MmditConfig::from_json(&json("")).expect("reads");
        assert_eq!(config.latent_problem([16, 64, 96]), None);
        for wrong in [[4, 64, 64], [16, 63, 64], [16, 64, 770], [16, 0, 64]] {
            assert!(config.latent_problem(wrong).is_some(), "{wrong:?}");
        }
    }
}
