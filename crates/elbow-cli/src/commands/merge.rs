//! `elbow merge`: an adapter of any program into the weights it was trained on.

use super::export::{Precision, SHARD};
use crate::{output, target};
use anyhow::Result;
use elbow_models::{
    folder::{Checkpoint, Folder, Shapes},
    lora_file::{AdapterFile, Merge, Provenance, Trained, write_merged, write_merged_file},
    pipeline::STEM,
};
use std::path::{Path, PathBuf};

/// Arguments of `elbow merge`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  elbow merge my-lora --base stable-diffusion-3.5-medium --out transformer
  elbow merge my-lora.safetensors --base stable-diffusion-v1-5 --out unet --dtype f16
  elbow merge my-lora.safetensors --base diffusion_pytorch_model.safetensors --out merged.safetensors

Adapters are read as PEFT, diffusers, kohya's scripts, LyCORIS, ComfyUI, ai-toolkit and XLabs write them: LoRA of dense layers
and convolutions, DoRA, LoHa, LoKr and differences of weights, each layer with its own rank and scale. Layers may have
diffusers' names or those of the original code of FLUX, SD3 and Stable Diffusion. Layers of text encoders are left out, and
counted. The base may be SD3, SD3.5, FLUX.1 or Stable Diffusion 1 and 2.

Of a model folder the transformer/ or unet/ is written, in one file or, beyond 10 GB, in shards with their index; put it in
the place of the one of the base.")]
pub struct Args {
    /// A `.safetensors` file, or a folder of PEFT, of diffusers or of a trainer.
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
    let adapter = AdapterFile::read(&args.lora, &shapes)?;
    // What the adapter says of its base is not said of this one.
    let base_name = args.base.display().to_string();
    let own = Provenance::of(adapter.header());
    let about = Provenance { base: base_name, revision: String::new(), base_sha256: String::new(), ..own };
    let merge = Merge { base: &base, trained: Trained::File(&adapter), dtype: args.dtype.dtype(), about: &about };
    if single {
        write_merged_file(&merge, &args.out)?;
    } else {
        write_merged(&merge, STEM, SHARD, &args.out)?;
    }
    output::line(&format!("{}: {}", summary(&adapter), args.out.display()));
    if !adapter.alpha_is_written() {
        output::line("alpha is not written for every layer; where it is not, it is taken for the rank");
    }
    if let Some(left_out) = adapter.left_out() {
        output::line(&format!("left out, as it is not of the network: {left_out}"));
    }
    Ok(())
}

/// What was changed, and by how much.
fn summary(adapter: &AdapterFile) -> String {
    let layers = adapter.layers();
    let kinds = adapter.kinds();
    let by = if kinds == ["LoRA"] || kinds.is_empty() { String::new() } else { format!(" by {}", kinds.join(" and ")) };
    let mut parts = vec![format!("{layers} {} changed{by}", if layers == 1 { "layer" } else { "layers" })];
    parts.extend(adapter.ranks().map(|(low, high)| format!("rank {}", range(low, high))));
    parts.extend(adapter.scales().map(|(low, high)| format!("scale {}", range(low, high))));
    parts.join(", ")
}

/// One number, or two.
fn range<T: PartialEq + std::fmt::Display>(low: T, high: T) -> String {
    if low == high { low.to_string() } else { format!("{low} to {high}") }
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
