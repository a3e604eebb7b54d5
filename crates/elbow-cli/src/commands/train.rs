//! `elbow train`: the main job.

use crate::{
    device::DeviceName,
    failure::Hint,
    machine,
    recipe::{self, Recipe},
    session::Session,
    table,
};
use anyhow::{Context, Result};
use elbow::{
    eval::Measured,
    train::{EpochReport, State, Trainer},
};
use elbow_runlog::{
    EventWriter, MetricsWriter, RunFolder, checkpoint,
    grid::{self, Tile},
    metrics, save_png, write_atomic,
};
use serde_json::{Map, Value, json};
use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

use super::progress::Bars;

/// Arguments of `elbow train`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  elbow train
  elbow train nano-flow-grpo --set seed=1 --set epochs=50
  elbow train --run runs/mine --set objective.kind=grpo --set objective.clip=1e-4
  elbow train --resume runs/mine
  elbow train --resume runs/mine --set epochs=200     train a finished run on")]
pub struct Args {
    /// A recipe file, or the name of a recipe that `elbow methods` lists; the default is nano-geneval.
    recipe: Option<PathBuf>,
    /// Change one field, e.g. objective.clip=1e-4; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Where to write; the default is runs/<recipe>-<number>.
    #[arg(long, value_name = "FOLDER", conflicts_with = "resume")]
    run: Option<PathBuf>,
    /// Go on with a run where its last checkpoint stands.
    #[arg(long, value_name = "FOLDER")]
    resume: Option<PathBuf>,
    /// Epochs between evaluations on the held-out prompts, in place of the recipe's.
    #[arg(long, value_name = "EPOCHS")]
    eval_every: Option<u64>,
}

/// Set by Ctrl-C: finish the epoch, save, stop.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Runs the command.
pub fn run(mut args: Args, device: DeviceName) -> Result<()> {
    if let Some(every) = args.eval_every {
        args.set.push(format!("eval.measure.every={every}"));
    }
    let (recipe, target) = match &args.resume {
        Some(path) => resume(&args, path)?,
        None => start(&args)?,
    };
    watch_for_interrupt()?;
    let session = Session::new(&recipe, device, &Bars::new())?;
    let (method, device) = (recipe.method.clone(), session.device.clone());
    let mut trainer = Trainer::new(method, &session.policy, &*session.train, &*session.reward, device)?;
    Job::new(recipe, &session, target, &mut trainer)?.run(&mut trainer)
}

/// A recipe and a folder to write to; nothing is written before the recipe is known to load.
fn start(args: &Args) -> Result<(Recipe, Target)> {
    let (name, mut recipe) = recipe::load(args.recipe.as_deref(), &args.set)?;
    recipe.setting.model.pin()?;
    let path = if let Some(path) = &args.run {
        path.clone()
    } else {
        let mut names = (1..=u32::MAX).map(|n| PathBuf::from(format!("runs/{name}-{n}")));
        names.find(|path| !path.exists()).context("no free name under runs/")?
    };
    Ok((recipe, Target::New(path)))
}

/// The recipe of an existing run; a recipe or overrides given beside it must say the same, but for `epochs`.
fn resume(args: &Args, path: &Path) -> Result<(Recipe, Target)> {
    let folder = RunFolder::open(path)?;
    let (_, saved) = recipe::load(Some(&folder.config()), &[])?;
    let source = args.recipe.clone().unwrap_or_else(|| folder.config());
    let (_, mut asked) = recipe::load(Some(&source), &args.set)?;
    asked.setting.model.follow(&saved.setting.model);
    let mut same_length = asked.clone();
    same_length.method.epochs = saved.method.epochs;
    let differences = saved.differences(&same_length)?;
    if !differences.is_empty() {
        return Err(Hint::error(
            format!("{} was made with another configuration:\n  - {}", path.display(), differences.join("\n  - ")),
            "resume without a recipe and with no --set but epochs, or start a new run with --run",
        ));
    }
    Ok((asked, Target::Existing(folder)))
}

enum Target {
    New(PathBuf),
    Existing(RunFolder),
}

