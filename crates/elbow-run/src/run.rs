//! A run under way: its folder, its epochs, its evaluations and checkpoints.

use crate::{
    components::Components,
    error::{At, Error, Result},
    event::{Event, Progress, Watch},
    finished::{self, Finished},
    judges, machine, pictures,
    radar::{Action, Radar, Sighting},
    recipe::Recipe,
    samples,
};
use elbow::{
    Reward, RgbImage,
    config::MicroBatch,
    eval::{MeasureError, Measured},
    policy::Policy,
    rollout::RolloutError,
    train::{EpochReport, Logged, State, TrainError, Trainer},
};
use elbow_models::policy::Tuning;
use elbow_runlog::{EventWriter, Holder, MetricsWriter, RunFolder, checkpoint, grid, metrics, save_png, write_atomic};
use serde_json::{Map, Value, json};
use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// A run of a recipe on its components. It writes into its folder and tells what happens by events.
pub struct Run<'a> {
    /// Set it from wherever to stop before the next epoch: [`Run::step`] then saves and returns [`Status::Stopped`].
    pub stop: Arc<AtomicBool>,
    recipe: Recipe,
    components: &'a Components,
    watch: &'a Watch<'a>,
    trainer: Trainer<'a>,
    judges: Vec<Box<dyn Reward>>,
    folder: RunFolder,
    metrics: MetricsWriter,
    events: EventWriter,
    /// The last finished epoch, for whoever must save it from another thread.
    finished: Finished,
    /// The base on the held-out prompts, once it was measured.
    base: Option<Measured>,
    /// The latest evaluation of what is trained, and its epoch.
    latest: Option<(u64, Measured)>,
    /// What the epochs took that were trained here.
    pace: Pace,
    /// Whether far ratios were warned of.
    warned: bool,
    /// Epochs in a row whose rewards differ too little within groups.
    flat: u32,
    radar: Radar,
}

/// What epochs took.
#[derive(Clone, Copy, Default)]
struct Pace {
    epochs: u32,
    /// With their evaluations.
    all: Duration,
    /// Their rollouts and updates alone, in seconds.
    training: f64,
}

/// Epochs in a row without differences within groups before a run says so.
const FLAT_EPOCHS: u32 = 3;

/// How a run stands after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// An epoch was trained.
    Training,
    /// Nothing was trained: it was asked to stop, and what was trained is saved.
    Stopped,
    /// Nothing was trained: all epochs are.
    Done,
}

/// The held-out prompts before and after training.
#[derive(Clone, Debug)]
pub struct Results {
    /// Under the base weights.
    pub base: Measured,
    /// Under the averaged weights after the last epoch.
    pub tuned: Measured,
}

impl<'a> Run<'a> {
    /// A new run. Its folder must not be there, or be empty. A micro-batch of `"auto"` is chosen now and written into the recipe.
    pub fn create(
        path: impl AsRef<Path>,
        recipe: Recipe,
        components: &'a Components,
        watch: &'a Watch<'a>,
    ) -> Result<Self> {
        let mut recipe = recipe;
        recipe.fill_in();
        if let Tuning::Lora(lora) = &components.model.policy.tuning {
            recipe.setting.model.follow_adapter(lora);
        }
        recipe.method.batch.micro_batch = MicroBatch::Size(components.micro_batch(&recipe.method));
        recipe.method.batch.reuse_velocities = components.reuse_velocities(&recipe.method)?;
        let trainer = components.trainer(&recipe.method)?;
        let judges = judges::judges(&recipe, &components.data.test, &components.tools)?;
        let folder = create_folder(path.as_ref(), &recipe, components)?;
        let events = EventWriter::create(folder.path())?;
        Self::open(folder, recipe, (trainer, Radar::default()), judges, events, (components, watch))
    }

