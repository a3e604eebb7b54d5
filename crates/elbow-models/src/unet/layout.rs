//! The list of every tensor of a UNet.

use super::{UnetConfig, config::Stage};
use crate::layout::{Layout, Start};
use elbow::{noise::Key, params::Params};

impl UnetConfig {
    /// Every tensor.
    pub fn layout(&self) -> Layout {
        let (channels, time) = (self.block_out_channels[0], self.time_width());
        let mut layout = Layout::default();
        layout.convolution("conv_in", self.in_channels, channels, 3);
        layout.dense("time_embedding.linear_1", channels, time);
        layout.dense("time_embedding.linear_2", time, time);
        for stage in self.down().into_iter().chain([self.middle()]).chain(self.up()) {
            layout.level(&stage.level, Some(time));
            self.transformers(&stage, &mut layout);
        }
        layout.norm("conv_norm_out", channels);
        layout.convolution("conv_out", channels, self.out_channels, 3);
        layout
    }

    /// Fresh weights.
    pub fn initial(&self, key: Key) -> Params {
        self.layout().initial(key)
    }

    fn transformers(&self, stage: &Stage, layout: &mut Layout) {
        let width = stage.level.width();
        for i in 0..stage.transformers {
            let path = format!("{}.attentions.{i}", stage.level.path);
            let project = |layout: &mut Layout, name: &str| {
                let path = format!("{path}.{name}");
                if self.use_linear_projection {
                    layout.dense(&path, width, width);
                } else {
                    layout.convolution(&path, width, width, 1);
                }
            };
            layout.norm(&format!("{path}.norm"), width);
            project(layout, "proj_in");
            layout.transformer_block(&format!("{path}.transformer_blocks.0"), width, self.cross_attention_dim);
            project(layout, "proj_out");
        }
    }
}

impl Layout {
    /// `BasicTransformerBlock`
    fn transformer_block(&mut self, path: &str, width: usize, text: usize) {
        for (attention, norm, source) in [("attn1", "norm1", width), ("attn2", "norm2", text)] {
            self.norm(&format!("{path}.{norm}"), width);
            for (name, input) in [("to_q", width), ("to_k", source), ("to_v", source)] {
                let deviation = Start::Normal(1.0 / (input as f64).sqrt());
                self.push(format!("{path}.{attention}.{name}.weight"), vec![width, input], deviation);
            }
            self.dense(&format!("{path}.{attention}.to_out.0"), width, width);
        }
        self.norm(&format!("{path}.norm3"), width);
        self.dense(&format!("{path}.ff.net.0.proj"), width, 8 * width);
        self.dense(&format!("{path}.ff.net.2"), 4 * width, width);
    }
}
