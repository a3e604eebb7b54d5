//! The model of a recipe: what it may say, and the policy it stands for.

mod adapter;
mod embedded;
mod resolution;
#[cfg(test)]
mod tests;

pub use embedded::{nano, pixels};
pub use resolution::Resolution;

use crate::{
    error::{At, Error, Result},
    hub,
};
use burn::tensor::Device;
use elbow::{policy::TextEncoder, schedule::Schedule};
use elbow_models::{
    folder::{Checkpoint, Folder, FrozenWeights},
    linear::Precision,
    lora::LoraConfig,
    pipeline::{Options, STEM, Setup, Source, scheduler_of},
    policy::{NetworkPolicy, Tuning},
    recompute::Checkpointing,
};
use elbow_world::scene::SIDE;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// The policy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Model {
    /// The embedded nano MMDiT on 32×32 emoji scenes.
    Nano {
        /// A safetensors file with the base weights, such as `elbow pretrain` writes; without it the embedded ones.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        weights: Option<PathBuf>,
        /// The path from data to noise that the weights were made for; there are embedded ones for two.
        #[serde(default)]
        schedule: Schedule,
        /// Which parameters are trained.
        #[serde(default = "full")]
        tuning: Tuning,
        /// An adapter that training starts from, as for a model folder.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        adapter: Option<PathBuf>,
        /// What the factors of the network's products are rounded to.
        #[serde(default)]
        precision: Precision,
        /// What becomes of the values inside the network's blocks until the backward pass.
        #[serde(default)]
        checkpointing: Checkpointing,
    },
    /// A model in diffusers' format, a local folder or one of the Hugging Face Hub: SD3, SD3.5, FLUX.1, Stable Diffusion 1 or 2.
    Diffusers(Diffusers),
}

/// A model in diffusers' format, a local folder or one of the Hugging Face Hub: SD3, SD3.5, FLUX.1, Stable Diffusion 1 or 2.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Diffusers {
    /// The folder that holds `model_index.json`, the network, the autoencoder, the text encoders and their tokenizers. This or
    /// `hub` must be given; the one that is named last, in a recipe or by `--set`, takes the other's place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// In place of `path`, `owner/name` of a model of the Hugging Face Hub, which is downloaded once; for programs that are built
    /// with the feature `hub`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hub: Option<String>,
    /// Branch, tag or commit of `hub`; without it `main`. A run keeps the commit that it started with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Weights that exist in this variant, such as `fp16`, are read in it; without it the plain files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// Which layers get a low-rank adapter.
    #[serde(default)]
    pub lora: LoraConfig,
    /// An adapter that training starts from, of any program (`elbow merge --help` lists the formats), or a run folder whose averaged weights
    /// it is. Its rank, alpha and layers take the place of `lora`, which is left out. `kl.reference` says whether the policy is kept near it or
    /// near the base.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<PathBuf>,
    /// What the factors of the network's products are rounded to; text encoders and autoencoder compute in f32.
    #[serde(default)]
    pub precision: Precision,
    /// What becomes of the values inside the network's blocks until the backward pass.
    #[serde(default)]
    pub checkpointing: Checkpointing,
    /// In which type of number the weights of network, autoencoder and text encoders are held. Results do not depend on it.
    #[serde(default)]
    pub frozen_weights: FrozenWeights,
    /// Height and width of images in pixels: one number for both, or `[height, width]`.
    #[serde(default = "resolution")]
    pub resolution: Resolution,
    /// T5 tokens of a prompt (SD3, FLUX.1): the field trains SD3.5 with 128 and FLUX.1 with 512.
    #[serde(default = "text_length")]
    pub text_length: usize,
    /// How strong the guidance shall be that FLUX.1-dev, a distilled model, is told; others have no use for it.
    #[serde(default = "guidance")]
    pub guidance: f64,
    /// Images that the autoencoder decodes at once: memory grows with them.
    #[serde(default = "one")]
    pub decode_slice: usize,
    /// Folder of prompt embeddings, a few MB each, made once and shared by runs; without it the user's cache folder. Prompts of
    /// files (up to 4096 each) are encoded before the network is read, so that text encoders and network are never in memory together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<PathBuf>,
}

fn full() -> Tuning {
    Tuning::Full
}

fn resolution() -> Resolution {
    Resolution::square(512)
}

fn text_length() -> usize {
    128
}

fn guidance() -> f64 {
    3.5
}

fn one() -> usize {
    1
}

impl Default for Model {
    fn default() -> Self {
        Self::Nano {
            weights: None,
            schedule: Schedule::default(),
            tuning: Tuning::Full,
            adapter: None,
            precision: Precision::F32,
            checkpointing: Checkpointing::None,
        }
    }
}