    /// A run that was stopped or killed, where its last checkpoint stands. `recipe` is what [`crate::recipe::of_run`] says. The folder
    /// changes once everything is known to load, and it is refused while another process works in it.
    pub fn resume(folder: RunFolder, recipe: Recipe, components: &'a Components, watch: &'a Watch<'a>) -> Result<Self> {
        let folder = folder.claim()?;
        if let Some(Holder { process, host, since }) = folder.left_by() {
            let text = format!(
                "process {process}, which took the run folder {} at {since}, is gone from this host ({host}): going on in its place",
                folder.path().display()
            );
            watch(Event::Warning { text: &text });
        }
        let mut trainer = components.trainer(&recipe.method)?;
        let judges = judges::judges(&recipe, &components.data.test, &components.tools)?;
        same_inputs(&folder, components)?;
        let mut radar = load_checkpoint(&folder, &mut trainer)?;
        let epoch = trainer.state.epoch;
        rewind(&folder, &recipe, epoch, radar.best_epoch())?;
        if !matches!(recipe.setting.radar.action, Action::Stop | Action::Rollback) {
            // Whoever turns it off wants to go on.
            radar.halted = None;
        }
        // The record begins anew, with the measurement of the base, where there is no checkpoint.
        let events = EventWriter::resume(folder.path(), if epoch == 0 { 0 } else { epoch + 1 })?;
        Self::open(folder, recipe, (trainer, radar), judges, events, (components, watch))
    }