#[expect(clippy::print_stderr, reason = "an answer to a key press")]
fn watch_for_interrupt() -> Result<()> {
    ctrlc::set_handler(|| {
        if INTERRUPTED.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
        eprintln!("\nfinishing this epoch, then saving (press Ctrl-C again to stop at once)");
    })
    .context("cannot listen for Ctrl-C")
}

/// A run under way.
struct Job<'a> {
    recipe: Recipe,
    session: &'a Session,
    folder: RunFolder,
    metrics: MetricsWriter,
    events: EventWriter,
    bars: Bars,
    /// The latest evaluation and its epoch.
    measured: Option<(u64, Measured)>,
    /// Seconds that an epoch should take.
    planned: Option<f64>,
}

impl<'a> Job<'a> {
    /// Makes the folder of a new run, or brings an existing one and the trainer to where its last checkpoint stands. An
    /// existing folder is changed only once everything is known to load.
    fn new(recipe: Recipe, session: &'a Session, target: Target, trainer: &mut Trainer<'_>) -> Result<Self> {
        let folder = match target {
            Target::New(path) => create(&path, &recipe, session)?,
            Target::Existing(folder) => {
                load(&folder, session, trainer)?;
                rewind(&folder, &recipe, trainer.state.epoch)?;
                folder
            }
        };
        let metrics = MetricsWriter::open(folder.metrics())?;
        let events = match trainer.state.epoch {
            0 => EventWriter::create(folder.path())?,
            epoch => EventWriter::resume(folder.path(), epoch + 1)?,
        };
        Ok(Self { recipe, session, folder, metrics, events, bars: Bars::new(), measured: None, planned: None })
    }

    fn run(mut self, trainer: &mut Trainer<'_>) -> Result<()> {
        self.announce(trainer);
        if trainer.state.epoch < self.recipe.method.epochs {
            // What is wrong with a reward is said when it matters, in the first epoch.
            self.planned = super::plan::epoch(&self.recipe, self.session).ok();
        }
        let before = self.measure(None)?;
        if trainer.state.epoch == 0 {
            let mut record = Map::from_iter([("epoch".to_owned(), Value::from(0))]);
            record.extend(eval_entries(&before, self.session));
            self.write(&record)?;
        }
        if self.epochs(trainer)? {
            self.bars.say(&format!(
                "stopped after epoch {}; go on with: elbow train --resume {}",
                trainer.state.epoch,
                self.folder.path().display()
            ));
            return Ok(());
        }
        self.finish(&before, &trainer.state)
    }

    /// Trains to the last epoch; true if interrupted before.
    fn epochs(&mut self, trainer: &mut Trainer<'_>) -> Result<bool> {
        let total = self.recipe.method.epochs;
        let mut saved = trainer.state.epoch;
        while trainer.state.epoch < total {
            if INTERRUPTED.load(Ordering::SeqCst) {
                if saved != trainer.state.epoch {
                    self.save(&trainer.state)?;
                }
                return Ok(true);
            }
            let start = Instant::now();
            let report = match trainer.epoch(&self.bars) {
                Ok(report) => report,
                Err(error) => {
                    if saved != trainer.state.epoch {
                        self.save(&trainer.state)?;
                    }
                    return Err(error).context(format!(
                        "training stopped; the epochs before are saved in {}",
                        self.folder.path().display()
                    ));
                }
            };
            let epoch = trainer.state.epoch;
            let mut record = report.record.clone();
            record.extend(self.planned.map(|seconds| ("time_planned".to_owned(), Value::from(seconds))));
            let every = self.recipe.setting.eval.measure.every;
            // The last epoch too: a record does not depend on how many follow, so a longer run begins with the same ones.
            if every > 0 && epoch.is_multiple_of(every) {
                let measured = self.measure(Some(&trainer.state))?;
                record.extend(eval_entries(&measured, self.session));
                self.measured = Some((epoch, measured));
            }
            self.write(&record)?;
            self.pictures(epoch, &report)?;
            self.bars.epoch(epoch, total, self.session.reward.name(), &record, start.elapsed());
            if epoch.is_multiple_of(self.recipe.setting.keep.checkpoint_every) || epoch == total {
                self.save(&trainer.state)?;
                saved = epoch;
            }
        }
        Ok(false)
    }

