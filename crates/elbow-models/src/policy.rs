//! The MMDiT as a policy: full fine-tuning or LoRA over one shared base.

use crate::{
    linear::Weights,
    lora::LoraConfig,
    mmdit::{Mmdit, MmditConfig},
};
use burn::tensor::{Device, Tensor};
use elbow::{
    Prompt, RgbImage,
    noise::{Key, Purpose},
    params::{Params, Tensors},
    policy::{Conditioning, EncodeError, Policy, TextEncoder, VelocityField},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which parameters are trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Tuning {
    /// Every weight of the network.
    Full,
    /// Low-rank adapters; the base is frozen.
    Lora(LoraConfig),
}

impl Default for Tuning {
    fn default() -> Self {
        Self::Lora(LoraConfig::default())
    }
}

/// Fixed positions, not trained even by full fine-tuning.
const BUFFER: &str = "pos_embed.pos_embed";

/// A pixel-space MMDiT that predicts velocity, its frozen text encoder and what of it is trained.
pub struct MmditPolicy {
    config: MmditConfig,
    base: Params,
    tensors: Tensors,
    tuning: Tuning,
    seed: u64,
    text: Box<dyn TextEncoder>,
}

impl MmditPolicy {
    /// `base` is laid out as [`MmditConfig::initial`]; it goes to `device` once. `seed` decides fresh LoRA factors.
    pub fn new(
        config: MmditConfig,
        base: Params,
        tuning: Tuning,
        text: Box<dyn TextEncoder>,
        seed: u64,
        device: &Device,
    ) -> Self {
        let tensors = base.tensors(&device.clone().without_autodiff());
        Self { config, base, tensors, tuning, seed, text }
    }

    /// The base weights.
    pub fn base(&self) -> &Params {
        &self.base
    }

    /// The base with `trained` in place of what it trained: what `elbow pretrain` writes.
    ///
    /// # Panics
    /// For LoRA, whose factors are no part of the base's layout.
    pub fn merged(&self, trained: &Params) -> Params {
        assert_eq!(self.tuning, Tuning::Full, "invariant: only full fine-tuning replaces base weights");
        let mut merged = self.base.clone();
        merged.assign(trained);
        merged
    }
}

impl Policy for MmditPolicy {
    fn latent_shape(&self) -> [usize; 3] {
        [self.config.in_channels, self.config.sample_size, self.config.sample_size]
    }

    fn initial(&self) -> Params {
        match &self.tuning {
            Tuning::Full => self.base.filtered(|name| name != BUFFER),
            Tuning::Lora(lora) => lora.initial(&self.base, Key::new(self.seed, Purpose::Initialization, 1)),
        }
    }

    fn bind(&self, trained: Option<&Tensors>) -> Box<dyn VelocityField> {
        let network = match (&self.tuning, trained) {
            (_, None) => Mmdit::new(&self.config, Weights { base: &self.tensors, adapter: None }),
            (Tuning::Full, Some(t)) => {
                Mmdit::new(&self.config, Weights { base: &self.tensors.overlaid(t), adapter: None })
            }
            (Tuning::Lora(lora), Some(t)) => {
                Mmdit::new(&self.config, Weights { base: &self.tensors, adapter: Some((t, lora.scale())) })
            }
        };
        Box::new(network)
    }

    fn encode(&self, prompts: &[Prompt]) -> Result<Conditioning, EncodeError> {
        self.text.encode(prompts)
    }

    fn decode(&self, latents: Tensor<4>) -> Vec<RgbImage> {
        decode_pixels(latents)
    }
}

impl VelocityField for Mmdit {
    fn velocity(&self, x: Tensor<4>, t: Tensor<1>, cond: &Conditioning) -> Tensor<4> {
        self.forward(x, t, cond)
    }
}

/// Pixels in [−1, 1] `[N, 3, H, W]` to 8-bit pictures, rounded to nearest, clamped.
pub(crate) fn decode_pixels(latents: Tensor<4>) -> Vec<RgbImage> {
    let [n, _, height, width] = latents.dims();
    let pixels = latents.permute([0, 2, 3, 1]).reshape([n, height * width * 3]).into_data();
    let pixels = pixels.as_slice::<f32>().expect("invariant: latents are f32");
    let byte = |v: &f32| ((v + 1.0) * 127.5).round().clamp(0.0, 255.0) as u8;
    let image = |row: &[f32]| RgbImage::from_raw(width as u32, height as u32, row.iter().map(byte).collect());
    pixels.chunks(height * width * 3).map(|row| image(row).expect("invariant: three bytes a pixel")).collect()
}
