//! `elbow export`: what a run trained, in the formats of other programs.

use crate::{device::DeviceName, failure, output, target};
use anyhow::Result;
use elbow::params::Params;
use elbow_models::{
    lora_file::{
        Adapter, Merge, Network, Provenance, Trained, architecture, write_diffusers, write_kohya, write_merged,
        write_merged_file, write_peft,
    },
    pipeline::STEM,
    policy::Tuning,
};
use elbow_run::{LoadedModel, Recipe, data::Early, machine, model::Model, recipe, run};
use elbow_runlog::RunFolder;
use safetensors::Dtype;
use std::path::PathBuf;

/// Arguments of `elbow export`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  elbow export runs/my-run-1 --format peft --out my-lora
  elbow export runs/my-run-1 --format diffusers --out pytorch_lora_weights.safetensors
  elbow export runs/my-run-1 --format kohya --out my-lora.safetensors
  elbow export runs/my-run-1 --format merged --out transformer --dtype bf16
  elbow export runs/my-run-1 --format merged --out epoch-40.safetensors --epoch 40 --weights raw

Formats:
  peft       a folder for PeftModel.from_pretrained
  diffusers  one file for pipe.load_lora_weights
  kohya      one file for ComfyUI and A1111
  merged     the whole network: of a model folder its transformer/ or unet/, of the nano model one file for
             --set model.weights=FILE

Every file says in its header which run, epoch and base it is of.")]
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
    /// Replace what is at --out.
    #[arg(long)]
    force: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    Peft,
    Diffusers,
    Kohya,
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
    let (_, recipe) = recipe::load(Some(&folder.config()), &[])?;
    let nano = matches!(recipe.setting.model, Model::Nano { .. });
    match args.format {
        Format::Diffusers | Format::Kohya => target::file(&args.out, args.force)?,
        Format::Merged if nano => target::file(&args.out, args.force)?,
        Format::Peft | Format::Merged => target::folder(&args.out, args.force)?,
    }
    if args.dtype != Precision::Base && args.format != Format::Merged {
        return Err(failure::error("--dtype is for merged weights; adapters are f32", "leave out --dtype"));
    }
    let model = LoadedModel::load(&recipe, &Early::default(), &DeviceName::default().open()?, &|_| {})?;
    same_base(&folder, &model)?;
    let weights = match args.weights {
        Weights::Ema => elbow_run::Weights::Averaged,
        Weights::Raw => elbow_run::Weights::Last,
    };
    let (epoch, trained) = model.trained(&folder, args.epoch, weights)?;
    let about = Provenance {
        run: machine::sha256(&std::fs::read(folder.config())?),
        step: epoch,
        ema: args.weights == Weights::Ema,
        base: format!("{} sha256:{}", recipe.setting.model.name(), model.sha256),
        architecture: architecture(&model.policy.network).into(),
    };
    write(args, &recipe, &model, trained, &about)?;
    let weights = if about.ema { "averaged" } else { "last" };
    output::line(&format!("the {weights} weights of epoch {epoch} in {}", args.out.display()));
    Ok(())
}

fn write(args: &Args, recipe: &Recipe, model: &LoadedModel, trained: Params, about: &Provenance) -> Result<()> {
    let policy = &model.policy;
    let adapter = match &policy.tuning {
        Tuning::Lora(config) => Some(Adapter { config: config.clone(), factors: trained.clone() }),
        Tuning::Full => None,
    };
    let network = Network::of(&policy.network);
    let factors = || {
        adapter.as_ref().ok_or_else(|| {
            failure::error(
                format!("{} trained every weight: there is no adapter in it", args.run.display()),
                "write the whole weights with --format merged, or train with model.tuning.kind = \"lora\"",
            )
        })
    };
    match args.format {
        Format::Peft => write_peft(factors()?, about, &args.out)?,
        Format::Diffusers => write_diffusers(factors()?, network, about, &args.out)?,
        Format::Kohya => write_kohya(factors()?, network, about, &args.out)?,
        Format::Merged => {
            let base = recipe.setting.model.base(network.component())?;
            let trained = adapter.as_ref().map_or(Trained::Full(&trained), Trained::Adapter);
            let merge = Merge { base: &base, trained, dtype: args.dtype.dtype(), about };
            match &recipe.setting.model {
                Model::Nano { .. } => write_merged_file(&merge, &args.out)?,
                Model::Diffusers(_) => write_merged(&merge, STEM, SHARD, &args.out)?,
            }
        }
    }
    Ok(())
}

/// An error if the base weights are not those that the run started from.
fn same_base(folder: &RunFolder, model: &LoadedModel) -> Result<()> {
    if run::manifest(folder)?["base_sha256"] == model.sha256.as_str() {
        return Ok(());
    }
    Err(failure::error(
        format!("the base weights differ from those that {} was started with", folder.path().display()),
        "restore the files it was started with: what it trained fits no other base",
    ))
}