    fn measure(&self, state: Option<&State>) -> Result<Measured> {
        self.session.measure(&self.recipe, state.map(|s| &s.ema), &self.bars)
    }

    fn write(&mut self, record: &Map<String, Value>) -> Result<()> {
        self.metrics.append(record)?;
        let epoch = record["epoch"].as_u64().unwrap_or(0);
        let scalars = record.iter().filter_map(|(k, v)| Some((k.as_str(), v.as_f64()? as f32)));
        self.events.scalars(epoch, scalars.filter(|(k, _)| *k != "epoch"))?;
        Ok(())
    }

    fn pictures(&mut self, epoch: u64, report: &EpochReport) -> Result<()> {
        let every = self.recipe.setting.keep.images_every;
        if every == 0 || !epoch.is_multiple_of(every) {
            return Ok(());
        }
        let tile = |s: &elbow::train::Sample| Tile {
            image: s.image.clone(),
            caption: vec![s.prompt.text.clone(), s.reward.map_or("missing".into(), |r| format!("{r:.2}"))],
        };
        let tiles: Vec<Tile> = report.samples.iter().take(16).map(tile).collect();
        let image = grid::grid(&tiles, 8, 4);
        save_png(&self.folder.images().join(format!("epoch-{epoch:05}.png")), &image)?;
        Ok(self.events.image(epoch, "samples", &image)?)
    }

    fn save(&self, state: &State) -> Result<()> {
        let (files, counters) = state.save();
        let files: Vec<(&str, &[u8])> = files.iter().map(|(n, b)| (*n, b.as_slice())).collect();
        let root = self.folder.checkpoints();
        checkpoint::write(&root, state.epoch, &files, &json!({ "counters": counters }))?;
        Ok(checkpoint::keep_last(&root, self.recipe.setting.keep.checkpoints)?)
    }

    fn announce(&self, trainer: &Trainer<'_>) {
        let method = &self.recipe.method;
        let batch = method.batch;
        let queries = method.likelihood.count(&method.sampler, method.schedule);
        self.bars.say(&format!(
            "{} prompts × {} images = {} images an epoch, {} steps each; {} update(s) of {} images, {queries} points each; \
             {} parameters trained, {} epochs from {}; writing to {}",
            batch.groups,
            batch.group_size,
            batch.groups * batch.group_size,
            method.sampler.steps,
            batch.updates,
            batch.groups * batch.group_size / batch.updates.max(1),
            trainer.state.current.values().len(),
            method.epochs,
            trainer.state.epoch,
            self.folder.path().display(),
        ));
    }

    /// Measures the tuned model and prints base → tuned.
    fn finish(&mut self, before: &Measured, state: &State) -> Result<()> {
        let session = self.session;
        let after = match self.measured.take() {
            Some((epoch, measured)) if epoch == state.epoch => measured,
            _ => self.measure(Some(state))?,
        };
        let results = json!({ "base": summary_json(before, session), "tuned": summary_json(&after, session) });
        write_atomic(&self.folder.path().join("result.json"), serde_json::to_string_pretty(&results)?.as_bytes())?;
        let tiles = |measured: &Measured| super::sample::tiles(measured, 24);
        let image = grid::before_after(("base", &tiles(before)), ("tuned", &tiles(&after)), 6, 4);
        save_png(&self.folder.images().join("before-after.png"), &image)?;
        if let Some(planned) = self.planned {
            self.bars.say(&super::plan::comparison(&self.folder, planned)?);
        }
        if let Some(table) = table::comparison(&["geneval", "judge"], before, &after) {
            let what = "strict scores on held-out prompts (judge: an independent detector, never trained on)";
            self.bars.say(&format!("\n{what}\n{table}"));
        }
        let reward = session.reward.name();
        if reward != "geneval"
            && let Some(table) = table::comparison(&[reward], before, &after)
        {
            self.bars.say(&format!("\nthe reward on held-out prompts\n{table}"));
        }
        self.bars.say(&format!(
            "\nrun folder: {}\npictures:   {}",
            self.folder.path().display(),
            self.folder.images().join("before-after.png").display()
        ));
        Ok(())
    }
}

