//! Products of matrices whose factors are rounded to bf16 and whose sums are `f32`, on CPUs that multiply bf16.
//!
//! `pack.rs` rounds both factors and rearranges them in tiles, `tile.rs` multiplies two rows of tiles of the left one by two
//! columns of tiles of the right one, to 32 × 32 elements. The left factor is packed as the product comes to its rows, so that
//! it stays in the cache. A product has the same bits for any number of threads, since each element is the work of one.

mod pack;
mod tile;

use rayon::prelude::*;

use crate::{
    buffer::padded,
    gemm::{Matrix, MatrixMut},
};
use pack::{DEPTH, SIDE, Tile};
use tile::BLOCK;

pub(crate) use pack::{round, round_all};

/// The right factor of products, rounded, and what is added to every row.
pub(crate) struct Right {
    /// For each 16 columns all tiles along the inner dimension, up to whole blocks.
    tiles: Box<[Tile]>,
    bias: Vec<f32>,
    inner: usize,
    columns: usize,
}

impl Right {
    #[expect(unsafe_code, reason = "an output written whole is not cleared first")]
    pub(crate) fn new(b: Matrix<'_>, bias: Option<&[f32]>) -> Self {
        let [inner, columns] = b.dims();
        let (depth, width) = (inner.div_ceil(DEPTH), columns.next_multiple_of(BLOCK));
        let mut tiles = Box::new_uninit_slice(width / SIDE * depth);
        tiles.par_chunks_mut(depth).enumerate().for_each(|(i, strip)| pack::right(b, SIDE * i, strip));
        // SAFETY: `right` writes each tile of its strip, and the strips are all of them.
        Self { tiles: unsafe { tiles.assume_init() }, bias: padded(bias, width), inner, columns }
    }
}

/// `to = a b + bias`, `a` being rounded too.
///
/// # Panics
///
/// If the dimensions differ.
#[expect(unsafe_code, reason = "blocks of one matrix are written side by side")]
pub(crate) fn product(to: MatrixMut<'_>, a: Matrix<'_>, b: &Right) {
    let [rows, inner] = a.dims();
    let parts = to.parts();
    assert!(parts.dims == [rows, b.columns] && inner == b.inner, "a product of matrices of other sizes");
    let depth = inner.div_ceil(DEPTH);
    let first = parts.first as usize;
    let scratch = || Box::new_uninit_slice(2 * depth);
    (0..rows.div_ceil(BLOCK)).into_par_iter().for_each_init(scratch, |left, i| {
        let row = i * BLOCK;
        for (strip, row) in left.chunks_exact_mut(depth).zip([row, row + SIDE]) {
            pack::left(a, row, strip);
        }
        // SAFETY: `left` writes each tile of both strips.
        let left = unsafe { left.assume_init_ref() };
        let session = tile::Session::new();
        for (j, (right, bias)) in b.tiles.chunks_exact(2 * depth).zip(b.bias.as_chunks().0).enumerate() {
            let column = j * BLOCK;
            let size = [BLOCK.min(rows - row), BLOCK.min(b.columns - column)];
            // SAFETY: the block lies in the matrix, and no other task has its rows.
            unsafe {
                let to = (first as *mut f32).add(row * parts.stride + column);
                session.multiply(left, right, bias, to, parts.stride, size);
            }
        }
    });
}
