//! The last finished epoch of a run, and its checkpoint, whichever thread must write it.
//!
//! A cluster that wants its machine back leaves a program seconds, and an epoch of a large model takes hours. So whoever is told to stop
//! saves what is finished at once, beside the epoch under way, which may change its own weights meanwhile. To keep the state of the last
//! finished epoch for that takes no memory of its own: parameters share their values until they change, and the trainer keeps the state
//! before an update in any case.

use crate::{error::Result, radar::Radar, recipe::Recipe};
use elbow::train::State;
use elbow_runlog::{RunFolder, checkpoint};
use serde_json::json;
use std::{
    mem,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// The last finished epoch of a run: its record, samples and pictures are written. Clones are of one run.
#[derive(Clone)]
pub struct Finished(Arc<Mutex<Last>>);

struct Last {
    folder: RunFolder,
    recipe: Recipe,
    epoch: u64,
    /// What a checkpoint of this epoch is to hold, until there is one.
    unsaved: Option<(State, Radar)>,
}

impl Finished {
    /// An epoch that has its checkpoint, or 0.
    pub(crate) fn new(folder: &RunFolder, recipe: &Recipe, epoch: u64) -> Self {
        let last = Last { folder: folder.clone(), recipe: recipe.clone(), epoch, unsaved: None };
        Self(Arc::new(Mutex::new(last)))
    }

    /// One more epoch is finished.
    pub(crate) fn add(&self, state: &State, radar: &Radar) {
        let mut last = self.last();
        last.epoch = state.epoch;
        last.unsaved = Some((state.clone(), radar.clone()));
    }

    /// Where the run is.
    pub fn folder(&self) -> RunFolder {
        self.last().folder.clone()
    }

    /// Writes its checkpoint and returns epoch and path, if it has none. Any thread may, at any time.
    pub fn save(&self) -> Result<Option<(u64, PathBuf)>> {
        self.last().save()
    }

    /// The same for a process that ends right after this, whatever its other threads do: gives the folder back too, and returns the epoch
    /// that is saved. Whoever saves later waits without end.
    pub fn leave(&self) -> Result<u64> {
        let mut last = self.last();
        let saved = last.save();
        last.folder.release();
        let epoch = last.epoch;
        mem::forget(last);
        saved.map(|_| epoch)
    }

    fn last(&self) -> MutexGuard<'_, Last> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Last {
    fn save(&mut self) -> Result<Option<(u64, PathBuf)>> {
        let Some((state, radar)) = &self.unsaved else { return Ok(None) };
        let (files, counters) = state.save();
        let files: Vec<(&str, &[u8])> = files.iter().map(|(name, bytes)| (*name, bytes.as_slice())).collect();
        let path = checkpoint::write(
            &self.folder.checkpoints(),
            state.epoch,
            &files,
            &json!({ "counters": counters, "radar": radar }),
        )?;
        let best = radar.best_epoch();
        self.unsaved = None;
        keep(&self.folder, &self.recipe, best)?;
        Ok(Some((self.epoch, path)))
    }
}

/// Removes the checkpoints that a recipe does not keep; that of the best evaluation stays.
pub(crate) fn keep(folder: &RunFolder, recipe: &Recipe, best: Option<u64>) -> Result<()> {
    let (keep, epochs) = (&recipe.setting.keep, recipe.method.epochs);
    let regular = |epoch: u64| epoch.is_multiple_of(keep.checkpoint_every) || epoch == epochs;
    Ok(checkpoint::keep_regular(&folder.checkpoints(), keep.checkpoints, best, regular)?)
}
