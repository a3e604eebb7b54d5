//! Everything a run is between two epochs.

use crate::{
    advantage::History,
    collection::Memory,
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
    /// What the collection carries to the next epoch.
    pub memory: Memory,
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

/// The file with the tensors that the collection remembers; it is there if there are any.
const COLLECTION: &str = "collection.safetensors";

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
            memory: Memory::default(),
        }
    }

    /// The files of a checkpoint, and the counters beside them.
    pub fn save(&self) -> (Vec<(&'static str, Vec<u8>)>, Value) {
        let params = [&self.current, &self.behavior, &self.ema, &self.optimizer.first, &self.optimizer.second];
        let mut files: Vec<(&'static str, Vec<u8>)> =
            FILES.into_iter().zip(params).map(|(name, params)| (name, params.to_safetensors(None))).collect();
        if !self.memory.tensors.entries().is_empty() {
            files.push((COLLECTION, self.memory.tensors.to_safetensors(None)));
        }
        let counters = json!({"epoch": self.epoch, "optimizer_step": self.optimizer.step,
            "rate_factor": self.optimizer.rate_factor, "not_finite": self.not_finite, "history": self.history, "collection": self.memory.notes});
        (files, counters)
    }

    /// The state that [`State::save`] wrote; `self` gives the layout.
    pub fn load(&self, files: &BTreeMap<String, Vec<u8>>, counters: &Value) -> Result<Self, StateError> {
        let read = |file: &'static str| {
            let bytes = files.get(file).ok_or(StateError::Missing(file))?;
            self.current.with_values_of(bytes).map_err(|source| StateError::Weights { file, source })
        };
        let count = |name: &'static str| counters[name].as_u64().ok_or(StateError::Missing(name));
        let [current, behavior, ema, first, second] = FILES.map(read);
        // Earlier versions had none.
        let rate_factor = counters["rate_factor"].as_f64().unwrap_or(1.0);
        let optimizer = Optimizer { step: count("optimizer_step")?, first: first?, second: second?, rate_factor };
        let (epoch, not_finite) = (count("epoch")?, count("not_finite")? as u32);
        let history =
            serde_json::from_value(counters["history"].clone()).map_err(|_| StateError::Missing("history"))?;
        let tensors = match files.get(COLLECTION) {
            None => Params::new([]),
            Some(bytes) => {
                Params::from_safetensors(bytes).map_err(|source| StateError::Weights { file: COLLECTION, source })?
            }
        };
        let memory = Memory { notes: counters["collection"].clone(), tensors };
        Ok(Self { epoch, current: current?, behavior: behavior?, ema: ema?, optimizer, not_finite, history, memory })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_comes_back_bit_for_bit() {
        let mut state = State::new(Params::new([("w".into(), vec![3], vec![1.0, f32::MIN_POSITIVE, -0.0])]));
        state.optimizer.second.values_mut()[1] = 1e-30;
        (state.epoch, state.optimizer.step, state.optimizer.rate_factor) = (7, 14, 0.3);
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
