//! Adapters in the formats that other programs read and write.
//!
//! What is written:
//!
//! | format | file | read by | scale |
//! |---|---|---|---|
//! | PEFT | folder of `adapter_config.json`, `adapter_model.safetensors` | `peft` | `lora_alpha`, `r` |
//! | diffusers | `pytorch_lora_weights.safetensors` | `diffusers` | header, `lora_adapter_metadata` |
//! | kohya | any `.safetensors` | A1111, ComfyUI, `diffusers` for SD1.x and attention of FLUX | one `.alpha` a layer |
//! | comfyui | any `.safetensors` | ComfyUI and what reads kohya's scripts, `diffusers` for FLUX and SD1.x | one `.alpha` a weight |
//! | merged | the network's own names | everything that reads the base | none: W + s B A |
//!
//! A file in the second format without that header entry is read by diffusers as alpha = rank: trained with alpha = 2 rank,
//! it works at half its strength. It is always written here; but ComfyUI does not read it (`comfy/weight_adapter/lora.py`: without
//! `.alpha` the scale is 1), so for ComfyUI there are the formats that have an `.alpha`.
//!
//! What is read ([`AdapterFile`]), each layer with its own rank and scale:
//!
//! | | |
//! |---|---|
//! | kinds | LoRA with its `rank_pattern`, `alpha_pattern`, rsLoRA and trained biases; LoRA of convolutions, `lora_mid` too; DoRA; LoHa; LoKr; differences of weights (`diff`, `diff_b`) |
//! | names | PEFT; diffusers, new and old (`processor.to_q_lora.down`); kohya and LyCORIS (`lora_unet_…`, `lycoris_…`); ComfyUI (`diffusion_model.…`); ai-toolkit; XLabs; within them diffusers' names of the layers or those of the original code of FLUX, SD3 and Stable Diffusion, where q, k and v are one layer; with what DDP, FSDP and `torch.compile` put into names |
//! | places | a file; a folder of PEFT, of diffusers or of a trainer |
//!
//! Layers of text encoders are left out and counted. Other kinds of adapters are named and refused, and so are factors and
//! results that are not finite.

mod adapter;
mod comfyui;
mod config;
mod delta;
mod error;
mod file;
mod fit;
mod layers;
mod merge;
mod names;
mod open;
mod read;
mod write;

pub use crate::network::{Component as Network, Family};
pub use comfyui::write_comfyui;
pub use error::LoraFileError;
pub use file::{AdapterFile, read};
pub use merge::{Merge, Trained, write_merged, write_merged_file};
pub use write::{write_diffusers, write_kohya, write_peft};

use crate::{lora::LoraConfig, network};
use elbow::params::{Entry, Params};
use std::collections::HashMap;

/// A trained adapter: its factors, laid out as [`LoraConfig::initial`] does, and how they are scaled.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    /// Rank, alpha and the adapted layers.
    pub config: LoraConfig,
    /// `<layer>.lora_A.weight` `[rank, in]` and `<layer>.lora_B.weight` `[out, rank]`.
    pub factors: Params,
}

impl Adapter {
    /// The factors `[rank, in]` and `[out, rank]` of each layer, or one line for each tensor that is none or stands alone.
    pub fn new(config: LoraConfig, factors: Params) -> Result<Self, Vec<String>> {
        let rank = config.rank;
        let has = |name: String| factors.entries().iter().any(|entry| entry.name == name);
        let problem = |entry: &Entry| {
            let shape = &entry.shape;
            let fits = match (layer_and_side(&entry.name), &shape[..]) {
                (Some((layer, "A")), &[found, _]) => found == rank && has(format!("{layer}.lora_B.weight")),
                (Some((layer, _)), &[_, found]) => found == rank && has(format!("{layer}.lora_A.weight")),
                _ => false,
            };
            (!fits).then(|| format!("  {}: {shape:?}", entry.name))
        };
        let problems: Vec<String> = factors.entries().iter().filter_map(problem).collect();
        if problems.is_empty() { Ok(Self { config, factors }) } else { Err(problems) }
    }
}

/// `<layer>.lora_A.weight` as `<layer>` and `A`, the same of B; `None` of another name.
fn layer_and_side(name: &str) -> Option<(&str, &'static str)> {
    let side = |side: &'static str, ending: &str| Some((name.strip_suffix(ending)?, side));
    side("A", ".lora_A.weight").or_else(|| side("B", ".lora_B.weight"))
}

/// Where weights come from; it goes into the header of every file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Provenance {
    /// Hash of the run's configuration; empty of weights that no run of this program made.
    pub run: String,
    /// Epoch or step.
    pub step: u64,
    /// Whether these are the moving average rather than the last weights.
    pub ema: bool,
    /// The base model: its name on the Hugging Face Hub, or its folder.
    pub base: String,
    /// The commit of a base on the Hub; empty if unknown.
    pub revision: String,
    /// SHA-256 of the base; empty if unknown.
    pub base_sha256: String,
    /// The architecture in the words of `modelspec.architecture`, see [`architecture`]; empty if unknown.
    pub architecture: String,
}

impl Provenance {
    /// What the header of a file that this program wrote says; of another file, nothing.
    pub fn of(header: &HashMap<String, String>) -> Self {
        let text = |key: &str| header.get(key).cloned().unwrap_or_default();
        Self {
            run: text("elbow.run"),
            step: text("elbow.step").parse().unwrap_or(0),
            ema: text("elbow.weights") == "ema",
            base: text("elbow.base_model"),
            revision: text("elbow.base_revision"),
            base_sha256: text("elbow.base_sha256"),
            architecture: text("modelspec.architecture").trim_end_matches("/lora").to_owned(),
        }
    }

    /// As entries of a safetensors header. `kind` is `lora`, or empty for whole weights.
    fn metadata(&self, kind: &str) -> HashMap<String, String> {
        let Self { run, step, architecture, base, revision, base_sha256, .. } = self;
        let mut entries = vec![("format", "pt".to_owned()), ("modelspec.sai_model_spec", "1.0.0".to_owned())];
        if !architecture.is_empty() {
            let whole = [architecture.as_str(), kind].join("/");
            entries.push(("modelspec.architecture", whole.trim_end_matches('/').to_owned()));
        }
        if !run.is_empty() {
            entries.push(("modelspec.title", format!("elbow run {run} step {step}")));
            entries.push(("elbow.run", run.clone()));
            entries.push(("elbow.step", step.to_string()));
            entries.push(("elbow.weights", if self.ema { "ema" } else { "raw" }.to_owned()));
        }
        let of_base =
            [("elbow.base_model", base), ("elbow.base_revision", revision), ("elbow.base_sha256", base_sha256)];
        entries.extend(of_base.into_iter().filter(|(_, text)| !text.is_empty()).map(|(key, text)| (key, text.clone())));
        entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    }
}

/// A network in the words of `modelspec.architecture`.
pub fn architecture(network: &network::Network) -> &'static str {
    network.model_name()
}
