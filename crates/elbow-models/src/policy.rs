//! A network as a policy: full fine-tuning or LoRA over one shared base.

pub use crate::network::Network;

use crate::{
    linear::{Precision, Weights},
    lora::LoraConfig,
    network::Backbone,
    pixels::pictures,
    recompute::Checkpointing,
    vae::Vae,
};
use burn::tensor::Tensor;
use elbow::{
    Prompt,
    noise::{Key, Purpose},
    params::{Params, Tensors},
    policy::{Conditioning, Decoded, EncodeError, Policy, TextEncoder, VelocityField},
    prediction::Prediction,
    schedule::Schedule,
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
            Self::Lora(lora) => Self::Lora(lora.with_usual(&network.usual_targets())),
        }
    }
}

impl Network {
    /// What the network predicts under the given weights, for latents `[C, H, W]`, as a field.
    pub fn bind(
        &self,
        weights: Weights<'_>,
        checkpointing: Checkpointing,
        latent: [usize; 3],
    ) -> Box<dyn VelocityField> {
        Box::new(Field { network: self.with_weights(weights, checkpointing), latent })
    }

    /// What of latents, training and memory does not suit the network, a line each.
    pub fn validate(&self, latent: [usize; 3], tuning: &Tuning, checkpointing: Checkpointing) -> Vec<String> {
        let mut problems: Vec<String> = self.latent_problem(latent).into_iter().collect();
        if let Tuning::Lora(lora) = tuning {
            problems.extend(lora.validate(self.layout().shapes()));
        }
        if checkpointing != Checkpointing::None {
            problems.extend(self.checkpointing_problem().map(|problem| format!("checkpointing: {problem}")));
        }
        problems
    }
}

/// What a network predicts at latents `[N, D]`, which are its `[N, C, H, W]`.
struct Field {
    network: Box<dyn Backbone>,
    /// `[C, H, W]`
    latent: [usize; 3],
}

impl VelocityField for Field {
    fn velocity(&self, x: Tensor<2>, t: Tensor<1>, cond: &Conditioning) -> Tensor<2> {
        let ([n, dims], [c, h, w]) = (x.dims(), self.latent);
        self.network.predict(x.reshape([n, c, h, w]), t, cond).reshape([n, dims])
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
    pub fn pictures(&self, latents: Tensor<4>) -> Vec<Decoded> {
        match self {
            Self::Pixels => pictures(latents),
            Self::Vae { vae, slice } => vae.pictures(latents, *slice),
        }
    }
}

/// A network, its frozen text encoder and decoder, and what of it is trained.
pub struct NetworkPolicy {
    /// The network.
    pub network: Network,
    /// `[C, H, W]` of one latent.
    pub latent: [usize; 3],
    /// The path from data to noise that it was trained on.
    pub schedule: Schedule,
    /// What its output means.
    pub prediction: Prediction,
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
    /// The factors of an adapter that training starts from, laid out as `tuning` says; without it they are fresh.
    pub adapter: Option<Params>,
    /// Decides fresh LoRA factors.
    pub seed: u64,
}

impl NetworkPolicy {
    /// What does not fit together, a line each.
    pub fn validate(&self) -> Vec<String> {
        self.network.validate(self.latent, &self.tuning, self.checkpointing)
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
    fn schedule(&self) -> Schedule {
        self.schedule
    }

    fn dims(&self) -> usize {
        self.latent.iter().product()
    }

    fn initial(&self) -> Params {
        if let Some(adapter) = &self.adapter {
            return adapter.clone();
        }
        let layout = self.network.layout();
        match &self.tuning {
            Tuning::Full => self.base.params(layout.trainable()),
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
        let checkpointing = if kept { Checkpointing::None } else { self.checkpointing };
        self.prediction.field(self.schedule, self.network.bind(weights, checkpointing, self.latent))
    }

    fn encode(&self, prompts: &[Prompt]) -> Result<Conditioning, EncodeError> {
        self.text.encode(prompts)
    }

    fn decode(&self, latents: Tensor<2>) -> Vec<Decoded> {
        let ([n, _], [c, h, w]) = (latents.dims(), self.latent);
        self.decoder.pictures(latents.reshape([n, c, h, w]))
    }
}
