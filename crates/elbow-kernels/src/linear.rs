//! The affine map of the last dimension, with the weight in PyTorch's layout `[out, in]`.
//!
//! Over all leading positions as rows:
//!
//! ```text
//! Y = X Wᵀ + b        dX = dY W        dW = dYᵀ X        db = Σ_rows dY
//! ```
//!
//! A frozen weight costs nothing in the backward pass: `dW` is not computed and `X` is not kept.
//!
//! With GELU before it, `Y = gelu(X) Wᵀ + b`, `X` alone is kept: `gelu(X)` is computed again for `dW`, and `dX` is multiplied
//! by the derivative while it is in the cache. In a feed-forward layer that is a third of what would be kept.
//!
//! With [`Precision::Bf16`] both factors of each of the three products are rounded to bf16; sums, results and what is kept are `f32`.

use std::borrow::Cow;

use burn::{backend::flex::FlexTensor, tensor::Tensor};
use rayon::prelude::*;

use crate::{
    bf16::{self, Right},
    buffer::{Output, Slot, dense, dims, kept, tensor},
    composite,
    frozen::{self, Frozen},
    gelu,
    gemm::{Matrix, MatrixMut, Threads, add_product, store_product},
    isa::{chosen, kernel},
    mechanism::{CpuOp, call2, call3, fuses},
    panels::Panels,
    precision::Precision,
};

/// How a product comes by factors of a [`Precision`].
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rounding {
    /// As they are.
    None,
    /// Rounded `f32`, in ordinary instructions.
    Values,
    /// In tiles of bf16.
    Tiles,
}

/// Rows whose bias gradient is summed by one task.
const BIAS_ROWS: usize = 512;

/// Rows of a task, where [`Panels`] have none of their own: what enters and what is made stay in a core's second-level cache.
const TASK_ROWS: usize = 128;

/// Rows from which it pays to rearrange a matrix once for all of them.
const MANY_ROWS: usize = 16;

/// `y = x Wᵀ + b`.
///
/// `x` is `[.., in]`, `weight` is `[out, in]` as PyTorch stores it, `bias` is `[out]`. Returns `[.., out]`. A `bf16` or `f16`
/// weight that is frozen is widened to the type of `x` for each product and not in between.
pub fn linear<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    precision: Precision,
) -> Tensor<D> {
    Linear { gelu: false, precision }.apply(x, weight, bias)
}

/// `y = gelu(x) Wᵀ + b`, the tanh form of GELU; shapes as for [`linear`].
pub fn gelu_linear<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    precision: Precision,
) -> Tensor<D> {
    Linear { gelu: true, precision }.apply(x, weight, bias)
}

#[derive(Debug)]
pub(crate) struct Linear {
    /// Whether GELU comes first.
    pub(crate) gelu: bool,
    pub(crate) precision: Precision,
}

impl CpuOp<2> for Linear {
    fn forward(&self, [x, weight]: [&FlexTensor; 2]) -> FlexTensor {
        self.affine(x, weight, None)
    }

    fn keeps(&self, [x, weight]: [bool; 2]) -> [bool; 2] {
        [weight || x && self.gelu, x]
    }

    fn backward(
        &self,
        [x, weight]: [Option<FlexTensor>; 2],
        grad: FlexTensor,
        tracked: [bool; 2],
    ) -> [Option<FlexTensor>; 2] {
        let dx = weight.map(|weight| self.input_gradient(&grad, &weight, x.as_ref()));
        [dx, x.filter(|_| tracked[1]).map(|x| self.weight_gradient(&grad, &x))]
    }
}

impl CpuOp<3> for Linear {
    fn forward(&self, [x, weight, bias]: [&FlexTensor; 3]) -> FlexTensor {
        self.affine(x, weight, Some(bias))
    }

    fn keeps(&self, [x, weight, _]: [bool; 3]) -> [bool; 3] {
        let [x, weight] = CpuOp::<2>::keeps(self, [x, weight]);
        [x, weight, false]
    }

    fn backward(
        &self,
        [x, weight, _]: [Option<FlexTensor>; 3],
        grad: FlexTensor,
        tracked: [bool; 3],
    ) -> [Option<FlexTensor>; 3] {
        let [dx, dweight] = CpuOp::<2>::backward(self, [x, weight], grad.clone(), [tracked[0], tracked[1]]);
        [dx, dweight, tracked[2].then(|| bias_gradient(&grad))]
    }
}

