//! One joint block: two streams, one attention. FLUX begins with the same blocks, whose attention knows positions.

use crate::{
    flux::Rope,
    linear::{Linear, Weights},
};
use burn::tensor::{Tensor, activation};
use elbow::params::Tensors;

/// Of every normalization in the network.
pub(crate) const EPSILON: f64 = 1e-6;

pub(crate) fn silu(x: Tensor<2>) -> Tensor<2> {
    activation::silu(x)
}

/// `JointTransformerBlock` and `FluxTransformerBlock`: both streams attend to both, then each has its own feed-forward.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    image: Stream,
    text: Stream,
    dual: Option<SelfAttention>,
    heads: usize,
}

/// The second attention of SD3.5 medium (`attn2`): image tokens among themselves.
#[derive(Clone, Debug)]
struct SelfAttention {
    qkv: Qkv,
    out: Linear,
}

/// The weights of one stream (image or text).
#[derive(Clone, Debug)]
struct Stream {
    modulation: Linear,
    qkv: Qkv,
    rest: Option<Rest>,
}

/// What follows attention; the text stream of the last block has none.
#[derive(Clone, Debug)]
struct Rest {
    out: Linear,
    up: Linear,
    down: Linear,
}

/// The projections before an attention.
#[derive(Clone, Debug)]
pub(crate) struct Qkv {
    q: Projection,
    k: Projection,
    v: Linear,
}

impl Qkv {
    /// The layers and norms of these names under `path`; norms only if the weights have them.
    pub(crate) fn new(weights: Weights<'_>, path: &str, [q, k, v]: [&str; 3], [norm_q, norm_k]: [&str; 2]) -> Self {
        let projection =
            |linear: &str, norm: &str| Projection::new(weights, &format!("{path}.{linear}"), &format!("{path}.{norm}"));
        Self { q: projection(q, norm_q), k: projection(k, norm_k), v: Linear::new(weights, &format!("{path}.{v}")) }
    }

    /// Queries, keys and values of `x [N, L, H]`.
    pub(crate) fn forward(&self, x: Tensor<3>, heads: usize) -> [Tensor<3>; 3] {
        [self.q.forward(x.clone(), heads), self.k.forward(x.clone(), heads), self.v.forward(x)]
    }
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
pub(crate) fn part(modulation: &Tensor<2>, part: usize, h: usize) -> Tensor<2> {
    modulation.clone().narrow(1, part * h, h)
}

impl Block {
    /// The block at `path`; the text ends in the `last`.
    pub(crate) fn new(weights: Weights<'_>, path: &str, heads: usize, last: bool) -> Self {
        let linear = |name: &str| Linear::new(weights, &format!("{path}.{name}"));
        let rest = |out: &str, ff: &str| Rest {
            out: linear(&format!("attn.{out}")),
            up: linear(&format!("{ff}.net.0.proj")),
            down: linear(&format!("{ff}.net.2")),
        };
        let (attention, own) = (format!("{path}.attn"), ["to_q", "to_k", "to_v"]);
        let added = ["add_q_proj", "add_k_proj", "add_v_proj"];
        let dual = weights.base.contains(&format!("{path}.attn2.to_q.weight")).then(|| SelfAttention {
            qkv: Qkv::new(weights, &format!("{path}.attn2"), own, ["norm_q", "norm_k"]),
            out: linear("attn2.to_out.0"),
        });
        Self {
            image: Stream {
                modulation: linear("norm1.linear"),
                qkv: Qkv::new(weights, &attention, own, ["norm_q", "norm_k"]),
                rest: Some(rest("to_out.0", "ff")),
            },
            text: Stream {
                modulation: linear("norm1_context.linear"),
                qkv: Qkv::new(weights, &attention, added, ["norm_added_q", "norm_added_k"]),
                rest: (!last).then(|| rest("to_add_out", "ff_context")),
            },
            dual,
            heads,
        }
    }

