//! Multi-head attention (Vaswani et al. 2017, section 3.2) without the matrix of probabilities between the passes.
//!
//! For one head, with `s = 1/√d`:
//!
//! ```text
//! P  = softmax(s Q Kᵀ)                O  = P V
//! dP = dO Vᵀ                          dS = s P ∘ (dP − rowsum(P ∘ dP))
//! dQ = dS K      dK = dSᵀ Q           dV = Pᵀ dO
//! ```
//!
//! The backward pass computes `P` again from `Q` and `K`. A task is one head of one batch element; it walks through
//! blocks of [`QUERIES`] queries in order, so its scratch memory grows with `N` and not with `N²`, and the sums `dK`
//! and `dV` have a fixed order.

use std::marker::PhantomData;

use burn::{backend::flex::FlexTensor, tensor::Tensor};
use rayon::prelude::*;

use crate::{
    buffer::{Output, Rows, dims, kept},
    composite,
    gemm::{Matrix, MatrixMut, Threads, add_product, store_product},
    isa::kernel,
    math::{exp, max, sum_of},
    mechanism::{CpuOp, call3, fuses},
};

/// Queries whose scores are held at once.
const QUERIES: usize = 128;

/// `softmax(Q Kᵀ / √d) V` for each head, `d = H / heads`.
///
/// `q` is `[B, N, H]`, `k` and `v` are `[B, M, H]` with the heads side by side in `H`; slices of a joint
/// `[B, N, 3H]` tensor are read in place. Returns `[B, N, H]`.
pub fn attention(q: Tensor<3>, k: Tensor<3>, v: Tensor<3>, heads: usize) -> Tensor<3> {
    let [batch, _, hidden] = q.dims();
    assert!(heads > 0 && hidden % heads == 0, "attention: {hidden} features do not divide into {heads} heads");
    assert_eq!([k.dims()[0], k.dims()[2]], [batch, hidden], "attention: q and k disagree");
    assert_eq!(k.dims(), v.dims(), "attention: k and v disagree");
    if fuses(&q) && fuses(&k) && fuses(&v) {
        call3(q, k, v, Attention { heads })
    } else {
        composite::attention(q, k, v, heads)
    }
}

#[derive(Debug)]
struct Attention {
    heads: usize,
}

impl CpuOp<3> for Attention {
    #[expect(unsafe_code, reason = "an output written whole is not cleared first")]
    fn forward(&self, [q, k, v]: [&FlexTensor; 3]) -> FlexTensor {
        let shape: [usize; 3] = dims(q);
        let ([batch, queries, hidden], [_, keys, _]) = (shape, dims(k));
        let width = hidden / self.heads;
        let inputs = [(q, queries), (k, keys), (v, keys)].map(|(tensor, tokens)| (Rows::new(tensor), tokens));
        let mut out = Output::new(batch * queries * hidden);
        let target = Target::new(&mut out, queries, hidden, width);
        (0..batch * self.heads).into_par_iter().for_each_init(
            || vec![0.0; QUERIES.min(queries) * keys],
            |scores, task| {
                let (b, head) = (task / self.heads, task % self.heads);
                let [q, k, v] = inputs.each_ref().map(|(rows, tokens)| select(rows, *tokens, b, head, width));
                for (from, count) in blocks(queries) {
                    let p = probabilities(q.block(from, count), k, keys, width, scores);
                    // SAFETY: this task alone has this head.
                    let out = unsafe { target.part(b, head, from, count) };
                    store_product(out, p, v, Threads::One);
                }
            },
        );
        // SAFETY: the tasks cover the heads of the batch, and each writes all its rows.
        unsafe { out.finish(shape) }
    }

    fn keeps(&self, [q, k, v]: [bool; 3]) -> [bool; 3] {
        let any = q || k || v;
        [any, any, q || k]
    }

