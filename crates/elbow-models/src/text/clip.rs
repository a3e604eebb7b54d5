//! CLIP's text encoder (arXiv 2103.00020), with the names of `transformers`' `CLIPTextModel` and
//! `CLIPTextModelWithProjection`.
//!
//! A transformer with a causal mask: h ← h + attention(norm(h)), h ← h + mlp(norm(h)). The pooled output is the last
//! hidden state at the end-of-text token.

use super::TRANSFORMERS;
use super::layers::{Ids, LayerNorm, Table, attention, pick};
use crate::{
    config_json::{self, Others, Told},
    folder::{Checkpoint, FolderError, FrozenWeights, Shapes, read_json},
    layout::Layout,
    linear::{Linear, Weights},
    weight_source::WeightSource,
};
use burn::tensor::{Device, Tensor, TensorData, activation};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::path::Path;

/// The fields of `config.json` that matter. Defaults are `transformers`'.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
    /// Names the class; with `CLIPTextModelWithProjection` the pooled output is projected. `CLIPModel` is the whole of CLIP, which a folder
    /// uses as one or the other.
    pub architectures: Vec<String>,
}

/// The function inside the MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// x σ(1.702 x)
    QuickGelu,
    /// x Φ(x)
    Gelu,
}

/// Initial values and dropout are for training.
const OTHERS: Others = Others {
    only: "",
    ignored: &[
        TRANSFORMERS,
        &["attention_dropout", "dropout", "initializer_factor", "initializer_range", "logit_scale_init_value"],
    ],
};

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
        Ok(Self::told(file)?.0)
    }

    /// The same, with what is worth a warning.
    pub(crate) fn told(file: &Path) -> Result<Told<Self>, FolderError> {
        let mut fields: Map<String, Value> = read_json(file)?;
        if let Some(Value::Object(mut text)) = fields.remove("text_config") {
            // The whole of CLIP: its other half makes no difference, and this one has no class of its own.
            for shared in ["architectures", "projection_dim"] {
                if text.get(shared).is_none_or(Value::is_null) {
                    text.extend(fields.remove_entry(shared));
                }
            }
            fields = text;
        }
        let (config, warnings): Told<Self> = config_json::read_fields(fields, OTHERS)
            .map_err(|source| FolderError::Config { path: file.into(), source })?;
        let classes = ["CLIPTextModel", "CLIPTextModelWithProjection", "CLIPModel"];
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
        Ok((config, warnings))
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
        Layout::of(|w| Clip::new(self.clone(), w, prefix)).to_shapes()
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
    tokens: Table,
    positions: Table,
    layers: Vec<Layer>,
    norm: LayerNorm,
    projection: Option<Linear>,
    config: ClipConfig,
}

/// h ← h + attention(norm(h)), h ← h + mlp(norm(h))
#[derive(Clone, Debug)]
struct Layer {
    k: Linear,
    v: Linear,
    q: Linear,
    out: Linear,
    norms: [LayerNorm; 2],
    fc1: Linear,
    fc2: Linear,
}

impl Clip {
    fn new(config: ClipConfig, w: &WeightSource<'_>, prefix: &str) -> Self {
        let (h, model) = (config.hidden_size, below(w, prefix));
        let embeddings = model.at("embeddings");
        let layers = (0..config.num_hidden_layers).map(|i| model.at(&format!("encoder.layers.{i}")));
        Self {
            tokens: Table::new(&embeddings.at("token_embedding"), config.vocab_size, h),
            positions: Table::new(&embeddings.at("position_embedding"), config.max_position_embeddings, h),
            layers: layers.map(|w| Layer::new(&config, &w)).collect(),
            norm: LayerNorm::new(&model.at("final_layer_norm"), h, config.layer_norm_eps),
            projection: config
                .projects()
                .then(|| w.at("text_projection").linear_without_bias(h, config.projection_dim)),
            config,
        }
    }

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
        Ok(Self::new(config, &Weights::plain(&weights).into(), prefix))
    }

    /// Rows of equal length, at most `max_position_embeddings`; padding is not masked, as in the pipelines.
    pub fn forward(&self, ids: &Ids) -> ClipOutput {
        let tokens = self.tokens.embed(ids);
        let length = tokens.dims()[1];
        let positions = self.positions.first(length);
        let mask = causal(length, &tokens.device());
        let mut states = vec![tokens + positions.unsqueeze::<3>()];
        for (i, layer) in self.layers.iter().enumerate() {
            let state = layer.forward(&self.config, states[i].clone(), mask.clone());
            states.push(state);
        }
        let last = states.pop().expect("invariant: at least the embeddings");
        let last = self.norm.forward(last);
        let ends: Vec<usize> = ids.iter().map(|row| self.end(row)).collect();
        let mut pooled = pick(last.clone(), &ends);
        if let Some(projection) = &self.projection {
            pooled = projection.forward(pooled);
        }
        let penultimate = states.pop().expect("invariant: there is a layer");
        ClipOutput { last, penultimate, pooled }
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

impl Layer {
    fn new(config: &ClipConfig, w: &WeightSource<'_>) -> Self {
        let (h, inner, epsilon) = (config.hidden_size, config.intermediate_size, config.layer_norm_eps);
        let attention = |name: &str| w.at("self_attn").at(name).linear(h, h);
        let (k, v) = (attention("k_proj"), attention("v_proj"));
        let (q, out) = (attention("q_proj"), attention("out_proj"));
        let norm1 = LayerNorm::new(&w.at("layer_norm1"), h, epsilon);
        let fc1 = w.at("mlp.fc1").linear(h, inner);
        let fc2 = w.at("mlp.fc2").linear(inner, h);
        let norm2 = LayerNorm::new(&w.at("layer_norm2"), h, epsilon);
        Self { k, v, q, out, norms: [norm1, norm2], fc1, fc2 }
    }

    /// `h [N, L, H]`, `mask [1, 1, L, L]` → `[N, L, H]`
    fn forward(&self, config: &ClipConfig, h: Tensor<3>, mask: Tensor<4>) -> Tensor<3> {
        let (heads, width) = (config.num_attention_heads, config.hidden_size);
        let x = self.norms[0].forward(h.clone());
        let qkv = [&self.q, &self.k, &self.v].map(|layer| layer.forward(x.clone()));
        let scale = ((width / heads) as f64).sqrt().recip();
        let h = h + self.out.forward(attention(qkv, heads, scale, mask));
        let x = self.fc1.forward(self.norms[1].forward(h.clone()));
        let x = match config.hidden_act {
            Activation::QuickGelu => x.clone() * activation::sigmoid(x * 1.702),
            Activation::Gelu => activation::gelu(x),
        };
        h + self.fc2.forward(x)
    }
}

/// `transformers` 5 saves a bare `CLIPTextModel` without the prefix.
pub(super) fn prefix(checkpoint: &Checkpoint) -> &'static str {
    if checkpoint.contains("embeddings.token_embedding.weight") { "" } else { "text_model." }
}

/// The place of a prefix that ends in a dot, or is empty.
fn below<'a>(w: &WeightSource<'a>, prefix: &str) -> WeightSource<'a> {
    prefix.strip_suffix('.').map_or_else(|| w.clone(), |name| w.at(name))
}

/// Whether a tensor is of the rest of CLIP, beside its text encoder.
pub(super) fn is_beside_text(name: &str) -> bool {
    ["vision_model.", "visual_projection.", "logit_scale"].iter().any(|start| name.starts_with(start))
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
