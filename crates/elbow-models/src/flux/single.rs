//! The block that image and text share: attention and feed-forward side by side.

use super::Rope;
use crate::{
    linear::{Linear, Weights},
    mmdit::{EPSILON, Qkv, part},
};
use burn::tensor::Tensor;

/// `FluxSingleTransformerBlock`: x ← x + gate · out([attention(y), gelu(up(y))]), y = norm(x) · (1 + scale) + shift.
#[derive(Clone, Debug)]
pub(super) struct SingleBlock {
    modulation: Linear,
    qkv: Qkv,
    up: Linear,
    out: Linear,
    heads: usize,
}

impl SingleBlock {
    pub(super) fn new(weights: Weights<'_>, path: &str, heads: usize) -> Self {
        let linear = |name: &str| Linear::new(weights, &format!("{path}.{name}"));
        Self {
            modulation: linear("norm.linear"),
            qkv: Qkv::new(weights, &format!("{path}.attn"), ["to_q", "to_k", "to_v"], ["norm_q", "norm_k"]),
            up: linear("proj_mlp"),
            out: linear("proj_out"),
            heads,
        }
    }

    /// `x [N, L, H]`, all tokens; `c [N, H]` after its activation.
    pub(super) fn forward(&self, x: Tensor<3>, c: &Tensor<2>, rope: &Rope) -> Tensor<3> {
        let h = x.dims()[2];
        let modulation = self.modulation.forward(c.clone());
        let (shift, scale) = (part(&modulation, 0, h), part(&modulation, 1, h));
        let y = elbow_kernels::layer_norm_modulate(x.clone(), shift, scale, EPSILON);
        let [q, k, v] = self.qkv.forward(y.clone(), self.heads);
        let (q, k) = (rope.rotate(q, self.heads), rope.rotate(k, self.heads));
        let attended = elbow_kernels::attention(q, k, v, self.heads);
        let wide = elbow_kernels::gelu_tanh(self.up.forward(y));
        let y = self.out.forward(Tensor::cat(vec![attended, wide], 2));
        elbow_kernels::gated_residual(x, part(&modulation, 2, h), y)
    }
}
