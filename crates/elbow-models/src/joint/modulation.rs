//! Vectors of a modulation, and what goes with them.

use burn::tensor::{Tensor, activation};

/// Of every normalization in the network.
pub(crate) const EPSILON: f64 = 1e-6;

/// x · σ(x)
pub(crate) fn silu(x: Tensor<2>) -> Tensor<2> {
    activation::silu(x)
}

/// `part`-th of the vectors of width `h` that a modulation `[N, parts·h]` holds.
pub(crate) fn part(modulation: &Tensor<2>, part: usize, h: usize) -> Tensor<2> {
    modulation.clone().narrow(1, part * h, h)
}
