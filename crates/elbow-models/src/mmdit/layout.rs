//! The list of every tensor of an MMDiT, and of the parts that FLUX has too.

use super::{MmditConfig, embed::TIME_CHANNELS};
use crate::layout::{Layout, Start};
use elbow::{noise::Key, params::Params};

/// One joint block: what decides its tensors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct JointBlock<'a> {
    /// `transformer_blocks.<i>`
    pub(crate) path: &'a str,
    /// Width of the network.
    pub(crate) width: usize,
    /// Width of a head, if queries and keys are normalized.
    pub(crate) norms: Option<usize>,
    /// A second attention of the image to itself.
    pub(crate) dual: bool,
    /// The text ends here.
    pub(crate) last: bool,
}

impl Layout {
    /// `JointTransformerBlock` and `FluxTransformerBlock`.
    pub(crate) fn joint_block(&mut self, block: JointBlock<'_>) {
        let JointBlock { path, width: h, .. } = block;
        let parts = if block.dual { 9 } else { 6 };
        self.stream(h, path, ["norm1", "to_q", "to_k", "to_v", "to_out.0", "ff"], parts);
        let text = ["norm1_context", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "ff_context"];
        self.stream(h, path, text, if block.last { 2 } else { 6 });
        if let Some(width) = block.norms {
            let names = ["norm_q", "norm_k", "norm_added_q", "norm_added_k"];
            self.norms(&format!("{path}.attn"), &names, width);
        }
        if block.dual {
            for name in ["to_q", "to_k", "to_v", "to_out.0"] {
                self.xavier(&format!("{path}.attn2.{name}"), h, h);
            }
            if let Some(width) = block.norms {
                self.norms(&format!("{path}.attn2"), &["norm_q", "norm_k"], width);
            }
        }
    }

    /// One stream of a block, whose modulation has `parts` vectors; with 2 nothing follows attention.
    fn stream(&mut self, h: usize, path: &str, names: [&str; 6], parts: usize) {
        let [norm, q, k, v, out, ff] = names;
        self.linear(&format!("{path}.{norm}.linear"), vec![parts * h, h], 0.0);
        for name in [q, k, v] {
            self.xavier(&format!("{path}.attn.{name}"), h, h);
        }
        if parts > 2 {
            self.xavier(&format!("{path}.attn.{out}"), h, h);
            self.xavier(&format!("{path}.{ff}.net.0.proj"), h, 4 * h);
            self.xavier(&format!("{path}.{ff}.net.2"), 4 * h, h);
        }
    }

    /// `CombinedTimestepTextProjEmbeddings`, and with guidance `CombinedTimestepGuidanceTextProjEmbeddings`.
    pub(crate) fn time_text(&mut self, h: usize, guidance: bool, pooled: usize) {
        let guidance = guidance.then_some(("guidance_embedder", TIME_CHANNELS));
        let parts = [Some(("timestep_embedder", TIME_CHANNELS)), guidance, Some(("text_embedder", pooled))];
        for (name, input) in parts.into_iter().flatten() {
            self.linear(&format!("time_text_embed.{name}.linear_1"), vec![h, input], 0.02);
            self.linear(&format!("time_text_embed.{name}.linear_2"), vec![h, h], 0.02);
        }
    }

    /// The last modulated norm and the projection to `out` values a token, both starting at zero.
    pub(crate) fn head(&mut self, h: usize, out: usize) {
        self.linear("norm_out.linear", vec![2 * h, h], 0.0);
        self.linear("proj_out", vec![out, h], 0.0);
    }
}

impl MmditConfig {
    /// Every tensor. Fresh weights are Xavier for dense layers, zero for every modulation and for the output (AdaLN-Zero:
    /// each block starts as the identity and the network as v = 0), 0.02 for time and text embeddings.
    pub fn layout(&self) -> Layout {
        let (h, p, c) = (self.width(), self.patch_size, self.in_channels);
        let mut layout = Layout::default();
        layout.linear("pos_embed.proj", vec![h, c, p, p], (2.0 / (c * p * p + h) as f64).sqrt());
        let positions = vec![1, self.pos_embed_max_size.pow(2), h];
        layout.push("pos_embed.pos_embed".into(), positions, Start::Positions { base: self.sample_size / p });
        layout.time_text(h, false, self.pooled_projection_dim);
        layout.xavier("context_embedder", self.joint_attention_dim, h);
        for i in 0..self.num_layers {
            layout.joint_block(JointBlock {
                path: &format!("transformer_blocks.{i}"),
                width: h,
                norms: self.qk_norm.map(|_| self.attention_head_dim),
                dual: self.dual_attention_layers.contains(&i),
                last: i + 1 == self.num_layers,
            });
        }
        layout.head(h, p * p * c);
        layout
    }

    /// Fresh weights.
    pub fn initial(&self, key: Key) -> Params {
        self.layout().initial(key)
    }
}