fn create(path: &Path, recipe: &Recipe, session: &Session) -> Result<RunFolder> {
    let text = recipe.to_toml()?;
    let folder = RunFolder::create(path)?;
    let mut manifest = machine::facts();
    manifest["seed"] = json!(recipe.method.seed);
    if let Some((name, commit)) = recipe.setting.model.commit() {
        manifest["model"] = json!({ "hub": name, "commit": commit });
    }
    manifest["base_sha256"] = json!(session.base_hash);
    manifest["prompts_sha256"] = json!(session.prompts_hash);
    manifest["device"] = json!(format!("{:?}", session.device));
    manifest["arguments"] = json!(std::env::args().skip(1).collect::<Vec<_>>());
    write_atomic(&folder.manifest(), serde_json::to_string_pretty(&manifest)?.as_bytes())?;
    write_atomic(&folder.config(), text.as_bytes())?;
    Ok(folder)
}

/// Puts the state of the last checkpoint into the trainer, if the base and the prompts are those of the run. Nothing on disk
/// changes but what a kill left half done.
fn load(folder: &RunFolder, session: &Session, trainer: &mut Trainer<'_>) -> Result<()> {
    let path = folder.manifest();
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let manifest: Value = serde_json::from_str(&text).map_err(|error| {
        Hint::error(
            format!("{} is damaged: {error}", path.display()),
            "restore the file, or start a new run with --run",
        )
    })?;
    for (key, now, what) in
        [("base_sha256", &session.base_hash, "base weights"), ("prompts_sha256", &session.prompts_hash, "prompts")]
    {
        if manifest[key] != json!(now) {
            return Err(Hint::error(
                format!("the {what} differ from those that {} was started with", folder.path().display()),
                "restore the files it was started with, or start a new run with --run",
            ));
        }
    }
    let Some((_, path)) = checkpoint::recover(&folder.checkpoints())? else { return Ok(()) };
    let saved = checkpoint::read(&path)?;
    let state = trainer.state.load(&saved.files, &saved.state["counters"]).map_err(|error| {
        Hint::error(
            format!("cannot use checkpoint {}: {error}", path.display()),
            "delete this checkpoint folder to go on from the one before it",
        )
    })?;
    let epochs = trainer.config().epochs;
    if state.epoch > epochs {
        return Err(Hint::error(
            format!("{} has finished {} epochs already, and epochs = {epochs}", folder.path().display(), state.epoch),
            format!("go on with --set epochs={} or more", state.epoch + 1),
        ));
    }
    trainer.state = state;
    Ok(())
}

/// Makes a folder say what it said after `epoch`, and that the run is to become as long as the recipe says.
fn rewind(folder: &RunFolder, recipe: &Recipe, epoch: u64) -> Result<()> {
    let text = recipe.to_toml()?;
    if std::fs::read_to_string(folder.config()).ok().as_deref() != Some(&*text) {
        write_atomic(&folder.config(), text.as_bytes())?;
    }
    if epoch > 0 {
        metrics::truncate_after(&folder.metrics(), epoch)?;
    } else if folder.metrics().exists() {
        // Before the first checkpoint a run starts again, with the measurement of the base.
        write_atomic(&folder.metrics(), b"")?;
    }
    Ok(())
}

/// `eval_reward_<name>` and `eval_reward_<name>_<tag>` of every measure.
fn eval_entries(measured: &Measured, session: &Session) -> Vec<(String, Value)> {
    let mut entries = Vec::new();
    for measure in &session.measures {
        let Some(summary) = measured.summary(measure.name()) else { continue };
        entries.push((format!("eval_reward_{}", measure.name()), Value::from(summary.mean)));
        let by_tag = summary.by_tag.into_iter();
        entries.extend(by_tag.map(|(tag, v)| (format!("eval_reward_{}_{tag}", measure.name()), Value::from(v))));
    }
    entries
}

fn summary_json(measured: &Measured, session: &Session) -> Value {
    Value::Object(eval_entries(measured, session).into_iter().collect())
}
