//! `elbow pretrain`: a base model from nothing.

use crate::{device::DeviceName, failure, output, signals};
use anyhow::{Context, Result};
use elbow::{
    noise::{Key, Purpose},
    params::Params,
    pretrain::{PretrainConfig, Pretraining},
    schedule::Schedule,
};
use elbow_models::{mmdit::MmditConfig, policy::Tuning};
use elbow_run::{machine, model::nano};
use elbow_runlog::{checkpoint, write_atomic};
use elbow_world::data::SceneData;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// Arguments of `elbow pretrain`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  elbow pretrain --out base.safetensors               if it is stopped, the same command goes on
  elbow pretrain --steps 2000 --batch 32              a rougher model, sooner
  elbow train --set model.weights=base.safetensors
  elbow pretrain --schedule vp --out vp.safetensors   a model of variance-preserving diffusion, which predicts noise")]
pub struct Args {
    /// Where the averaged weights go; progress is kept beside it, in a folder that ends in .progress.
    #[arg(long, default_value = "nano.safetensors")]
    out: PathBuf,
    /// The path from data to noise.
    #[arg(long, value_enum, default_value = "rf")]
    schedule: Path,
    /// Optimizer steps.
    #[arg(long, default_value_t = PretrainConfig::default().steps)]
    steps: u64,
    /// Stop after this many of those steps and write the weights as they are then.
    #[arg(long, value_name = "STEPS")]
    until: Option<u64>,
    /// Images a step.
    #[arg(long, default_value_t = PretrainConfig::default().batch)]
    batch: usize,
    /// Peak learning rate.
    #[arg(long, default_value_t = PretrainConfig::default().optimizer.learning_rate)]
    learning_rate: f64,
    /// Probability that an image departs from a fact of its caption (an object, a color, a count, a relation).
    #[arg(long, default_value_t = 0.2, value_name = "SHARE")]
    caption_noise: f64,
    /// Steps before the first that sees such captions.
    #[arg(long, default_value_t = 0, value_name = "STEPS")]
    noisy_from: u64,
    /// Start from these weights instead of random ones.
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// Decides weights, scenes and noise.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// The paths that a model can be made for.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Path {
    /// Rectified flow: the network predicts velocity, as SD3's.
    Rf,
    /// Variance-preserving diffusion: the network predicts noise, as SD1.5's.
    Vp,
}

impl Path {
    fn schedule(self) -> Schedule {
        match self {
            Self::Rf => Schedule::RectifiedFlow,
            Self::Vp => Schedule::VARIANCE_PRESERVING,
        }
    }
}

/// Steps between saved states.
const SAVE_EVERY: u64 = 500;

/// When to stop.
struct End {
    /// After this step.
    step: u64,
    /// Or when a signal sets this.
    stop: Arc<AtomicBool>,
}

/// Runs the command.
pub fn run(args: &Args, device: DeviceName) -> Result<()> {
    let schedule = args.schedule.schedule();
    let mut config = PretrainConfig { schedule, steps: args.steps, batch: args.batch, ..PretrainConfig::default() };
    config.optimizer.learning_rate = args.learning_rate;
    let until = args.until.unwrap_or(args.steps).min(args.steps);
    if args.batch == 0 || until == 0 {
        return Err(failure::error("nothing to do: steps and batch must be at least 1", "see `elbow pretrain --help`"));
    }
    if !(0.0..=1.0).contains(&args.caption_noise) {
        return Err(failure::error("--caption-noise is a probability", "give a number from 0 to 1"));
    }
    let end = End { step: until, stop: signals::flag()? };
    let device = device.open()?;
    let mut base = MmditConfig::default().initial(Key::new(args.seed, Purpose::Initialization, 0));
    let mut from = None;
    if let Some(path) = &args.from {
        let bytes = std::fs::read(path).with_context(|| format!("cannot read weights {}", path.display()))?;
        base = base.with_values_of(&bytes).with_context(|| format!("cannot use weights {}", path.display()))?;
        from = Some(machine::sha256(&bytes));
    }
    let policy = nano(base, Tuning::Full, args.seed, schedule, &device);
    let progress = args.out.with_extension("progress");
    let identity = json!({"config": config, "caption_noise": args.caption_noise, "noisy_from": args.noisy_from,
        "from_sha256": from, "seed": args.seed});
    let mut training = Pretraining::new(&policy);
    resume(&progress, &mut training, &identity)?;
    if training.optimizer.step > until {
        return Err(failure::error(
            format!(
                "{} is past step {until} already: it stands at step {}",
                progress.display(),
                training.optimizer.step
            ),
            "raise --until, or choose another --out to start over",
        ));
    }
    let data = SceneData { caption_noise: args.caption_noise, noisy_from: args.noisy_from, device };
    steps(&mut training, &policy, &config, &data, args.seed, &end, &|training| save(&progress, training, &identity))?;
    let step = training.optimizer.step;
    if step < until {
        output::line(&format!("stopped after step {step}; the same command goes on from there"));
        return Ok(());
    }
    // One entry: the order of several would differ from run to run, and the file with it.
    let made = json!({"pretrain": identity, "until": until}).to_string();
    let metadata = HashMap::from([("elbow".to_owned(), made)]);
    write_atomic(&args.out, &policy.merged(&training.ema).to_safetensors_f16(Some(metadata)))?;
    output::line(&format!("weights in {}", args.out.display()));
    Ok(())
}