impl Model {
    /// What is wrong with it, as far as types cannot tell; one sentence each.
    pub fn validate(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if let Self::Nano { tuning: Tuning::Lora(lora), .. } | Self::Diffusers(Diffusers { lora, .. }) = self
            && lora.rank == 0
        {
            problems.push("the rank of LoRA is 0: must be at least 1".into());
        }
        if let Self::Nano { tuning: Tuning::Full, adapter: Some(_), .. } = self {
            problems.push(
                "model.adapter: every weight is trained; set model.tuning.kind = \"lora\" to go on with an adapter"
                    .into(),
            );
        }
        let Self::Diffusers(folder) = self else { return problems };
        problems.extend(hub::validate(folder.path.as_deref(), folder.hub.as_deref(), folder.revision.as_deref()));
        if folder.resolution.sides().contains(&0) {
            problems.push(format!("model.resolution = {}: must be at least 1", folder.resolution));
        }
        for (key, value) in [("text_length", folder.text_length), ("decode_slice", folder.decode_slice)] {
            if value == 0 {
                problems.push(format!("model.{key} = 0: must be at least 1"));
            }
        }
        if !(folder.guidance >= 0.0 && folder.guidance.is_finite()) {
            problems.push(format!("model.guidance = {}: must be 0 or a positive number", folder.guidance));
        }
        problems
    }

    /// Height and width of its images in pixels.
    pub fn resolution(&self) -> Resolution {
        match self {
            Self::Nano { .. } => Resolution::square(SIDE),
            Self::Diffusers(folder) => folder.resolution,
        }
    }

    /// The path from data to noise that it was trained on. A folder says it in its `scheduler_config.json`; one that is not there, or not
    /// downloaded yet, is taken to be a rectified flow until it is opened.
    pub fn schedule(&self) -> Schedule {
        match self {
            Self::Nano { schedule, .. } => *schedule,
            Self::Diffusers(Diffusers { path: Some(path), .. }) => {
                scheduler_of(path).map(|(scheduler, _)| scheduler.schedule).unwrap_or_default()
            }
            Self::Diffusers(_) => Schedule::default(),
        }
    }

    /// The time shift of its grid: what a folder's scheduler says for its resolution, dynamic shifting included; 1 for the nano model.
    /// `None` if there is no folder yet, or a model of the Hub was not downloaded.
    pub fn shift(&self) -> Option<f64> {
        match self {
            Self::Nano { .. } => Some(1.0),
            Self::Diffusers(folder) => {
                // A model of the Hub is there once its commit is pinned.
                let pinned = folder.revision.as_ref().is_some_and(|revision| revision.len() == 40);
                let hub = || pinned.then(|| folder.folder().ok()).flatten();
                let place = folder.path.clone().or_else(hub)?;
                let (scheduler, reduction) = scheduler_of(&place)?;
                // A token is 2 × 2 of a latent.
                let [rows, columns] = folder.resolution.sides().map(|side| side / reduction / 2);
                Some(scheduler.shift.by(rows * columns))
            }
        }
    }

    /// The policy and the SHA-256 of its base. All that can be wrong with a folder is found before its weights are read. Its network
    /// is read after `prepare`, which also sees what of the folder is worth a warning: text encoders that are loaded for prompts there are
    /// gone by then.
    pub fn policy(
        &self,
        seed: u64,
        device: &Device,
        prepare: impl FnOnce(&dyn TextEncoder, &[String]) -> Result<()>,
    ) -> Result<(NetworkPolicy, String)> {
        match self {
            Self::Nano { weights, schedule, tuning, adapter, precision, checkpointing } => {
                let (mut policy, hash) = embedded::policy(weights.as_deref(), *schedule, tuning, seed, device)?;
                if let (Some(path), Tuning::Lora(lora)) = (adapter, tuning) {
                    let start = adapter::read(path, lora, &policy.network)?;
                    (policy.tuning, policy.adapter) = (Tuning::Lora(start.config), Some(start.factors));
                }
                policy.checkpointing = *checkpointing;
                policy.precision = *precision;
                no_problems(policy.validate())?;
                prepare(&*policy.text, &[])?;
                Ok((policy, hash))
            }
            Self::Diffusers(folder) => folder.policy(seed, device, prepare),
        }
    }

    /// The adapter that training starts from.
    pub fn adapter(&self) -> Option<&Path> {
        match self {
            Self::Nano { adapter, .. } => adapter.as_deref(),
            Self::Diffusers(folder) => folder.adapter.as_deref(),
        }
    }

    /// Takes over the rank, alpha and layers that an adapter to start from has.
    pub fn follow_adapter(&mut self, lora: &LoraConfig) {
        match self {
            Self::Nano { tuning, adapter: Some(_), .. } => *tuning = Tuning::Lora(lora.clone()),
            Self::Diffusers(folder) if folder.adapter.is_some() => folder.lora = lora.clone(),
            _ => {}
        }
    }

    /// The network's weights before training, as they are stored. `component` is the network's in a folder.
    pub fn base(&self, component: &str) -> Result<Checkpoint> {
        match self {
            Self::Nano { weights, schedule, .. } => {
                let bytes = embedded::weights(weights.as_deref(), *schedule)?;
                let place = weights.as_deref().unwrap_or(Path::new("the embedded weights"));
                Ok(Checkpoint::from_bytes(place, &bytes)?)
            }
            Self::Diffusers(folder) => {
                Ok(Folder::open(&folder.folder()?, folder.variant.as_deref())?.checkpoint(component, STEM)?)
            }
        }
    }

