//! T5's encoder (arXiv 1910.10683, version 1.1), with the names of `transformers`' `T5EncoderModel`.
//!
//! RMS norms without bias, attention without scale but with a learned bias by distance, and an MLP gated by GELU:
//! h ← h + attention(norm(h)), h ← h + wo(gelu(wi₀ x) ⊙ wi₁ x), x = norm(h). Layer 0 holds the bias for all layers.

use super::TRANSFORMERS;
use super::layers::{Ids, RmsNorm, Table, attention};
use crate::{
    config_json::{self, Others, Told},
    folder::{Checkpoint, FolderError, FrozenWeights, Shapes, read_json},
    layout::Layout,
    linear::{Linear, Weights},
    weight_source::WeightSource,
};
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The fields of `config.json` that matter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct T5Config {
    /// Entries of the token table.
    pub vocab_size: usize,
    /// Width.
    pub d_model: usize,
    /// Width of one head; heads × this need not be `d_model`.
    pub d_kv: usize,
    /// Width inside the MLP.
    pub d_ff: usize,
    /// Layers.
    pub num_layers: usize,
    /// Heads.
    pub num_heads: usize,
    /// Distances are sorted into this many buckets.
    #[serde(default = "buckets")]
    pub relative_attention_num_buckets: usize,
    /// Farther than this, all distances are one.
    #[serde(default = "distance")]
    pub relative_attention_max_distance: usize,
    /// ε of the norms.
    #[serde(default = "epsilon")]
    pub layer_norm_epsilon: f64,
    /// `gated-gelu` (version 1.1); nothing else is implemented.
    #[serde(default = "relu")]
    pub feed_forward_proj: String,
}

fn buckets() -> usize {
    32
}

fn distance() -> usize {
    128
}

fn epsilon() -> f64 {
    1e-6
}

/// What the file means if it says nothing.
fn relu() -> String {
    "relu".into()
}

/// The decoder is of no use here, and initial values and dropout are for training; what `feed_forward_proj` says, two fields say again.
const OTHERS: Others = Others {
    only: "",
    ignored: &[
        TRANSFORMERS,
        &[
            "architectures",
            "classifier_dropout",
            "dense_act_fn",
            "dropout_rate",
            "eos_token_id",
            "initializer_factor",
            "is_gated_act",
            "n_positions",
            "num_decoder_layers",
            "output_past",
            "scale_decoder_outputs",
        ],
    ],
};

impl T5Config {
    /// Reads and checks `config.json`.
    pub fn read(file: &Path) -> Result<Self, FolderError> {
        Ok(Self::told(file)?.0)
    }

    /// The same, with what is worth a warning.
    pub(crate) fn told(file: &Path) -> Result<Told<Self>, FolderError> {
        let (config, warnings): Told<Self> = config_json::read_fields(read_json(file)?, OTHERS)
            .map_err(|source| FolderError::Config { path: file.into(), source })?;
        if config.feed_forward_proj != "gated-gelu" {
            let value = &config.feed_forward_proj;
            return Err(FolderError::unsupported(file, "feed_forward_proj", value, "gated-gelu (T5 version 1.1)"));
        }
        let (buckets, distance) = (config.relative_attention_num_buckets, config.relative_attention_max_distance);
        if buckets < 4 || distance <= buckets / 4 {
            let accepted = "4 buckets or more, and distances beyond a quarter of their number";
            return Err(FolderError::unsupported(file, "relative_attention_num_buckets", buckets, accepted));
        }
        Ok((config, warnings))
    }

    /// Every tensor.
    pub fn shapes(&self) -> Shapes {
        Layout::of(|w| T5::new(self.clone(), w)).to_shapes()
    }

    /// The bucket of a key `offset` tokens after the query. Half of the buckets are for keys that come later. Of each
    /// half, the first half is for single distances, the rest grows as the logarithm up to the longest distance.
    fn bucket(&self, offset: i64) -> usize {
        let half = self.relative_attention_num_buckets / 2;
        let (later, exact) = (if offset > 0 { half } else { 0 }, half / 2);
        let distance = offset.unsigned_abs() as usize;
        if distance < exact {
            return later + distance;
        }
        // In single precision, as the reference rounds.
        let growth = (distance as f32 / exact as f32).ln()
            / (self.relative_attention_max_distance as f64 / exact as f64).ln() as f32
            * (half - exact) as f32;
        later + (exact + growth as usize).min(half - 1)
    }
}

/// The token table once more, in some files.
const COPY: &str = "encoder.embed_tokens.weight";

/// Whether a tensor is of the rest of T5, beside its encoder.
pub(super) fn is_beside_encoder(name: &str) -> bool {
    name.starts_with("decoder.") || name.starts_with("lm_head.")
}

/// The name that a tensor has here: some files have the token table under that of its copy alone.
pub(super) fn usual_name(checkpoint: &Checkpoint) -> impl Fn(&str) -> String + use<> {
    let copy_alone = checkpoint.contains(COPY) && !checkpoint.contains("shared.weight");
    move |name| if copy_alone && name == COPY { "shared.weight".to_owned() } else { name.to_owned() }
}

/// A text encoder with its weights, frozen.
#[derive(Clone, Debug)]
pub struct T5 {
    tokens: Table,
    layers: Vec<Layer>,
    norm: RmsNorm,
    config: T5Config,
}