impl Linear {
    /// The composite where the fused operation does not apply.
    fn apply<const D: usize>(self, x: Tensor<D>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<D> {
        let [out, inner] = weight.dims();
        assert_eq!(x.dims()[D - 1], inner, "linear: the last dimension of x is not the weight's second");
        assert!(bias.as_ref().is_none_or(|bias| bias.dims() == [out]), "linear: bias is not [out]");
        let half = frozen::applies(&weight);
        if !(fuses(&x) && (half || fuses(&weight)) && bias.as_ref().is_none_or(fuses)) {
            let f = if self.gelu { composite::gelu_linear } else { composite::linear };
            return f(x, weight, bias, self.precision);
        }
        match bias {
            Some(bias) if half => call3(x, weight, bias, Frozen(self)),
            Some(bias) => call3(x, weight, bias, self),
            None if half => call2(x, weight, Frozen(self)),
            None => call2(x, weight, self),
        }
    }

    #[expect(unsafe_code, reason = "an output written whole is not cleared first")]
    fn affine(&self, x: &FlexTensor, weight: &FlexTensor, bias: Option<&FlexTensor>) -> FlexTensor {
        let [out, inner] = dims(weight);
        let (values, weight) = (dense(x), self.rounded(dense(weight)));
        let bias = bias.map(dense);
        let mut y = Output::new(values.len() / inner * out);
        let b = Matrix::new(&weight, out, inner, inner).transposed();
        self.product(y.slots(), &values, self.gelu, b, bias.as_deref(), |_, _| ());
        // SAFETY: the product wrote every element.
        unsafe { y.finish(with_last(x, out)) }
    }

    #[expect(unsafe_code, reason = "an output written whole is not cleared first")]
    fn input_gradient(&self, grad: &FlexTensor, weight: &FlexTensor, x: Option<&FlexTensor>) -> FlexTensor {
        let [out, inner] = dims(weight);
        let (values, weight) = (dense(grad), self.rounded(dense(weight)));
        let x = self.gelu.then(|| dense(kept(x)));
        let mut dx = Output::new(values.len() / out * inner);
        let b = Matrix::new(&weight, out, inner, inner);
        self.product(dx.slots(), &values, false, b, None, |before, part| {
            if let Some(x) = &x {
                gelu::scale_by_derivative(&x[before..][..part.len()], part);
            }
        });
        // SAFETY: the product wrote every element.
        unsafe { dx.finish(with_last(grad, inner)) }
    }

    #[expect(unsafe_code, reason = "an output written whole is not cleared first")]
    fn weight_gradient(&self, grad: &FlexTensor, x: &FlexTensor) -> FlexTensor {
        let width = |tensor: &FlexTensor| tensor.layout().shape()[tensor.layout().num_dims() - 1];
        let (out, inner) = (width(grad), width(x));
        let (grad, x) = (self.rounded(dense(grad)), dense(x));
        let x = self.entered(&x, self.gelu);
        let x = Matrix::new(&x, x.len() / inner, inner, inner);
        let mut dweight = Output::new(out * inner);
        let (a, to) =
            (Matrix::new(&grad, x.rows(), out, out).transposed(), MatrixMut::new(dweight.slots(), out, inner));
        match self.rounding() {
            Rounding::Tiles => bf16::product(to, a, &Right::new(x, None)),
            Rounding::None | Rounding::Values => store_product(to, a, x, Threads::Pool),
        }
        // SAFETY: the product wrote every element.
        unsafe { dweight.finish([out, inner]) }
    }

    /// Writes `to = a b + bias`, or `gelu(a) b + bias`, and hands the finished rows of each task, with the number of elements
    /// before them, to `leave`.
    #[expect(unsafe_code, reason = "an output written whole is not cleared first")]
    fn product(
        &self,
        to: &mut [Slot],
        a: &[f32],
        gelu: bool,
        b: Matrix<'_>,
        bias: Option<&[f32]>,
        leave: impl Fn(usize, &mut [f32]) + Sync,
    ) {
        let [inner, columns] = b.dims();
        let size = TASK_ROWS * columns;
        if self.rounding() == Rounding::Tiles {
            let b = Right::new(b, bias);
            let tasks = to.par_chunks_mut(size).zip(a.par_chunks(TASK_ROWS * inner)).enumerate();
            return tasks.for_each(|(task, (part, a))| {
                let a = self.entered(a, gelu);
                let a = Matrix::new(&a, a.len() / inner, inner, inner);
                bf16::product(MatrixMut::new(part, a.rows(), columns), a, &b);
                // SAFETY: the product wrote every element.
                leave(task * size, unsafe { part.assume_init_mut() });
            });
        }
        let many = a.len() / inner >= MANY_ROWS;
        if let Some(panels) = many.then(|| Panels::new(b, bias)).flatten() {
            return panels.product(to, a, |from, to| self.enter(from, to, gelu), leave);
        }
        let a = self.entered(a, gelu);
        let a = Matrix::new(&a, a.len() / inner, inner, inner);
        if let Some(bias) = bias {
            let rows = to.par_chunks_exact_mut(columns).with_min_len(TASK_ROWS);
            rows.for_each(|row| {
                row.write_copy_of_slice(bias);
            });
            // SAFETY: every row has the bias.
            unsafe { add_product(MatrixMut::new(to, a.rows(), columns), a, b, Threads::Pool) };
        } else {
            store_product(MatrixMut::new(to, a.rows(), columns), a, b, Threads::Pool);
        }
        // SAFETY: the product wrote every element.
        let parts = unsafe { to.assume_init_mut() }.par_chunks_mut(size).enumerate();
        parts.for_each(|(task, part)| leave(task * size, part));
    }

    fn rounding(&self) -> Rounding {
        match self.precision {
            Precision::F32 => Rounding::None,
            Precision::Bf16 if chosen().multiplies_bf16() => Rounding::Tiles,
            Precision::Bf16 => Rounding::Values,
        }
    }

    /// What enters a product for these values; tiles are rounded as they are made.
    fn rounded<'a>(&self, values: Cow<'a, [f32]>) -> Cow<'a, [f32]> {
        if self.rounding() != Rounding::Values {
            return values;
        }
        let mut values = values.into_owned();
        bf16::round_all(&mut values);
        values.into()
    }

    /// What enters a product for the left factor.
    fn entered<'a>(&self, a: &'a [f32], gelu: bool) -> Cow<'a, [f32]> {
        self.rounded(if gelu { gelu::of(a).into_vec().into() } else { a.into() })
    }

    /// The same, written to `to`.
    #[expect(unsafe_code, reason = "an output written whole is not cleared first")]
    fn enter(&self, a: &[f32], to: &mut [Slot], gelu: bool) {
        if gelu {
            gelu::value(a, to);
        } else {
            to.write_copy_of_slice(a);
        }
        if self.rounding() == Rounding::Values {
            // SAFETY: both ways write every element.
            bf16::round(unsafe { to.assume_init_mut() });
        }
    }
}

