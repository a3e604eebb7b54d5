//! A model folder of `diffusers` as a policy: text encoders, network and autoencoder, with what the scheduler's file says of
//! the path and of the network's output.
//!
//! [`Source::open`] reads the small files and the headers of the large ones and reports everything that is wrong with any of
//! them; [`Source::load`] reads the weights. What [`Source::text`] encodes before that needs no text encoders beside the network.

use crate::{
    config_json::{ConfigError, Told},
    folder::{Checkpoint, Folder, FolderError, FrozenWeights, read_text},
    linear::{Precision, Weights},
    policy::{Decoder, Network, NetworkPolicy, Tuning},
    recompute::Checkpointing,
    scheduler::Scheduler,
    text::{Cached, TextParts},
    vae::{Vae, VaeConfig, current_name},
};
use burn::tensor::Device;
use elbow::params::Params;
use sha2::{Digest, Sha256};
use std::{path::Path, sync::Arc};

/// Name of the weights of networks and autoencoders in a model folder, without the ending.
pub const STEM: &str = "diffusion_pytorch_model";

/// Everything that is wrong with a model folder.
#[derive(Debug, thiserror::Error)]
#[error("{}", faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct SourceError {
    /// One for each part of the model, at least one.
    pub faults: Vec<FolderError>,
}

impl From<FolderError> for SourceError {
    fn from(fault: FolderError) -> Self {
        Self { faults: vec![fault] }
    }
}

/// What a folder does not say of the images and of the text.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    /// Weights that exist in this variant (`fp16`) are read in it.
    pub variant: Option<&'a str>,
    /// Height and width of pictures, in pixels; `None` is the size that the model was made for.
    pub resolution: Option<[usize; 2]>,
    /// T5 tokens of a prompt.
    pub text_length: usize,
    /// How strong the guidance shall be that a distilled model (FLUX.1-dev) is told.
    pub guidance: f64,
}

/// How the policy is trained and run.
#[derive(Clone, Debug)]
pub struct Setup<'a> {
    /// What is trained.
    pub tuning: Tuning,
    /// What the factors of the network's products are rounded to.
    pub precision: Precision,
    /// What of a forward pass is kept for the backward pass.
    pub checkpointing: Checkpointing,
    /// How network, autoencoder and text encoders are held; what is trained is in f32.
    pub frozen_weights: FrozenWeights,
    /// Latents decoded at once.
    pub decode_slice: usize,
    /// Folder of prompt embeddings, made when the first is written.
    pub cache: &'a Path,
    /// The factors of an adapter that training starts from, laid out as `tuning` says; without it they are fresh.
    pub adapter: Option<Params>,
    /// Decides fresh LoRA factors.
    pub seed: u64,
}

/// A model folder of which everything was checked and no weight was read.
#[derive(Debug)]
pub struct Source {
    /// The network and its sizes.
    pub network: Network,
    /// `[C, H, W]` of one latent.
    pub latent: [usize; 3],
    /// Height and width of pictures, in pixels.
    pub resolution: [usize; 2],
    /// Path, prediction and shift.
    pub scheduler: Scheduler,
    /// What may not be meant, a sentence each: fields of a newer diffusers that are switched off, and what is read and not done.
    pub warnings: Vec<String>,
    weights: Checkpoint,
    vae: VaeConfig,
    vae_weights: Checkpoint,
    text: Arc<TextParts>,
}

impl Source {
    /// Opens and checks a folder: configurations, names, shapes and types of all tensors, tokenizers, and whether the parts
    /// fit each other and the resolution.
    pub fn open(path: &Path, options: &Options<'_>) -> Result<Self, SourceError> {
        let folder = Folder::open(path, options.variant)?;
        let mut faults = Vec::new();
        let mut warnings = Vec::new();
        let network = kept(network(&folder, options.guidance, &mut warnings), &mut faults);
        let vae = kept(autoencoder(&folder, &mut warnings), &mut faults);
        let text = kept(TextParts::open(&folder, options.text_length), &mut faults);
        let scheduler = kept(scheduler(path, &mut warnings), &mut faults);
        let (Some((network, weights)), Some((vae, vae_weights)), Some(text), Some(scheduler)) =
            (network, vae, text, scheduler)
        else {
            return Err(SourceError { faults });
        };
        let reduction = vae.reduction();
        let resolution = options.resolution.unwrap_or([network.own_side() * reduction; 2]);
        let latent = [vae.latent_channels, resolution[0] / reduction, resolution[1] / reduction];
        warnings.extend(text.warnings());
        let text = Arc::new(text);
        let source = Self { network, latent, resolution, scheduler, warnings, weights, vae, vae_weights, text };
        let problems = source.validate();
        if problems.is_empty() {
            return Ok(source);
        }
        Err(FolderError::Parts { folder: path.into(), problems }.into())
    }

    /// What of the parts does not fit the network, a line each.
    fn validate(&self) -> Vec<String> {
        let (reduction, (token, pooled)) = (self.vae.reduction(), self.network.text_widths());
        let (text_token, text_pooled) = self.text.widths();
        let mut problems = Vec::new();
        if self.resolution.iter().any(|side| !side.is_multiple_of(reduction)) {
            let [height, width] = self.resolution;
            let size = if height == width { height.to_string() } else { format!("{height} x {width}") };
            problems.push(format!(
                "resolution {size}: a latent stands for {reduction} x {reduction} pixels, take a multiple"
            ));
        }
        problems.extend(self.network.latent_problem(self.latent));
        if token != text_token {
            problems.push(format!("the text encoders give tokens of width {text_token}, the network takes {token}"));
        }
        if let Some(pooled) = pooled.filter(|&pooled| pooled != text_pooled) {
            problems
                .push(format!("the text encoders give pooled text of width {text_pooled}, the network takes {pooled}"));
        }
        problems
    }

