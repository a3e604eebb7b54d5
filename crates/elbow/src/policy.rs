//! What is trained: a velocity field that depends on parameters.

use crate::{
    params::{Params, Tensors},
    prompts::Prompt,
};
use burn::tensor::{Int, Tensor, TensorData};
use image::RgbImage;

/// What a network knows about the prompts of a batch: text tokens and one pooled vector each.
#[derive(Clone, Debug)]
pub struct Conditioning {
    /// `[N, L, E]`: L token embeddings of width E.
    pub tokens: Tensor<3>,
    /// `[N, P]`: one embedding of width P.
    pub pooled: Tensor<2>,
}

impl Conditioning {
    /// The given rows, in the given order; rows may repeat.
    #[must_use]
    pub fn select(&self, rows: &[usize]) -> Self {
        let indices: Vec<i32> = rows.iter().map(|&r| r as i32).collect();
        let indices = Tensor::<1, Int>::from_data(TensorData::new(indices, [rows.len()]), &self.pooled.device());
        Self { tokens: self.tokens.clone().select(0, indices.clone()), pooled: self.pooled.clone().select(0, indices) }
    }

    /// Rows `start .. start + len`.
    #[must_use]
    pub fn narrow(&self, start: usize, len: usize) -> Self {
        Self { tokens: self.tokens.clone().narrow(0, start, len), pooled: self.pooled.clone().narrow(0, start, len) }
    }

    /// The rows of all parts, one after the other.
    #[must_use]
    pub fn cat(parts: &[&Self]) -> Self {
        Self {
            tokens: Tensor::cat(parts.iter().map(|p| p.tokens.clone()).collect(), 0),
            pooled: Tensor::cat(parts.iter().map(|p| p.pooled.clone()).collect(), 0),
        }
    }
}

/// dx/dt of the probability-flow ODE at (x, t), t = 1 noise, t = 0 data.
pub trait VelocityField: Send + Sync {
    /// | Argument | Shape | |
    /// |---|---|---|
    /// | `x` | `[N, C, H, W]` | points |
    /// | `t` | `[N]` | times in [0, 1] |
    /// | `cond` | N rows | what the image should show |
    ///
    /// Returns `[N, C, H, W]`.
    fn velocity(&self, x: Tensor<4>, t: Tensor<1>, cond: &Conditioning) -> Tensor<4>;
}

/// A family of velocity fields: one for each value of the trained parameters.
///
/// Current, behavior, averaged and reference weights are all `bind` of the same policy, so they share whatever is
/// frozen. Parameters given on an autodiff device make a field whose output carries a graph; others do not. Such a field
/// serves one backward pass, since the engine consumes the graph with it: bind again for the next, which costs nothing.
pub trait Policy: Send + Sync {
    /// `[C, H, W]` of one latent.
    fn latent_shape(&self) -> [usize; 3];

    /// The trained parameters before training; `bind(Some(initial))` equals `bind(None)`.
    fn initial(&self) -> Params;

    /// The field under the given trained parameters; `None` is the reference (adapter off, base weights).
    fn bind(&self, trained: Option<&Tensors>) -> Box<dyn VelocityField>;

    /// Text embeddings, one row a prompt. The empty prompt is the unconditional one.
    fn encode(&self, prompts: &[Prompt]) -> Result<Conditioning, EncodeError>;

    /// Latents `[N, C, H, W]` to N pictures.
    fn decode(&self, latents: Tensor<4>) -> Vec<RgbImage>;
}

/// A prompt the text encoder cannot take.
#[derive(Clone, Debug, thiserror::Error)]
#[error("prompt {prompt:?}: {reason}")]
pub struct EncodeError {
    /// The prompt's text.
    pub prompt: String,
    /// What is wrong with it, and what would be accepted.
    pub reason: String,
}

/// Prompts to embeddings.
pub trait TextEncoder: Send + Sync {
    /// One row a prompt; the empty prompt is the unconditional one.
    fn encode(&self, prompts: &[Prompt]) -> Result<Conditioning, EncodeError>;

    /// Makes sure that these prompts can be encoded, and does now what need not be done again when they are. `progress` is told
    /// how many of how many are done, where that takes long.
    fn prepare(&self, prompts: &[Prompt], _progress: &dyn Fn(usize, usize)) -> Result<(), EncodeError> {
        self.encode(prompts).map(drop)
    }
}