    #[expect(unsafe_code, reason = "an output written whole is not cleared first")]
    fn backward(
        &self,
        [q, k, v]: [Option<FlexTensor>; 3],
        grad: FlexTensor,
        tracked: [bool; 3],
    ) -> [Option<FlexTensor>; 3] {
        let ([batch, queries, hidden], [_, keys, _]) = (dims(&grad), dims(kept(k.as_ref())));
        let width = hidden / self.heads;
        let tokens = [queries, keys, keys];
        let inputs = Inputs {
            q: Rows::new(kept(q.as_ref())),
            k: Rows::new(kept(k.as_ref())),
            v: v.as_ref().map(Rows::new),
            grad: Rows::new(&grad),
            tokens: [queries, keys],
            width,
        };
        let mut outputs = std::array::from_fn(|i| tracked[i].then(|| Output::new(batch * tokens[i] * hidden)));
        let [dq, dk, dv] = &mut outputs;
        let targets = [(dq, queries), (dk, keys), (dv, keys)]
            .map(|(output, tokens)| output.as_mut().map(|output| Target::new(output, tokens, hidden, width)));
        (0..batch * self.heads).into_par_iter().for_each_init(
            || [(); 2].map(|()| vec![0.0; QUERIES.min(queries) * keys]),
            |scratch, task| {
                // SAFETY: this task alone has this head.
                unsafe { inputs.differentiate(task / self.heads, task % self.heads, scratch, &targets) }
            },
        );
        let [dq, dk, dv] = outputs;
        // SAFETY: the tasks cover the heads of the batch, and each writes all its rows.
        let finish = |output: Output, tokens| unsafe { output.finish([batch, tokens, hidden]) };
        [(dq, queries), (dk, keys), (dv, keys)].map(|(output, tokens)| output.map(|output| finish(output, tokens)))
    }
}

/// What the backward pass reads.
struct Inputs<'a> {
    q: Rows<'a>,
    k: Rows<'a>,
    v: Option<Rows<'a>>,
    grad: Rows<'a>,
    /// Numbers of queries and of keys.
    tokens: [usize; 2],
    /// Features of one head.
    width: usize,
}

impl Inputs<'_> {
    /// Writes the parts of `[dQ, dK, dV]` that belong to one head, those that are wanted.
    ///
    /// # Safety
    ///
    /// Nothing else accesses this head of the targets.
    #[expect(unsafe_code, reason = "heads interleave in memory, which slices cannot express")]
    unsafe fn differentiate(
        &self,
        b: usize,
        head: usize,
        [p, ds]: &mut [Vec<f32>; 2],
        [to_q, to_k, to_v]: &[Option<Target<'_>>; 3],
    ) {
        let (width, [queries, keys]) = (self.width, self.tokens);
        let q = select(&self.q, queries, b, head, width);
        let k = select(&self.k, keys, b, head, width);
        let grad = select(&self.grad, queries, b, head, width);
        for (from, count) in blocks(queries) {
            let (q, grad) = (q.block(from, count), grad.block(from, count));
            let p = probabilities(q, k, keys, width, p);
            if let Some(to_v) = to_v {
                // SAFETY: the caller's promise; the rows have values once the first block is done.
                unsafe { sum_product(to_v.part(b, head, 0, keys), from > 0, p.transposed(), grad) }
            }
            let Some(v) = &self.v else { continue };
            let v = select(v, keys, b, head, width);
            let ds = &mut ds[..count * keys];
            store_product(MatrixMut::over(ds, count, keys), grad, v.transposed(), Threads::One);
            softmax_backward(p.values(), ds, keys, scale(width));
            let ds = Matrix::new(ds, count, keys, keys);
            if let Some(to_q) = to_q {
                // SAFETY: the caller's promise.
                store_product(unsafe { to_q.part(b, head, from, count) }, ds, k, Threads::One);
            }
            if let Some(to_k) = to_k {
                // SAFETY: the caller's promise; the rows have values once the first block is done.
                unsafe { sum_product(to_k.part(b, head, 0, keys), from > 0, ds.transposed(), q) }
            }
        }
    }
}

