//! Fresh weights, and with them the list of every tensor's name and shape.

use super::{
    MmditConfig,
    embed::{TIME_CHANNELS, sinusoids_2d},
};
use elbow::{noise::Key, params::Params};

/// Tensors in the order they are made; tensor `i` draws from its own stream.
struct Builder {
    key: Key,
    tensors: Vec<(String, Vec<usize>, Vec<f32>)>,
}

impl Builder {
    fn push(&mut self, name: String, shape: Vec<usize>, values: Vec<f32>) {
        self.tensors.push((name, shape, values));
    }

    /// Weight with the given deviation, bias zero.
    fn linear(&mut self, path: &str, shape: Vec<usize>, deviation: f64) {
        let (out, len) = (shape[0], shape.iter().product());
        let mut weight = Vec::with_capacity(len);
        self.key.sample(self.tensors.len() as u64).extend_normals(len, &mut weight);
        for value in &mut weight {
            *value *= deviation as f32;
        }
        self.push(format!("{path}.weight"), shape, weight);
        self.push(format!("{path}.bias"), vec![out], vec![0.0; out]);
    }

    /// Xavier: deviation √(2 / (in + out)).
    fn xavier(&mut self, path: &str, input: usize, out: usize) {
        self.linear(path, vec![out, input], (2.0 / (input + out) as f64).sqrt());
    }

    /// One stream of a block; `rest` says whether anything follows attention.
    fn stream(&mut self, h: usize, path: &str, names: [&str; 6], rest: bool) {
        let [norm, q, k, v, out, ff] = names;
        self.linear(&format!("{path}.{norm}.linear"), vec![if rest { 6 * h } else { 2 * h }, h], 0.0);
        for name in [q, k, v] {
            self.xavier(&format!("{path}.attn.{name}"), h, h);
        }
        if rest {
            self.xavier(&format!("{path}.attn.{out}"), h, h);
            self.xavier(&format!("{path}.{ff}.net.0.proj"), h, 4 * h);
            self.xavier(&format!("{path}.{ff}.net.2"), 4 * h, h);
        }
    }
}

impl MmditConfig {
    /// Fresh weights: Xavier for dense layers, zero for every modulation and for the output (AdaLN-Zero: each block
    /// starts as the identity and the network as v = 0), 0.02 for time and text embeddings.
    pub fn initial(&self, key: Key) -> Params {
        let (h, p, c) = (self.width(), self.patch_size, self.in_channels);
        let mut b = Builder { key, tensors: Vec::new() };
        b.linear("pos_embed.proj", vec![h, c, p, p], (2.0 / (c * p * p + h) as f64).sqrt());
        let positions = sinusoids_2d(h, self.pos_embed_max_size, self.sample_size / p);
        b.push("pos_embed.pos_embed".into(), vec![1, self.pos_embed_max_size.pow(2), h], positions);
        for (name, input) in [("timestep_embedder", TIME_CHANNELS), ("text_embedder", self.pooled_projection_dim)] {
            b.linear(&format!("time_text_embed.{name}.linear_1"), vec![h, input], 0.02);
            b.linear(&format!("time_text_embed.{name}.linear_2"), vec![h, h], 0.02);
        }
        b.xavier("context_embedder", self.joint_attention_dim, h);
        for i in 0..self.num_layers {
            let (path, last) = (format!("transformer_blocks.{i}"), i + 1 == self.num_layers);
            b.stream(h, &path, ["norm1", "to_q", "to_k", "to_v", "to_out.0", "ff"], true);
            let text = ["norm1_context", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "ff_context"];
            b.stream(h, &path, text, !last);
            if self.qk_norm {
                for name in ["norm_q", "norm_k", "norm_added_q", "norm_added_k"] {
                    let d = self.attention_head_dim;
                    b.push(format!("{path}.attn.{name}.weight"), vec![d], vec![1.0; d]);
                }
            }
        }
        b.linear("norm_out.linear", vec![2 * h, h], 0.0);
        b.linear("proj_out", vec![p * p * c, h], 0.0);
        Params::new(b.tensors)
    }
}
