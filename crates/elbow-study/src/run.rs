//! Running what is not finished, one cell after the other: each is an ordinary run that is gone on with where a kill left it.

use crate::{
    cell::{Finished, Store},
    plan::{Cell, Stage, Study, Variant},
    trial,
};
use elbow::{missing, rollout::RolloutError, train::TrainError};
use elbow_run::{Components, Device, Error, Event, Result, Run, Status, error::At, recipe};
use elbow_runlog::{RunFolder, metrics};
use std::{
    collections::BTreeSet,
    fs::{self, File, TryLockError},
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

/// Where a study works, and with what.
pub struct Workshop<'a> {
    /// Finished cells.
    pub store: Store,
    /// The folder of its runs.
    pub runs: PathBuf,
    /// Where tensors live.
    pub device: Device,
    /// Set it to stop after the epoch under way, which is saved.
    pub stop: Arc<AtomicBool>,
    /// Cells to run at most.
    pub most: usize,
    /// Is told what happens.
    pub watch: &'a (dyn Fn(Told<'_>) + Sync),
}

/// What a study tells.
#[derive(Clone, Copy, Debug)]
pub enum Told<'a> {
    /// A cell begins, or goes on.
    Begin {
        /// The method, its stage or candidate, and the seed.
        title: &'a str,
        /// The cell.
        cell: &'a Cell,
        /// How many have begun, this one included.
        number: usize,
        /// How many there are to finish at most: what trials choose may be finished already.
        of: usize,
    },
    /// Its run tells something.
    Run(Event<'a>),
    /// A cell is finished and kept.
    Finish {
        /// The method, its stage or candidate, and the seed.
        title: &'a str,
        /// The cell.
        finished: &'a Finished,
    },
    /// Another process is at work on a cell, which is left to it.
    Busy {
        /// The method, its stage or candidate, and the seed.
        title: &'a str,
    },
}

/// How a study stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Cells that were begun, or gone on with, now.
    pub begun: usize,
    /// Cells that were finished now.
    pub finished: usize,
    /// Cells left for later or another process; trials that must come first count, and what follows them does not.
    pub left: usize,
    /// Whether it was asked to stop.
    pub stopped: bool,
}

impl Study {
    /// Runs what is not finished: comparisons as published, then trials, then comparisons of what they chose.
    pub fn run(&self, shop: &Workshop<'_>) -> Result<Standing> {
        shop.store.check()?;
        let (of, mut standing) = (self.unfinished(&shop.store)?, Standing::default());
        for stage in self.stages() {
            if stage == Stage::Tuned {
                for variant in &self.variants {
                    for candidate in 0..variant.candidates.len() {
                        for cell in self.trials(variant, candidate)? {
                            let title = title(variant, &format!("trial {}", candidate + 1), &cell);
                            shop.finish(&title, &cell, of, &mut standing)?;
                        }
                    }
                }
            }
            for variant in &self.variants {
                let candidate = match stage {
                    Stage::Published => Some(0),
                    Stage::Tuned => self.chosen(variant, &shop.store)?.map(|choice| choice.candidate),
                };
                let Some(candidate) = candidate else { continue };
                for &seed in &self.file.seeds {
                    let cell = self.cell(variant, candidate, seed)?;
                    shop.finish(&title(variant, stage.name(), &cell), &cell, of, &mut standing)?;
                }
            }
        }
        Ok(standing)
    }

    /// How many cells are not finished, at most: what trials will choose counts as not finished until they are.
    pub fn unfinished(&self, store: &Store) -> Result<usize> {
        let mut keys = BTreeSet::new();
        let mut unknown = 0;
        for variant in &self.variants {
            for stage in self.stages() {
                let mut cells = Vec::new();
                let chosen = match stage {
                    Stage::Published => Some(0),
                    Stage::Tuned => {
                        for candidate in 0..variant.candidates.len() {
                            cells.extend(self.trials(variant, candidate)?);
                        }
                        self.chosen(variant, store)?.map(|choice| choice.candidate)
                    }
                };
                match chosen {
                    None => unknown += self.file.seeds.len(),
                    Some(candidate) => {
                        for &seed in &self.file.seeds {
                            cells.push(self.cell(variant, candidate, seed)?);
                        }
                    }
                }
                keys.extend(cells.into_iter().map(|cell| cell.key));
            }
        }
        let mut open = unknown;
        for key in keys {
            open += usize::from(store.read(&key)?.is_none());
        }
        Ok(open)
    }

    /// What the trials of a variant chose; nothing while some are missing.
    pub fn chosen(&self, variant: &Variant, store: &Store) -> Result<Option<Choice>> {
        let mut scores = Vec::new();
        for candidate in 0..variant.candidates.len() {
            let mut of_seeds = Vec::new();
            for cell in self.trials(variant, candidate)? {
                let Some(finished) = store.read(&cell.key)? else { return Ok(None) };
                let measure = &self.file.measure;
                let score = finished.last(measure).filter(|_| finished.stopped.is_none());
                // One that could not be trained to its end is the worst.
                of_seeds.push(score.unwrap_or(f64::NEG_INFINITY));
            }
            scores.push(crate::statistics::mean(&of_seeds));
        }
        let best = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let candidate = scores.iter().position(|&score| score >= best).unwrap_or(0);
        Ok(Some(Choice { candidate, scores }))
    }
}

