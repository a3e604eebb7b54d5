//! A network as a policy: full fine-tuning or LoRA over one shared base.

use crate::{
    config_json::ConfigError,
    flux::{Flux, FluxConfig},
    layout::Layout,
    linear::{Precision, Weights},
    lora::{JOINT_ATTENTION, LoraConfig, UNET_ATTENTION},
    mmdit::{Mmdit, MmditConfig},
    recompute::Checkpointing,
    unet::{Unet, UnetConfig},
    vae::Vae,
};
use burn::tensor::Tensor;
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

impl Tuning {
    /// The same for one network: layers that are not named are those that are usual for it.
    #[must_use]
    pub fn of(self, network: &Network) -> Self {
        match self {
            Self::Full => Self::Full,
            Self::Lora(lora) => Self::Lora(lora.with_usual(network.usual_targets())),
        }
    }
}

/// Which network, and its sizes.
#[derive(Clone, Debug, PartialEq)]
pub enum Network {
    /// Stable Diffusion 3 and 3.5, and the nano model.
    Mmdit(MmditConfig),
    /// FLUX.1, told to guide itself as strongly as `guidance` says if it can.
    Flux {
        /// Its sizes.
        config: FluxConfig,
        /// Ignored by models without `guidance_embeds`.
        guidance: f64,
    },
    /// The UNet of Stable Diffusion 1 and 2, which predicts noise or an angle.
    Unet(UnetConfig),
}

impl Network {
    /// The network of diffusers' class and its `config.json`; `None` of another class. `guidance` is what FLUX is told.
    pub fn from_json(class: &str, json: &str, guidance: f64) -> Option<Result<Self, ConfigError>> {
        match class {
            "SD3Transformer2DModel" => Some(MmditConfig::from_json(json).map(Self::Mmdit)),
            "FluxTransformer2DModel" => Some(FluxConfig::from_json(json).map(|config| Self::Flux { config, guidance })),
            "UNet2DConditionModel" => Some(UnetConfig::from_json(json).map(Self::Unet)),
            _ => None,
        }
    }

    /// Every tensor of the network.
    pub fn layout(&self) -> Layout {
        match self {
            Self::Mmdit(config) => config.layout(),
            Self::Flux { config, .. } => config.layout(),
            Self::Unet(config) => config.layout(),
        }
    }

    /// The network under the given weights.
    pub fn bind(&self, weights: Weights<'_>, checkpointing: Checkpointing) -> Box<dyn VelocityField> {
        match self {
            Self::Mmdit(config) => Box::new(Mmdit::new(config, weights, checkpointing)),
            Self::Flux { config, guidance } => Box::new(Flux::new(config, *guidance, weights, checkpointing)),
            // Its blocks are joined across the whole depth: nothing of it is recomputed.
            Self::Unet(config) => Box::new(Unet::new(config, weights)),
        }
    }

    /// Width of a text token, and of the pooled text if the network uses it.
    pub fn text_widths(&self) -> (usize, Option<usize>) {
        match self {
            Self::Mmdit(config) => (config.joint_attention_dim, Some(config.pooled_projection_dim)),
            Self::Flux { config, .. } => (config.joint_attention_dim, Some(config.pooled_projection_dim)),
            Self::Unet(config) => (config.cross_attention_dim, None),
        }
    }

    /// The layers that the field adapts.
    pub fn usual_targets(&self) -> &'static [&'static str] {
        match self {
            Self::Mmdit(_) | Self::Flux { .. } => &JOINT_ATTENTION,
            Self::Unet(_) => &UNET_ATTENTION,
        }
    }

    /// What of latents, training and memory does not suit the network, a line each.
    pub fn problems(&self, latent: [usize; 3], tuning: &Tuning, checkpointing: Checkpointing) -> Vec<String> {
        let mut problems: Vec<String> = self.latent_problem(latent).into_iter().collect();
        if let Tuning::Lora(lora) = tuning {
            problems.extend(lora.problems(self.layout().shapes()));
        }
        if matches!(self, Self::Unet(_)) && checkpointing != Checkpointing::None {
            problems
                .push("checkpointing: the blocks of a UNet are joined across its depth, none can be recomputed".into());
        }
        problems
    }

    /// Why latents `[channels, height, width]` do not fit, if they do not.
    pub fn latent_problem(&self, latent: [usize; 3]) -> Option<String> {
        match self {
            Self::Mmdit(config) => config.latent_problem(latent),
            Self::Flux { config, .. } => config.latent_problem(latent),
            Self::Unet(config) => config.latent_problem(latent),
        }
    }
}

