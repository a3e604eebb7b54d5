//! Adapters in the formats that other programs read and write.
//!
//! | format | file | read by | scale |
//! |---|---|---|---|
//! | PEFT | folder of `adapter_config.json`, `adapter_model.safetensors` | `peft` | `lora_alpha`, `r` |
//! | diffusers | `pytorch_lora_weights.safetensors` | `diffusers` | header, `lora_adapter_metadata` |
//! | kohya | any `.safetensors` | A1111, ComfyUI, `diffusers` for SD1.x | one `.alpha` a layer |
//! | merged | the network's own names | everything that reads the base | none: W + s B A |
//!
//! A file in the second format without that header entry is read by diffusers as alpha = rank: trained with alpha = 2 rank,
//! it works at half its strength. It is always written here.

mod error;
mod merge;
mod read;
mod write;

pub use error::LoraFileError;
pub use merge::{Trained, write_merged};
pub use read::read;
pub use write::{write_diffusers, write_kohya, write_peft};

use crate::lora::LoraConfig;
use elbow::params::Params;
use std::collections::HashMap;

/// A trained adapter: its factors, laid out as [`LoraConfig::initial`] does, and how they are scaled.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    /// Rank, alpha and the adapted layers.
    pub config: LoraConfig,
    /// `<layer>.lora_A.weight` `[rank, in]` and `<layer>.lora_B.weight` `[out, rank]`.
    pub factors: Params,
}

/// `<layer>.lora_A.weight` as `<layer>` and `A`, the same of B; `None` of another name.
fn layer_and_side(name: &str) -> Option<(&str, &'static str)> {
    let side = |side: &'static str, ending: &str| Some((name.strip_suffix(ending)?, side));
    side("A", ".lora_A.weight").or_else(|| side("B", ".lora_B.weight"))
}

/// Where weights come from; it goes into the header of every file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provenance {
    /// Hash of the run's configuration.
    pub run: String,
    /// Epoch or step.
    pub step: u64,
    /// Whether these are the moving average rather than the last weights.
    pub ema: bool,
    /// The base model: its folder or hub name, and its hash.
    pub base: String,
    /// The architecture in the words of `modelspec.architecture`, such as `stable-diffusion-v3-medium`.
    pub architecture: String,
}

impl Provenance {
    /// As entries of a safetensors header. `kind` is `lora`, or empty for whole weights.
    fn metadata(&self, kind: &str) -> HashMap<String, String> {
        let architecture = [self.architecture.as_str(), kind].join("/");
        let entries = [
            ("format", "pt".to_owned()),
            ("modelspec.sai_model_spec", "1.0.0".to_owned()),
            ("modelspec.architecture", architecture.trim_end_matches('/').to_owned()),
            ("modelspec.title", format!("elbow run {} step {}", self.run, self.step)),
            ("elbow.run", self.run.clone()),
            ("elbow.step", self.step.to_string()),
            ("elbow.weights", if self.ema { "ema" } else { "raw" }.to_owned()),
            ("elbow.base_model", self.base.clone()),
        ];
        entries.map(|(key, value)| (key.to_owned(), value)).into()
    }
}

/// Which part of the pipeline is adapted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// `transformer`: SD3, FLUX.
    Transformer,
    /// `unet`: SD1.x, SD2.x.
    Unet,
}

impl Network {
    /// The component's name in a model folder.
    pub fn component(self) -> &'static str {
        match self {
            Self::Transformer => "transformer",
            Self::Unet => "unet",
        }
    }
}
