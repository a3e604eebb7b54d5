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

use burn::{backend::flex::FlexTensor, tensor::Tensor};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    bf16::{self, Right},
    buffer::{Output, Slot, dense, dims, kept, tensor},
    composite,
    frozen::{self, Frozen},
    gelu,
    gemm::{Matrix, MatrixMut, Threads, add_product, store_product},
    mechanism::{CpuOp, call2, call3, fuses},
    path::kernel,
};

/// What the factors of a product are rounded to; sums are `f32`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// Nothing: they are `f32`.
    #[default]
    F32,
    /// bf16, 8 bits of mantissa: faster where the CPU multiplies them (`elbow doctor` says), slower elsewhere.
    Bf16,
}

/// Rows whose bias gradient is summed by one task.
const BIAS_ROWS: usize = 512;

/// Rows of one task of a product `[rows, ·] × [·, ·]`, where there are several times as many.
///
/// Their outputs stay in a core's second-level cache from the bias to the end of the product, and tasks of this size
/// balance uneven cores; with fewer rows the product itself is divided.
const TASK_ROWS: usize = 128;

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
    /// The composite where the fused path does not apply.
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
        let (values, w) = (dense(x), dense(weight));
        let rows = values.len() / inner;
        let bias = bias.map(dense);
        let mut y = Output::new(rows * out);
        // Each product would otherwise rearrange the weight for itself.
        let turned = (self.precision == Precision::F32 && in_tasks(rows)).then(|| transpose(&w, out, inner));
        let b = self.factor(match &turned {
            Some(turned) => Matrix::new(turned, inner, out, out),
            None => Matrix::new(&w, out, inner, inner).transposed(),
        });
        self.by_rows(y.slots(), out, &values, inner, |part, x, threads| {
            let activated = self.gelu.then(|| gelu::of(x));
            let a = Matrix::new(activated.as_deref().unwrap_or(x), x.len() / inner, inner, inner);
            if let Some(bias) = &bias {
                for row in part.chunks_exact_mut(out) {
                    row.write_copy_of_slice(bias);
                }
            }
            // SAFETY: with a bias, each row was filled with it.
            unsafe { b.product(MatrixMut::new(part, a.rows(), out), bias.is_some(), a, threads) };
        });
        // SAFETY: the product wrote every element.
        unsafe { y.finish(with_last(x, out)) }
    }

    #[expect(unsafe_code, reason = "an output written whole is not cleared first")]
    fn input_gradient(&self, grad: &FlexTensor, weight: &FlexTensor, x: Option<&FlexTensor>) -> FlexTensor {
        let [out, inner] = dims(weight);
        let (values, weight) = (dense(grad), dense(weight));
        let x = self.gelu.then(|| dense(kept(x)));
        let rows = values.len() / out;
        let mut dx = Output::new(rows * inner);
        let b = self.factor(Matrix::new(&weight, out, inner, inner));
        let x: Option<&[f32]> = x.as_deref();
        // What a task writes lies where its part of `x` does.
        let first = dx.slots().as_ptr() as usize;
        self.by_rows(dx.slots(), inner, &values, out, |part, grad, threads| {
            let a = Matrix::new(grad, grad.len() / out, out, out);
            // SAFETY: nothing is added to.
            unsafe { b.product(MatrixMut::new(part, a.rows(), inner), false, a, threads) };
            if let Some(x) = x {
                let from = (part.as_ptr() as usize - first) / size_of::<f32>();
                // SAFETY: the product wrote every element.
                let part = unsafe { part.assume_init_mut() };
                gelu::scale_by_derivative(&x[from..][..part.len()], part);
            }
        });
        // SAFETY: the product wrote every element.
        unsafe { dx.finish(with_last(grad, inner)) }
    }

    #[expect(unsafe_code, reason = "an output written whole is not cleared first")]
    fn weight_gradient(&self, grad: &FlexTensor, x: &FlexTensor) -> FlexTensor {
        let width = |tensor: &FlexTensor| tensor.layout().shape()[tensor.layout().num_dims() - 1];
        let (out, inner) = (width(grad), width(x));
        let (grad, x) = (dense(grad), dense(x));
        let activated = self.gelu.then(|| gelu::of(&x));
        let x = Matrix::new(activated.as_deref().unwrap_or(&x), x.len() / inner, inner, inner);
        let mut dweight = Output::new(out * inner);
        let a = Matrix::new(&grad, x.rows(), out, out).transposed();
        // SAFETY: nothing is added to, and the product writes every element.
        unsafe {
            self.factor(x).product(MatrixMut::new(dweight.slots(), out, inner), false, a, Threads::Pool);
            dweight.finish([out, inner])
        }
    }

    fn factor<'a>(&self, b: Matrix<'a>) -> Factor<'a> {
        match self.precision {
            Precision::F32 => Factor::Plain(b),
            Precision::Bf16 => Factor::Rounded(Right::new(b)),
        }
    }

    /// Runs `product` on the rows of `to`, `columns` wide, and the same rows of `a`, `inner` wide: in tasks of [`TASK_ROWS`] on one
    /// thread each, or all at once on the pool where there are few, and for products that divide themselves. Which of the two
    /// depends on the shape alone.
    fn by_rows(
        &self,
        to: &mut [Slot],
        columns: usize,
        a: &[f32],
        inner: usize,
        product: impl Fn(&mut [Slot], &[f32], Threads) + Sync,
    ) {
        if self.precision == Precision::Bf16 || !in_tasks(a.len() / inner) {
            return product(to, a, Threads::Pool);
        }
        to.par_chunks_mut(TASK_ROWS * columns)
            .zip(a.par_chunks(TASK_ROWS * inner))
            .for_each(|(part, rows)| product(part, rows, Threads::One));
    }
}

/// The right factor of products.
enum Factor<'a> {
    Plain(Matrix<'a>),
    Rounded(Right),
}

impl Factor<'_> {
    /// `to = a b`, or `to += a b` with `add`.
    ///
    /// # Safety
    ///
    /// With `add`, every element of `to` has a value.
    #[expect(unsafe_code, reason = "an output written whole is not cleared first")]
    unsafe fn product(&self, to: MatrixMut<'_>, add: bool, a: Matrix<'_>, threads: Threads) {
        // SAFETY: the caller's promise.
        match self {
            Self::Plain(b) if add => unsafe { add_product(to, a, *b, threads) },
            Self::Plain(b) => store_product(to, a, *b, threads),
            Self::Rounded(b) => unsafe { bf16::product(to, add, a, b) },
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

/// Whether a product of this many rows is divided into tasks of [`TASK_ROWS`].
fn in_tasks(rows: usize) -> bool {
    rows >= 8 * TASK_ROWS
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

/// The transposed matrix, by square blocks that fit in the first-level cache.
fn transpose(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    const BLOCK: usize = 32;
    let mut turned = vec![0.0; values.len()];
    for from in (0..rows).step_by(BLOCK) {
        for column in (0..columns).step_by(BLOCK) {
            for i in column..columns.min(column + BLOCK) {
                let to = &mut turned[i * rows..][from..rows.min(from + BLOCK)];
                for (to, row) in to.iter_mut().zip(from..) {
                    *to = values[row * columns + i];
                }
            }
        }
    }
    turned
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
    fn transpose_covers_partial_blocks() {
        let (rows, columns) = (37, 70);
        let values: Vec<f32> = (0..rows * columns).map(|i| i as f32).collect();
        let turned = transpose(&values, rows, columns);
        assert!((0..rows * columns).all(|i| turned[i % columns * rows + i / columns].to_bits() == values[i].to_bits()));
    }
}