/// `to = a b`, or `to += a b` after the first block.
///
/// # Safety
///
/// With `add`, every element of `to` has a value.
#[expect(unsafe_code, reason = "the first block of queries stores, the others add")]
unsafe fn sum_product(to: MatrixMut<'_>, add: bool, a: Matrix<'_>, b: Matrix<'_>) {
    if add {
        // SAFETY: the caller's promise.
        unsafe { add_product(to, a, b, Threads::One) }
    } else {
        store_product(to, a, b, Threads::One);
    }
}

/// A `[B, N, H]` output whose heads are written by different tasks.
struct Target<'a> {
    first: *mut f32,
    tokens: usize,
    hidden: usize,
    width: usize,
    lifetime: PhantomData<&'a mut Output>,
}

#[expect(unsafe_code, reason = "heads interleave in memory, which slices cannot express")]
// SAFETY: the pointer is dereferenced only through `part`, whose callers keep the tasks' parts disjoint.
unsafe impl Sync for Target<'_> {}

impl<'a> Target<'a> {
    fn new(output: &'a mut Output, tokens: usize, hidden: usize, width: usize) -> Self {
        Self { first: output.slots().as_mut_ptr().cast(), tokens, hidden, width, lifetime: PhantomData }
    }

    /// Tokens `from .. from + count` of one head.
    ///
    /// # Safety
    ///
    /// The indices lie within the output, and nothing else accesses the part while the result lives.
    #[expect(unsafe_code, reason = "heads interleave in memory, which slices cannot express")]
    unsafe fn part(&self, b: usize, head: usize, from: usize, count: usize) -> MatrixMut<'_> {
        let offset = (b * self.tokens + from) * self.hidden + head * self.width;
        // SAFETY: the offset is within the output, whose borrow lasts as long as `self`.
        unsafe { MatrixMut::from_raw(self.first.add(offset), count, self.width, self.hidden) }
    }
}

/// One head of one batch element, `[tokens, width]`.
fn select<'a>(rows: &'a Rows<'_>, tokens: usize, b: usize, head: usize, width: usize) -> Matrix<'a> {
    Matrix::new(&rows.batch(b)[head * width..], tokens, width, rows.row_stride)
}

/// First index and size of each block of queries.
fn blocks(queries: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..queries).step_by(QUERIES).map(move |from| (from, QUERIES.min(queries - from)))
}

fn scale(width: usize) -> f32 {
    1.0 / (width as f32).sqrt()
}

/// `softmax(s Q Kᵀ)` for a block of queries, in the scratch memory.
fn probabilities<'a>(q: Matrix<'_>, k: Matrix<'_>, keys: usize, width: usize, scratch: &'a mut [f32]) -> Matrix<'a> {
    let count = q.rows();
    let scores = &mut scratch[..count * keys];
    store_product(MatrixMut::over(scores, count, keys), q, k.transposed(), Threads::One);
    softmax(scores, keys, scale(width));
    Matrix::new(scores, count, keys, keys)
}

kernel! {
    /// `softmax(scale · row)` of each row, in place.
    fn softmax(scores: &mut [f32], columns: usize, scale: f32) {
        for row in scores.chunks_exact_mut(columns) {
            let largest = max(row);
            for score in row.iter_mut() {
                *score = exp((*score - largest) * scale);
            }
            let inverse = 1.0 / sum_of(row, row, |p, _| p);
            for p in row {
                *p *= inverse;
            }
        }
    }
}

kernel! {
    /// `dS = scale · P ∘ (dP − rowsum(P ∘ dP))`, in place of `dP`.
    fn softmax_backward(p: &[f32], dp: &mut [f32], columns: usize, scale: f32) {
        for (p, dp) in p.chunks_exact(columns).zip(dp.chunks_exact_mut(columns)) {
            let dot = sum_of(p, dp, |p, dp| p * dp);
            for (dp, &p) in dp.iter_mut().zip(p) {
                *dp = scale * p * (*dp - dot);
            }
        }
    }
}
