//! Everything a run is between two epochs.

use super::Kept;
use crate::{
    advantage::History,
    optimizer::Optimizer,
    params::{Params, WeightError},
};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// What a checkpoint holds.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// Epochs completed.
    pub epoch: u64,
    /// The trained parameters.
    pub current: Params,
    /// Those that draw rollouts.
    pub behavior: Params,
    /// Their moving average, which is evaluated.
    pub ema: Params,
    /// AdamW's moments and step count.
    pub optimizer: Optimizer,
    /// Updates in a row whose gradient was not finite.
    pub not_finite: u32,
    /// Earlier rewards by prompt, where the advantage wants them.
    pub history: History,
    /// Images kept for replay, those that stand out most first.
    pub kept: Vec<Kept>,
}

/// A checkpoint that does not fit this run.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A file that should be there is not.
    #[error("the checkpoint has no {0}")]
    Missing(&'static str),
    /// A file that is there does not fit.
    #[error("{file}: {source}")]
    Weights {
        /// The file.
        file: &'static str,
        /// What is wrong.
        source: WeightError,
    },
}

/// File names in a checkpoint.
const FILES: [&str; 5] = [
    "weights.safetensors",
    "behavior.safetensors",
    "ema.safetensors",
    "adam_first.safetensors",
    "adam_second.safetensors",
];

/// The file with the paths of images kept for replay; it is there if there are any.
const REPLAY: &str = "replay.safetensors";

impl State {
    /// Before the first epoch.
    pub fn new(initial: Params) -> Self {
        Self {
            epoch: 0,
            behavior: initial.clone(),
            ema: initial.clone(),
            optimizer: Optimizer::new(&initial),
            current: initial,
            not_finite: 0,
            history: History::default(),
            kept: Vec::new(),
        }
    }

    /// The files of a checkpoint, and the counters beside them.
    pub fn save(&self) -> (Vec<(&'static str, Vec<u8>)>, Value) {
        let params = [&self.current, &self.behavior, &self.ema, &self.optimizer.first, &self.optimizer.second];
        let paths = Kept::paths(&self.kept);
        let files = FILES.into_iter().zip(params).chain((!self.kept.is_empty()).then_some((REPLAY, &paths)));
        let files = files.map(|(name, p)| (name, p.to_safetensors(None))).collect();
        let counters = json!({"epoch": self.epoch, "optimizer_step": self.optimizer.step, "not_finite": self.not_finite,
            "history": self.history, "kept": self.kept});
        (files, counters)
    }

    /// The state that [`State::save`] wrote; `self` gives the layout.
    pub fn load(&self, files: &BTreeMap<String, Vec<u8>>, counters: &Value) -> Result<Self, StateError> {
        let values = |file: &'static str, layout: &Params| {
            let bytes = files.get(file).ok_or(StateError::Missing(file))?;
            layout.with_values_of(bytes).map_err(|source| StateError::Weights { file, source })
        };
        let read = |file| values(file, &self.current);
        let count = |name: &'static str| counters[name].as_u64().ok_or(StateError::Missing(name));
        let [current, behavior, ema, first, second] = FILES.map(read);
        let optimizer = Optimizer { step: count("optimizer_step")?, first: first?, second: second? };
        let (epoch, not_finite) = (count("epoch")?, count("not_finite")? as u32);
        let history =
            serde_json::from_value(counters["history"].clone()).map_err(|_| StateError::Missing("history"))?;
        let mut kept: Vec<Kept> =
            serde_json::from_value(counters["kept"].clone()).map_err(|_| StateError::Missing("kept"))?;
        if !kept.is_empty() {
            let paths = values(REPLAY, &Kept::layout(&kept))?;
            kept = Kept::with_paths(kept, &paths);
        }
        Ok(Self { epoch, current: current?, behavior: behavior?, ema: ema?, optimizer, not_finite, history, kept })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_comes_back_bit_for_bit() {
        let mut state = State::new(Params::new([("w".into(), vec![3], vec![1.0, f32::MIN_POSITIVE, -0.0])]));
        state.optimizer.second.values_mut()[1] = 1e-30;
        (state.epoch, state.optimizer.step) = (7, 14);
        state.history.extend("a cat", [0.1, 1.0 / 3.0].into_iter(), 2);
        let (files, counters) = state.save();
        let files = files.into_iter().map(|(n, b)| (n.to_owned(), b)).collect();
        let fresh = State::new(state.current.zeros_like());
        assert_eq!(fresh.load(&files, &counters).expect("fits"), state);
    }

    #[test]
    fn a_missing_file_is_named() {
        let state = State::new(Params::new([("w".into(), vec![1], vec![1.0])]));
        let error = state.load(&BTreeMap::new(), &state.save().1).expect_err("no files");
        assert!(error.to_string().contains(".safetensors"), "{error}");
    }
}