/// Takes steps until the end. The last state is saved in either case.
fn steps(
    training: &mut Pretraining,
    policy: &elbow_models::policy::NetworkPolicy,
    config: &PretrainConfig,
    data: &SceneData,
    seed: u64,
    end: &End,
    save: &dyn Fn(&Pretraining) -> Result<()>,
) -> Result<()> {
    let until = end.step;
    let style = ProgressStyle::with_template("[{bar:32}] {pos}/{len} steps, {msg}, {eta} left")?;
    let bar = ProgressBar::new(until).with_style(style.progress_chars("=> ")).with_position(training.optimizer.step);
    bar.reset_eta();
    let mut smooth = None;
    while training.optimizer.step < until {
        let loss = training.step(policy, data, config, seed, &data.device);
        let mean = smooth.map_or(loss, |m: f32| 0.98 * m + 0.02 * loss);
        smooth = Some(mean);
        let step = training.optimizer.step;
        bar.set_position(step);
        bar.set_message(format!("loss {mean:.4}"));
        let stop = end.stop.load(Ordering::SeqCst);
        if step.is_multiple_of(SAVE_EVERY) || step == until || stop {
            save(training)?;
            bar.suspend(|| output::line(&format!("step {step}/{until}  loss {mean:.4}")));
        }
        if stop {
            break;
        }
    }
    bar.finish_and_clear();
    Ok(())
}

const FILES: [&str; 4] = ["params.safetensors", "ema.safetensors", "adam_first.safetensors", "adam_second.safetensors"];

fn save(folder: &std::path::Path, training: &Pretraining, identity: &serde_json::Value) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let params = [&training.params, &training.ema, &training.optimizer.first, &training.optimizer.second];
    let bytes: Vec<Vec<u8>> = params.iter().map(|p| p.to_safetensors(None)).collect();
    let files: Vec<(&str, &[u8])> = FILES.into_iter().zip(&bytes).map(|(n, b)| (n, b.as_slice())).collect();
    checkpoint::write(folder, training.optimizer.step, &files, identity)?;
    Ok(checkpoint::keep_last(folder, 1)?)
}

fn resume(folder: &std::path::Path, training: &mut Pretraining, identity: &serde_json::Value) -> Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    let Some((step, path)) = checkpoint::recover(folder)? else { return Ok(()) };
    let saved = checkpoint::read(&path)?;
    if saved.state != *identity {
        return Err(failure::error(
            format!("{} belongs to a pre-training with other settings", folder.display()),
            "remove it to start over, or choose another --out",
        ));
    }
    let read = |file: &str| -> Result<Params> {
        let bytes = saved.files.get(file).with_context(|| format!("{} has no {file}", path.display()))?;
        training.params.with_values_of(bytes).with_context(|| format!("cannot use {}", path.join(file).display()))
    };
    let [params, ema, first, second] = FILES.map(read);
    (training.params, training.ema) = (params?, ema?);
    (training.optimizer.first, training.optimizer.second, training.optimizer.step) = (first?, second?, step);
    Ok(())
}
