//! What ends a network of joint blocks.

use super::modulation::{EPSILON, part};
use crate::{
    layout::{Start, Tokens},
    linear::Linear,
    weight_source::WeightSource,
};
use burn::tensor::Tensor;

/// A norm modulated by c, and the projection of tokens to patches.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    norm: Linear,
    projection: Linear,
}

impl Head {
    /// For a network of width `h` and `output` values a token. Both layers start at zero, and with them the output.
    pub(crate) fn new(w: &WeightSource<'_>, h: usize, output: usize, image: Tokens) -> Self {
        let w = w.clone().starting(Start::SIGNED_ZEROS);
        Self {
            norm: w.at("norm_out.linear").on(Tokens::One).linear(h, 2 * h),
            projection: w.at("proj_out").on(image).linear(h, output),
        }
    }

    /// `[N, L, H]`, `c [N, H]` after its activation → `[N, L, out]`
    pub(crate) fn forward(&self, x: Tensor<3>, c: Tensor<2>) -> Tensor<3> {
        // AdaLayerNormContinuous: scale first, then shift.
        let h = x.dims()[2];
        let modulation = self.norm.forward(c);
        let (scale, shift) = (part(&modulation, 0, h), part(&modulation, 1, h));
        self.projection.forward(elbow_kernels::layer_norm_modulate(x, shift, scale, EPSILON))
    }
}