    /// `image [N, I, H]`, `text [N, L, H]`, `c [N, H]` after its activation → the same, text absent after the last block.
    /// With `rope`, queries and keys are rotated by the positions of image and text.
    pub(crate) fn forward(
        &self,
        image: Tensor<3>,
        text: Tensor<3>,
        c: &Tensor<2>,
        rope: Option<&Rope>,
    ) -> (Tensor<3>, Option<Tensor<3>>) {
        let ([_, patches, h], [_, tokens, _]) = (image.dims(), text.dims());
        let (image_mod, [iq, ik, iv]) = self.image.qkv(&image, c, self.heads);
        let (text_mod, [tq, tk, tv]) = self.text.qkv(&text, c, self.heads);
        let join = |a, b| Tensor::cat(vec![a, b], 1);
        let rotated = |x: Tensor<3>| match rope {
            None => x,
            Some(rope) => rope.rotate(x, self.heads),
        };
        let (q, k, v) = (rotated(join(iq, tq)), rotated(join(ik, tk)), join(iv, tv));
        let attended = elbow_kernels::attention(q, k, v, self.heads);
        let dual = self.dual.as_ref().map(|dual| {
            let (shift, scale) = (part(&image_mod, 6, h), part(&image_mod, 7, h));
            let x = elbow_kernels::layer_norm_modulate(image.clone(), shift, scale, EPSILON);
            let [q, k, v] = dual.qkv.forward(x, self.heads);
            dual.out.forward(elbow_kernels::attention(q, k, v, self.heads))
        });
        let image_out = attended.clone().narrow(1, 0, patches);
        let image = self.image.finish(image, image_out, &image_mod, dual).expect("invariant: the image stream goes on");
        let text = self.text.finish(text, attended.narrow(1, patches, tokens), &text_mod, None);
        (image, text)
    }

    /// The same with both streams in one sequence, the image first: `[N, I + L, H] → [N, I + L, H]`, after the last block
    /// `[N, I, H]`.
    pub(crate) fn forward_joint(
        &self,
        joint: Tensor<3>,
        patches: usize,
        c: &Tensor<2>,
        rope: Option<&Rope>,
    ) -> Tensor<3> {
        let tokens = joint.dims()[1] - patches;
        let (image, text) = (joint.clone().narrow(1, 0, patches), joint.narrow(1, patches, tokens));
        match self.forward(image, text, c, rope) {
            (image, Some(text)) => Tensor::cat(vec![image, text], 1),
            (image, None) => image,
        }
    }
}

impl Stream {
    /// Queries, keys and values of the normalized, modulated stream, and the modulation `[N, 6H]` (`[N, 2H]` where
    /// nothing follows attention, `[N, 9H]` with a second attention).
    fn qkv(&self, x: &Tensor<3>, c: &Tensor<2>, heads: usize) -> (Tensor<2>, [Tensor<3>; 3]) {
        let h = x.dims()[2];
        let modulation = self.modulation.forward(c.clone());
        // AdaLayerNormZero holds shift, scale, gate twice (thrice with a second attention); AdaLayerNormContinuous
        // holds scale, shift.
        let (shift, scale) = if self.rest.is_some() { (0, 1) } else { (1, 0) };
        let (shift, scale) = (part(&modulation, shift, h), part(&modulation, scale, h));
        let x = elbow_kernels::layer_norm_modulate(x.clone(), shift, scale, EPSILON);
        (modulation, self.qkv.forward(x, heads))
    }

    fn finish(
        &self,
        x: Tensor<3>,
        attended: Tensor<3>,
        modulation: &Tensor<2>,
        dual: Option<Tensor<3>>,
    ) -> Option<Tensor<3>> {
        let rest = self.rest.as_ref()?;
        let h = x.dims()[2];
        let mut x = elbow_kernels::gated_residual(x, part(modulation, 2, h), rest.out.forward(attended));
        if let Some(dual) = dual {
            x = elbow_kernels::gated_residual(x, part(modulation, 8, h), dual);
        }
        let (shift, scale) = (part(modulation, 3, h), part(modulation, 4, h));
        let y = elbow_kernels::layer_norm_modulate(x.clone(), shift, scale, EPSILON);
        let y = rest.down.after_gelu(rest.up.forward(y));
        Some(elbow_kernels::gated_residual(x, part(modulation, 5, h), y))
    }
}

/// What ends a network: a norm modulated by c, and the projection of tokens to patches.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    norm: Linear,
    projection: Linear,
}

impl Head {
    pub(crate) fn new(weights: Weights<'_>) -> Self {
        Self { norm: Linear::new(weights, "norm_out.linear"), projection: Linear::new(weights, "proj_out") }
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
