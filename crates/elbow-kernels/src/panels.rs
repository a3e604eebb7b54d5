//! Products of many rows with one matrix, in `f32` and in vectors of the chosen [`Isa`](crate::isa::Isa).
//!
//! The matrix is rearranged once for all rows, in *panels* two vectors wide. Tasks take some rows each; a block of a few rows and
//! one panel has all its sums in registers while it walks along the inner dimension, once:
//!
//! ```text
//! for each panel:  for each block of rows:  to[rows, panel] = bias[panel] + a[rows, ·] · panel
//! ```
//!
//! Each element is the work of one task and its sum has one order, so the bits are the same for any number of threads.

use rayon::prelude::*;

use crate::{
    buffer::{Slot, padded},
    gemm::Matrix,
    isa::chosen,
};

/// Rows of a task: they and what they make stay in a core's second-level cache.
const TASK: usize = 96;

/// Elements between two rows of a task. Rows that lie a power of two apart would meet in the same lines of the first-level cache.
const GAP: usize = 16;

/// The most rows of a block.
const ROWS: usize = 12;

/// Columns of the widest panel.
const WIDTH: usize = 32;

/// `to = bias + a · panel` for a block of rows.
type Block = unsafe fn(
    inner: usize,
    a: *const f32,
    a_stride: usize,
    panel: *const f32,
    bias: *const f32,
    to: *mut f32,
    stride: usize,
);

/// What multiplies panels.
#[derive(Clone, Copy)]
struct Kernel {
    /// Columns of a panel.
    width: usize,
    /// Blocks of 1, 2, 3 … rows.
    blocks: &'static [Block],
}

impl Kernel {
    fn chosen() -> Option<Self> {
        match chosen() {
            #[cfg(target_arch = "x86_64")]
            crate::isa::Isa::Avx2 => Some(vectors::AVX2),
            #[cfg(target_arch = "x86_64")]
            crate::isa::Isa::Avx512 | crate::isa::Isa::Avx512Bf16 | crate::isa::Isa::Amx => Some(vectors::AVX512),
            _ => None,
        }
    }
}

/// A matrix `[inner, columns]` to multiply rows with, and what is added to every row.
pub(crate) struct Panels {
    kernel: Kernel,
    values: Box<[f32]>,
    bias: Vec<f32>,
    inner: usize,
    columns: usize,
}

impl Panels {
    /// Rearranges `b`, in which one of the strides is 1; `None` for instruction sets without vectors of their own here.
    #[expect(unsafe_code, reason = "an output written whole is not cleared first")]
    pub(crate) fn new(b: Matrix<'_>, bias: Option<&[f32]>) -> Option<Self> {
        let (kernel, [inner, columns]) = (Kernel::chosen()?, b.dims());
        let width = columns.next_multiple_of(kernel.width);
        let mut values = Box::new_uninit_slice(width * inner);
        values.par_chunks_mut(kernel.width * inner).enumerate().for_each(|(i, panel)| {
            let first = i * kernel.width;
            let count = kernel.width.min(columns - first);
            if b.is_row_major() {
                for (k, to) in panel.chunks_exact_mut(kernel.width).enumerate() {
                    let (to, rest) = to.split_at_mut(count);
                    to.write_copy_of_slice(&b.row(k)[first..][..count]);
                    rest.fill(Slot::new(0.0));
                }
            } else {
                turn(b.transposed(), first, count, panel, kernel.width);
            }
        });
        // SAFETY: both ways write all of a panel, and the panels are all of the values.
        let values = unsafe { values.assume_init() };
        Some(Self { kernel, values, bias: padded(bias, width), inner, columns })
    }

    /// `to = a b + bias`, on the pool. `enter` writes a row of `a` as it is to be multiplied, `leave` gets the finished rows of
    /// a task with the number of elements before them.
    #[expect(unsafe_code, reason = "blocks of one matrix are written side by side")]
    pub(crate) fn product(
        &self,
        to: &mut [Slot],
        a: &[f32],
        enter: impl Fn(&[f32], &mut [Slot]) + Sync,
        leave: impl Fn(usize, &mut [f32]) + Sync,
    ) {
        let Self { inner, columns, .. } = *self;
        assert_eq!(a.len() / inner * columns, to.len(), "shapes of a product disagree");
        let (stride, size) = (inner + GAP, TASK * columns);
        let scratch = || Box::<[f32]>::new_uninit_slice(TASK.min(a.len() / inner) * stride);
        let tasks = to.par_chunks_mut(size).zip(a.par_chunks(TASK * inner)).enumerate();
        tasks.for_each_init(scratch, |left, (task, (part, a))| {
            for (to, row) in left.chunks_exact_mut(stride).zip(a.chunks_exact(inner)) {
                enter(row, &mut to[..inner]);
            }
            let (left, target) = (left.as_ptr() as usize, part.as_mut_ptr() as usize);
            (0..self.bias.len() / self.kernel.width).into_par_iter().for_each(|panel| {
                // SAFETY: as many rows were entered as the part has, and no other task writes these columns of it.
                unsafe { self.columns(panel, a.len() / inner, left as *const f32, target as *mut f32) }
            });
            // SAFETY: the panels have all columns.
            leave(task * size, unsafe { part.assume_init_mut() });
        });
    }

