//! The block that image and text share: attention and feed-forward side by side.

use super::config::{JOINT, SingleSizes};
use crate::{
    joint::{EPSILON, HeadNorms, Qkv, Rope, part},
    layout::{Start, Tokens},
    linear::Linear,
    weight_source::WeightSource,
};
use burn::tensor::Tensor;

/// `FluxSingleTransformerBlock`: x ← x + gate · out([attention(y), gelu(up(y))]), y = norm(x) · (1 + scale) + shift.
#[derive(Clone, Debug)]
pub(super) struct SingleBlock {
    modulation: Linear,
    up: Linear,
    out: Linear,
    qkv: Qkv,
    norms: HeadNorms,
    heads: usize,
}

impl SingleBlock {
    pub(super) fn new(w: &WeightSource<'_>, SingleSizes { width: h, heads }: SingleSizes) -> Self {
        let w = w.clone().naming_adapters().on(JOINT);
        let attention = w.at("attn").usually_adapted();
        let modulation = w.at("norm.linear").on(Tokens::One).starting(Start::SIGNED_ZEROS);
        w.begin_block(h);
        w.widens_to(4 * h);
        w.attention(h, JOINT, JOINT);
        // The inputs of the norm, of the adapters (1 each) and of GELU (4), queries, keys, values and what comes of them. Norms
        // of queries and keys keep what they divide. Rotation by positions keeps its inputs no longer than it runs.
        w.keeps((1 + 1 + 4 + 4 + 2) * h);
        // The input of the last layer, which is 5 wide, but for the part that is kept anyway; what the gate multiplies; what
        // the weights of the norms multiply.
        w.keeps_to_train((5 + 2) * h);
        Self {
            modulation: modulation.linear(h, 3 * h),
            up: w.at("proj_mlp").linear(h, 4 * h),
            out: w.at("proj_out").linear(5 * h, h),
            qkv: Qkv::new(&attention, ["to_q", "to_k", "to_v"], h),
            norms: HeadNorms::new(&attention, ["norm_q", "norm_k"], h / heads),
            heads,
        }
    }

    /// `x [N, L, H]`, all tokens; `c [N, H]` after its activation.
    pub(super) fn forward(&self, x: Tensor<3>, c: &Tensor<2>, rope: &Rope) -> Tensor<3> {
        let h = x.dims()[2];
        let modulation = self.modulation.forward(c.clone());
        let (shift, scale) = (part(&modulation, 0, h), part(&modulation, 1, h));
        let y = elbow_kernels::layer_norm_modulate(x.clone(), shift, scale, EPSILON);
        let [q, k, v] = self.qkv.forward(y.clone(), Some(&self.norms));
        let (q, k) = (rope.rotate(q, self.heads), rope.rotate(k, self.heads));
        let attended = elbow_kernels::attention(q, k, v, self.heads);
        let wide = elbow_kernels::gelu_tanh(self.up.forward(y));
        let y = self.out.forward(Tensor::cat(vec![attended, wide], 2));
        elbow_kernels::gated_residual(x, part(&modulation, 2, h), y)
    }
}
