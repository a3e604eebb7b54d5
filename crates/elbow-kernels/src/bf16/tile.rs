//! 32 × 32 elements of a product from tiles, with the instructions of the chosen [`Path`].
//!
//! Two tiles of the left factor, one below the other, lie `depth` tiles apart; so do two of the right, side by side.

use crate::path::{Path, chosen, kernel};

use super::{BLOCK, TILE};

/// A thread's use of the tile registers, which have to be set up before and given back after.
pub(super) struct Session {
    path: Path,
}

impl Session {
    pub(super) fn new() -> Self {
        let path = chosen();
        #[cfg(target_arch = "x86_64")]
        if path == Path::Amx {
            amx::configure();
        }
        Self { path }
    }

    /// The product of two rows and two columns of tiles, written to `to`, whose rows lie `stride` apart.
    ///
    /// # Safety
    ///
    /// 32 × 32 elements may be written there.
    #[expect(unsafe_code, reason = "instructions of one kind of CPU, and a block of a matrix that others write too")]
    pub(super) unsafe fn multiply(&self, a: &[u16], b: &[u16], to: *mut f32, stride: usize) {
        assert_eq!(a.len(), b.len(), "tiles of another depth");
        match self.path {
            // SAFETY: the CPU has what its path names; the registers are set up; the caller's promise.
            #[cfg(target_arch = "x86_64")]
            Path::Amx => unsafe { amx::multiply(a, b, to, stride) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Path::Avx512Bf16 => unsafe { avx512::multiply(a, b, to, stride) },
            _ => {
                let mut sums = [[0.0; BLOCK]; BLOCK];
                accumulate(a, b, &mut sums);
                for (i, row) in sums.iter().enumerate() {
                    // SAFETY: the caller's promise.
                    unsafe { to.add(i * stride).copy_from_nonoverlapping(row.as_ptr(), BLOCK) };
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
impl Drop for Session {
    fn drop(&mut self) {
        if self.path == Path::Amx {
            amx::release();
        }
    }
}

kernel! {
    /// In ordinary instructions.
    fn accumulate(a: &[u16], b: &[u16], sums: &mut [[f32; BLOCK]; BLOCK]) {
        let wide = |bits: u16| f32::from_bits(u32::from(bits) << 16);
        let (a, b) = (a.split_at(a.len() / 2), b.split_at(b.len() / 2));
        for (row, a) in [a.0, a.1].into_iter().enumerate() {
            for (column, b) in [b.0, b.1].into_iter().enumerate() {
                for (a, b) in a.chunks_exact(TILE).zip(b.chunks_exact(TILE)) {
                    let mut planes = [[0.0; 16]; 32];
                    for (k, plane) in planes.iter_mut().enumerate() {
                        for (j, value) in plane.iter_mut().enumerate() {
                            *value = wide(b[k / 2 * 32 + 2 * j + k % 2]);
                        }
                    }
                    for (a, sums) in a.chunks_exact(32).zip(&mut sums[16 * row..]) {
                        let mut sum = [0.0; 16];
                        sum.copy_from_slice(&sums[16 * column..][..16]);
                        for (&a, plane) in a.iter().zip(&planes) {
                            for (sum, &b) in sum.iter_mut().zip(plane) {
                                *sum += wide(a) * b;
                            }
                        }
                        sums[16 * column..][..16].copy_from_slice(&sum);
                    }
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use super::TILE;
    use std::arch::x86_64::{
        __m512bh, __m512i, _mm512_dpbf16_ps, _mm512_loadu_si512, _mm512_set1_epi32, _mm512_setzero_ps, _mm512_storeu_ps,
    };

    /// With sums of pairs in 512-bit vectors: 16 rows by 16 columns in registers at a time.
    ///
    /// # Safety
    ///
    /// 32 × 32 elements may be written to `to`.
    #[target_feature(enable = "avx512f,avx512bf16")]
    #[expect(unsafe_code, reason = "vectors are read from and written to memory")]
    pub(super) unsafe fn multiply(a: &[u16], b: &[u16], to: *mut f32, stride: usize) {
        let half = a.len() / 2;
        for (row, column) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let mut sums = [_mm512_setzero_ps(); 16];
            let (a, b) = (&a[row * half..][..half], &b[column * half..][..half]);
            for (a, b) in a.as_chunks::<TILE>().0.iter().zip(b.as_chunks::<TILE>().0) {
                let (a, b) = (a.as_chunks::<2>().0, b.as_chunks::<32>().0);
                for (pair, b) in b.iter().enumerate() {
                    // SAFETY: 32 numbers of 16 bits are 512 bits, whatever they are taken for.
                    let b: __m512bh = unsafe { std::mem::transmute(_mm512_loadu_si512(b.as_ptr().cast())) };
                    for (i, sum) in sums.iter_mut().enumerate() {
                        let [low, high] = a[16 * i + pair];
                        let both = _mm512_set1_epi32((u32::from(high) << 16 | u32::from(low)).cast_signed());
                        // SAFETY: as above.
                        *sum = _mm512_dpbf16_ps(*sum, unsafe { std::mem::transmute::<__m512i, __m512bh>(both) }, b);
                    }
                }
            }
            for (i, sum) in sums.into_iter().enumerate() {
                // SAFETY: the caller's promise.
                unsafe { _mm512_storeu_ps(to.add((16 * row + i) * stride + 16 * column), sum) };
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod amx {
    use super::TILE;
    use std::{arch::asm, ptr};

    /// What the eight tile registers hold: palette 1, 16 rows of 64 bytes each.
    #[repr(C, align(64))]
    struct Shapes {
        palette: u8,
        start: u8,
        reserved: [u8; 14],
        bytes: [u16; 16],
        rows: [u8; 16],
    }

    static SHAPES: Shapes = Shapes {
        palette: 1,
        start: 0,
        reserved: [0; 14],
        bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
        rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
    };

    /// Sets up this thread's tile registers.
    #[expect(unsafe_code, reason = "instructions that the compiler does not know")]
    pub(super) fn configure() {
        // SAFETY: the path is taken only where the CPU has AMX and the system has given leave.
        unsafe { asm!("ldtilecfg [{}]", in(reg) ptr::from_ref(&SHAPES), options(nostack, readonly)) };
    }

    /// Gives the registers back, so that the system need not save them.
    #[expect(unsafe_code, reason = "instructions that the compiler does not know")]
    pub(super) fn release() {
        // SAFETY: as above.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }

    /// With tiles in registers.
    ///
    /// # Safety
    ///
    /// The registers are set up, `a` and `b` hold two rows of as many tiles, and 32 × 32 elements may be written to `to`.
    #[expect(unsafe_code, reason = "instructions that the compiler does not know")]
    pub(super) unsafe fn multiply(a: &[u16], b: &[u16], to: *mut f32, stride: usize) {
        let half = a.len() / 2;
        let (a1, b1) = (a[half..].as_ptr(), b[half..].as_ptr());
        // SAFETY: the caller's promise; each round reads a tile of each of the four, and there are `half / TILE` of them.
        unsafe {
            asm!(
                "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                "2:",
                "tileloadd tmm4, [{a0} + {row}]", "tileloadd tmm5, [{a1} + {row}]",
                "tileloadd tmm6, [{b0} + {row}]", "tileloadd tmm7, [{b1} + {row}]",
                "tdpbf16ps tmm0, tmm4, tmm6", "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6", "tdpbf16ps tmm3, tmm5, tmm7",
                "add {a0}, 1024", "add {a1}, 1024", "add {b0}, 1024", "add {b1}, 1024",
                "dec {count}",
                "jnz 2b",
                "tilestored [{upper} + {stride}], tmm0", "tilestored [{upper} + {stride} + 64], tmm1",
                "tilestored [{lower} + {stride}], tmm2", "tilestored [{lower} + {stride} + 64], tmm3",
                a0 = inout(reg) a.as_ptr() => _,
                a1 = inout(reg) a1 => _,
                b0 = inout(reg) b.as_ptr() => _,
                b1 = inout(reg) b1 => _,
                count = inout(reg) half / TILE => _,
                row = in(reg) 64_usize,
                upper = in(reg) to,
                lower = in(reg) to.add(16 * stride),
                stride = in(reg) 4 * stride,
                options(nostack),
            );
        }
    }
}
