//! Matrix products on strided `f32` slices, through the `gemm` crate.
//!
//! Its kernels are those of the chosen [`Isa`](crate::isa::Isa). It never divides the inner dimension among threads, so a
//! product has the same bits for any number of threads; the crate's tests check it.

use std::marker::PhantomData;

#[cfg(not(target_arch = "x86_64"))]
use gemm::Parallelism;
#[cfg(target_arch = "x86_64")]
use gemm_common::Parallelism;

use crate::buffer::Slot;

/// A matrix to read.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// Row-major, with `stride` elements from one row to the next.
    pub(crate) fn new(values: &'a [f32], rows: usize, columns: usize, stride: usize) -> Self {
        let matrix = Self { values, rows, columns, row_stride: stride, column_stride: 1 };
        assert!(matrix.extent() <= values.len(), "matrix exceeds its slice");
        matrix
    }

    /// The transposed matrix.
    pub(crate) fn transposed(self) -> Self {
        let Self { values, rows, columns, row_stride, column_stride } = self;
        Self { values, rows: columns, columns: rows, row_stride: column_stride, column_stride: row_stride }
    }

    /// Number of rows.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Numbers of rows and of columns.
    pub(crate) fn dims(&self) -> [usize; 2] {
        [self.rows, self.columns]
    }

    /// Whether each row lies in one piece.
    pub(crate) fn is_row_major(&self) -> bool {
        self.column_stride == 1
    }

    /// A row of a row-major matrix.
    #[inline(always)]
    pub(crate) fn row(&self, index: usize) -> &'a [f32] {
        debug_assert!(self.is_row_major(), "a row in pieces");
        &self.values[index * self.row_stride..][..self.columns]
    }

    /// The slice it lies in.
    pub(crate) fn values(&self) -> &'a [f32] {
        self.values
    }

    /// Rows `from .. from + count`.
    pub(crate) fn block(self, from: usize, count: usize) -> Self {
        assert!(from + count <= self.rows, "block exceeds its matrix");
        Self { values: &self.values[from * self.row_stride..], rows: count, ..self }
    }

    /// Elements from the first to the last, both included.
    fn extent(&self) -> usize {
        if self.rows == 0 || self.columns == 0 {
            return 0;
        }
        (self.rows - 1) * self.row_stride + (self.columns - 1) * self.column_stride + 1
    }
}

/// A row-major matrix to write; its elements may have no value yet.
pub(crate) struct MatrixMut<'a> {
    first: *mut f32,
    rows: usize,
    columns: usize,
    stride: usize,
    lifetime: PhantomData<&'a mut [Slot]>,
}

impl<'a> MatrixMut<'a> {
    /// The whole of `slots`, `columns` to a row.
    pub(crate) fn new(slots: &'a mut [Slot], rows: usize, columns: usize) -> Self {
        assert_eq!(slots.len(), rows * columns, "matrix is not its whole slice");
        Self { first: slots.as_mut_ptr().cast(), rows, columns, stride: columns, lifetime: PhantomData }
    }

    /// The whole of `values`, `columns` to a row.
    pub(crate) fn over(values: &'a mut [f32], rows: usize, columns: usize) -> Self {
        assert_eq!(values.len(), rows * columns, "matrix is not its whole slice");
        Self { first: values.as_mut_ptr(), rows, columns, stride: columns, lifetime: PhantomData }
    }

    /// A part of a larger matrix, with `stride` elements from one row to the next.
    ///
    /// # Safety
    ///
    /// The matrix lies within memory valid for writes during `'a`, and nothing else accesses its elements then.
    #[expect(unsafe_code, reason = "heads interleave in memory, which slices cannot express")]
    pub(crate) unsafe fn from_raw(first: *mut f32, rows: usize, columns: usize, stride: usize) -> Self {
        Self { first, rows, columns, stride, lifetime: PhantomData }
    }

    /// For code that writes it by pointers.
    pub(crate) fn parts(&self) -> Parts {
        Parts { first: self.first, dims: [self.rows, self.columns], stride: self.stride }
    }
}

/// Where a matrix to write lies.
pub(crate) struct Parts {
    pub(crate) first: *mut f32,
    /// Numbers of rows and of columns.
    pub(crate) dims: [usize; 2],
    /// Elements from one row to the next.
    pub(crate) stride: usize,
}

/// Whether a product uses the calling thread alone or the thread pool around it.
#[derive(Clone, Copy)]
pub(crate) enum Threads {
    One,
    Pool,
}

