//! What can be said to `elbow bench`.

use std::path::PathBuf;

/// Arguments of `elbow bench`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  elbow bench                                         the nano network, all weights trained
  elbow bench --tuning lora --rounds 20 --json        one JSON object
  elbow bench --hidden 256 --heads 8 --layers 6

The rollout draws a batch of images in 10 steps of dpm2 without guidance. The step is one optimizer step on a batch: forward
passes under current and behavior weights at one time a sample, PEPG on the adaptive ELBO, backward, clipping, AdamW and the
moving averages. Both are the functions that `elbow train` runs. What the weights are changes no time; they are random.")]
pub struct Args {
    /// Width of the network.
    #[arg(long, default_value_t = 128)]
    pub hidden: usize,
    /// Attention heads; they share the width.
    #[arg(long, default_value_t = 4)]
    pub heads: usize,
    /// Joint blocks.
    #[arg(long, default_value_t = 4)]
    pub layers: usize,
    /// Images a rollout and a step.
    #[arg(long, default_value_t = 64)]
    pub batch: usize,
    /// Images in one forward pass; as many such parts run side by side as there are cores.
    #[arg(long, default_value_t = 32)]
    pub rows: usize,
    /// What is trained: all weights, or adapters of rank 32 with alpha 64.
    #[arg(long, value_enum, default_value_t = TuningName::Full)]
    pub tuning: TuningName,
    /// What the factors of products are rounded to.
    #[arg(long, value_enum, default_value_t = PrecisionName::F32)]
    pub precision: PrecisionName,
    /// Weights of the network instead of random ones.
    #[arg(long, value_name = "FILE")]
    pub weights: Option<PathBuf>,
    /// Timed runs of each loop, in turn, after two that are not timed.
    #[arg(long, default_value_t = 10)]
    pub rounds: usize,
    /// Print one JSON object instead of a table.
    #[arg(long, conflicts_with_all = ["serve", "outputs"])]
    pub json: bool,
    /// Write weights, inputs, images, losses and gradients of one rollout and one step to this safetensors file, and time
    /// nothing.
    #[arg(long, value_name = "FILE", conflicts_with = "serve")]
    pub outputs: Option<PathBuf>,
    /// Answer each line `rollout` or `step` of standard input by one run of it and one line of JSON.
    #[arg(long)]
    pub serve: bool,
}

/// `--tuning`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum TuningName {
    Full,
    Lora,
}

/// `--precision`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum PrecisionName {
    F32,
    Bf16,
}
