//! `elbow export`: what a run trained, in the formats of other programs.

use crate::{
    card::{Base, Card, Place},
    device::DeviceName,
    failure, output, target,
};
use anyhow::Result;
use elbow_models::{
    lora_file::{
        Adapter, Family, Merge, Network, Provenance, Trained, write_comfyui, write_diffusers, write_kohya,
        write_merged, write_merged_file, write_peft,
    },
    pipeline::STEM,
    policy::Tuning,
};
use elbow_run::{
    LoadedModel, Recipe,
    adapter::{self, TrainedAdapter},
    data::Early,
    machine,
    model::Model,
    recipe, run,
};
use elbow_runlog::RunFolder;
use safetensors::Dtype;
use std::path::{Path, PathBuf};

/// Arguments of `elbow export`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  elbow export runs/my-run-1 --format peft --out my-lora
  elbow export runs/my-run-1 --format diffusers --out pytorch_lora_weights.safetensors
  elbow export runs/my-run-1 --format kohya --out my-lora.safetensors
  elbow export runs/my-run-1 --format comfyui --out my-lora.safetensors --base-model black-forest-labs/FLUX.1-dev
  elbow export runs/my-run-1 --format merged --out transformer --dtype bf16 --set model.path=/where/it/is/now
  elbow export runs/my-run-1 --format merged --out epoch-40.safetensors --epoch 40 --weights raw

Formats:
  peft       a folder for PeftModel.from_pretrained
  diffusers  one file for pipe.load_lora_weights; ComfyUI reads its factors, but not its alpha
  kohya      one file for ComfyUI and A1111, over diffusers' layers
  comfyui    one file for ComfyUI and what else reads kohya's scripts, over the layers of the authors' code
  merged     the whole network: of a model folder its transformer/ or unet/, of the nano model one file for
             --set model.weights=FILE

Adapters are written from the run folder alone; merged weights need the base.

Every file says in its header which run, epoch and base it is of. A README.md with the fields that the Hugging Face Hub
reads, Python that loads the export, and what the run measured goes into the folder, or beside the file; where another
README.md is there, it has the file's name and ends in .md.")]
pub struct Args {
    /// A run folder.
    run: PathBuf,
    /// What to write.
    #[arg(long, value_enum)]
    format: Format,
    /// The file or folder to write, which must not be there.
    #[arg(long, value_name = "PATH")]
    out: PathBuf,
    /// The averaged weights, which evaluation uses, or the last ones.
    #[arg(long, value_enum, default_value_t = Weights::Ema)]
    weights: Weights,
    /// The checkpoint of this epoch in place of the last one.
    #[arg(long)]
    epoch: Option<u64>,
    /// How merged weights are stored.
    #[arg(long, value_enum, default_value_t = Precision::Base)]
    dtype: Precision,
    /// What the base is called on the Hugging Face Hub, if the run was trained on a folder.
    #[arg(long, value_name = "OWNER/NAME")]
    base_model: Option<String>,
    /// Where the base of merged weights is now: model.path=FOLDER, or model.weights=FILE of the nano model.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Replace what is at --out.
    #[arg(long)]
    force: bool,
}

/// What can be written.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// PEFT's folder.
    Peft,
    /// The file of `diffusers`.
    Diffusers,
    /// kohya's names over the layers of `diffusers`.
    Kohya,
    /// kohya's names over the layers of the authors' code.
    Comfyui,
    /// Whole weights.
    Merged,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Weights {
    Ema,
    Raw,
}

/// A type of stored numbers.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Precision {
    /// Each tensor as in the base.
    Base,
    /// 32 bits.
    F32,
    /// 16 bits, 5 of them exponent.
    F16,
    /// 16 bits, 8 of them exponent.
    Bf16,
}

impl Precision {
    /// In the words of safetensors; none for the base's own.
    pub fn dtype(self) -> Option<Dtype> {
        match self {
            Self::Base => None,
            Self::F32 => Some(Dtype::F32),
            Self::F16 => Some(Dtype::F16),
            Self::Bf16 => Some(Dtype::BF16),
        }
    }
}

/// Most bytes of one file of weights; `diffusers` cuts there too.
pub const SHARD: usize = 10_000_000_000;

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    let folder = RunFolder::open(&args.run)?;
    let recipe = recipe::saved(&folder)?;
    let nano = matches!(recipe.setting.model, Model::Nano { .. });
    let single = match args.format {
        Format::Peft => false,
        Format::Merged => nano,
        Format::Diffusers | Format::Kohya | Format::Comfyui => true,
    };
    let place = if single {
        target::file(&args.out, args.force)?;
        Place::beside(&args.out, args.force)?
    } else {
        target::folder(&args.out, args.force)?;
        Place::inside(&args.out)
    };
    let base = Base::of(&recipe.setting.model, args.base_model.as_deref())?;
    let epoch = if args.format == Format::Merged {
        merged(args, &folder, &place)?
    } else {
        lora(args, &folder, &recipe, &base, &place)?
    };
    let weights = if args.weights == Weights::Ema { "averaged" } else { "last" };
    output::line(&format!("the {weights} weights of epoch {epoch} in {}", args.out.display()));
    Ok(())
}

