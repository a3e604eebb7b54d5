//! Layer normalization modulated by a condition, the "adaLN" of `DiT` (Peebles & Xie 2023, section 3.2).
//!
//! For each token, with the mean `μ` and variance `σ²` of its `H` features, `r = 1/√(σ² + eps)` and `x̂ = (x − μ) r`:
//!
//! ```text
//! y  = x̂ (1 + scale) + shift
//! w  = dy (1 + scale)
//! dx = r (w − mean(w) − x̂ mean(w x̂))
//! dscale = Σ_tokens dy x̂        dshift = Σ_tokens dy
//! ```
//!
//! `μ` and `r` are computed again in the backward pass: they are cheaper than reading them back. One batch element is
//! one task, so the sums over tokens have a fixed order.

use burn::{backend::flex::FlexTensor, tensor::Tensor};
use rayon::prelude::*;

use crate::{
    buffer::{Output, Rows, Slot, dims, kept, tensor},
    composite,
    isa::kernel,
    math::{LANES, fold, sum_of},
    mechanism::{CpuOp, call3, fuses},
};

/// Layer normalization without affine parameters, then `· (1 + scale) + shift`.
///
/// `x` is `[B, N, H]`; `shift` and `scale` are `[B, H]` and usually slices of one `[B, 6H]` tensor, which are read in
/// place. Returns `[B, N, H]`.
pub fn layer_norm_modulate(x: Tensor<3>, shift: Tensor<2>, scale: Tensor<2>, eps: f64) -> Tensor<3> {
    let [batch, _, hidden] = x.dims();
    assert_eq!(shift.dims(), [batch, hidden], "layer_norm_modulate: shift is not [B, H]");
    assert_eq!(scale.dims(), [batch, hidden], "layer_norm_modulate: scale is not [B, H]");
    if fuses(&x) && fuses(&shift) && fuses(&scale) {
        call3(x, shift, scale, LayerNormModulate { eps: eps as f32 })
    } else {
        composite::layer_norm_modulate(x, shift, scale, eps)
    }
}

#[derive(Debug)]
struct LayerNormModulate {
    eps: f32,
}

impl CpuOp<3> for LayerNormModulate {
    #[expect(unsafe_code, reason = "an output written whole is not cleared first")]
    fn forward(&self, [x, shift, scale]: [&FlexTensor; 3]) -> FlexTensor {
        let shape: [usize; 3] = dims(x);
        let [batch, tokens, hidden] = shape;
        let (x, shift, scale) = (Rows::new(x), Rows::new(shift), Rows::new(scale));
        let mut y = Output::new(batch * tokens * hidden);
        y.slots().par_chunks_mut(tokens * hidden).enumerate().for_each(|(b, y)| {
            modulate(x.batch(b), x.row_stride, shift.batch(b), scale.batch(b), self.eps, y);
        });
        // SAFETY: `modulate` writes the tokens of one batch element, and the tasks cover the batch.
        unsafe { y.finish(shape) }
    }

    fn keeps(&self, [x, _, scale]: [bool; 3]) -> [bool; 3] {
        [x || scale, false, x]
    }

    #[expect(unsafe_code, reason = "an output written whole is not cleared first")]
    fn backward(
        &self,
        [x, _, scale]: [Option<FlexTensor>; 3],
        grad: FlexTensor,
        tracked: [bool; 3],
    ) -> [Option<FlexTensor>; 3] {
        let shape: [usize; 3] = dims(&grad);
        let [batch, tokens, hidden] = shape;
        let grad = Rows::new(&grad);
        let mut dshift = vec![0.0; batch * hidden];
        if !tracked[0] && !tracked[2] {
            dshift.par_chunks_mut(hidden).enumerate().for_each(|(b, dshift)| {
                add_rows(grad.batch(b), grad.row_stride, dshift);
            });
            return [None, Some(tensor(dshift, [batch, hidden])), None];
        }
        let mut dscale = vec![0.0; batch * hidden];
        let x = Rows::new(kept(x.as_ref()));
        let sums = dshift.par_chunks_mut(hidden).zip(dscale.par_chunks_mut(hidden)).enumerate();
        let dx = if tracked[0] {
            let scale = Rows::new(kept(scale.as_ref()));
            let mut dx = Output::new(batch * tokens * hidden);
            sums.zip(dx.slots().par_chunks_mut(tokens * hidden)).for_each(|((b, (dshift, dscale)), dx)| {
                let input = (x.batch(b), x.row_stride);
                let grad = (grad.batch(b), grad.row_stride);
                differentiate(input, grad, scale.batch(b), self.eps, dx, [dshift, dscale]);
            });
            // SAFETY: `differentiate` writes the tokens of one batch element, and the tasks cover the batch.
            Some(unsafe { dx.finish(shape) })
        } else {
            sums.for_each(|(b, (dshift, dscale))| {
                let (input, grad) = ((x.batch(b), x.row_stride), (grad.batch(b), grad.row_stride));
                sum_modulation(input, grad, self.eps, [dshift, dscale]);
            });
            None
        };
        let sums = |values, wanted: bool| wanted.then(|| tensor(values, [batch, hidden]));
        [dx, sums(dshift, tracked[1]), sums(dscale, tracked[2])]
    }
}

