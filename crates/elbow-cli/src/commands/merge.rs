//! `elbow merge`: an adapter of any program into the weights it was trained on.

use super::export::{Precision, SHARD};
use crate::{output, target};
use anyhow::Result;
use elbow_models::{
    folder::{Checkpoint, Folder, Shapes},
    lora_file::{self, Merge, Provenance, Trained, write_merged, write_merged_file},
    pipeline::STEM,
};
use std::path::{Path, PathBuf};

/// Arguments of `elbow merge`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  elbow merge my-lora --base stable-diffusion-3.5-medium --out transformer
  elbow merge my-lora.safetensors --base stable-diffusion-v1-5 --out unet --dtype f16
  elbow merge my-lora.safetensors --base diffusion_pytorch_model.safetensors --out merged.safetensors

Adapters are read in the formats of PEFT (a folder), diffusers and kohya (files). Of a model folder the transformer/ or
unet/ is written, in one file or, beyond 10 GB, in shards with their index; put it in the place of the one of the base.")]
pub struct Args {
    /// A file of low-rank factors, or a folder as PEFT writes it.
    lora: PathBuf,
    /// A model folder, its transformer/ or unet/, or one safetensors file with diffusers' names.
    #[arg(long, value_name = "PATH")]
    base: PathBuf,
    /// The folder to write, or of a base of one file the file; it must not be there.
    #[arg(long, value_name = "PATH")]
    out: PathBuf,
    /// How the weights are stored.
    #[arg(long, value_enum, default_value_t = Precision::Base)]
    dtype: Precision,
    /// Replace what is at --out.
    #[arg(long)]
    force: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    let single = args.base.is_file();
    if single {
        target::file(&args.out, args.force)?;
    } else {
        target::folder(&args.out, args.force)?;
    }
    let base = open(&args.base)?;
    let shapes: Shapes = base.shapes().map(|(name, shape)| (name.to_owned(), shape.to_vec())).collect();
    let adapter = lora_file::read(&args.lora, &shapes)?;
    // What the adapter says of its base is not said of this one.
    let base_name = args.base.display().to_string();
    let about =
        Provenance { base: base_name, revision: String::new(), base_sha256: String::new(), ..provenance(&args.lora)? };
    let merge = Merge { base: &base, trained: Trained::Adapter(&adapter), dtype: args.dtype.dtype(), about: &about };
    if single {
        write_merged_file(&merge, &args.out)?;
    } else {
        write_merged(&merge, STEM, SHARD, &args.out)?;
    }
    let (layers, scale) = (adapter.factors.entries().len() / 2, adapter.config.scale());
    output::line(&format!(
        "{layers} layers changed, rank {}, scale {scale}: {}",
        adapter.config.rank,
        args.out.display()
    ));
    Ok(())
}

/// The network's weights of a model folder, of one component, or of a file.
fn open(path: &Path) -> Result<Checkpoint> {
    if path.is_file() {
        return Ok(Checkpoint::open_file(path)?);
    }
    if !path.join("model_index.json").is_file() && path.join("config.json").is_file() {
        return Ok(Checkpoint::open(path, STEM, None)?);
    }
    let folder = Folder::open(path, None)?;
    Ok(folder.checkpoint(folder.pipeline().network().0, STEM)?)
}

/// What the adapter says of itself.
fn provenance(lora: &Path) -> Result<Provenance> {
    let file = if lora.is_dir() { lora.join("adapter_model.safetensors") } else { lora.to_owned() };
    Ok(Provenance::of(Checkpoint::open_file(&file)?.metadata()))
}
