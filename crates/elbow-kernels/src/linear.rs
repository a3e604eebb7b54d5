//! The affine map of the last dimension, with the weight in PyTorch's layout `[out, in]`.
//!
//! Over all leading positions as rows:
//!
//! ```text
//! Y = X Wᵀ + b        dX = dY W        dW = dYᵀ X        db = Σ_rows dY
//! ```
//!
//! A frozen weight costs nothing in the backward pass: `dW` is not computed and `X` is not kept.

use burn::{backend::flex::FlexTensor, tensor::Tensor};
use multiversion::multiversion;
use rayon::prelude::*;

use crate::{
    buffer::{Output, Slot, dense, dims, tensor},
    composite,
    frozen::{self, Frozen},
    gemm::{Matrix, MatrixMut, Threads, add_product, store_product},
    mechanism::{CpuOp, call2, call3, fuses},
};

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
/// weight is widened to the type of `x` for each product and not in between.
pub fn linear<const D: usize>(x: Tensor<D>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<D> {
    let half = frozen::applies(&weight);
    if !fuses(&x) || !(half || fuses(&weight)) || !bias.as_ref().is_none_or(fuses) {
        return composite::linear(x, weight, bias);
    }
    let [out, inner] = weight.dims();
    assert_eq!(x.dims()[D - 1], inner, "linear: the last dimension of x is not the weight's second");
    assert!(bias.as_ref().is_none_or(|bias| bias.dims() == [out]), "linear: bias is not [out]");
    match bias {
        Some(bias) if half => call3(x, weight, bias, Frozen(Linear)),
        Some(bias) => call3(x, weight, bias, Linear),
        None if half => call2(x, weight, Frozen(Linear)),
        None => call2(x, weight, Linear),
    }
}

#[derive(Debug)]
pub(crate) struct Linear;

impl CpuOp<2> for Linear {
    fn forward(&self, [x, weight]: [&FlexTensor; 2]) -> FlexTensor {
        affine(x, weight, None)
    }

    fn keeps(&self, [x, weight]: [bool; 2]) -> [bool; 2] {
        [weight, x]
    }

    fn backward(
        &self,
        [x, weight]: [Option<FlexTensor>; 2],
        grad: FlexTensor,
        _: [bool; 2],
    ) -> [Option<FlexTensor>; 2] {
        [weight.map(|weight| input_gradient(&grad, &weight)), x.map(|x| weight_gradient(&grad, &x))]
    }
}

impl CpuOp<3> for Linear {
    fn forward(&self, [x, weight, bias]: [&FlexTensor; 3]) -> FlexTensor {
        affine(x, weight, Some(bias))
    }

    fn keeps(&self, [x, weight, _]: [bool; 3]) -> [bool; 3] {
        [weight, x, false]
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

/// Runs `product` on the rows of `to`, `columns` wide, and the same rows of `a`: in tasks of [`TASK_ROWS`] on one thread
/// each, or all at once on the pool where there are few. Which of the two depends on the shape alone.
fn by_rows(to: &mut [Slot], columns: usize, a: Matrix<'_>, product: impl Fn(&mut [Slot], Matrix<'_>, Threads) + Sync) {
    if !in_tasks(a.rows()) {
        return product(to, a, Threads::Pool);
    }
    to.par_chunks_mut(TASK_ROWS * columns).enumerate().for_each(|(i, part)| {
        let rows = a.block(i * TASK_ROWS, part.len() / columns);
        product(part, rows, Threads::One);
    });
}

#[expect(unsafe_code, reason = "an output written whole is not cleared first")]
fn affine(x: &FlexTensor, weight: &FlexTensor, bias: Option<&FlexTensor>) -> FlexTensor {
    let [out, inner] = dims(weight);
    let (values, w) = (dense(x), dense(weight));
    let rows = values.len() / inner;
    let bias = bias.map(dense);
    let mut y = Output::new(rows * out);
    let a = Matrix::new(&values, rows, inner, inner);
    // Each product would otherwise rearrange the weight for itself.
    let turned = in_tasks(rows).then(|| transpose(&w, out, inner));
    let b = match &turned {
        Some(turned) => Matrix::new(turned, inner, out, out),
        None => Matrix::new(&w, out, inner, inner).transposed(),
    };
    by_rows(y.slots(), out, a, |part, a, threads| match &bias {
        None => store_product(MatrixMut::new(part, a.rows(), out), a, b, threads),
        Some(bias) => {
            for row in part.chunks_exact_mut(out) {
                row.write_copy_of_slice(bias);
            }
            // SAFETY: each row was filled with the bias.
            unsafe { add_product(MatrixMut::new(part, a.rows(), out), a, b, threads) };
        }
    });
    // SAFETY: the product wrote every element.
    unsafe { y.finish(with_last(x, out)) }
}

#[expect(unsafe_code, reason = "an output written whole is not cleared first")]
fn input_gradient(grad: &FlexTensor, weight: &FlexTensor) -> FlexTensor {
    let [out, inner] = dims(weight);
    let (values, weight) = (dense(grad), dense(weight));
    let rows = values.len() / out;
    let mut dx = Output::new(rows * inner);
    let (a, b) = (Matrix::new(&values, rows, out, out), Matrix::new(&weight, out, inner, inner));
    by_rows(dx.slots(), inner, a, |part, a, threads| {
        store_product(MatrixMut::new(part, a.rows(), inner), a, b, threads);
    });
    // SAFETY: the product wrote every element.
    unsafe { dx.finish(with_last(grad, inner)) }
}

#[expect(unsafe_code, reason = "an output written whole is not cleared first")]
fn weight_gradient(grad: &FlexTensor, x: &FlexTensor) -> FlexTensor {
    let width = |tensor: &FlexTensor| tensor.layout().shape()[tensor.layout().num_dims() - 1];
    let (out, inner) = (width(grad), width(x));
    let (grad, x) = (dense(grad), dense(x));
    let rows = grad.len() / out;
    let mut dweight = Output::new(out * inner);
    let a = Matrix::new(&grad, rows, out, out).transposed();
    store_product(MatrixMut::new(dweight.slots(), out, inner), a, Matrix::new(&x, rows, inner, inner), Threads::Pool);
    // SAFETY: the product wrote every element.
    unsafe { dweight.finish([out, inner]) }
}

/// Sums over fixed blocks of rows, then over the blocks in order.
fn bias_gradient(grad: &FlexTensor) -> FlexTensor {
    let out = grad.layout().shape()[grad.layout().num_dims() - 1];
    let grad = dense(grad);
    let blocks: Vec<Vec<f32>> = grad.par_chunks(out * BIAS_ROWS).map(|rows| column_sums(rows, out)).collect();
    tensor(column_sums(&blocks.concat(), out), [out])
}

#[multiversion(targets = "simd")]
fn column_sums(rows: &[f32], columns: usize) -> Vec<f32> {
    let mut sums = vec![0.0; columns];
    for row in rows.chunks_exact(columns) {
        for (sum, value) in sums.iter_mut().zip(row) {
            *sum += value;
        }
    }
    sums
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
        assert_eq!(CpuOp::<3>::keeps(&Linear, [true, false, false]), [false, true, false]);
        assert_eq!(CpuOp::<3>::keeps(&Linear, [false, true, true]), [true, false, false]);
        assert_eq!(CpuOp::<2>::keeps(&Linear, [true, false]), [false, true]);
    }

    #[test]
    fn transpose_covers_partial_blocks() {
        let (rows, columns) = (37, 70);
        let values: Vec<f32> = (0..rows * columns).map(|i| i as f32).collect();
        let turned = transpose(&values, rows, columns);
        assert!((0..rows * columns).all(|i| turned[i % columns * rows + i / columns].to_bits() == values[i].to_bits()));
    }
}
