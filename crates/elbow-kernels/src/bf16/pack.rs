//! Rounding to bf16, and factors in tiles.
//!
//! A tile is 16 × 16 pairs of neighbors along the inner dimension, 1 KiB, as AMX wants them:
//!
//! ```text
//! left   16 rows × 32 inner       tile[row][pair]
//! right  32 inner × 16 columns    tile[pair][column]
//! ```

use std::mem::MaybeUninit;

use half::bf16;
use rayon::prelude::*;

use crate::{gemm::Matrix, isa::kernel};

/// Rows or columns of a tile, and its pairs.
pub(super) const SIDE: usize = 16;
/// Inner elements of a tile.
pub(super) const DEPTH: usize = 2 * SIDE;

/// Pairs of rounded numbers, the earlier one in the lower half.
pub(super) type Tile = [[u32; SIDE]; SIDE];

/// A tile of zeros.
const ZERO: Tile = [[0; SIDE]; SIDE];

/// Numbers that one task rounds.
const TASK: usize = 1 << 16;

/// Rounds the numbers to bf16, on the pool, for products in ordinary instructions.
pub(crate) fn round_all(values: &mut [f32]) {
    values.par_chunks_mut(TASK).for_each(round);
}

kernel! {
    /// Rounds the numbers to bf16.
    pub(crate) fn round(values: &mut [f32]) {
        for value in values {
            *value = bf16::from_f32(*value).to_f32();
        }
    }
}

kernel! {
    /// Fills `strip` with all tiles of 16 rows of a left factor from `row` on, zeros beyond it.
    pub(super) fn left(a: Matrix<'_>, row: usize, strip: &mut [MaybeUninit<Tile>]) {
        for (i, tile) in strip.iter_mut().enumerate() {
            if a.is_row_major() {
                tile.write(pairs_along(a, row, DEPTH * i));
            } else {
                tile.write(transposed(&pairs_across(a.transposed(), DEPTH * i, row)));
            }
        }
    }
}

kernel! {
    /// Fills `strip` with all tiles of 16 columns of a right factor from `column` on, zeros beyond it.
    pub(super) fn right(b: Matrix<'_>, column: usize, strip: &mut [MaybeUninit<Tile>]) {
        for (i, tile) in strip.iter_mut().enumerate() {
            if b.is_row_major() {
                tile.write(pairs_across(b, DEPTH * i, column));
            } else {
                tile.write(transposed(&pairs_along(b.transposed(), column, DEPTH * i)));
            }
        }
    }
}

/// Neighbors in the rows of a row-major matrix: `[row][pair]`.
#[inline(always)]
fn pairs_along(m: Matrix<'_>, row: usize, column: usize) -> Tile {
    let mut tile = ZERO;
    for (to, from) in tile.iter_mut().zip(&window::<SIDE, DEPTH>(m, row, column)) {
        for (to, &[low, high]) in to.iter_mut().zip(from.as_chunks().0) {
            *to = pair(low, high);
        }
    }
    tile
}

/// Neighbors in the columns of a row-major matrix: `[pair][column]`.
#[inline(always)]
fn pairs_across(m: Matrix<'_>, row: usize, column: usize) -> Tile {
    let mut tile = ZERO;
    for (to, [low, high]) in tile.iter_mut().zip(window::<DEPTH, SIDE>(m, row, column).as_chunks().0) {
        for ((to, &low), &high) in to.iter_mut().zip(low).zip(high) {
            *to = pair(low, high);
        }
    }
    tile
}

#[inline(always)]
fn pair(low: f32, high: f32) -> u32 {
    let [low, high] = [low, high].map(|value| u32::from(bf16::from_f32(value).to_bits()));
    high << 16 | low
}

/// The elements of a row-major matrix from there on, zeros beyond it.
#[inline(always)]
fn window<const ROWS: usize, const COLUMNS: usize>(m: Matrix<'_>, row: usize, column: usize) -> [[f32; COLUMNS]; ROWS] {
    let mut window = [[0.0; COLUMNS]; ROWS];
    let [rows, columns] = m.dims();
    for (to, row) in window.iter_mut().zip(row..rows) {
        let from = &m.row(row)[column.min(columns)..];
        match from.first_chunk() {
            Some(all) => *to = *all,
            None => to[..from.len()].copy_from_slice(from),
        }
    }
    window
}

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "vectors are read from and written to memory")]
fn transposed(tile: &Tile) -> Tile {
    let mut turned = ZERO;
    for (row, column) in [(0, 0), (0, 8), (8, 0), (8, 8)] {
        let rows = std::array::from_fn(|i| tile[row + i][column..].as_ptr().cast());
        // SAFETY: tiles are packed only where the CPU has AVX-512; the square lies in both tiles.
        unsafe { crate::turn::square(rows, turned.as_mut_ptr().cast::<f32>().add(column * SIDE + row), SIDE) };
    }
    turned
}

#[cfg(not(target_arch = "x86_64"))]
fn transposed(tile: &Tile) -> Tile {
    std::array::from_fn(|i| std::array::from_fn(|j| tile[j][i]))
}
