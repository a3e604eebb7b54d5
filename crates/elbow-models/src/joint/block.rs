//! One joint block: two streams, one attention. FLUX begins with the blocks of SD3, with positions rotated into the attention.

use super::{
    modulation::{EPSILON, part},
    rope::Rope,
};
use crate::{
    layout::{Start, Tokens},
    linear::Linear,
    weight_source::WeightSource,
};
use burn::tensor::Tensor;

/// `JointTransformerBlock` and `FluxTransformerBlock`: both streams attend to both, then each has its own feed-forward.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    image: Stream,
    text: Stream,
    /// Of the image's queries and keys, and of the text's.
    norms: Option<[HeadNorms; 2]>,
    dual: Option<SelfAttention>,
    heads: usize,
}

/// What decides the tensors of a block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    /// Width of the network, all heads together.
    pub(crate) width: usize,
    /// Heads of every attention.
    pub(crate) heads: usize,
    /// Height and width of the square of latents that makes one image token.
    pub(crate) patch: usize,
    /// Queries and keys are normalized per head.
    pub(crate) norms: bool,
    /// A second attention of the image to itself.
    pub(crate) dual: bool,
    /// The text ends here.
    pub(crate) last: bool,
}

/// The second attention of SD3.5 medium (`attn2`): image tokens among themselves.
#[derive(Clone, Debug)]
struct SelfAttention {
    qkv: Qkv,
    out: Linear,
    norms: Option<HeadNorms>,
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

/// What the layers of a stream are called.
struct Names {
    modulation: &'static str,
    qkv: [&'static str; 3],
    out: &'static str,
    feed_forward: &'static str,
}

const IMAGE: Names =
    Names { modulation: "norm1.linear", qkv: ["to_q", "to_k", "to_v"], out: "to_out.0", feed_forward: "ff" };

const TEXT: Names = Names {
    modulation: "norm1_context.linear",
    qkv: ["add_q_proj", "add_k_proj", "add_v_proj"],
    out: "to_add_out",
    feed_forward: "ff_context",
};

/// The projections before an attention.
#[derive(Clone, Debug)]
pub(crate) struct Qkv {
    q: Linear,
    k: Linear,
    v: Linear,
}

impl Qkv {
    /// The layers of these names at an attention of width `h`.
    pub(crate) fn new(w: &WeightSource<'_>, [q, k, v]: [&str; 3], h: usize) -> Self {
        Self { q: w.at(q).linear(h, h), k: w.at(k).linear(h, h), v: w.at(v).linear(h, h) }
    }