    /// What the base is called in a header.
    pub fn name(&self) -> String {
        match self {
            Self::Nano { weights: None, .. } => "elbow-nano".to_owned(),
            Self::Nano { weights: Some(path), .. } => path.display().to_string(),
            Self::Diffusers(folder) => folder.name(),
        }
    }

    /// Names the commit that a model of the Hub is at now, downloading what is needed of it.
    pub fn pin(&mut self) -> Result<()> {
        let Self::Diffusers(model) = self else { return Ok(()) };
        if model.hub.is_some() {
            let folder = model.folder()?;
            model.revision = folder.file_name().map(|commit| commit.to_string_lossy().into_owned());
        }
        Ok(())
    }

    /// Name and commit of a model of the Hub that [`Model::pin`] has pinned.
    pub fn commit(&self) -> Option<(&str, &str)> {
        let Self::Diffusers(model) = self else { return None };
        Some((model.hub.as_deref()?, model.revision.as_deref()?))
    }

    /// Takes over the commit of the same model in a run's recipe if this one names none.
    pub fn follow(&mut self, saved: &Self) {
        if let (Self::Diffusers(model), Self::Diffusers(saved)) = (self, saved)
            && model.hub == saved.hub
            && model.revision.is_none()
        {
            model.revision.clone_from(&saved.revision);
        }
    }
}

impl Diffusers {
    /// A folder of which nothing else was said.
    pub fn at(path: PathBuf) -> Self {
        Self {
            path: Some(path),
            hub: None,
            revision: None,
            variant: None,
            lora: LoraConfig::default(),
            adapter: None,
            precision: Precision::default(),
            checkpointing: Checkpointing::default(),
            frozen_weights: FrozenWeights::default(),
            resolution: resolution(),
            text_length: text_length(),
            guidance: guidance(),
            decode_slice: one(),
            cache: None,
        }
    }

    /// Opens and checks the folder.
    pub fn open(&self) -> Result<Source> {
        self.open_at(Some(self.resolution))
    }

    /// The same for pictures of another size; `None` is the size that the model was made for.
    pub fn open_at(&self, resolution: Option<Resolution>) -> Result<Source> {
        let options = Options {
            variant: self.variant.as_deref(),
            resolution: resolution.map(Resolution::sides),
            text_length: self.text_length,
            guidance: self.guidance,
        };
        Ok(Source::open(&self.folder()?, &options)?)
    }

    /// The folder: the given one, or that of the downloaded model, named by its commit.
    pub fn folder(&self) -> Result<PathBuf> {
        #[cfg(feature = "hub")]
        if let Some(name) = &self.hub {
            let revision = self.revision.as_deref().unwrap_or("main");
            let wanted = hub::Wanted { name, revision, variant: self.variant.as_deref() };
            return hub::fetch(wanted, |folder| Ok(Folder::open(folder, None).map(drop)?));
        }
        self.path.clone().ok_or_else(|| Error::new("the model has no folder", "set model.path"))
    }

    /// The folder, or `owner/name` with the revision.
    fn name(&self) -> String {
        match (&self.path, &self.hub, &self.revision) {
            (Some(path), ..) => path.display().to_string(),
            (None, Some(hub), Some(revision)) => format!("{hub}@{revision}"),
            (None, hub, _) => hub.clone().unwrap_or_default(),
        }
    }

    fn policy(
        &self,
        seed: u64,
        device: &Device,
        prepare: impl FnOnce(&dyn TextEncoder, &[String]) -> Result<()>,
    ) -> Result<(NetworkPolicy, String)> {
        let place = || format!("cannot use model {}", self.name());
        let source = self.open().at(place)?;
        let (lora, adapter) = match &self.adapter {
            None => (self.lora.clone(), None),
            Some(path) => {
                let start = adapter::read(path, &self.lora, &source.network)?;
                (start.config, Some(start.factors))
            }
        };
        let tuning = Tuning::Lora(lora).of(&source.network);
        no_problems(source.network.validate(source.latent, &tuning, self.checkpointing)).at(place)?;
        let hash = source.digest().at(place)?;
        let setup = Setup {
            tuning,
            precision: self.precision,
            checkpointing: self.checkpointing,
            frozen_weights: self.frozen_weights,
            decode_slice: self.decode_slice,
            cache: &self.cache.clone().unwrap_or_else(user_cache),
            adapter,
            seed,
        };
        prepare(&source.text(&setup, device).at(place)?, &source.warnings)?;
        Ok((source.load(setup, device).at(place)?, hash))
    }
}

fn no_problems(problems: Vec<String>) -> Result<()> {
    if problems.is_empty() {
        return Ok(());
    }
    Err(Error::new(problems.join("\n"), "the model's section of the recipe must fit the network"))
}

/// Where programs keep what they can make again.
fn user_cache() -> PathBuf {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let root = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")));
    root.unwrap_or_else(std::env::temp_dir).join("elbow/text")
}