/// Mean and `1/√(variance + eps)` of one token.
#[inline(always)]
fn moments(x: &[f32], eps: f32) -> (f32, f32) {
    let size = x.len() as f32;
    let mean = sum_of(x, x, |x, _| x) / size;
    let variance = sum_of(x, x, |x, _| (x - mean) * (x - mean)) / size;
    (mean, 1.0 / (variance + eps).sqrt())
}

kernel! {
    /// The value for one batch element.
    fn modulate(x: &[f32], stride: usize, shift: &[f32], scale: &[f32], eps: f32, y: &mut [Slot]) {
        let hidden = shift.len();
        for (x, y) in x.chunks(stride).zip(y.chunks_exact_mut(hidden)) {
            let x = &x[..hidden];
            let (mean, inverse) = moments(x, eps);
            for (((y, &x), &shift), &scale) in y.iter_mut().zip(x).zip(shift).zip(scale) {
                y.write((x - mean) * inverse * (1.0 + scale) + shift);
            }
        }
    }
}

kernel! {
    /// The gradients for one batch element: writes `dx`, adds to `[dshift, dscale]`. Inputs are (values, row stride).
    fn differentiate(
        x: (&[f32], usize),
        grad: (&[f32], usize),
        scale: &[f32],
        eps: f32,
        dx: &mut [Slot],
        sums: [&mut [f32]; 2],
    ) {
        let hidden = scale.len();
        let [dshift, dscale] = sums;
        let tokens = x.0.chunks(x.1).zip(grad.0.chunks(grad.1)).zip(dx.chunks_exact_mut(hidden));
        for ((x, grad), dx) in tokens {
            let (x, grad) = (&x[..hidden], &grad[..hidden]);
            let (mean, inverse) = moments(x, eps);
            accumulate(x, grad, mean, inverse, [dshift, dscale]);
            let [mean_w, mean_wx] = means(x, grad, scale, mean, inverse);
            for (((dx, &x), &grad), &scale) in dx.iter_mut().zip(x).zip(grad).zip(scale) {
                let normalized = (x - mean) * inverse;
                dx.write(inverse * (grad * (1.0 + scale) - mean_w - normalized * mean_wx));
            }
        }
    }
}

/// `mean(w)` and `mean(w x̂)` of one token.
#[inline(always)]
fn means(x: &[f32], grad: &[f32], scale: &[f32], mean: f32, inverse: f32) -> [f32; 2] {
    let mut lanes = [[0.0; LANES]; 2];
    let [lanes_w, lanes_wx] = &mut lanes;
    let chunks = x.chunks(LANES).zip(grad.chunks(LANES)).zip(scale.chunks(LANES));
    for ((x, grad), scale) in chunks {
        let terms = x.iter().zip(grad).zip(scale);
        for ((w_sum, wx_sum), ((&x, &grad), &scale)) in lanes_w.iter_mut().zip(lanes_wx.iter_mut()).zip(terms) {
            let w = grad * (1.0 + scale);
            *w_sum += w;
            *wx_sum += w * ((x - mean) * inverse);
        }
    }
    lanes.map(|lanes| fold(lanes, |a, b| a + b) / x.len() as f32)
}

/// Adds one token's part of `[dshift, dscale]`.
#[inline(always)]
fn accumulate(x: &[f32], grad: &[f32], mean: f32, inverse: f32, [dshift, dscale]: [&mut [f32]; 2]) {
    for (((dshift, dscale), &x), &grad) in dshift.iter_mut().zip(dscale).zip(x).zip(grad) {
        *dshift += grad;
        *dscale += grad * ((x - mean) * inverse);
    }
}

kernel! {
    /// `[dshift, dscale]` of one batch element alone, for an input that needs no gradient.
    fn sum_modulation(x: (&[f32], usize), grad: (&[f32], usize), eps: f32, sums: [&mut [f32]; 2]) {
        let [dshift, dscale] = sums;
        let hidden = dshift.len();
        for (x, grad) in x.0.chunks(x.1).zip(grad.0.chunks(grad.1)) {
            let (mean, inverse) = moments(&x[..hidden], eps);
            accumulate(&x[..hidden], &grad[..hidden], mean, inverse, [dshift, dscale]);
        }
    }
}

kernel! {
    /// Adds the rows of one batch element to `sum`.
    fn add_rows(rows: &[f32], stride: usize, sum: &mut [f32]) {
        for row in rows.chunks(stride) {
            for (sum, &value) in sum.iter_mut().zip(row) {
                *sum += value;
            }
        }
    }
}