/// Latents to pictures.
#[derive(Clone, Debug)]
pub enum Decoder {
    /// Latents are pixels in [−1, 1].
    Pixels,
    /// The autoencoder of a latent model.
    Vae {
        /// Its frozen weights.
        vae: Box<Vae>,
        /// Latents decoded at once: memory grows with them.
        slice: usize,
    },
}

impl Decoder {
    /// Latents `[N, C, h, w]` to pictures around [−1, 1] `[N, 3, H, W]`, a slice at a time.
    pub fn values(&self, latents: Tensor<4>) -> Tensor<4> {
        match self {
            Self::Pixels => latents,
            Self::Vae { vae, slice } => {
                let parts = latents.split((*slice).max(1), 0).into_iter().map(|part| vae.decode(part));
                Tensor::cat(parts.collect(), 0)
            }
        }
    }

    /// The same as 8-bit pictures.
    pub fn pictures(&self, latents: Tensor<4>) -> Vec<RgbImage> {
        match self {
            Self::Pixels => decode_pixels(latents),
            Self::Vae { vae, slice } => vae.pictures(latents, *slice),
        }
    }
}

/// Fixed positions, not trained even by full fine-tuning.
pub(crate) const BUFFER: &str = "pos_embed.pos_embed";

/// A network, its frozen text encoder and decoder, and what of it is trained.
pub struct NetworkPolicy {
    /// The network.
    pub network: Network,
    /// `[C, H, W]` of one latent.
    pub latent: [usize; 3],
    /// Its weights before training, laid out as [`Network::layout`] says, on a device without gradients. They are held here
    /// alone and shared by everything that is bound.
    pub base: Tensors,
    /// What is trained.
    pub tuning: Tuning,
    /// What the factors of the products of dense layers are rounded to.
    pub precision: Precision,
    /// What of a forward pass is kept for the backward pass.
    pub checkpointing: Checkpointing,
    /// Prompts to embeddings.
    pub text: Box<dyn TextEncoder>,
    /// Latents to pictures.
    pub decoder: Decoder,
    /// Decides fresh LoRA factors.
    pub seed: u64,
}

impl NetworkPolicy {
    /// What does not fit together, a line each.
    pub fn problems(&self) -> Vec<String> {
        self.network.problems(self.latent, &self.tuning, self.checkpointing)
    }

    /// A copy of the base weights.
    pub fn base(&self) -> Params {
        self.base.params(self.network.layout().shapes())
    }

    /// The base with `trained` in place of what it trained: what `elbow pretrain` writes.
    ///
    /// # Panics
    /// For LoRA, whose factors are no part of the base's layout.
    pub fn merged(&self, trained: &Params) -> Params {
        assert_eq!(self.tuning, Tuning::Full, "invariant: only full fine-tuning replaces base weights");
        let mut merged = self.base();
        merged.assign(trained);
        merged
    }
}

impl Policy for NetworkPolicy {
    fn latent_shape(&self) -> [usize; 3] {
        self.latent
    }

    fn initial(&self) -> Params {
        let layout = self.network.layout();
        match &self.tuning {
            Tuning::Full => self.base.params(layout.shapes().filter(|(name, _)| *name != BUFFER)),
            Tuning::Lora(lora) => lora.initial(layout.shapes(), Key::new(self.seed, Purpose::Initialization, 1)),
        }
    }

    fn bind(&self, trained: Option<&Tensors>) -> Box<dyn VelocityField> {
        let overlaid;
        let (base, adapter) = match (&self.tuning, trained) {
            (_, None) => (&self.base, None),
            (Tuning::Full, Some(trained)) => {
                overlaid = self.base.overlaid(trained);
                (&overlaid, None)
            }
            (Tuning::Lora(lora), Some(trained)) => (&self.base, Some((trained, lora.scale()))),
        };
        let weights = Weights { base, adapter, precision: self.precision };
        // Without gradients there is no backward pass.
        let kept = trained.is_none_or(|trained| !trained.collects_gradients());
        self.network.bind(weights, if kept { Checkpointing::None } else { self.checkpointing })
    }

    fn encode(&self, prompts: &[Prompt]) -> Result<Conditioning, EncodeError> {
        self.text.encode(prompts)
    }

    fn decode(&self, latents: Tensor<4>) -> Vec<RgbImage> {
        self.decoder.pictures(latents)
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