/// The tensor's shape with another last dimension.
fn with_last(tensor: &FlexTensor, last: usize) -> Vec<usize> {
    let mut shape = tensor.layout().shape().to_vec();
    if let Some(dimension) = shape.last_mut() {
        *dimension = last;
    }
    shape
}

/// Sums over fixed blocks of rows, then over the blocks in order.
fn bias_gradient(grad: &FlexTensor) -> FlexTensor {
    let out = grad.layout().shape()[grad.layout().num_dims() - 1];
    let grad = dense(grad);
    let blocks: Vec<Vec<f32>> = grad.par_chunks(out * BIAS_ROWS).map(|rows| column_sums(rows, out)).collect();
    tensor(column_sums(&blocks.concat(), out), [out])
}

kernel! {
    fn column_sums(rows: &[f32], columns: usize) -> Vec<f32> {
        let mut sums = vec![0.0; columns];
        for row in rows.chunks_exact(columns) {
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum += value;
            }
        }
        sums
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frozen_weight_does_not_keep_the_input() {
        let (plain, activated) = ([false, true].map(|gelu| Linear { gelu, precision: Precision::F32 })).into();
        assert_eq!(CpuOp::<3>::keeps(&plain, [true, false, false]), [false, true, false]);
        assert_eq!(CpuOp::<3>::keeps(&plain, [false, true, true]), [true, false, false]);
        assert_eq!(CpuOp::<2>::keeps(&plain, [true, false]), [false, true]);
        assert_eq!(CpuOp::<2>::keeps(&activated, [true, false]), [true, true]);
        assert_eq!(CpuOp::<2>::keeps(&activated, [false, true]), [true, false]);
    }

    #[test]
    fn what_is_kept_of_a_frozen_weight_is_what_is_stored() {
        let linear = || Frozen(Linear { gelu: false, precision: Precision::F32 });
        assert_eq!(CpuOp::<3>::keeps(&linear(), [true, false, true]), [false, true, false]);
        assert_eq!(CpuOp::<2>::keeps(&linear(), [true, false]), [false, true]);
    }
}
