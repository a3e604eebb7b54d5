//! Products with one matrix on the right of many rows: it is rearranged once for all of them.
//!
//! The `gemm` crate rearranges an operand for each product. Here a weight is cut once into *panels* as wide as a
//! microkernel, each with the values that one step of it reads side by side; tasks of a few rows then share the panels.
//! The microkernels are that crate's.
//!
//! ```text
//! for each piece of the inner dimension, for each panel (a piece of it stays in the first-level cache):
//!     for a few rows at a time: to[rows, panel] += a[rows, piece] · panel[piece]
//! ```

use crate::gemm::{Matrix, MatrixMut, Threads, store_product};
#[cfg(target_arch = "x86_64")]
use crate::path::{Path, chosen};

#[cfg(target_arch = "x86_64")]
type Microkernel = gemm_common::microkernel::MicroKernelFn<f32>;

/// The microkernels of one path.
#[cfg(target_arch = "x86_64")]
struct Kernels {
    /// Values of a vector.
    lanes: usize,
    /// Columns of a panel.
    width: usize,
    /// Rows at a time.
    rows: usize,
    /// Length of a piece of the inner dimension.
    depth: usize,
    /// That of so many vectors (from 1) and rows (from 1).
    get: fn(usize, usize) -> Microkernel,
}

#[cfg(target_arch = "x86_64")]
impl Kernels {
    fn chosen() -> Option<Self> {
        use gemm_f32::microkernel::{avx512f::f32 as wide, fma::f32 as narrow};
        match chosen() {
            Path::Avx512 => Some(Self {
                lanes: 16,
                width: 16 * wide::MR_DIV_N,
                rows: wide::NR,
                depth: 128,
                get: |vectors, rows| wide::UKR[vectors - 1][rows - 1],
            }),
            Path::Avx2 => Some(Self {
                lanes: 8,
                width: 8 * narrow::MR_DIV_N,
                rows: narrow::NR,
                depth: 256,
                get: |vectors, rows| narrow::UKR[vectors - 1][rows - 1],
            }),
            Path::Composite | Path::Portable => None,
        }
    }
}

/// A matrix `[inner, columns]` to multiply rows with.
pub(crate) struct Packed {
    /// Panels, or the matrix itself, row-major, where there are no microkernels.
    values: Vec<f32>,
    inner: usize,
    columns: usize,
    #[cfg(target_arch = "x86_64")]
    kernels: Option<Kernels>,
}

impl Packed {
    /// Rearranges `b`, in which one of the strides is 1.
    pub(crate) fn new(b: Matrix<'_>) -> Self {
        let [inner, columns] = b.dims();
        #[cfg(target_arch = "x86_64")]
        {
            let kernels = Kernels::chosen();
            let width = kernels.as_ref().map_or(columns, |k| k.width);
            Self { values: panels(b, width), inner, columns, kernels }
        }
        #[cfg(not(target_arch = "x86_64"))]
        Self { values: panels(b, columns), inner, columns }
    }

    /// `to = a b`, on this thread.
    #[expect(unsafe_code, reason = "the microkernels take pointers")]
    pub(crate) fn store(&self, to: MatrixMut<'_>, a: Matrix<'_>) {
        // SAFETY: `to` is written without being read.
        unsafe { self.product(to, false, a) }
    }

    /// `to += a b`, on this thread.
    ///
    /// # Safety
    ///
    /// Every element of `to` has a value.
    #[expect(unsafe_code, reason = "the microkernels take pointers")]
    pub(crate) unsafe fn add(&self, to: MatrixMut<'_>, a: Matrix<'_>) {
        // SAFETY: the caller's promise.
        unsafe { self.product(to, true, a) }
    }

    /// # Safety
    ///
    /// With `add`, every element of `to` has a value.
    #[expect(unsafe_code, reason = "the microkernels take pointers")]
    unsafe fn product(&self, to: MatrixMut<'_>, add: bool, a: Matrix<'_>) {
        #[cfg(target_arch = "x86_64")]
        if let Some(kernels) = &self.kernels {
            // SAFETY: the caller's promise; the kernels are those of the chosen path, for which the panels were made.
            return unsafe { self.by_panels(kernels, to, add, a) };
        }
        let b = Matrix::new(&self.values, self.inner, self.columns, self.columns);
        if add {
            // SAFETY: the caller's promise.
            unsafe { crate::gemm::add_product(to, a, b, Threads::One) }
        } else {
            store_product(to, a, b, Threads::One);
        }
    }

