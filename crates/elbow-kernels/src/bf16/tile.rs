//! 32 × 32 elements of a product from tiles, with the instructions of the chosen [`Isa`].
//!
//! Two strips of tiles of the left factor, one below the other, and two of the right, side by side, lie behind each other.

use crate::isa::{Isa, chosen};

use super::pack::Tile;

/// Rows and columns of a block of the product: two tiles.
pub(super) const BLOCK: usize = 32;

/// A thread's use of the tile registers, which have to be set up before and given back after.
pub(super) struct Session {
    isa: Isa,
}

impl Session {
    pub(super) fn new() -> Self {
        let isa = chosen();
        #[cfg(target_arch = "x86_64")]
        if isa == Isa::Amx {
            amx::configure();
        }
        Self { isa }
    }

    /// The product of two rows and two columns of tiles, with `bias` added to every row: its first `size` rows and columns are
    /// written to `to`, whose rows lie `stride` apart.
    ///
    /// # Safety
    ///
    /// `to` may be written for that many rows and columns.
    #[expect(unsafe_code, reason = "a block of a matrix that others write too")]
    pub(super) unsafe fn multiply(
        &self,
        a: &[Tile],
        b: &[Tile],
        bias: &[f32; BLOCK],
        to: *mut f32,
        stride: usize,
        size: [usize; 2],
    ) {
        assert_eq!(a.len(), b.len(), "tiles of another depth");
        if size == [BLOCK; 2] {
            // SAFETY: the caller's promise.
            return unsafe { self.whole(a, b, bias, to, stride) };
        }
        let mut block = [[0.0; BLOCK]; BLOCK];
        // SAFETY: the block has all elements, and the rest is the caller's promise.
        unsafe {
            self.whole(a, b, bias, block.as_mut_ptr().cast(), BLOCK);
            for (i, row) in block.iter().take(size[0]).enumerate() {
                to.add(i * stride).copy_from_nonoverlapping(row.as_ptr(), size[1]);
            }
        }
    }

    /// All of the block.
    ///
    /// # Safety
    ///
    /// 32 × 32 elements may be written to `to`.
    #[expect(unsafe_code, reason = "instructions of one kind of CPU")]
    #[cfg_attr(not(target_arch = "x86_64"), expect(unused_variables, reason = "no other CPUs are known here"))]
    unsafe fn whole(&self, a: &[Tile], b: &[Tile], bias: &[f32; BLOCK], to: *mut f32, stride: usize) {
        match self.isa {
            // SAFETY: the CPU has the instruction set; the registers are set up; the caller's promise.
            #[cfg(target_arch = "x86_64")]
            Isa::Amx => unsafe { amx::multiply(a, b, bias, to, stride) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 => unsafe { avx512::multiply(a, b, bias, to, stride) },
            isa => unreachable!("a product of bf16 with {isa:?}"),
        }
    }
}

#[cfg(target_arch = "x86_64")]
impl Drop for Session {
    fn drop(&mut self) {
        if self.isa == Isa::Amx {
            amx::release();
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use super::{
        super::pack::{SIDE, Tile},
        BLOCK,
    };
    use std::arch::x86_64::{
        __m512bh, __m512i, _MM_HINT_ET0, _mm_prefetch, _mm512_dpbf16_ps, _mm512_loadu_ps, _mm512_loadu_si512,
        _mm512_set1_epi32, _mm512_storeu_ps,
    };

    /// Rows of the product whose sums are in registers at once: with two vectors each, 16 of the 32.
    const ROWS: usize = 8;

    /// With sums of pairs in 512-bit vectors.
    ///
    /// # Safety
    ///
    /// 32 × 32 elements may be written to `to`.
    #[target_feature(enable = "avx512f,avx512bf16")]
    #[expect(unsafe_code, reason = "vectors are read from and written to memory")]
    pub(super) unsafe fn multiply(a: &[Tile], b: &[Tile], bias: &[f32; BLOCK], to: *mut f32, stride: usize) {
        let (b0, b1) = b.split_at(b.len() / 2);
        for (strip, a) in a.chunks_exact(a.len() / 2).enumerate() {
            for first in (0..SIDE).step_by(ROWS) {
                // SAFETY: the rows are among the 32.
                let to = |i: usize| unsafe { to.add((SIDE * strip + first + i) * stride) };
                // SAFETY: the bias fills both vectors.
                let start = unsafe { [_mm512_loadu_ps(bias.as_ptr()), _mm512_loadu_ps(bias.as_ptr().add(SIDE))] };
                let mut sums = [start; ROWS];
                for i in 0..ROWS {
                    // What is written at the end would be waited for otherwise.
                    // SAFETY: nothing is read.
                    unsafe {
                        _mm_prefetch::<_MM_HINT_ET0>(to(i).cast());
                        _mm_prefetch::<_MM_HINT_ET0>(to(i).add(BLOCK - 1).cast());
                    }
                }
                for (a, (b0, b1)) in a.iter().zip(b0.iter().zip(b1)) {
                    for (pair, b) in b0.iter().zip(b1).enumerate() {
                        let (b0, b1) = (vector(b.0), vector(b.1));
                        for (a, sums) in a[first..].iter().zip(&mut sums) {
                            let a = bf16(_mm512_set1_epi32(a[pair].cast_signed()));
                            sums[0] = _mm512_dpbf16_ps(sums[0], a, b0);
                            sums[1] = _mm512_dpbf16_ps(sums[1], a, b1);
                        }
                    }
                }
                for (i, sums) in sums.into_iter().enumerate() {
                    // SAFETY: the caller's promise.
                    unsafe {
                        _mm512_storeu_ps(to(i), sums[0]);
                        _mm512_storeu_ps(to(i).add(SIDE), sums[1]);
                    }
                }
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    #[expect(unsafe_code, reason = "a vector is read from memory")]
    fn vector(pairs: &[u32; SIDE]) -> __m512bh {
        // SAFETY: the array has as many bits as the vector.
        bf16(unsafe { _mm512_loadu_si512(pairs.as_ptr().cast()) })
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    #[expect(unsafe_code, reason = "one type of vector taken for another")]
    fn bf16(pairs: __m512i) -> __m512bh {
        // SAFETY: both are 512 bits, whatever they are taken for.
        unsafe { std::mem::transmute(pairs) }
    }
}

#[cfg(target_arch = "x86_64")]
mod amx {
    use super::{super::pack::Tile, BLOCK};
    use std::{arch::asm, ptr, slice};

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
        // SAFETY: this set is chosen only where the CPU has AMX and the system has given leave.
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
    /// The registers are set up, `a` and `b` hold two strips of as many tiles, and 32 × 32 elements may be written to `to`.
    #[expect(unsafe_code, reason = "instructions that the compiler does not know")]
    pub(super) unsafe fn multiply(a: &[Tile], b: &[Tile], bias: &[f32; BLOCK], to: *mut f32, stride: usize) {
        let depth = a.len() / 2;
        let (a1, b1) = (a[depth..].as_ptr(), b[depth..].as_ptr());
        // SAFETY: the caller's promise; each round reads a tile of each of the four strips, `depth` times.
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
                count = inout(reg) depth => _,
                row = in(reg) 64_usize,
                upper = in(reg) to,
                lower = in(reg) to.add(16 * stride),
                stride = in(reg) 4 * stride,
                options(nostack),
            );
        }
        for i in 0..BLOCK {
            // SAFETY: the row was written.
            let row = unsafe { slice::from_raw_parts_mut(to.add(i * stride), BLOCK) };
            row.iter_mut().zip(bias).for_each(|(value, bias)| *value += bias);
        }
    }
}
