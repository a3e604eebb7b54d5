//! The gated residual connection of `DiT`: `out = x + gate · y`, with one gate per feature of each batch element.
//!
//! ```text
//! dx = dout        dy = gate · dout        dgate = Σ_tokens dout · y
//! ```
//!
//! `dx` shares the memory of `dout`. One batch element is one task, so the sum over tokens has a fixed order.

use burn::{backend::flex::FlexTensor, tensor::Tensor};
use rayon::prelude::*;

use crate::{
    buffer::{Output, Rows, Slot, dims, kept, tensor},
    composite,
    isa::kernel,
    mechanism::{CpuOp, call3, fuses},
};

/// `x + gate · y`.
///
/// `x` and `y` are `[B, N, H]`; `gate` is `[B, H]` and usually a slice of one `[B, 6H]` tensor, which is read in
/// place. Returns `[B, N, H]`.
pub fn gated_residual(x: Tensor<3>, gate: Tensor<2>, y: Tensor<3>) -> Tensor<3> {
    let [batch, _, hidden] = x.dims();
    assert_eq!(gate.dims(), [batch, hidden], "gated_residual: gate is not [B, H]");
    assert_eq!(y.dims(), x.dims(), "gated_residual: x and y differ in shape");
    if fuses(&x) && fuses(&gate) && fuses(&y) {
        call3(x, gate, y, GatedResidual)
    } else {
        composite::gated_residual(x, gate, y)
    }
}

#[derive(Debug)]
struct GatedResidual;

impl CpuOp<3> for GatedResidual {
    #[expect(unsafe_code, reason = "an output written whole is not cleared first")]
    fn forward(&self, [x, gate, y]: [&FlexTensor; 3]) -> FlexTensor {
        let shape: [usize; 3] = dims(x);
        let [batch, tokens, hidden] = shape;
        let (x, gate, y) = (Rows::new(x), Rows::new(gate), Rows::new(y));
        let mut out = Output::new(batch * tokens * hidden);
        out.slots().par_chunks_mut(tokens * hidden).enumerate().for_each(|(b, out)| {
            combine((x.batch(b), x.row_stride), (y.batch(b), y.row_stride), gate.batch(b), out);
        });
        // SAFETY: `combine` writes the tokens of one batch element, and the tasks cover the batch.
        unsafe { out.finish(shape) }
    }

    fn keeps(&self, [_, gate, y]: [bool; 3]) -> [bool; 3] {
        [false, y, gate]
    }

    #[expect(unsafe_code, reason = "an output written whole is not cleared first")]
    fn backward(
        &self,
        [_, gate, y]: [Option<FlexTensor>; 3],
        grad: FlexTensor,
        tracked: [bool; 3],
    ) -> [Option<FlexTensor>; 3] {
        let shape: [usize; 3] = dims(&grad);
        let [batch, tokens, hidden] = shape;
        let rows = Rows::new(&grad);
        let dy = tracked[2].then(|| {
            let gate = Rows::new(kept(gate.as_ref()));
            let mut dy = Output::new(batch * tokens * hidden);
            dy.slots().par_chunks_mut(tokens * hidden).enumerate().for_each(|(b, dy)| {
                scale_rows(rows.batch(b), rows.row_stride, gate.batch(b), dy);
            });
            // SAFETY: `scale_rows` writes the tokens of one batch element, and the tasks cover the batch.
            unsafe { dy.finish(shape) }
        });
        let dgate = tracked[1].then(|| {
            let y = Rows::new(kept(y.as_ref()));
            let mut dgate = vec![0.0; batch * hidden];
            dgate.par_chunks_mut(hidden).enumerate().for_each(|(b, dgate)| {
                add_products((rows.batch(b), rows.row_stride), (y.batch(b), y.row_stride), dgate);
            });
            tensor(dgate, [batch, hidden])
        });
        drop(rows);
        [tracked[0].then_some(grad), dgate, dy]
    }
}

kernel! {
    /// `x + gate · y` for one batch element. Inputs are (values, row stride).
    fn combine(x: (&[f32], usize), y: (&[f32], usize), gate: &[f32], out: &mut [Slot]) {
        let rows = x.0.chunks(x.1).zip(y.0.chunks(y.1)).zip(out.chunks_exact_mut(gate.len()));
        for ((x, y), out) in rows {
            for (((out, &x), &y), &gate) in out.iter_mut().zip(x).zip(y).zip(gate) {
                out.write(x + gate * y);
            }
        }
    }
}

kernel! {
    /// `gate · rows` for one batch element.
    fn scale_rows(rows: &[f32], stride: usize, gate: &[f32], out: &mut [Slot]) {
        for (row, out) in rows.chunks(stride).zip(out.chunks_exact_mut(gate.len())) {
            for ((out, &value), &gate) in out.iter_mut().zip(row).zip(gate) {
                out.write(value * gate);
            }
        }
    }
}

kernel! {
    /// Adds `Σ_rows a · b` of one batch element to `sum`.
    fn add_products(a: (&[f32], usize), b: (&[f32], usize), sum: &mut [f32]) {
        for (a, b) in a.0.chunks(a.1).zip(b.0.chunks(b.1)) {
            for ((sum, &a), &b) in sum.iter_mut().zip(a).zip(b) {
                *sum += a * b;
            }
        }
    }
}
