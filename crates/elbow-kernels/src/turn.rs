//! Transposed squares of 8 × 8 elements of 32 bits, in vectors.

use std::arch::x86_64::{
    __m256, _mm256_loadu_ps, _mm256_permute2f128_ps, _mm256_shuffle_ps, _mm256_storeu_ps, _mm256_unpackhi_ps,
    _mm256_unpacklo_ps,
};

/// Writes eight rows to eight columns.
///
/// # Safety
///
/// The CPU has AVX2; eight elements can be read from each row, and eight written to each of eight rows of `to`, `stride` apart.
#[target_feature(enable = "avx2")]
#[expect(unsafe_code, reason = "vectors are read from and written to memory")]
pub(crate) unsafe fn square(rows: [*const f32; 8], to: *mut f32, stride: usize) {
    // SAFETY: the caller's promise.
    let rows: [__m256; 8] = rows.map(|row| unsafe { _mm256_loadu_ps(row) });
    let pairs = |i: usize| [_mm256_unpacklo_ps(rows[i], rows[i + 1]), _mm256_unpackhi_ps(rows[i], rows[i + 1])];
    let fours = |i: usize| {
        let ([a, b], [c, d]) = (pairs(i), pairs(i + 2));
        [
            _mm256_shuffle_ps::<0x44>(a, c),
            _mm256_shuffle_ps::<0xee>(a, c),
            _mm256_shuffle_ps::<0x44>(b, d),
            _mm256_shuffle_ps::<0xee>(b, d),
        ]
    };
    for (i, (low, high)) in fours(0).into_iter().zip(fours(4)).enumerate() {
        // SAFETY: the caller's promise.
        unsafe {
            _mm256_storeu_ps(to.add(i * stride), _mm256_permute2f128_ps::<0x20>(low, high));
            _mm256_storeu_ps(to.add((i + 4) * stride), _mm256_permute2f128_ps::<0x31>(low, high));
        }
    }
}
