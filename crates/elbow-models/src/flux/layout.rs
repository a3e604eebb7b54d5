//! The list of every tensor of a FLUX transformer.

use super::FluxConfig;
use crate::{layout::Layout, mmdit::JointBlock};
use elbow::{noise::Key, params::Params};

impl FluxConfig {
    /// Every tensor. Fresh weights are Xavier for dense layers, zero for every modulation and for the output, 0.02 for time,
    /// guidance and text embeddings.
    pub fn layout(&self) -> Layout {
        let h = self.width();
        let mut layout = Layout::default();
        layout.time_text(h, self.guidance_embeds, self.pooled_projection_dim);
        layout.xavier("context_embedder", self.joint_attention_dim, h);
        layout.xavier("x_embedder", self.in_channels, h);
        for i in 0..self.num_layers {
            layout.joint_block(JointBlock {
                path: &format!("transformer_blocks.{i}"),
                width: h,
                norms: Some(self.attention_head_dim),
                dual: false,
                last: false,
            });
        }
        for i in 0..self.num_single_layers {
            let path = format!("single_transformer_blocks.{i}");
            layout.linear(&format!("{path}.norm.linear"), vec![3 * h, h], 0.0);
            layout.xavier(&format!("{path}.proj_mlp"), h, 4 * h);
            layout.xavier(&format!("{path}.proj_out"), 5 * h, h);
            for name in ["to_q", "to_k", "to_v"] {
                layout.xavier(&format!("{path}.attn.{name}"), h, h);
            }
            layout.norms(&format!("{path}.attn"), &["norm_q", "norm_k"], self.attention_head_dim);
        }
        layout.head(h, self.in_channels);
        layout
    }

    /// Fresh weights.
    pub fn initial(&self, key: Key) -> Params {
        self.layout().initial(key)
    }
}
