//! The tensors a network has: names, shapes, and how fresh ones start.
//!
//! A layout follows from the sizes of a network alone and holds no values, so that of a model of many billion parameters
//! costs as little as that of the nano model.

use crate::mmdit::sinusoids_2d;
use elbow::{noise::Key, params::Params};

/// One tensor of a network.
#[derive(Clone, Debug, PartialEq)]
pub struct Slot {
    /// Its name, as in a checkpoint of `diffusers`.
    pub name: String,
    /// Its shape, row-major.
    pub shape: Vec<usize>,
    start: Start,
}

/// How the values of a fresh tensor are made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Start {
    Zeros,
    Ones,
    /// Gaussian with this deviation.
    Normal(f64),
    /// Sinusoids of a square grid, in units of a grid of `base` cells a side.
    Positions {
        base: usize,
    },
}

/// The tensors of a network, in the order in which its parameters are laid out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Layout {
    slots: Vec<Slot>,
}

impl Layout {
    /// The tensors, in order.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// Names and shapes, in order.
    pub fn shapes(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.slots.iter().map(|slot| (slot.name.as_str(), slot.shape.as_slice()))
    }

    /// Number of parameters, fixed tables included.
    pub fn size(&self) -> usize {
        self.slots.iter().map(|slot| slot.shape.iter().product::<usize>()).sum()
    }

    /// Fresh values; tensor `i` draws from stream `i` of `key`.
    pub fn initial(&self, key: Key) -> Params {
        let values = |(i, slot): (usize, &Slot)| {
            let len = slot.shape.iter().product();
            let values = match slot.start {
                Start::Zeros => vec![0.0; len],
                Start::Ones => vec![1.0; len],
                Start::Normal(deviation) => {
                    let mut values = Vec::with_capacity(len);
                    key.sample(i as u64).extend_normals(len, &mut values);
                    for value in &mut values {
                        *value *= deviation as f32;
                    }
                    values
                }
                Start::Positions { base } => sinusoids_2d(slot.shape[2], slot.shape[1].isqrt(), base),
            };
            (slot.name.clone(), slot.shape.clone(), values)
        };
        Params::new(self.slots.iter().enumerate().map(values))
    }

    pub(crate) fn push(&mut self, name: String, shape: Vec<usize>, start: Start) {
        self.slots.push(Slot { name, shape, start });
    }

    /// Weight of the given shape and deviation, bias zero.
    pub(crate) fn linear(&mut self, path: &str, shape: Vec<usize>, deviation: f64) {
        let out = shape[0];
        self.push(format!("{path}.weight"), shape, Start::Normal(deviation));
        self.push(format!("{path}.bias"), vec![out], Start::Zeros);
    }

    /// Xavier: deviation √(2 / (in + out)).
    pub(crate) fn xavier(&mut self, path: &str, input: usize, out: usize) {
        self.linear(path, vec![out, input], (2.0 / (input + out) as f64).sqrt());
    }

    /// Weights of RMS norms over heads of width `width`.
    pub(crate) fn norms(&mut self, path: &str, names: &[&str], width: usize) {
        for name in names {
            self.push(format!("{path}.{name}.weight"), vec![width], Start::Ones);
        }
    }
}
