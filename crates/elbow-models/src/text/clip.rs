//! CLIP's text encoder (arXiv 2103.00020), with the names of `transformers`' `CLIPTextModel` and
//! `CLIPTextModelWithProjection`.
//!
//! A transformer with a causal mask: h ← h + attention(norm(h)), h ← h + mlp(norm(h)). The pooled output is the last
//! hidden state at the end-of-text token.

use super::layers::{Ids, attention, embed, layer_norm, pick};
use crate::{
    folder::{Checkpoint, FolderError, FrozenWeights, Shapes, read_json},
    linear::{Linear, Weights},
};
use burn::tensor::{DType, Device, Tensor, TensorData, activation};
use elbow::params::Tensors;
use serde::Deserialize;
use std::path::Path;

/// The fields of `config.json` that matter; others are ignored. Defaults are `transformers`'.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct ClipConfig {
    /// Entries of the token table.
    pub vocab_size: usize,
    /// Width H.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Heads.
    pub num_attention_heads: usize,
    /// Longest sequence.
    pub max_position_embeddings: usize,
    /// `quick_gelu` or `gelu`.
    pub hidden_act: Activation,
    /// ε of the layer norms.
    pub layer_norm_eps: f64,
    /// Width of the projected pooled output.
    pub projection_dim: usize,
    /// The end-of-text token. 2 is a mistake of old files and means: the highest id of the sequence.
    pub eos_token_id: u32,
    /// Names the class; with `CLIPTextModelWithProjection` the pooled output is projected.
    pub architectures: Vec<String>,
}

/// The function inside the MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// x σ(1.702 x)
    QuickGelu,
    /// x Φ(x)
    Gelu,
}

impl Default for ClipConfig {
    fn default() -> Self {
        Self {
            vocab_size: 49408,
            hidden_size: 512,
            intermediate_size: 2048,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
            projection_dim: 512,
            eos_token_id: 49407,
            architectures: vec!["CLIPTextModel".into()],
        }
    }
}

impl ClipConfig {
    /// Reads and checks `config.json`.
    pub fn read(file: &Path) -> Result<Self, FolderError> {
        let config: Self = read_json(file)?;
        let classes = ["CLIPTextModel", "CLIPTextModelWithProjection"];
        let class = config.architectures.first().map_or("absent", String::as_str);
        if !classes.contains(&class) {
            return Err(FolderError::unsupported(file, "architectures", class, &classes.join(" and ")));
        }
        let (width, heads) = (config.hidden_size, config.num_attention_heads);
        if heads == 0 || width % heads != 0 {
            let accepted = format!("divisors of hidden_size = {width}");
            return Err(FolderError::unsupported(file, "num_attention_heads", heads, &accepted));
        }
        if config.num_hidden_layers == 0 {
            return Err(FolderError::unsupported(file, "num_hidden_layers", 0, "1 or more"));
        }
        Ok(config)
    }

    /// Whether the pooled output is projected.
    pub fn projects(&self) -> bool {
        self.architectures.first().is_some_and(|class| class == "CLIPTextModelWithProjection")
    }

    /// Width of the pooled output.
    pub fn pooled_width(&self) -> usize {
        if self.projects() { self.projection_dim } else { self.hidden_size }
    }

    /// Every tensor, below `prefix` (`text_model.` in most files); the projection has none.
    pub fn shapes(&self, prefix: &str) -> Shapes {
        let (h, inner) = (self.hidden_size, self.intermediate_size);
        let mut shapes = vec![
            (format!("{prefix}embeddings.token_embedding.weight"), vec![self.vocab_size, h]),
            (format!("{prefix}embeddings.position_embedding.weight"), vec![self.max_position_embeddings, h]),
        ];
        let mut pair = |path: String, weight: Vec<usize>| {
            let bias = vec![weight[0]];
            shapes.push((format!("{path}.weight"), weight));
            shapes.push((format!("{path}.bias"), bias));
        };
        for i in 0..self.num_hidden_layers {
            let layer = format!("{prefix}encoder.layers.{i}");
            for name in ["k_proj", "v_proj", "q_proj", "out_proj"] {
                pair(format!("{layer}.self_attn.{name}"), vec![h, h]);
            }
            pair(format!("{layer}.layer_norm1"), vec![h]);
            pair(format!("{layer}.mlp.fc1"), vec![inner, h]);
            pair(format!("{layer}.mlp.fc2"), vec![h, inner]);
            pair(format!("{layer}.layer_norm2"), vec![h]);
        }
        pair(format!("{prefix}final_layer_norm"), vec![h]);
        if self.projects() {
            shapes.push(("text_projection.weight".into(), vec![self.projection_dim, h]));
        }
        shapes
    }
}

/// What CLIP says of a text.
#[derive(Clone, Debug)]
pub struct ClipOutput {
    /// `[N, L, H]`: after the last layer and the final norm (SD1.x).
    pub last: Tensor<3>,
    /// `[N, L, H]`: before the last layer, without the final norm (SD3).
    pub penultimate: Tensor<3>,
    /// `[N, P]`: the last state at the end of the text, projected if the model has a projection.
    pub pooled: Tensor<2>,
}

