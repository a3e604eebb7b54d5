//! GELU in its tanh form (Hendrycks & Gimpel 2016, section 2).
//!
//! With `u = √(2/π) (x + 0.044715 x³)` and `σ` the logistic function, `½ (1 + tanh u) = σ(2u)`, so
//!
//! ```text
//! gelu(x)  = x σ(2u)
//! gelu′(x) = σ(2u) + x σ(2u) (1 − σ(2u)) · 2u′
//! ```

use burn::{backend::flex::FlexTensor, tensor::Tensor};
use rayon::prelude::*;

use crate::{
    buffer::{Output, Slot, dense, exclusive, kept},
    composite,
    isa::kernel,
    math::exp,
    mechanism::{CpuOp, call1, fuses},
};

/// Elements of one task.
const CHUNK: usize = 1 << 14;
const SQRT_2_OVER_PI: f32 = 0.797_884_6;
const CUBIC: f32 = 0.044_715;

/// `x/2 · (1 + tanh(√(2/π) (x + 0.044715 x³)))` of each element; any shape.
pub fn gelu_tanh<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    if fuses(&x) { call1(x, Gelu) } else { composite::gelu_tanh(x) }
}

#[derive(Debug)]
struct Gelu;

impl CpuOp<1> for Gelu {
    #[expect(unsafe_code, reason = "an output written whole is not cleared first")]
    fn forward(&self, [x]: [&FlexTensor; 1]) -> FlexTensor {
        let (shape, x) = (x.layout().shape().clone(), dense(x));
        let mut y = Output::new(x.len());
        y.slots().par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| value(x, y));
        // SAFETY: `value` writes each slot of its chunk, and the chunks cover the output.
        unsafe { y.finish(shape) }
    }

    fn keeps(&self, _: [bool; 1]) -> [bool; 1] {
        [true]
    }

    fn backward(&self, [x]: [Option<FlexTensor>; 1], grad: FlexTensor, _: [bool; 1]) -> [Option<FlexTensor>; 1] {
        let x = dense(kept(x.as_ref()));
        let mut grad = exclusive(grad);
        let chunks = grad.storage_mut::<f32>().par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK));
        chunks.for_each(|(grad, x)| scale_by_derivative(x, grad));
        [Some(grad)]
    }
}

/// The values of a slice.
#[expect(unsafe_code, reason = "an output written whole is not cleared first")]
pub(crate) fn of(x: &[f32]) -> Box<[f32]> {
    let mut y = Box::new_uninit_slice(x.len());
    y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| value(x, y));
    // SAFETY: `value` writes each slot of its chunk, and the chunks cover the output.
    unsafe { y.assume_init() }
}

/// `σ(2u)`.
#[inline(always)]
fn gate(x: f32) -> f32 {
    let u = SQRT_2_OVER_PI * (x + CUBIC * x * x * x);
    1.0 / (1.0 + exp(-2.0 * u))
}

kernel! {
    /// Writes the values.
    pub(crate) fn value(x: &[f32], y: &mut [Slot]) {
        for (y, &x) in y.iter_mut().zip(x) {
            y.write(x * gate(x));
        }
    }
}

kernel! {
    /// Multiplies `grad` by the derivative at `x`.
    pub(crate) fn scale_by_derivative(x: &[f32], grad: &mut [f32]) {
        for (grad, &x) in grad.iter_mut().zip(x) {
            let s = gate(x);
            let du = SQRT_2_OVER_PI * (1.0 + 3.0 * CUBIC * x * x);
            *grad *= s + x * s * (1.0 - s) * 2.0 * du;
        }
    }
}