    /// Whether all weights are finite numbers: it reads every byte of network, autoencoder and text encoders.
    pub fn check_values(&self) -> Result<(), SourceError> {
        let mut faults = Vec::new();
        kept(self.weights.check_values(&self.network.layout().to_shapes()), &mut faults);
        kept(self.vae_weights.check_values(&self.vae.layout().to_shapes()), &mut faults);
        kept(self.text.check_values(), &mut faults);
        if faults.is_empty() { Ok(()) } else { Err(SourceError { faults }) }
    }

    /// SHA-256 of what decides the policy's numbers before training: all bytes of the network's and the autoencoder's
    /// weights (a second for 2 GB), their sizes, the scheduler, and of the text encoders what the cache of embeddings goes
    /// by. The same model in other shards has the same hash; in another type of number it has another.
    pub fn digest(&self) -> Result<String, FolderError> {
        let mut hash = Sha256::new();
        hash.update(format!("elbow-model/1 {:?} {:?} {:?}\n", self.network, self.vae, self.scheduler));
        self.weights.digest(&mut hash);
        self.vae_weights.digest(&mut hash);
        hash.update(self.text.digest()?);
        Ok(format!("{:x}", hash.finalize()))
    }

    /// The text encoders as the policy will have them: they are read for prompts that have no embedding in the cache, and gone when
    /// those have one.
    pub fn text(&self, setup: &Setup<'_>, device: &Device) -> Result<Cached, FolderError> {
        let device = device.clone().without_autodiff();
        Cached::new(Arc::clone(&self.text), setup.cache, setup.frozen_weights, &device)
    }

    /// Reads network and autoencoder; text encoders are read when prompts need them. Nothing of it needs gradients, so
    /// everything lies on `device` without them.
    pub fn load(self, setup: Setup<'_>, device: &Device) -> Result<NetworkPolicy, FolderError> {
        let device = device.clone().without_autodiff();
        let text = self.text(&setup, &device)?;
        let base = self.weights.tensors(&self.network.layout().to_shapes(), &[], setup.frozen_weights, &device)?;
        let vae_base = self.vae_weights.tensors(&self.vae.layout().to_shapes(), &[], setup.frozen_weights, &device)?;
        let vae = Box::new(Vae::new(&self.vae, &Weights::plain(&vae_base).into()));
        Ok(NetworkPolicy {
            tuning: setup.tuning.of(&self.network),
            network: self.network,
            latent: self.latent,
            schedule: self.scheduler.schedule,
            prediction: self.scheduler.prediction,
            base,
            checkpointing: setup.checkpointing,
            precision: setup.precision,
            text: Box::new(text),
            decoder: Decoder::Vae { vae, slice: setup.decode_slice },
            adapter: setup.adapter,
            seed: setup.seed,
        })
    }
}

/// The value, or the fault noted.
fn kept<T>(result: Result<T, FolderError>, faults: &mut Vec<FolderError>) -> Option<T> {
    result.map_err(|fault| faults.push(fault)).ok()
}

fn network(folder: &Folder, guidance: f64, warnings: &mut Vec<String>) -> Result<(Network, Checkpoint), FolderError> {
    let (component, class) = folder.pipeline().network();
    let file = folder.component(component, &[class])?.join("config.json");
    let known = "invariant: the network of every pipeline is known";
    let network = read(&file, warnings, |json| Network::read(class, json, guidance).expect(known))?;
    let weights = folder.checkpoint(component, STEM)?;
    weights.check(&network.layout().to_shapes(), &[])?;
    Ok((network, weights))
}

fn autoencoder(folder: &Folder, warnings: &mut Vec<String>) -> Result<(VaeConfig, Checkpoint), FolderError> {
    let file = folder.component("vae", &["AutoencoderKL"])?.join("config.json");
    let config = read(&file, warnings, VaeConfig::read)?;
    let weights = folder.checkpoint("vae", STEM)?.renamed(current_name);
    weights.check(&config.layout().to_shapes(), &[])?;
    Ok((config, weights))
}

/// Whichever scheduler model_index.json names, its own file says what it is.
fn scheduler(path: &Path, warnings: &mut Vec<String>) -> Result<Scheduler, FolderError> {
    read(&path.join("scheduler/scheduler_config.json"), warnings, Scheduler::read)
}

fn read<T>(
    file: &Path,
    warnings: &mut Vec<String>,
    parse: impl FnOnce(&str) -> Result<Told<T>, ConfigError>,
) -> Result<T, FolderError> {
    let (value, told) = parse(&read_text(file)?).map_err(|source| FolderError::Config { path: file.into(), source })?;
    warnings.extend(told.into_iter().map(|warning| format!("{}: {warning}", file.display())));
    Ok(value)
}

/// What a folder's `scheduler_config.json` says, and how many pixels a latent stands for along each side; an eighth where its
/// autoencoder does not say it. `None` if there is no scheduler that can be read.
pub fn scheduler_of(folder: &Path) -> Option<(Scheduler, usize)> {
    let mut ignored = Vec::new();
    let vae = read(&folder.join("vae/config.json"), &mut ignored, VaeConfig::read);
    Some((scheduler(folder, &mut ignored).ok()?, vae.map_or(8, |vae| vae.reduction())))
}
