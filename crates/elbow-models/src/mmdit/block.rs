//! One joint block: two streams, one attention.

use super::MmditConfig;
use crate::linear::{Linear, Weights};
use burn::tensor::{Tensor, activation};
use elbow::params::Tensors;

/// Of every normalization in the network.
pub(super) const EPSILON: f64 = 1e-6;

pub(super) fn silu(x: Tensor<2>) -> Tensor<2> {
    activation::silu(x)
}

/// `JointTransformerBlock`: both streams attend to both, then each has its own feed-forward.
#[derive(Clone, Debug)]
pub(super) struct Block {
    image: Stream,
    text: Stream,
    heads: usize,
}

/// The weights of one stream (image or text).
#[derive(Clone, Debug)]
struct Stream {
    modulation: Linear,
    q: Projection,
    k: Projection,
    v: Linear,
    rest: Option<Rest>,
}

/// What follows attention; the text stream of the last block has none.
#[derive(Clone, Debug)]
struct Rest {
    out: Linear,
    up: Linear,
    down: Linear,
}

/// A query or key projection with its optional RMS norm per head.
#[derive(Clone, Debug)]
struct Projection {
    linear: Linear,
    norm: Option<Tensor<1>>,
}

impl Projection {
    fn new(weights: Weights<'_>, linear: &str, norm: &str) -> Self {
        let norm = format!("{norm}.weight");
        Self { linear: Linear::new(weights, linear), norm: optional(weights.base, &norm) }
    }

    fn forward(&self, x: Tensor<3>, heads: usize) -> Tensor<3> {
        let y = self.linear.forward(x);
        match &self.norm {
            None => y,
            Some(weight) => {
                let [b, n, h] = y.dims();
                let y: Tensor<4> = y.reshape([b, n, heads, h / heads]);
                let rms = (y.clone().square().mean_dim(3) + EPSILON).sqrt();
                (y / rms * weight.clone().unsqueeze::<4>()).reshape([b, n, h])
            }
        }
    }
}

fn optional(tensors: &Tensors, name: &str) -> Option<Tensor<1>> {
    tensors.contains(name).then(|| tensors.tensor(name))
}

/// `part`-th of the vectors of width `h` that a modulation `[N, parts·h]` holds.
fn part(modulation: &Tensor<2>, part: usize, h: usize) -> Tensor<2> {
    modulation.clone().narrow(1, part * h, h)
}

impl Block {
    pub(super) fn new(config: &MmditConfig, weights: Weights<'_>, index: usize, last: bool) -> Self {
        let path = format!("transformer_blocks.{index}");
        let linear = |name: &str| Linear::new(weights, &format!("{path}.{name}"));
        let projection = |linear: &str, norm: &str| {
            Projection::new(weights, &format!("{path}.attn.{linear}"), &format!("{path}.attn.{norm}"))
        };
        let rest = |out: &str, ff: &str| Rest {
            out: linear(&format!("attn.{out}")),
            up: linear(&format!("{ff}.net.0.proj")),
            down: linear(&format!("{ff}.net.2")),
        };
        Self {
            image: Stream {
                modulation: linear("norm1.linear"),
                q: projection("to_q", "norm_q"),
                k: projection("to_k", "norm_k"),
                v: linear("attn.to_v"),
                rest: Some(rest("to_out.0", "ff")),
            },
            text: Stream {
                modulation: linear("norm1_context.linear"),
                q: projection("add_q_proj", "norm_added_q"),
                k: projection("add_k_proj", "norm_added_k"),
                v: linear("attn.add_v_proj"),
                rest: (!last).then(|| rest("to_add_out", "ff_context")),
            },
            heads: config.num_attention_heads,
        }
    }

    /// `image [N, I, H]`, `text [N, L, H]`, `c [N, H]` after its activation → the same, text absent after the last block.
    pub(super) fn forward(&self, image: Tensor<3>, text: Tensor<3>, c: &Tensor<2>) -> (Tensor<3>, Option<Tensor<3>>) {
        let [_, patches, _] = image.dims();
        let [_, tokens, _] = text.dims();
        let (image_mod, [iq, ik, iv]) = self.image.qkv(&image, c, self.heads);
        let (text_mod, [tq, tk, tv]) = self.text.qkv(&text, c, self.heads);
        let join = |a, b| Tensor::cat(vec![a, b], 1);
        let attended = elbow_kernels::attention(join(iq, tq), join(ik, tk), join(iv, tv), self.heads);
        let image_out = attended.clone().narrow(1, 0, patches);
        let image = self.image.finish(image, image_out, &image_mod).expect("invariant: the image stream goes on");
        let text = self.text.finish(text, attended.narrow(1, patches, tokens), &text_mod);
        (image, text)
    }
}

impl Stream {
    /// Queries, keys and values of the normalized, modulated stream, and the modulation `[N, 6H]` (`[N, 2H]` where
    /// nothing follows attention).
    fn qkv(&self, x: &Tensor<3>, c: &Tensor<2>, heads: usize) -> (Tensor<2>, [Tensor<3>; 3]) {
        let h = x.dims()[2];
        let modulation = self.modulation.forward(c.clone());
        // AdaLayerNormZero holds shift, scale, gate twice; AdaLayerNormContinuous holds scale, shift.
        let (shift, scale) = if self.rest.is_some() { (0, 1) } else { (1, 0) };
        let (shift, scale) = (part(&modulation, shift, h), part(&modulation, scale, h));
        let x = elbow_kernels::layer_norm_modulate(x.clone(), shift, scale, EPSILON);
        let qkv = [self.q.forward(x.clone(), heads), self.k.forward(x.clone(), heads), self.v.forward(x)];
        (modulation, qkv)
    }

    fn finish(&self, x: Tensor<3>, attended: Tensor<3>, modulation: &Tensor<2>) -> Option<Tensor<3>> {
        let rest = self.rest.as_ref()?;
        let h = x.dims()[2];
        let x = elbow_kernels::gated_residual(x, part(modulation, 2, h), rest.out.forward(attended));
        let (shift, scale) = (part(modulation, 3, h), part(modulation, 4, h));
        let y = elbow_kernels::layer_norm_modulate(x.clone(), shift, scale, EPSILON);
        let y = rest.down.after_gelu(rest.up.forward(y));
        Some(elbow_kernels::gated_residual(x, part(modulation, 5, h), y))
    }
}