/// `to = a b`.
#[expect(unsafe_code, reason = "the gemm crate takes pointers")]
pub(crate) fn store_product(to: MatrixMut<'_>, a: Matrix<'_>, b: Matrix<'_>, threads: Threads) {
    // SAFETY: `to` is written without being read.
    unsafe { product(to, false, a, b, threads) }
}

/// `to += a b`.
///
/// # Safety
///
/// Every element of `to` has a value.
#[expect(unsafe_code, reason = "the gemm crate takes pointers")]
pub(crate) unsafe fn add_product(to: MatrixMut<'_>, a: Matrix<'_>, b: Matrix<'_>, threads: Threads) {
    // SAFETY: the caller's promise.
    unsafe { product(to, true, a, b, threads) }
}

/// # Safety
///
/// With `add`, every element of `to` has a value.
#[expect(unsafe_code, reason = "the gemm crate takes pointers")]
unsafe fn product(to: MatrixMut<'_>, add: bool, a: Matrix<'_>, b: Matrix<'_>, threads: Threads) {
    assert!(a.columns == b.rows && to.rows == a.rows && to.columns == b.columns, "shapes of a product disagree");
    let parallelism = match threads {
        Threads::One => Parallelism::None,
        Threads::Pool => Parallelism::Rayon(rayon::current_num_threads()),
    };
    // SAFETY: `a` and `b` lie within their slices by construction and `to` is writable and not aliased by its type's
    // contract; the dimensions agree; `to` is read only with `add`, when it has values.
    unsafe { transposed_product(to, add, a, b, parallelism) }
}

/// The product as its transpose, since the microkernels write columns, with the kernels of the chosen instruction set: left to
/// itself, the `gemm` crate would take the best.
///
/// # Safety
///
/// The dimensions agree, the matrices lie in memory, and with `add` every element of `to` has a value.
#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "the gemm crate takes pointers")]
unsafe fn transposed_product(to: MatrixMut<'_>, add: bool, a: Matrix<'_>, b: Matrix<'_>, parallelism: Parallelism) {
    use crate::isa::{Isa, chosen};
    use gemm_common::simd::{MixedSimd, Scalar, V3, V4};
    macro_rules! with {
        ($kernels:ident, $simd:ident, $lanes:literal) => {{
            use gemm_f32::microkernel::$kernels::f32::{H_M, H_N, H_UKR, MR_DIV_N, NR, UKR};
            let simd = <$simd as MixedSimd<f32, f32, f32, f32>>::try_new()
                .expect("a chosen instruction set is one that the CPU has");
            // SAFETY: the caller's promise.
            unsafe {
                gemm_common::gemm::gemm_basic_generic::<_, f32, $lanes, { MR_DIV_N * $lanes }, NR, MR_DIV_N, H_M, H_N>(
                    simd,
                    to.columns,
                    to.rows,
                    a.columns,
                    to.first,
                    to.stride as isize,
                    1,
                    add,
                    b.values.as_ptr(),
                    b.row_stride as isize,
                    b.column_stride as isize,
                    a.values.as_ptr(),
                    a.row_stride as isize,
                    a.column_stride as isize,
                    1.0,
                    1.0,
                    false,
                    false,
                    false,
                    |a, b, c| a * b + c,
                    &UKR,
                    &H_UKR,
                    false,
                    parallelism,
                );
            }
        }};
    }
    match chosen() {
        Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx => with!(avx512f, V4, 16),
        Isa::Avx2 => with!(fma, V3, 8),
        Isa::Composite | Isa::Portable => with!(scalar, Scalar, 1),
    }
}

/// # Safety
///
/// The dimensions agree, the matrices lie in memory, and with `add` every element of `to` has a value.
#[cfg(not(target_arch = "x86_64"))]
#[expect(unsafe_code, reason = "the gemm crate takes pointers")]
unsafe fn transposed_product(to: MatrixMut<'_>, add: bool, a: Matrix<'_>, b: Matrix<'_>, parallelism: Parallelism) {
    // SAFETY: the caller's promise.
    unsafe {
        gemm::gemm(
            to.columns,
            to.rows,
            a.columns,
            to.first,
            to.stride as isize,
            1,
            add,
            b.values.as_ptr(),
            b.row_stride as isize,
            b.column_stride as isize,
            a.values.as_ptr(),
            a.row_stride as isize,
            a.column_stride as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}