/// What trials chose.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// The candidate with the best score, the first of equals.
    pub candidate: usize,
    /// The mean score of each, −∞ where one stopped.
    pub scores: Vec<f64>,
}

fn title(variant: &Variant, what: &str, cell: &Cell) -> String {
    format!("{}, {what}, seed {}", variant.name, cell.recipe.method.seed)
}

impl Workshop<'_> {
    /// Finishes a cell that is not, unless the study was asked to stop.
    fn finish(&self, title: &str, cell: &Cell, of: usize, standing: &mut Standing) -> Result<()> {
        if self.store.read(&cell.key)?.is_some() {
            return Ok(());
        }
        standing.stopped |= self.stop.load(Ordering::SeqCst);
        if standing.stopped || standing.finished >= self.most {
            standing.left += 1;
            return Ok(());
        }
        let Some(_lock) = self.lock(cell)? else {
            (self.watch)(Told::Busy { title });
            standing.left += 1;
            return Ok(());
        };
        // Another process may have finished it in between.
        if self.store.read(&cell.key)?.is_some() {
            return Ok(());
        }
        standing.begun += 1;
        (self.watch)(Told::Begin { title, cell, number: standing.begun, of });
        let Some(finished) = self.run(cell).at(|| title.to_owned())? else {
            (standing.stopped, standing.left) = (true, standing.left + 1);
            return Ok(());
        };
        self.store.write(&finished)?;
        standing.finished += 1;
        (self.watch)(Told::Finish { title, finished: &finished });
        Ok(())
    }

    /// The right to run a cell, until it is dropped or the process ends; nothing if another process has it.
    fn lock(&self, cell: &Cell) -> Result<Option<File>> {
        let folder = self.runs.join("locks");
        fs::create_dir_all(&folder).at(|| format!("cannot create {}", folder.display()))?;
        let path = folder.join(&cell.key);
        let place = || format!("cannot lock {}", path.display());
        let file = File::create(&path).at(place)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error).at(place),
        }
    }

    /// Runs a cell to its end, from where its folder stands; nothing if it was asked to stop.
    fn run(&self, cell: &Cell) -> Result<Option<Finished>> {
        let path = self.runs.join(&cell.key);
        if path.exists() && RunFolder::open(&path).is_err() {
            // A kill left it before its recipe was written.
            fs::remove_dir_all(&path).at(|| format!("cannot remove {}", path.display()))?;
        }
        let names = Mutex::new(Vec::new());
        let watch = |event: Event<'_>| {
            if let Event::Evaluation { measured, .. } = event {
                *names.lock().unwrap_or_else(PoisonError::into_inner) = measured.scores.keys().cloned().collect();
            }
            (self.watch)(Told::Run(event));
        };
        let existing = RunFolder::open(&path).ok();
        let recipe = match &existing {
            Some(folder) => recipe::of_run(folder, None, &[])?,
            None => cell.recipe.clone(),
        };
        let mut components = Components::load(&recipe, &self.device, &watch)?;
        if cell.trial {
            trial::split(&recipe, &mut components.data)?;
        }
        let mut run = match existing {
            Some(folder) => Run::resume(folder, recipe, &components, &watch)?,
            None => Run::create(&path, recipe, &components, &watch)?,
        };
        run.stop = Arc::clone(&self.stop);
        let folder = run.folder().clone();
        let (stopped, last) = match run.steps() {
            Ok(Status::Stopped) => return Ok(None),
            Ok(_) => (None, Some(run.finish()?)),
            Err(error) if diverged(&error) => (Some(cause(&error)), None),
            Err(error) => return Err(error),
        };
        let measures = names.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut records = metrics::read(&folder.metrics())?;
        if let (Some(results), Some(record)) = (last, records.last_mut()) {
            // The last epoch has an evaluation of its own only where one was due.
            for name in &measures {
                let mean = results.tuned.summary(name).map(|summary| summary.mean);
                record.extend(mean.map(|mean| (format!("eval_reward_{name}"), mean.into())));
            }
        }
        Ok(Some(Finished::of(cell, &records, &measures, components.reward.name(), stopped)))
    }
}

/// Whether a run ended since its gradients or its samples were not finite: that is a result, and nothing else is.
fn diverged(error: &Error) -> bool {
    match error {
        Error::At { source, .. } => diverged(source),
        Error::Train(TrainError::NotFinite { .. }) => true,
        Error::Train(TrainError::Rollout(RolloutError::Missing { first, .. })) => {
            [missing::NOT_FINITE, missing::NOT_DECODED].contains(&&**first)
        }
        _ => false,
    }
}

/// The last link of an error, which names no place.
fn cause(error: &Error) -> String {
    match error {
        Error::At { source, .. } => cause(source),
        error => error.to_string(),
    }
}
