//! `elbow`: reinforcement-learning post-training for diffusion and flow-matching image models.

#![expect(unreachable_pub, reason = "a binary exports nothing")]

mod card;
mod commands;
mod device;
mod failure;
mod live;
mod numbers;
mod output;
mod reference;
mod schema;
mod signals;
mod table;
mod target;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// The general-purpose allocator returns pages to the system between steps, which zeroes them again; this one, told to, keeps
/// them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `mi_option_purge_delay` of mimalloc 2 and 3; −1 never returns memory.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

#[expect(unsafe_code, reason = "an option of a C library")]
fn keep_pages() {
    // SAFETY: setting an option is sound at any time; the option is one of the library's.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, -1) }
}

/// Reinforcement-learning post-training for diffusion and flow-matching image models.
///
/// With no argument, `elbow train` post-trains the embedded nano model on emoji scenes with GenEval's six tasks.
#[derive(Parser)]
#[command(name = "elbow", version, propagate_version = true, after_help = EXAMPLES)]
struct Cli {
    /// Where tensors live: cpu, or cuda, wgpu, vulkan, metal or rocm with or without a number, as in cuda:1, if the program was built
    /// with that feature.
    #[arg(long, global = true, value_name = "DEVICE", default_value_t)]
    device: device::DeviceName,
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  elbow train                                         the default recipe on the embedded model
  elbow train nano-flow-grpo --set seed=1             a recipe that comes with the program, or a file
  elbow train --tui                                   curves and numbers on the full screen, as it trains
  elbow train --resume runs/nano-geneval-1            go on where a run stopped, bit for bit
  elbow sample --run runs/nano-geneval-1 \"a photo of a red car left of a cat\"
  elbow eval --run runs/nano-geneval-1
  elbow report runs/nano-geneval-1                    what happened, as a page
  elbow export runs/my-run-1 --format peft --out my-lora
  elbow reward new my_reward.py                       a reward of your own, in Python
  elbow doctor                                        whether everything works here
  elbow plan nano-flow-grpo                           seconds and memory, before a run
  elbow study studies/first.toml                      methods compared, with several seeds
  elbow methods                                       what there is to choose from
  elbow config --explain                              every field with its meaning";

#[derive(Subcommand)]
enum Command {
    /// Post-train a model on a reward.
    Train(commands::train::Args),
    /// Draw images from a base model or a run.
    Sample(commands::sample::Args),
    /// Measure a base model or a run on the held-out prompts, by task.
    Eval(commands::eval::Args),
    /// Train a base model on the embedded scenes, by flow matching or to predict noise.
    Pretrain(commands::pretrain::Args),
    /// Show what happened in runs, or what a study found, as a page for a browser.
    Report(commands::report::Args),
    /// Write what a run trained in the formats of other programs: an adapter, or whole weights.
    Export(commands::export::Args),
    /// Put an adapter of any program into the weights it was trained on.
    Merge(commands::merge::Args),
    /// Write, try and use rewards by themselves.
    Reward(commands::reward::Args),
    /// Check this machine, a model folder, the rewards and one training step.
    Doctor(commands::doctor::Args),
    /// Say what a recipe costs on this machine, before it runs.
    Plan(commands::plan::Args),
    /// Run methods × seeds, matched and tuned alike, and report what their numbers allow to say.
    Study(commands::study::Args),
    /// Compare estimators of log-ratios and gradients with the truth, where that is known.
    Lab(commands::lab::Args),
    /// List every objective, likelihood, sampler, advantage and recipe, each with its paper.
    Methods(commands::methods::Args),
    /// Show a recipe with all defaults filled in, or explain every field.
    Config(commands::config::Args),
    /// Measure the speed of rollouts and optimizer steps on this machine.
    Bench(commands::bench::Args),
}

fn main() -> ExitCode {
    keep_pages();
    let Cli { device, command } = Cli::parse();
    let result = elbow_kernels::isa().map_err(unknown_path).and_then(|_| run(command, device));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            failure::complain(&error);
            ExitCode::FAILURE
        }
    }
}

fn unknown_path(error: &elbow_kernels::IsaError) -> anyhow::Error {
    failure::error(error.to_string(), format!("unset {} to take the best", elbow_kernels::VARIABLE))
}

fn run(command: Command, device: device::DeviceName) -> anyhow::Result<()> {
    match command {
        Command::Train(args) => commands::train::run(args, device),
        Command::Sample(args) => commands::sample::run(&args, device),
        Command::Eval(args) => commands::eval::run(&args, device),
        Command::Pretrain(args) => commands::pretrain::run(&args, device),
        Command::Report(args) => commands::report::run(&args),
        Command::Export(args) => commands::export::run(&args),
        Command::Merge(args) => commands::merge::run(&args),
        Command::Reward(args) => commands::reward::run(&args),
        Command::Doctor(args) => commands::doctor::run(&args, device),
        Command::Plan(args) => commands::plan::run(&args, device),
        Command::Study(args) => commands::study::run(&args, device),
        Command::Lab(args) => commands::lab::run(&args),
        Command::Methods(args) => {
            commands::methods::run(&args);
            Ok(())
        }
        Command::Config(args) => commands::config::run(&args),
        Command::Bench(args) => commands::bench::run(&args, device),
    }
}
