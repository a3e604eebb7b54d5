//! AdamW (Loshchilov & Hutter 2019, Algorithm 2) on flat slices, in place.
//!
//! With `g` the gradient at step `t`:
//!
//! ```text
//! θ ← θ − lr·λ·θ
//! m ← m + (1 − β₁)(g − m)
//! v ← β₂ v + (1 − β₂) g²
//! θ ← θ − lr/(1 − β₁ᵗ) · m / (√v / √(1 − β₂ᵗ) + ε)
//! ```
//!
//! This is the order and the placement of ε of `torch.optim.AdamW`. The elements are independent, so the result does
//! not depend on the number of threads.

use rayon::prelude::*;

use crate::isa::kernel;

/// Elements one task updates: four streams of 64 KiB stay in a core's second-level cache.
const CHUNK: usize = 1 << 14;

/// Adam with decoupled weight decay; the learning rate and the step count are arguments of [`AdamW::step`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Decay rate of the gradient's running mean.
    pub beta1: f64,
    /// Decay rate of the squared gradient's running mean.
    pub beta2: f64,
    /// Added to the denominator, outside the square root.
    pub eps: f64,
    /// Decoupled decay: each step first multiplies the parameter by `1 − lr·weight_decay`.
    pub weight_decay: f64,
}

/// The constants of one step, rounded once from `f64`.
#[derive(Clone, Copy)]
struct Coefficients {
    keep: f32,
    one_minus_beta1: f32,
    beta2: f32,
    one_minus_beta2: f32,
    step_size: f32,
    inverse_correction: f32,
    eps: f32,
}

impl AdamW {
    /// Applies update number `step` (from 1) with learning rate `lr` to `param`, updating the moments `m` and `v`.
    ///
    /// `m` and `v` are zero before the first step.
    ///
    /// # Panics
    ///
    /// If the four slices differ in length or `step` is 0.
    pub fn step(&self, step: u64, lr: f64, param: &mut [f32], grad: &[f32], m: &mut [f32], v: &mut [f32]) {
        assert!(step > 0, "AdamW steps are counted from 1");
        let len = param.len();
        assert!(grad.len() == len && m.len() == len && v.len() == len, "AdamW: slices differ in length");
        let c = self.coefficients(step, lr);
        param
            .par_chunks_mut(CHUNK)
            .zip(grad.par_chunks(CHUNK))
            .zip(m.par_chunks_mut(CHUNK).zip(v.par_chunks_mut(CHUNK)))
            .for_each(|((param, grad), (m, v))| update(c, param, grad, m, v));
    }

    fn coefficients(&self, step: u64, lr: f64) -> Coefficients {
        let correction1 = 1.0 - self.beta1.powf(step as f64);
        let correction2 = 1.0 - self.beta2.powf(step as f64);
        Coefficients {
            keep: (1.0 - lr * self.weight_decay) as f32,
            one_minus_beta1: (1.0 - self.beta1) as f32,
            beta2: self.beta2 as f32,
            one_minus_beta2: (1.0 - self.beta2) as f32,
            step_size: (lr / correction1) as f32,
            inverse_correction: (1.0 / correction2.sqrt()) as f32,
            eps: self.eps as f32,
        }
    }
}

kernel! {
    fn update(c: Coefficients, param: &mut [f32], grad: &[f32], m: &mut [f32], v: &mut [f32]) {
        for (((p, &g), m), v) in param.iter_mut().zip(grad).zip(m).zip(v) {
            *m += c.one_minus_beta1 * (g - *m);
            *v = c.beta2 * *v + c.one_minus_beta2 * g * g;
            *p = c.keep * *p - c.step_size * *m / (v.sqrt() * c.inverse_correction + c.eps);
        }
    }
}