/// Writes an adapter, from the run folder alone, and returns its epoch.
fn lora(args: &Args, folder: &RunFolder, recipe: &Recipe, base: &Base, place: &Place) -> Result<u64> {
    if args.dtype != Precision::Base {
        return Err(failure::error("--dtype is for merged weights; adapters are f32", "leave out --dtype"));
    }
    if !args.set.is_empty() {
        let message = "--set says where the base of merged weights is; an adapter is written without it";
        return Err(failure::error(message, "leave out --set"));
    }
    let TrainedAdapter { epoch, adapter, family, architecture, base_sha256 } =
        adapter::read(folder, recipe, args.epoch, args.weights.of_run())?;
    let about = args.about(folder, epoch, base, base_sha256, architecture)?;
    let network = family.map_or(Network::Transformer, Family::component);
    match args.format {
        Format::Peft => write_peft(&adapter, &about, &args.out)?,
        Format::Diffusers => write_diffusers(&adapter, network, &about, &args.out)?,
        Format::Kohya => write_kohya(&adapter, network, &about, &args.out)?,
        Format::Comfyui => write_comfyui(&adapter, known(family, folder)?, &about, &args.out)?,
        Format::Merged => unreachable!("invariant: merged weights go the other way"),
    }
    Card {
        format: args.format,
        out: &args.out,
        run: folder,
        recipe,
        base,
        family,
        adapter: Some(&adapter),
        epoch,
        ema: about.ema,
    }
    .write(place)?;
    Ok(epoch)
}

/// The network, for a format in which names depend on it.
fn known(family: Option<Family>, folder: &RunFolder) -> Result<Family> {
    family.ok_or_else(|| {
        failure::error(
            format!(
                "{} is of an earlier version, which did not note whether it trained SD3 or FLUX",
                folder.path().display()
            ),
            "write --format kohya: ComfyUI reads that too",
        )
    })
}

/// Writes the base with what was trained in it, and returns the epoch.
fn merged(args: &Args, folder: &RunFolder, place: &Place) -> Result<u64> {
    const MOVED: [&str; 2] = ["model.path=", "model.weights="];
    if let Some(other) = args.set.iter().find(|change| !MOVED.iter().any(|key| change.starts_with(key))) {
        let message = format!("--set {other}: an export takes nothing but the place of the base");
        return Err(failure::error(message, "for example --set model.path=FOLDER"));
    }
    let (_, recipe) = recipe::load(Some(&folder.config()), &args.set)?;
    there(&recipe.setting.model, folder)?;
    let base = Base::of(&recipe.setting.model, args.base_model.as_deref())?;
    let model = LoadedModel::load(&recipe, &Early::default(), &DeviceName::default().open()?, &|_| {})?;
    same_base(folder, &model)?;
    let network = &model.policy.network;
    let (epoch, trained) = model.trained(folder, args.epoch, args.weights.of_run())?;
    let about = args.about(folder, epoch, &base, model.sha256.clone(), network.model_name().into())?;
    let adapter = match &model.policy.tuning {
        Tuning::Lora(config) => Some(Adapter { config: config.clone(), factors: trained.clone() }),
        Tuning::Full => None,
    };
    let weights = recipe.setting.model.base(network.family().component().component())?;
    let trained = adapter.as_ref().map_or(Trained::Full(&trained), Trained::Adapter);
    let merge = Merge { base: &weights, trained, dtype: args.dtype.dtype(), about: &about };
    match &recipe.setting.model {
        Model::Nano { .. } => write_merged_file(&merge, &args.out)?,
        Model::Diffusers(_) => write_merged(&merge, STEM, SHARD, &args.out)?,
    }
    Card {
        format: args.format,
        out: &args.out,
        run: folder,
        recipe: &recipe,
        base: &base,
        family: Some(network.family()),
        adapter: None,
        epoch,
        ema: about.ema,
    }
    .write(place)?;
    Ok(epoch)
}

impl Weights {
    fn of_run(self) -> elbow_run::Weights {
        match self {
            Self::Ema => elbow_run::Weights::Averaged,
            Self::Raw => elbow_run::Weights::Last,
        }
    }
}

impl Args {
    /// What the header of every file says.
    fn about(
        &self,
        folder: &RunFolder,
        epoch: u64,
        base: &Base,
        base_sha256: String,
        architecture: String,
    ) -> Result<Provenance> {
        Ok(Provenance {
            run: machine::sha256(&std::fs::read(folder.config())?),
            step: epoch,
            ema: self.weights == Weights::Ema,
            base: base.name.clone(),
            revision: base.revision.clone(),
            base_sha256,
            architecture,
        })
    }
}

/// An error if the folder of the base is not where the run had it.
fn there(model: &Model, folder: &RunFolder) -> Result<()> {
    let (key, place): (_, Option<&Path>) = match model {
        Model::Nano { weights, .. } => ("model.weights=FILE", weights.as_deref()),
        Model::Diffusers(model) => ("model.path=FOLDER", model.path.as_deref()),
    };
    match place {
        Some(place) if !place.exists() => Err(failure::error(
            format!(
                "the base of {} is not at {}, and merged weights need it",
                folder.path().display(),
                place.display()
            ),
            format!(
                "say where it is now with --set {key}, or write an adapter, which needs no base: --format diffusers"
            ),
        )),
        _ => Ok(()),
    }
}

/// An error if the base weights are not those that the run started from.
fn same_base(folder: &RunFolder, model: &LoadedModel) -> Result<()> {
    if run::manifest(folder)?["base_sha256"] == model.sha256.as_str() {
        return Ok(());
    }
    Err(failure::error(
        format!("the base weights differ from those that {} was started with", folder.path().display()),
        "restore the files it was started with, or say with --set where they are: what it trained fits no other base",
    ))
}