    fn open(
        folder: RunFolder,
        recipe: Recipe,
        (mut trainer, radar): (Trainer<'a>, Radar),
        judges: Vec<Box<dyn Reward>>,
        events: EventWriter,
        (components, watch): (&'a Components, &'a Watch<'a>),
    ) -> Result<Self> {
        let metrics = MetricsWriter::open(folder.metrics())?;
        trainer.watch_reference = recipe.setting.radar.action != Action::Off;
        components.tools.log.write_to(&folder.reward_log());
        components
            .tools
            .journal
            .open(&folder.journal(), trainer.state.epoch)
            .at(|| "cannot read what rewards answered before".into())?;
        Ok(Self {
            stop: Arc::default(),
            judges,
            finished: Finished::new(&folder, &recipe, trainer.state.epoch),
            recipe,
            components,
            watch,
            trainer,
            folder,
            metrics,
            events,
            base: None,
            latest: None,
            pace: Pace::default(),
            warned: false,
            flat: 0,
            radar,
        })
    }

    /// What is run.
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// Where it writes.
    pub fn folder(&self) -> &RunFolder {
        &self.folder
    }

    /// Epochs trained so far.
    pub fn epoch(&self) -> u64 {
        self.trainer.state.epoch
    }

    /// Points that each image is evaluated at in an update.
    pub fn points(&self) -> usize {
        self.trainer.method().points(self.components.model.policy.schedule())
    }

    /// How many parameters are trained.
    pub fn parameters(&self) -> usize {
        self.trainer.state.current.values().len()
    }

    /// Why it ended before its last epoch, if it did (`radar.action = "stop"`, or rollbacks that did not help).
    pub fn halted(&self) -> Option<&str> {
        self.radar.halted.as_deref()
    }

    /// The last finished epoch, which another thread may save while this one trains.
    pub fn finished(&self) -> Finished {
        self.finished.clone()
    }

    /// Seconds that an epoch should take, by those that were trained here; nothing before the first.
    pub fn planned(&self) -> Option<f64> {
        (self.pace.epochs > 0).then(|| self.pace.training / f64::from(self.pace.epochs))
    }

    /// Trains one epoch, with evaluation and checkpoint when they are due. The first step measures the base before. After an error, or
    /// when it is asked to stop while it waits for a reward, run and folder stand as they did before the epoch, which is saved: resume it.
    pub fn step(&mut self) -> Result<Status> {
        let total = self.recipe.method.epochs;
        if self.epoch() >= total || self.radar.halted.is_some() {
            return Ok(Status::Done);
        }
        // To measure the base takes a while.
        if self.stops() || !self.begin()? || self.stops() {
            self.save()?;
            return Ok(Status::Stopped);
        }
        let start = Instant::now();
        let before = self.trainer.state.clone();
        self.components.tools.journal.turn(self.epoch());
        let progress = Progress { watch: self.watch, stop: Some(&self.stop) };
        let report = match self.trainer.epoch(&progress) {
            Ok(report) => report,
            Err(TrainError::Rollout(RolloutError::Stopped { .. })) => {
                self.ask_again_later()?;
                self.save()?;
                return Ok(Status::Stopped);
            }
            Err(error) => {
                self.ask_again_later()?;
                self.save()?;
                let folder = self.folder.path().display();
                return Err(error).at(|| format!("training stopped; the epochs before are saved in {folder}"));
            }
        };
        let epoch = self.epoch();
        let (mut record, sighting) = match self.record(&report) {
            Ok(Some(seen)) => seen,
            // An epoch whose evaluation is missing is not finished.
            unfinished => {
                self.trainer.state = before;
                self.save()?;
                return unfinished.map(|_| Status::Stopped);
            }
        };
        drop(before);
        self.act(&sighting, &mut record)?;
        self.write_samples(&report.samples)?;
        self.write_pictures(&report)?;
        self.write(&record)?;
        self.finished.add(&self.trainer.state, &self.radar);
        self.warn_of_ratios(&record);
        self.warn_of_flat_rewards(&record);
        let took = start.elapsed();
        let left = self.pace.add(took, &record, total - epoch);
        (self.watch)(Event::Epoch { epoch, record: &record, samples: &report.samples, took, left });
        // What a rollback goes back to is on disk.
        if epoch.is_multiple_of(self.recipe.setting.keep.checkpoint_every) || epoch == total || sighting.best {
            self.save()?;
        }
        Ok(Status::Training)
    }

    fn stops(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    /// Steps until all epochs are trained, or the run is asked to stop.
    pub fn steps(&mut self) -> Result<Status> {
        loop {
            match self.step()? {
                Status::Training => {}
                status => return Ok(status),
            }
        }
    }

    /// Measures what was trained, and writes `result.json` and a picture of before and after.
    pub fn finish(mut self) -> Result<Results> {
        let stopped = || Error::new("stopped while waiting for a reward", "go on with --resume once it can be reached");
        if !self.begin()? {
            return Err(stopped());
        }
        self.save()?;
        let (tuned, went_back) = match self.latest.take() {
            Some((epoch, measured)) if epoch == self.epoch() => (measured, None),
            _ => self.last_look()?.ok_or_else(stopped)?,
        };
        let base = self.base.take().expect("invariant: a run that began has measured its base");
        let measures = self.measures();
        let scores = |measured: &Measured| Value::from_iter(judges::entries(measured, &measures));
        let mut protocol = judges::protocol(&self.recipe, self.components.data.test.len());
        protocol["epoch"] = self.epoch().into();
        let mut results = json!({ "base": scores(&base), "tuned": scores(&tuned), "protocol": protocol });
        if let Some(hash) = &self.components.model.adapter_sha256 {
            // `base` is then the adapter that training started from.
            results["adapter_sha256"] = json!(hash);
        }
        if let Some(why) = &self.radar.halted {
            results["halted"] = json!({ "epoch": self.epoch(), "why": why });
        }
        if let Some(best) = self.radar.best_epoch() {
            results["best_epoch"] = best.into();
        }
        if let Some(epoch) = went_back {
            results["rollback_to"] = epoch.into();
        }
        let idle = self.epochs_without_update()?;
        if idle > 0 {
            results["epochs_that_trained_nothing"] = idle.into();
        }
        let text = serde_json::to_string_pretty(&results)?;
        write_atomic(&self.folder.path().join("result.json"), text.as_bytes())?;
        let (before, after) = (pictures::measured(&base, 24), pictures::measured(&tuned, 24));
        let image = grid::before_after(("base", &before), ("tuned", &after), 6, 4);
        save_png(&self.folder.images().join("before-after.png"), &image)?;
        (self.watch)(Event::Finished { base: &base, tuned: &tuned });
        Ok(Results { base, tuned })
    }

    /// Measures the weights after the last epoch, and has the radar look at that. A policy that cheats goes back where the recipe wants it: then
    /// the epoch of the weights that are kept, and their measurement. `None` if it was asked to stop meanwhile.
    fn last_look(&mut self) -> Result<Option<(Measured, Option<u64>)>> {
        let Some(measured) = self.measure(self.epoch())? else { return Ok(None) };
        let config = self.recipe.setting.radar;
        if config.action == Action::Off {
            return Ok(Some((measured, None)));
        }
        let news = self.radar.evaluation(&config, self.epoch(), &measured, self.components.reward.name()).news;
        for text in &news {
            (self.watch)(Event::Warning { text });
        }
        if news.is_empty() || config.action != Action::Rollback {
            return Ok(Some((measured, None)));
        }
        let best = self.go_back()?;
        self.finished.add(&self.trainer.state, &self.radar);
        self.save()?;
        Ok(self.measure(self.epoch())?.map(|measured| (measured, Some(best))))
    }

    /// Epochs of the record in which no sample was trained on: rewards were missing, or agreed within every group.
    fn epochs_without_update(&self) -> Result<u64> {
        let records = metrics::read(&self.folder.metrics())?;
        Ok(records.iter().filter(|record| record.get("trained_samples").is_some_and(|n| *n == 0)).count() as u64)
    }

    /// Before the first step: measures the base. `false` if it was asked to stop meanwhile.
    fn begin(&mut self) -> Result<bool> {
        if self.base.is_some() {
            return Ok(true);
        }
        for text in self.trainer.method().warnings(self.components.model.policy.schedule()) {
            (self.watch)(Event::Warning { text: &text });
        }
        let Some(base) = self.measure(0)? else { return Ok(false) };
        if self.epoch() == 0 && self.recipe.setting.radar.action != Action::Off {
            self.radar.evaluation(&self.recipe.setting.radar, 0, &base, self.components.reward.name());
        }
        if self.epoch() == 0 {
            let mut record = Map::from_iter([("epoch".to_owned(), Value::from(0))]);
            record.extend(judges::entries(&base, &self.measures()));
            self.write(&record)?;
        }
        self.base = Some(base);
        Ok(true)
    }

    /// Says once that the policies of an epoch lie far apart.
    fn warn_of_ratios(&mut self, record: &Map<String, Value>) {
        let small_by_nature = self.trainer.method().likelihood.means_over_dimensions();
        let largest = record.get("logratio_max").and_then(Value::as_f64).unwrap_or(0.0);
        if small_by_nature && largest > 1.0 && !self.warned {
            self.warned = true;
            let epoch = self.epoch();
            let text = format!(
                "epoch {epoch}: |ln ρ| is up to {largest:.2}. It is a mean over latent dimensions and seldom passes 0.01: a step may dominate the \
                 gradient (`elbow plan` shows their weights), or the learning rate is too high"
            );
            (self.watch)(Event::Warning { text: &text });
        }
    }

    /// Says once that rewards of a group hardly differ: there is nothing to prefer.
    fn warn_of_flat_rewards(&mut self, record: &Map<String, Value>) {
        let number = |key: &str| record.get(key).and_then(Value::as_f64);
        let name = self.components.reward.name();
        let all = number(&format!("reward_{name}_std")).unwrap_or(f64::NAN);
        let within = number("reward_std_mean");
        self.flat = if within.is_none_or(|within| within <= 1e-3 * all || within == 0.0) { self.flat + 1 } else { 0 };
        if self.flat == FLAT_EPOCHS {
            let epoch = self.epoch();
            let seen = within.map_or("no group has a reward".to_owned(), |within| {
                format!("within a group rewards deviate by {within:.1e} on average, and by {all:.1e} over all samples")
            });
            let text = format!(
                "epoch {epoch}: in {FLAT_EPOCHS} epochs reward `{name}` told samples of a prompt hardly apart ({seen}): there is next to \
                 nothing to learn from. The sample log has every score; a reward with degrees in place of yes and no, or prompts that sometimes \
                 succeed, would help"
            );
            (self.watch)(Event::Warning { text: &text });
        }
    }

    fn measures(&self) -> Vec<&dyn Reward> {
        judges::measures(&self.judges, &*self.components.reward)
    }

    /// Measures the averaged weights, which stand at `epoch`; 0 is the base. `None` if it was asked to stop while it waited for a reward.
    fn measure(&self, epoch: u64) -> Result<Option<Measured>> {
        let Components { model, data, tools, .. } = self.components;
        let params = (epoch > 0).then_some(&self.trainer.state.ema);
        tools.journal.turn(epoch);
        let progress = Progress { watch: self.watch, stop: Some(&self.stop) };
        let measured = match model.measured(&self.recipe, &data.test, &self.measures(), params, &progress) {
            Ok(measured) => measured,
            Err(MeasureError::Stopped(_)) => {
                self.ask_again_later()?;
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        tools.journal.turn(self.epoch());
        (self.watch)(Event::Evaluation { epoch, measured: &measured });
        Ok(Some(measured))
    }

    /// An epoch's line of the record, with an evaluation if one is due; `None` if it was asked to stop meanwhile. The last epoch has no
    /// evaluation of its own accord: a record does not depend on how many follow, so a longer run begins with the same ones.
    fn record(&mut self, report: &EpochReport) -> Result<Option<(Map<String, Value>, Sighting)>> {
        let (epoch, every) = (self.epoch(), self.recipe.setting.eval.measure.every);
        let mut record = report.record.clone();
        record.extend(self.planned().map(|seconds| ("time_planned".to_owned(), Value::from(seconds))));
        if every > 0 && epoch.is_multiple_of(every) {
            let Some(measured) = self.measure(epoch)? else { return Ok(None) };
            record.extend(judges::entries(&measured, &self.measures()));
            self.latest = Some((epoch, measured));
        }
        let sighting = self.look(report, &record);
        record.extend(sighting.entries.iter().cloned());
        Ok(Some((record, sighting)))
    }

    /// What the radar sees in an epoch, and in its evaluation if there was one.
    fn look(&mut self, report: &EpochReport, record: &Map<String, Value>) -> Sighting {
        let (config, epoch) = (self.recipe.setting.radar, self.epoch());
        if config.action == Action::Off {
            return Sighting::default();
        }
        let mut groups: BTreeMap<usize, Vec<&RgbImage>> = BTreeMap::new();
        for Logged { sample, .. } in report.samples.iter().filter(|logged| !logged.sample.replayed) {
            groups.entry(sample.group).or_default().push(&sample.image);
        }
        let groups: Vec<Vec<&RgbImage>> = groups.into_values().collect();
        let mut sighting = self.radar.epoch(&config, epoch, &groups, record);
        if let Some((_, measured)) = self.latest.as_ref().filter(|(at, _)| *at == epoch) {
            let held_out = self.radar.evaluation(&config, epoch, measured, self.components.reward.name());
            sighting.entries.extend(held_out.entries);
            sighting.news.extend(held_out.news);
            sighting.best = held_out.best;
        }
        sighting
    }

    /// Does what the recipe wants done about news of the radar.
    fn act(&mut self, sighting: &Sighting, record: &mut Map<String, Value>) -> Result<()> {
        for text in &sighting.news {
            (self.watch)(Event::Warning { text });
        }
        let config = self.recipe.setting.radar;
        let (Some(first), Action::Stop | Action::Rollback) = (sighting.news.first(), config.action) else {
            return Ok(());
        };
        if config.action == Action::Rollback {
            record.insert("rollback_to".to_owned(), self.go_back()?.into());
            if self.radar.rollbacks <= config.rollbacks {
                return Ok(());
            }
        }
        self.radar.halted = Some(first.clone());
        Ok(())
    }

    /// Goes back to the weights of the best evaluation, with a smaller step, and returns its epoch.
    fn go_back(&mut self) -> Result<u64> {
        let config = self.recipe.setting.radar;
        let best = self.radar.best_epoch().unwrap_or(0);
        let state = match best {
            0 => State::new(self.components.model.policy.initial()),
            _ => read_state(&self.folder.checkpoints().join(format!("checkpoint-{best}")), &self.trainer.state)?.0,
        };
        self.trainer.roll_back(state, config.factor);
        self.radar.rollbacks += 1;
        self.radar.clear();
        self.latest = None;
        let (epoch, rollbacks) = (self.epoch(), self.radar.rollbacks);
        let rest = if rollbacks > config.rollbacks {
            format!("; after {0} of {0} rollbacks the run ends", config.rollbacks)
        } else {
            let factor = self.trainer.state.optimizer.rate_factor;
            format!(", with {factor} times the learning rate (rollback {rollbacks} of {})", config.rollbacks)
        };
        (self.watch)(Event::Warning { text: &format!("epoch {epoch}: back to the weights of epoch {best}{rest}") });
        Ok(best)
    }

    fn write(&mut self, record: &Map<String, Value>) -> Result<()> {
        self.metrics.append(record)?;
        let epoch = record["epoch"].as_u64().unwrap_or(0);
        let scalars = record.iter().filter_map(|(key, value)| Some((key.as_str(), value.as_f64()? as f32)));
        self.events.scalars(epoch, scalars.filter(|(key, _)| *key != "epoch"))?;
        Ok(())
    }

    /// The samples of an epoch, complete or not at all.
    fn write_samples(&self, samples: &[Logged]) -> Result<()> {
        let keep = &self.recipe.setting.keep;
        if !keep.samples {
            return Ok(());
        }
        Ok(samples::write(&self.folder.samples(), self.epoch(), samples, keep.pictures)?)
    }

    fn write_pictures(&mut self, report: &EpochReport) -> Result<()> {
        let (epoch, every) = (self.epoch(), self.recipe.setting.keep.images_every);
        if every == 0 || !epoch.is_multiple_of(every) {
            return Ok(());
        }
        let image = grid::grid(&pictures::samples(&report.samples, self.recipe.method.batch.group_size, 16), 8, 4);
        let path = self.folder.images().join(format!("epoch-{epoch:05}.png"));
        save_png(&path, &image)?;
        self.events.image(epoch, "samples", &image)?;
        (self.watch)(Event::Pictures { epoch, path: &path });
        Ok(())
    }

    /// What nobody answered in work that ends here is asked again by whoever goes on.
    fn ask_again_later(&self) -> Result<()> {
        let place = || "cannot write to the journal of the rewards".to_owned();
        self.components.tools.journal.forget_unavailable().at(place)
    }

    /// Saves the last finished epoch if no checkpoint holds it yet.
    fn save(&mut self) -> Result<()> {
        let Some((epoch, path)) = self.finished.save()? else { return Ok(()) };
        self.components.tools.journal.forget_before(epoch).at(|| "cannot delete old answers of rewards".into())?;
        (self.watch)(Event::Checkpoint { epoch, path: &path });
        Ok(())
    }
}

impl Pace {
    /// Counts an epoch, and says how long `more` should take.
    fn add(&mut self, took: Duration, record: &Map<String, Value>, more: u64) -> Duration {
        let seconds = |key: &str| record.get(key).and_then(Value::as_f64).unwrap_or(0.0);
        self.epochs += 1;
        self.all += took;
        self.training += seconds("time_rollout") + seconds("time_update");
        Duration::try_from_secs_f64(self.all.as_secs_f64() / f64::from(self.epochs) * more as f64)
            .unwrap_or(Duration::MAX)
    }
}

/// Makes the folder of a new run, with its recipe and what it was made on and with.
fn create_folder(path: &Path, recipe: &Recipe, components: &Components) -> Result<RunFolder> {
    let text = recipe.to_toml()?;
    let folder = RunFolder::create(path)?;
    let mut manifest = machine::facts();
    manifest["seed"] = json!(recipe.method.seed);
    if let Some((name, commit)) = recipe.setting.model.commit() {
        manifest["model"] = json!({ "hub": name, "commit": commit });
    }
    let network = &components.model.policy.network;
    manifest["network"] = json!({ "family": network.family(), "architecture": network.model_name() });
    manifest["base_sha256"] = json!(components.model.sha256);
    manifest["prompts_sha256"] = json!(components.data.sha256);
    if let Some(hash) = &components.model.adapter_sha256 {
        manifest["adapter_sha256"] = json!(hash);
    }
    if let Some(hash) = &components.teachers_sha256 {
        manifest["teachers_sha256"] = json!(hash);
    }
    manifest["device"] = json!(format!("{:?}", components.model.device));
    manifest["arguments"] = json!(std::env::args().skip(1).collect::<Vec<_>>());
    write_atomic(&folder.manifest(), serde_json::to_string_pretty(&manifest)?.as_bytes())?;
    write_atomic(&folder.config(), text.as_bytes())?;
    Ok(folder)
}

/// An error if the base, the adapter, the prompts or the teachers are not those that the run started with.
fn same_inputs(folder: &RunFolder, components: &Components) -> Result<()> {
    let manifest = manifest(folder)?;
    let inputs = [
        ("base_sha256", json!(components.model.sha256), "base weights"),
        ("prompts_sha256", json!(components.data.sha256), "prompts"),
        // Null where there are none, as a name that the manifest lacks.
        ("adapter_sha256", json!(components.model.adapter_sha256), "weights of the adapter"),
        ("teachers_sha256", json!(components.teachers_sha256), "teachers"),
    ];
    for (key, now, what) in inputs {
        if manifest[key] != now {
            return Err(Error::new(
                format!("the {what} differ from those that {} was started with", folder.path().display()),
                "restore the files it was started with, or start a new run with --run",
            ));
        }
    }
    Ok(())
}

/// What a run was made on and with.
pub fn manifest(folder: &RunFolder) -> Result<Value> {
    let path = folder.manifest();
    let text = std::fs::read_to_string(&path).at(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).map_err(|error| {
        Error::new(format!("{} is damaged: {error}", path.display()), "restore the file, or start a new run with --run")
    })
}

/// Puts the state of the last checkpoint into the trainer. Nothing on disk changes but what a kill left half done.
fn load_checkpoint(folder: &RunFolder, trainer: &mut Trainer<'_>) -> Result<Radar> {
    let Some((_, path)) = checkpoint::recover(&folder.checkpoints())? else { return Ok(Radar::default()) };
    let (state, radar) = read_state(&path, &trainer.state)?;
    let epochs = trainer.method().epochs;
    if state.epoch > epochs {
        return Err(Error::new(
            format!("{} has finished {} epochs already, and epochs = {epochs}", folder.path().display(), state.epoch),
            format!("go on with --set epochs={} or more", state.epoch + 1),
        ));
    }
    trainer.state = state;
    Ok(radar)
}

/// A checkpoint's state, laid out as `layout`, and what the radar remembered then.
fn read_state(path: &Path, layout: &State) -> Result<(State, Radar)> {
    let saved = checkpoint::read(path)?;
    let state = layout.load(&saved.files, &saved.state["counters"]).map_err(|error| {
        Error::new(
            format!("cannot use checkpoint {}: {error}", path.display()),
            "delete this checkpoint folder to go on from the one before it",
        )
    })?;
    // Those of earlier versions have none.
    Ok((state, serde_json::from_value(saved.state["radar"].clone()).unwrap_or_default()))
}

/// Makes a folder say what it said after `epoch`, and that the run is to become as long as the recipe says.
fn rewind(folder: &RunFolder, recipe: &Recipe, epoch: u64, best: Option<u64>) -> Result<()> {
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
    samples::forget_after(&folder.samples(), epoch)?;
    samples::forget_after(&folder.images(), epoch)?;
    finished::keep(folder, recipe, best)
}