    /// # Safety
    ///
    /// With `add`, every element of `to` has a value; `self` was made for `kernels`, whose instructions the CPU has.
    #[cfg(target_arch = "x86_64")]
    #[expect(unsafe_code, reason = "the microkernels take pointers")]
    unsafe fn by_panels(&self, kernels: &Kernels, to: MatrixMut<'_>, add: bool, a: Matrix<'_>) {
        let ([rows, inner], target) = (a.dims(), to.parts());
        assert!(inner == self.inner && target.dims == [rows, self.columns], "shapes of a product disagree");
        let (width, [a_row, a_column]) = (kernels.width, a.strides());
        for from in (0..inner).step_by(kernels.depth) {
            let depth = kernels.depth.min(inner - from);
            let status = u8::from(add || from > 0);
            for (panel, left) in (0..self.columns).step_by(width).enumerate() {
                let columns = width.min(self.columns - left);
                let values = &self.values[(panel * inner + from) * width..][..depth * width];
                for top in (0..rows).step_by(kernels.rows) {
                    let count = kernels.rows.min(rows - top);
                    let kernel = (kernels.get)(columns.div_ceil(kernels.lanes), count);
                    // SAFETY: the panel holds `depth` steps of `width` values, which whole vectors are read from; `a` holds
                    // `count` rows from `top` and `depth` columns from `from`; `to` holds as many rows and `columns` columns
                    // from `left`, which have values if they are read.
                    unsafe {
                        kernel(
                            columns,
                            count,
                            depth,
                            target.first.add(top * target.stride + left),
                            values.as_ptr(),
                            a.values().as_ptr().add(top * a_row + from * a_column),
                            target.stride as isize,
                            1,
                            width as isize,
                            a_column as isize,
                            a_row as isize,
                            1.0,
                            1.0,
                            status,
                            false,
                            false,
                            false,
                            std::ptr::null(),
                        );
                    }
                }
            }
        }
    }
}

/// `b` in panels of `width` columns, row after row; the last is filled up with zeros.
fn panels(b: Matrix<'_>, width: usize) -> Vec<f32> {
    let ([inner, columns], [row, column]) = (b.dims(), b.strides());
    let mut values = vec![0.0; columns.div_ceil(width) * width * inner];
    for (panel, left) in values.chunks_exact_mut(width * inner).zip((0..columns).step_by(width)) {
        let count = width.min(columns - left);
        if column == 1 {
            for (to, i) in panel.chunks_exact_mut(width).zip(0..) {
                to[..count].copy_from_slice(&b.values()[i * row + left..][..count]);
            }
        } else {
            transpose(&b.values()[left * column..], [count, inner], [column, row], panel, width);
        }
    }
    values
}

/// `to[i, j] = from[j, i]` by square blocks that fit in the first-level cache; rows of `to` are `width` apart.
fn transpose(from: &[f32], [rows, columns]: [usize; 2], [row, column]: [usize; 2], to: &mut [f32], width: usize) {
    const BLOCK: usize = 32;
    for top in (0..rows).step_by(BLOCK) {
        for left in (0..columns).step_by(BLOCK) {
            for i in left..columns.min(left + BLOCK) {
                let to = &mut to[i * width..][top..rows.min(top + BLOCK)];
                for (to, j) in to.iter_mut().zip(top..) {
                    *to = from[j * row + i * column];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(len: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * 7919) % 1013) as f32 / 500.0 - 1.0).collect()
    }

    #[test]
    fn panels_cover_partial_blocks() {
        for (inner, columns, width) in [(37, 70, 16), (5, 64, 64), (33, 1, 8)] {
            let b = values(inner * columns);
            let expected = |k: usize| {
                let (panel, i, j) = (k / (width * inner), k / width % inner, k % width);
                if panel * width + j < columns { b[i * columns + panel * width + j] } else { 0.0 }
            };
            let turned: Vec<f32> = (0..inner * columns).map(|k| b[k % inner * columns + k / inner]).collect();
            let rows = Matrix::new(&b, inner, columns, columns);
            let same = Matrix::new(&turned, columns, inner, inner).transposed();
            for packed in [panels(rows, width), panels(same, width)] {
                assert!(packed.iter().enumerate().all(|(k, v)| v.to_bits() == expected(k).to_bits()));
            }
        }
    }

    #[test]
    #[expect(unsafe_code, reason = "the sum is of values")]
    fn products_are_those_of_the_gemm_crate() {
        for [rows, inner, columns] in [[1, 1, 1], [7, 300, 33], [128, 513, 70], [13, 64, 128]] {
            let (a, b) = (values(rows * inner), values(inner * columns));
            let (a, b) = (Matrix::new(&a, rows, inner, inner), Matrix::new(&b, inner, columns, columns));
            let mut expected = values(rows * columns);
            let mut got = expected.clone();
            let packed = Packed::new(b);
            // SAFETY: both have values.
            unsafe {
                crate::gemm::add_product(MatrixMut::over(&mut expected, rows, columns), a, b, Threads::One);
                packed.add(MatrixMut::over(&mut got, rows, columns), a);
            }
            let close = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-5 * inner as f32);
            assert!(close(&got, &expected), "sum {rows} {inner} {columns}");
            store_product(MatrixMut::over(&mut expected, rows, columns), a, b, Threads::One);
            packed.store(MatrixMut::over(&mut got, rows, columns), a);
            assert!(close(&got, &expected), "product {rows} {inner} {columns}");
        }
    }
}
