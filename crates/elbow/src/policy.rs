//! What is trained: a velocity field that depends on parameters.

use crate::{
    params::{Params, Tensors},
    prompts::Prompt,
    schedule::Schedule,
};
use burn::tensor::{Device, Int, Tensor, TensorData};
use image::RgbImage;

/// What a network knows about the prompts of a batch, N rows.
#[derive(Clone, Debug)]
pub struct Conditioning {
    /// `[N, L, E]`: L token embeddings of width E.
    pub tokens: Tensor<3>,
    /// `[N, L]`: 1 for a token that is there and 0 for padding, for networks that were trained to leave padding out.
    pub mask: Option<Tensor<2>>,
    /// `[N, P]`: one embedding of width P, for networks that take one.
    pub pooled: Option<Tensor<2>>,
}

impl Conditioning {
    /// N.
    pub fn rows(&self) -> usize {
        self.tokens.dims()[0]
    }

    /// The given rows, in the given order; rows may repeat.
    #[must_use]
    pub fn select(&self, rows: &[usize]) -> Self {
        let indices = indices(rows, &self.tokens.device());
        let select = |rows: &Tensor<2>| rows.clone().select(0, indices.clone());
        Self {
            tokens: self.tokens.clone().select(0, indices.clone()),
            mask: self.mask.as_ref().map(select),
            pooled: self.pooled.as_ref().map(select),
        }
    }

    /// The rows of all parts, one after the other; they have a mask and a pooled embedding all or none.
    #[must_use]
    pub fn cat(parts: &[&Self]) -> Self {
        let all = |rows: fn(&Self) -> &Option<Tensor<2>>| {
            let rows: Option<Vec<Tensor<2>>> = parts.iter().map(|part| rows(part).clone()).collect();
            rows.map(|rows| Tensor::cat(rows, 0))
        };
        Self {
            tokens: Tensor::cat(parts.iter().map(|part| part.tokens.clone()).collect(), 0),
            mask: all(|part| &part.mask),
            pooled: all(|part| &part.pooled),
        }
    }
}

/// Numbers of rows as the engine takes them.
pub(crate) fn indices(rows: &[usize], device: &Device) -> Tensor<1, Int> {
    let rows: Vec<i32> = rows.iter().map(|&row| row as i32).collect();
    let count = rows.len();
    Tensor::from_data(TensorData::new(rows, [count]), device)
}

/// The given rows of `[N, D]`, in the given order; rows may repeat.
pub fn rows_of(all: &Tensor<2>, rows: &[usize]) -> Tensor<2> {
    all.clone().select(0, indices(rows, &all.device()))
}

/// dx/dt of the probability-flow ODE at (x, t), t = 1 noise, t = 0 data.
pub trait VelocityField: Send + Sync {
    /// | Argument | Shape | |
    /// |---|---|---|
    /// | `x` | `[N, D]` | points |
    /// | `t` | `[N]` | times in [0, 1] |
    /// | `cond` | N rows | what the sample should show |
    ///
    /// Returns `[N, D]`.
    fn velocity(&self, x: Tensor<2>, t: Tensor<1>, cond: &Conditioning) -> Tensor<2>;
}

/// A family of velocity fields: one for each value of the trained parameters.
///
/// Current, behavior, averaged and reference weights are all `bind` of the same policy, so they share whatever is
/// frozen. Parameters given on an autodiff device make a field whose output carries a graph; others do not. Such a field
/// serves one backward pass, since the engine consumes the graph with it: bind again for the next, which costs nothing.
pub trait Policy: Send + Sync {
    /// The path from data to noise that the model was trained on.
    fn schedule(&self) -> Schedule;

    /// D, the numbers of one latent. Their meaning (channels, height and width, frames, atoms) is the policy's own.
    fn dims(&self) -> usize;

    /// The trained parameters before training; `bind(Some(initial))` equals `bind(None)`, unless training goes on with an adapter.
    fn initial(&self) -> Params;

    /// The field under the given trained parameters; `None` is the base (adapter off).
    fn bind(&self, trained: Option<&Tensors>) -> Box<dyn VelocityField>;

    /// Text embeddings, one row a prompt. The empty prompt is the unconditional one.
    fn encode(&self, prompts: &[Prompt]) -> Result<Conditioning, EncodeError>;

    /// Latents `[N, D]` to N pictures.
    fn decode(&self, latents: Tensor<2>) -> Vec<Decoded>;
}

/// A picture as 8 bits have room for it, and whether that is what was decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// The picture; values that are not finite are black or white in it.
    pub picture: RgbImage,
    /// Whether all its values are finite: another picture is worth no reward.
    pub finite: bool,
}

impl From<RgbImage> for Decoded {
    fn from(picture: RgbImage) -> Self {
        Self { picture, finite: true }
    }
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

    /// Says of which encoder how many of these prompts are too long and are cut, a sentence an encoder; nothing where none is.
    fn cut(&self, _prompts: &[Prompt]) -> Vec<String> {
        Vec::new()
    }
}