/// h ← h + attention(norm(h)), h ← h + wo(gelu(wi₀ x) ⊙ wi₁ x), x = norm(h)
#[derive(Clone, Debug)]
struct Layer {
    qkv: [Linear; 3],
    out: Linear,
    /// The bias by distance of all layers, which the first has.
    bias: Option<Table>,
    norms: [RmsNorm; 2],
    wi: [Linear; 2],
    wo: Linear,
}

impl T5 {
    fn new(config: T5Config, w: &WeightSource<'_>) -> Self {
        let tokens = Table::new(&w.at("shared"), config.vocab_size, config.d_model);
        let layers = (0..config.num_layers).map(|i| Layer::new(&config, &w.at(&format!("encoder.block.{i}")), i == 0));
        let layers: Vec<Layer> = layers.collect();
        let norm = RmsNorm::new(&w.at("encoder.final_layer_norm"), config.d_model, config.layer_norm_epsilon);
        Self { tokens, layers, norm, config }
    }

    /// What [`T5::load`] would find wrong, without reading values.
    pub fn check(config: &T5Config, checkpoint: &Checkpoint) -> Result<(), FolderError> {
        checkpoint.check(&config.shapes(), &[COPY])
    }

    /// Reads the weights.
    pub fn load(
        config: T5Config,
        checkpoint: &Checkpoint,
        weights: FrozenWeights,
        device: &Device,
    ) -> Result<Self, FolderError> {
        let weights = checkpoint.tensors(&config.shapes(), &[COPY], weights, device)?;
        Ok(Self::new(config, &Weights::plain(&weights).into()))
    }

    /// `[N, L] → [N, L, d_model]`. Padding is not masked, since neither SD3's nor FLUX's pipeline passes a mask.
    pub fn forward(&self, ids: &Ids) -> Tensor<3> {
        let mut h = self.tokens.embed(ids);
        let bias = self.bias(h.dims()[1]);
        for layer in &self.layers {
            h = layer.forward(self.config.num_heads, h, bias.clone());
        }
        self.norm.forward(h)
    }

    /// `[1, heads, L, L]`
    fn bias(&self, length: usize) -> Tensor<4> {
        let bucket = |i: usize| self.config.bucket((i % length) as i64 - (i / length) as i64) as i32;
        let table =
            self.layers.iter().find_map(|layer| layer.bias.as_ref()).expect("invariant: the first layer has it");
        let bias = table.rows((0..length * length).map(bucket).collect());
        bias.reshape([1, length, length, self.config.num_heads]).permute([0, 3, 1, 2])
    }
}

impl Layer {
    fn new(config: &T5Config, w: &WeightSource<'_>, first: bool) -> Self {
        let (width, inner) = (config.d_model, config.num_heads * config.d_kv);
        let (attend, dense) = (w.at("layer.0.SelfAttention"), w.at("layer.1.DenseReluDense"));
        let norm = |part: &str| RmsNorm::new(&w.at(part), width, config.layer_norm_epsilon);
        let qkv = ["q", "k", "v"].map(|name| attend.at(name).linear_without_bias(width, inner));
        let out = attend.at("o").linear_without_bias(inner, width);
        let buckets = config.relative_attention_num_buckets;
        let bias = first.then(|| Table::new(&attend.at("relative_attention_bias"), buckets, config.num_heads));
        let norm0 = norm("layer.0.layer_norm");
        let wi = ["wi_0", "wi_1"].map(|name| dense.at(name).linear_without_bias(width, config.d_ff));
        let wo = dense.at("wo").linear_without_bias(config.d_ff, width);
        Self { qkv, out, bias, norms: [norm0, norm("layer.1.layer_norm")], wi, wo }
    }

    /// `h [N, L, H]`, `bias [1, heads, L, L]` → `[N, L, H]`
    fn forward(&self, heads: usize, h: Tensor<3>, bias: Tensor<4>) -> Tensor<3> {
        let x = self.norms[0].forward(h.clone());
        let qkv = [0, 1, 2].map(|i: usize| self.qkv[i].forward(x.clone()));
        let h = h + self.out.forward(attention(qkv, heads, 1.0, bias));
        let x = self.norms[1].forward(h.clone());
        let gate = elbow_kernels::gelu_tanh(self.wi[0].forward(x.clone()));
        h + self.wo.forward(gate * self.wi[1].forward(x))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> T5Config {
        let text = r#"{"vocab_size": 8, "d_model": 4, "d_kv": 2, "d_ff": 4, "num_layers": 1, "num_heads": 2}"#;
        serde_json::from_str(text).expect("a config")
    }

    /// 32 buckets: 0..16 for this token and earlier ones, 16..32 for later ones; of each 16, 8 single distances.
    #[test]
    fn buckets_are_single_then_logarithmic() {
        let config = config();
        let at = |offsets: &[i64]| offsets.iter().map(|&o| config.bucket(o)).collect::<Vec<_>>();
        assert_eq!(at(&[0, -1, -7, 1, 7]), [0, 1, 7, 17, 23]);
        assert_eq!(at(&[-8, -11, -12, -16, -32, -63, -127, -128, -1000]), [8, 8, 9, 10, 12, 13, 15, 15, 15]);
        assert_eq!(at(&[8, 1000]), [24, 31]);
    }

    #[test]
    fn version_1_0_is_refused_by_field_and_value() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("config.json");
        let text = r#"{"vocab_size": 8, "d_model": 4, "d_kv": 2, "d_ff": 4, "num_layers": 1, "num_heads": 2}"#;
        std::fs::write(&file, text).expect("written");
        let error = T5Config::read(&file).expect_err("relu").to_string();
        assert!(error.contains("feed_forward_proj") && error.contains("relu"), "{error}");
    }
}
