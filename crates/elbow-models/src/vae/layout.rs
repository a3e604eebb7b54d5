//! The list of every tensor of an autoencoder.

use super::VaeConfig;
use crate::layout::Layout;
use elbow::{noise::Key, params::Params};

impl VaeConfig {
    /// Every tensor.
    pub fn layout(&self) -> Layout {
        let (first, deepest, latent) = (self.block_out_channels[0], self.deepest(), self.latent_channels);
        let mut layout = Layout::default();
        layout.convolution("encoder.conv_in", self.in_channels, first, 3);
        for level in self.down() {
            layout.level(&level, None);
        }
        self.middle_and_out(&mut layout, "encoder", deepest, 2 * latent);
        if self.use_quant_conv {
            layout.convolution("quant_conv", 2 * latent, 2 * latent, 1);
        }
        if self.use_post_quant_conv {
            layout.convolution("post_quant_conv", latent, latent, 1);
        }
        layout.convolution("decoder.conv_in", latent, deepest, 3);
        for level in self.up() {
            layout.level(&level, None);
        }
        self.middle_and_out(&mut layout, "decoder", first, self.out_channels);
        layout
    }

    /// Fresh weights.
    pub fn initial(&self, key: Key) -> Params {
        self.layout().initial(key)
    }

    fn middle_and_out(&self, layout: &mut Layout, half: &str, last: usize, out: usize) {
        let (width, path) = (self.deepest(), format!("{half}.mid_block.attentions.0"));
        layout.level(&self.middle(half), None);
        layout.norm(&format!("{path}.group_norm"), width);
        for name in ["to_q", "to_k", "to_v", "to_out.0"] {
            layout.dense(&format!("{path}.{name}"), width, width);
        }
        layout.norm(&format!("{half}.conv_norm_out"), last);
        layout.convolution(&format!("{half}.conv_out"), last, out, 3);
    }
}

/// The name today of a tensor in a file of any age: attention of the first published autoencoders, Stable Diffusion 1's
/// among them, says `query`, `key`, `value` and `proj_attn` where `to_q`, `to_k`, `to_v` and `to_out.0` are meant.
pub fn current_name(name: &str) -> String {
    let names = [("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")];
    let renamed = names.iter().find_map(|(old, new)| {
        let (path, kind) = name.rsplit_once('.')?;
        let path = path.strip_suffix(old)?.strip_suffix('.')?;
        path.ends_with("mid_block.attentions.0").then(|| format!("{path}.{new}.{kind}"))
    });
    renamed.unwrap_or_else(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_names_of_attention_become_current() {
        let path = "decoder.mid_block.attentions.0";
        for (old, new) in [("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")] {
            assert_eq!(current_name(&format!("{path}.{old}.weight")), format!("{path}.{new}.weight"));
        }
        for name in ["decoder.mid_block.attentions.0.to_q.bias", "decoder.conv_in.weight", "key.weight"] {
            assert_eq!(current_name(name), name);
        }
    }
}