/// A text encoder with its weights, frozen.
#[derive(Clone, Debug)]
pub struct Clip {
    config: ClipConfig,
    weights: Tensors,
    prefix: &'static str,
}

impl Clip {
    /// What [`Clip::load`] would find wrong, without reading values.
    pub fn check(config: &ClipConfig, checkpoint: &Checkpoint) -> Result<(), FolderError> {
        let prefix = prefix(checkpoint);
        checkpoint.check(&config.shapes(prefix), &[&positions(prefix)])
    }

    /// Reads the weights. Their names begin with `text_model.`, or without it as `transformers` 5 writes them.
    pub fn load(
        config: ClipConfig,
        checkpoint: &Checkpoint,
        weights: FrozenWeights,
        device: &Device,
    ) -> Result<Self, FolderError> {
        let prefix = prefix(checkpoint);
        let weights = checkpoint.tensors(&config.shapes(prefix), &[&positions(prefix)], weights, device)?;
        Ok(Self { config, weights, prefix })
    }

    /// Rows of equal length, at most `max_position_embeddings`; padding is not masked, as in the pipelines.
    pub fn forward(&self, ids: &Ids) -> ClipOutput {
        let path = |rest: &str| format!("{}{rest}", self.prefix);
        let tokens = embed(&self.weights, &path("embeddings.token_embedding.weight"), ids);
        let length = tokens.dims()[1];
        let positions = self.weights.tensor::<2>(&path("embeddings.position_embedding.weight"));
        let positions = positions.narrow(0, 0, length).cast(DType::F32);
        let mask = causal(length, &tokens.device());
        let mut states = vec![tokens + positions.unsqueeze::<3>()];
        for i in 0..self.config.num_hidden_layers {
            let layer = path(&format!("encoder.layers.{i}"));
            let state = self.layer(&layer, states[i].clone(), mask.clone());
            states.push(state);
        }
        let last = states.pop().expect("invariant: at least the embeddings");
        let last = layer_norm(&self.weights, &path("final_layer_norm"), last, self.config.layer_norm_eps);
        let ends: Vec<usize> = ids.iter().map(|row| self.end(row)).collect();
        let mut pooled = pick(last.clone(), &ends);
        if self.config.projects() {
            pooled = self.linear("text_projection").forward(pooled);
        }
        let penultimate = states.pop().expect("invariant: there is a layer");
        ClipOutput { last, penultimate, pooled }
    }

    fn layer(&self, path: &str, h: Tensor<3>, mask: Tensor<4>) -> Tensor<3> {
        let (heads, width) = (self.config.num_attention_heads, self.config.hidden_size);
        let norm = |name: &str, x| layer_norm(&self.weights, &format!("{path}.{name}"), x, self.config.layer_norm_eps);
        let linear = |name: &str, x: Tensor<3>| self.linear(&format!("{path}.{name}")).forward(x);
        let x = norm("layer_norm1", h.clone());
        let qkv = ["q_proj", "k_proj", "v_proj"].map(|name| linear(&format!("self_attn.{name}"), x.clone()));
        let scale = ((width / heads) as f64).sqrt().recip();
        let h = h + linear("self_attn.out_proj", attention(qkv, heads, scale, mask));
        let x = linear("mlp.fc1", norm("layer_norm2", h.clone()));
        let x = match self.config.hidden_act {
            Activation::QuickGelu => x.clone() * activation::sigmoid(x * 1.702),
            Activation::Gelu => activation::gelu(x),
        };
        h + linear("mlp.fc2", x)
    }

    fn linear(&self, path: &str) -> Linear {
        Linear::new(Weights::plain(&self.weights), path)
    }

    /// Where a text ends: at the first end-of-text token, or by the old rule at the first of the highest id.
    fn end(&self, ids: &[u32]) -> usize {
        let token = match self.config.eos_token_id {
            2 => ids.iter().copied().max().unwrap_or_default(),
            id => id,
        };
        ids.iter().position(|&id| id == token).unwrap_or_default()
    }
}

/// `transformers` 5 saves a bare `CLIPTextModel` without the prefix.
fn prefix(checkpoint: &Checkpoint) -> &'static str {
    if checkpoint.contains("embeddings.token_embedding.weight") { "" } else { "text_model." }
}

/// A table 0, 1, 2, … that old files carry.
fn positions(prefix: &str) -> String {
    format!("{prefix}embeddings.position_ids")
}

/// `[1, 1, L, L]`: 0 where a token may look, −10⁹ at later ones, which becomes exactly 0 after softmax.
fn causal(length: usize, device: &Device) -> Tensor<4> {
    let value = |i: usize| if i % length > i / length { -1e9 } else { 0.0 };
    let values: Vec<f32> = (0..length * length).map(value).collect();
    Tensor::from_data(TensorData::new(values, [1, 1, length, length]), device)
}
