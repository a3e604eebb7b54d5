//! Products of matrices whose factors are rounded to bf16 and whose sums are `f32`.
//!
//! Both factors are rearranged in tiles as AMX wants them, 1 KiB each, padded with zeros:
//!
//! ```text
//! left   16 rows × 32 inner                a[i][k]
//! right  32 inner × 16 columns, in pairs   b[k/2][j][k%2]
//! ```
//!
//! and `tile.rs` multiplies two rows of tiles of one by two columns of tiles of the other, to 32 × 32 elements. A product has the
//! same bits for any number of threads, since each element is the work of one.

mod tile;

use half::bf16;
use rayon::prelude::*;

use crate::gemm::{Matrix, MatrixMut};

/// Elements of a tile.
const TILE: usize = 16 * 32;
/// Rows and columns of a block of the product: two tiles.
const BLOCK: usize = 32;
/// Inner elements of a tile.
const DEPTH: usize = 32;

/// A factor in tiles: for each 16 rows of a left one, or 16 columns of a right one, all tiles along the inner dimension.
struct Tiles {
    values: Vec<u16>,
    /// Tiles along the inner dimension.
    depth: usize,
}

impl Tiles {
    /// Zeros for `outer` rows or columns, up to whole blocks.
    fn new(outer: usize, inner: usize) -> Self {
        let depth = inner.div_ceil(DEPTH);
        Self { values: vec![0; outer.next_multiple_of(BLOCK) * depth * DEPTH], depth }
    }

    /// Fills the tiles of 16 rows or columns each, in parallel: `fill(first of the 16, first inner, tile)`.
    fn fill(mut self, fill: impl Fn(usize, usize, &mut [u16; TILE]) + Sync) -> Self {
        self.values.par_chunks_mut(self.depth * TILE).enumerate().for_each(|(i, strip)| {
            let (tiles, _) = strip.as_chunks_mut();
            tiles.iter_mut().enumerate().for_each(|(k, tile)| fill(16 * i, DEPTH * k, tile));
        });
        self
    }

    /// The two strips of tiles of a block.
    fn block(&self, index: usize) -> &[u16] {
        &self.values[2 * index * self.depth * TILE..][..2 * self.depth * TILE]
    }
}

/// The right factor of products, rounded.
pub(crate) struct Right {
    tiles: Tiles,
    inner: usize,
    columns: usize,
}

impl Right {
    pub(crate) fn new(b: Matrix<'_>) -> Self {
        let [inner, columns] = b.dims();
        let tiles = Tiles::new(columns, inner).fill(|column, k, tile| {
            let (wide, deep) = (16.min(columns.saturating_sub(column)), DEPTH.min(inner - k));
            b.from(k, column.min(columns))
                .read([deep, wide], |k, j, value| tile[k / 2 * 32 + 2 * j + k % 2] = bf16::from_f32(value).to_bits());
        });
        Self { tiles, inner, columns }
    }
}

/// `to = a b`, or `to += a b` with `add`, `a` being rounded too.
///
/// # Safety
///
/// With `add`, every element of `to` has a value.
///
/// # Panics
///
/// If the dimensions differ.
#[expect(unsafe_code, reason = "blocks of one matrix are written side by side")]
pub(crate) unsafe fn product(to: MatrixMut<'_>, add: bool, a: Matrix<'_>, b: &Right) {
    let [rows, inner] = a.dims();
    let parts = to.parts();
    assert!(parts.dims == [rows, b.columns] && inner == b.inner, "a product of matrices of other sizes");
    let left = Tiles::new(rows, inner).fill(|row, k, tile| {
        let (high, deep) = (16.min(rows.saturating_sub(row)), DEPTH.min(inner - k));
        a.from(row.min(rows), k).read([high, deep], |i, k, value| tile[i * 32 + k] = bf16::from_f32(value).to_bits());
    });
    let first = parts.first as usize;
    (0..rows.div_ceil(BLOCK)).into_par_iter().for_each(|i| {
        let session = tile::Session::new();
        let row = i * BLOCK;
        for j in 0..b.columns.div_ceil(BLOCK) {
            let column = j * BLOCK;
            let size = [BLOCK.min(rows - row), BLOCK.min(b.columns - column)];
            // SAFETY: the block lies in the matrix, and no other task has its rows.
            unsafe {
                let to = (first as *mut f32).add(row * parts.stride + column);
                if size == [BLOCK; 2] && !add {
                    session.multiply(left.block(i), b.tiles.block(j), to, parts.stride);
                } else {
                    let mut block = [0.0; BLOCK * BLOCK];
                    session.multiply(left.block(i), b.tiles.block(j), block.as_mut_ptr(), BLOCK);
                    place(&block, to, parts.stride, size, add);
                }
            }
        }
    });
}

/// Writes or adds the first `size` rows and columns of a block.
///
/// # Safety
///
/// `to` may be written for that many rows, and with `add` has values there.
#[expect(unsafe_code, reason = "a block of a matrix that others write too")]
unsafe fn place(block: &[f32; BLOCK * BLOCK], to: *mut f32, stride: usize, [rows, columns]: [usize; 2], add: bool) {
    for i in 0..rows {
        for j in 0..columns {
            // SAFETY: the caller's promise.
            unsafe {
                let to = to.add(i * stride + j);
                let value = block[i * BLOCK + j];
                to.write(if add { to.read() + value } else { value });
            }
        }
    }
}