    /// Queries, keys and values of `x [N, L, H]`; queries and keys normalized if there are norms.
    pub(crate) fn forward(&self, x: Tensor<3>, norms: Option<&HeadNorms>) -> [Tensor<3>; 3] {
        let q = normalized(self.q.forward(x.clone()), norms.map(|norms| &norms.q));
        let k = normalized(self.k.forward(x.clone()), norms.map(|norms| &norms.k));
        [q, k, self.v.forward(x)]
    }
}

/// RMS norms of queries and keys, head by head: x / √(mean(x²) + ε), times a weight.
#[derive(Clone, Debug)]
pub(crate) struct HeadNorms {
    q: Tensor<1>,
    k: Tensor<1>,
}

impl HeadNorms {
    /// The norms of these names at an attention with heads of `width`.
    pub(crate) fn new(w: &WeightSource<'_>, [q, k]: [&str; 2], width: usize) -> Self {
        let norm = |name: &str| w.at(name).tensor("weight", [width], Start::Ones);
        Self { q: norm(q), k: norm(k) }
    }
}

/// `x [N, L, H]` with each head normalized, times the weight of a head.
fn normalized(x: Tensor<3>, weight: Option<&Tensor<1>>) -> Tensor<3> {
    let Some(weight) = weight else { return x };
    let ([n, l, h], [head]) = (x.dims(), weight.dims());
    let x: Tensor<4> = x.reshape([n, l, h / head, head]);
    let rms = (x.clone().square().mean_dim(3) + EPSILON).sqrt();
    (x / rms * weight.clone().unsqueeze::<4>()).reshape([n, l, h])
}

impl Block {
    /// The block at `w`, with the names that its adapters have.
    pub(crate) fn new(w: &WeightSource<'_>, sizes: Sizes) -> Self {
        let Sizes { width: h, heads, .. } = sizes;
        let (image, joint) = (Tokens::Image { side: sizes.patch }, Tokens::Joint { side: sizes.patch });
        let w = w.clone().naming_adapters().on(joint);
        w.begin_block(h);
        w.widens_to(4 * h);
        w.attention(h, joint, joint);
        let on_image = w.clone().on(image);
        let on_text = w.clone().on(Tokens::Text);
        Self {
            image: Stream::new(&on_image, &IMAGE, h, if sizes.dual { 9 } else { 6 }),
            text: Stream::new(&on_text, &TEXT, h, if sizes.last { 2 } else { 6 }),
            norms: sizes.norms.then(|| {
                let head = h / heads;
                let own = HeadNorms::new(&on_image.at("attn"), ["norm_q", "norm_k"], head);
                let added = HeadNorms::new(&on_text.at("attn"), ["norm_added_q", "norm_added_k"], head);
                w.keeps(2 * h);
                w.keeps_to_train(2 * h);
                [own, added]
            }),
            dual: sizes.dual.then(|| SelfAttention::new(&on_image.at("attn2"), sizes)),
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
        let [image_norms, text_norms] = match &self.norms {
            None => [None, None],
            Some([image, text]) => [Some(image), Some(text)],
        };
        let (image_mod, [iq, ik, iv]) = self.image.qkv(&image, c, image_norms);
        let (text_mod, [tq, tk, tv]) = self.text.qkv(&text, c, text_norms);
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
            dual.forward(x, self.heads)
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

impl SelfAttention {
    fn new(w: &WeightSource<'_>, sizes: Sizes) -> Self {
        let (h, image) = (sizes.width, Tokens::Image { side: sizes.patch });
        w.attention(h, image, image);
        // The inputs of the norm and of both kinds of layer, queries, keys and values.
        w.keeps(6 * h);
        Self {
            qkv: Qkv::new(w, IMAGE.qkv, h),
            out: w.at(IMAGE.out).linear(h, h),
            norms: sizes.norms.then(|| {
                w.keeps(2 * h);
                w.keeps_to_train(2 * h);
                HeadNorms::new(w, ["norm_q", "norm_k"], h / sizes.heads)
            }),
        }
    }

    /// `[N, I, H] → [N, I, H]`
    fn forward(&self, x: Tensor<3>, heads: usize) -> Tensor<3> {
        let [q, k, v] = self.qkv.forward(x, self.norms.as_ref());
        self.out.forward(elbow_kernels::attention(q, k, v, heads))
    }
}

impl Stream {
    /// One stream of a block, whose modulation has `parts` vectors; with 2 nothing follows attention.
    ///
    /// Every modulation starts at zero (AdaLN-Zero), so that a fresh block is the identity.
    fn new(w: &WeightSource<'_>, names: &Names, h: usize, parts: usize) -> Self {
        let attention = w.at("attn").usually_adapted();
        // The inputs of the norm and of the adapters, queries, keys and values.
        w.keeps(5 * h);
        let modulation = w.at(names.modulation).on(Tokens::One).starting(Start::SIGNED_ZEROS).linear(h, parts * h);
        let qkv = Qkv::new(&attention, names.qkv, h);
        let rest = (parts > 2).then(|| {
            // The inputs of the second norm, of the attention's output and of GELU.
            w.keeps(6 * h);
            // The inputs of both layers of the feed-forward, and what the gates multiply.
            w.keeps_to_train(7 * h);
            let feed_forward = w.at(names.feed_forward);
            Rest {
                out: attention.at(names.out).linear(h, h),
                up: feed_forward.at("net.0.proj").linear(h, 4 * h),
                down: feed_forward.at("net.2").linear(4 * h, h),
            }
        });
        Self { modulation, qkv, rest }
    }

    /// Queries, keys and values of the normalized, modulated stream, and the modulation `[N, 6H]` (`[N, 2H]` where
    /// nothing follows attention, `[N, 9H]` with a second attention).
    fn qkv(&self, x: &Tensor<3>, c: &Tensor<2>, norms: Option<&HeadNorms>) -> (Tensor<2>, [Tensor<3>; 3]) {
        let h = x.dims()[2];
        let modulation = self.modulation.forward(c.clone());
        // AdaLayerNormZero holds shift, scale, gate twice (thrice with a second attention); AdaLayerNormContinuous
        // holds scale, shift.
        let (shift, scale) = if self.rest.is_some() { (0, 1) } else { (1, 0) };
        let (shift, scale) = (part(&modulation, shift, h), part(&modulation, scale, h));
        let x = elbow_kernels::layer_norm_modulate(x.clone(), shift, scale, EPSILON);
        (modulation, self.qkv.forward(x, norms))
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