    /// The columns of one panel, for some rows.
    ///
    /// # Safety
    ///
    /// `left` holds so many rows, [`GAP`] apart, and `to` has room for as many of all columns.
    #[expect(unsafe_code, reason = "blocks of one matrix are written side by side")]
    unsafe fn columns(&self, panel: usize, rows: usize, left: *const f32, to: *mut f32) {
        let Self { kernel: Kernel { width, blocks }, inner, columns, .. } = *self;
        let (first, stride) = (panel * width, inner + GAP);
        let count = width.min(columns - first);
        let (values, bias) =
            (self.values[first * inner..][..width * inner].as_ptr(), self.bias[first..][..width].as_ptr());
        for row in (0..rows).step_by(blocks.len()) {
            let height = blocks.len().min(rows - row);
            let block = blocks[height - 1];
            // SAFETY: the caller's promise; a block that is narrower than its panel is written beside the matrix first.
            unsafe {
                let (left, to) = (left.add(row * stride), to.add(row * columns + first));
                if count == width {
                    block(inner, left, stride, values, bias, to, columns);
                    continue;
                }
                let mut beside = [0.0; ROWS * WIDTH];
                block(inner, left, stride, values, bias, beside.as_mut_ptr(), width);
                for (i, from) in beside.chunks_exact(width).take(height).enumerate() {
                    to.add(i * columns).copy_from_nonoverlapping(from.as_ptr(), count);
                }
            }
        }
    }
}

/// Writes rows `first .. first + count` of a row-major matrix as columns of a panel, whose other columns become zeros.
#[cfg_attr(target_arch = "x86_64", expect(unsafe_code, reason = "vectors are read from and written to memory"))]
fn turn(m: Matrix<'_>, first: usize, count: usize, panel: &mut [Slot], width: usize) {
    let inner = panel.len() / width;
    let squares = if cfg!(target_arch = "x86_64") && count == width { inner / 8 * 8 } else { 0 };
    #[cfg(target_arch = "x86_64")]
    for (row, k) in (0..width).step_by(8).flat_map(|row| (0..squares).step_by(8).map(move |k| (row, k))) {
        let rows = std::array::from_fn(|i| m.row(first + row + i)[k..][..8].as_ptr());
        let to = panel[k * width + row..][..7 * width + 8].as_mut_ptr();
        // SAFETY: there are panels only where the CPU has AVX2; the slices are as long as the square needs.
        unsafe { crate::turn::square(rows, to.cast(), width) };
    }
    for (k, to) in panel.chunks_exact_mut(width).enumerate().skip(squares) {
        for (i, to) in to.iter_mut().enumerate() {
            to.write(if i < count { m.row(first + i)[k] } else { 0.0 });
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "vectors are read from and written to memory")]
mod vectors {
    use super::{Kernel, ROWS, WIDTH};
    use std::arch::x86_64::{
        _MM_HINT_ET0, _mm_prefetch, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps, _mm256_storeu_ps,
        _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_set1_ps, _mm512_storeu_ps,
    };

    macro_rules! kernel {
        ($name:ident, $features:literal, $lanes:literal, [$($rows:literal)*], $load:ident, $set1:ident, $fma:ident, $store:ident) => {
            pub(super) const $name: Kernel = {
                /// # Safety
                ///
                /// `a` holds `ROWS` rows of `inner` elements, the panel as many rows of two vectors, the bias two vectors, and `to`
                /// has room for `ROWS` rows of two vectors.
                #[target_feature(enable = $features)]
                unsafe fn block<const ROWS: usize>(
                    inner: usize,
                    a: *const f32,
                    a_stride: usize,
                    panel: *const f32,
                    bias: *const f32,
                    to: *mut f32,
                    stride: usize,
                ) {
                    // SAFETY: the caller's promise.
                    unsafe {
                        for i in 0..ROWS {
                            // What is written at the end would be waited for otherwise.
                            _mm_prefetch::<_MM_HINT_ET0>(to.add(i * stride).cast());
                            _mm_prefetch::<_MM_HINT_ET0>(to.add(i * stride + 2 * $lanes - 1).cast());
                        }
                        let mut sums = [[$load(bias), $load(bias.add($lanes))]; ROWS];
                        for k in 0..inner {
                            let b = [$load(panel.add(k * 2 * $lanes)), $load(panel.add(k * 2 * $lanes + $lanes))];
                            for (i, sums) in sums.iter_mut().enumerate() {
                                let a = $set1(*a.add(i * a_stride + k));
                                *sums = [$fma(a, b[0], sums[0]), $fma(a, b[1], sums[1])];
                            }
                        }
                        for (i, sums) in sums.into_iter().enumerate() {
                            $store(to.add(i * stride), sums[0]);
                            $store(to.add(i * stride + $lanes), sums[1]);
                        }
                    }
                }
                let kernel = Kernel { width: 2 * $lanes, blocks: &[$(block::<$rows>),*] };
                assert!(kernel.width <= WIDTH && kernel.blocks.len() <= ROWS);
                kernel
            };
        };
    }

    kernel!(AVX2, "avx2,fma", 8, [1 2 3 4 5 6], _mm256_loadu_ps, _mm256_set1_ps, _mm256_fmadd_ps, _mm256_storeu_ps);
    kernel!(AVX512, "avx512f", 16, [1 2 3 4 5 6 7 8 9 10 11 12], _mm512_loadu_ps, _mm512_set1_ps, _mm512_fmadd_ps, _mm512_storeu_ps);
}
