//! What turns pixels, time and pooled text into vectors of the network's width.

use super::modulation::silu;
use crate::{
    layout::{Start, Tokens},
    linear::Linear,
    weight_source::WeightSource,
};
use burn::tensor::{Tensor, TensorData};
use elbow::policy::Conditioning;

/// Width of the sinusoidal time features.
const TIME_CHANNELS: usize = 256;

/// `[N, C, H, W] → [N, (H/p)·(W/p), C·p·p]`: patches row by row, channels outermost in each.
pub(crate) fn patches(x: Tensor<4>, p: usize) -> Tensor<3> {
    let [n, c, height, width] = x.dims();
    let (rows, columns) = (height / p, width / p);
    let x: Tensor<6> = x.reshape([n, c, rows, p, columns, p]);
    x.permute([0, 2, 4, 1, 3, 5]).reshape([n, rows * columns, c * p * p])
}

/// Time, guidance if the model knows it, and pooled text to one vector: `CombinedTimestepTextProjEmbeddings` and
/// `CombinedTimestepGuidanceTextProjEmbeddings`.
#[derive(Clone, Debug)]
pub(crate) struct TimeText {
    time: Mlp,
    guidance: Option<Mlp>,
    text: Mlp,
}

/// What decides the tensors of a [`TimeText`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct TimeTextSizes {
    /// Width of the network.
    pub(crate) width: usize,
    /// The model knows guidance.
    pub(crate) guidance: bool,
    /// Width of the pooled text.
    pub(crate) pooled: usize,
}

impl TimeText {
    pub(crate) fn new(w: &WeightSource<'_>, sizes: TimeTextSizes) -> Self {
        let w = w.at("time_text_embed").on(Tokens::One).starting(Start::Normal(0.02));
        let mlp = |name: &str, input: usize| Mlp::new(&w.at(name), input, sizes.width);
        Self {
            time: mlp("timestep_embedder", TIME_CHANNELS),
            guidance: sizes.guidance.then(|| mlp("guidance_embedder", TIME_CHANNELS)),
            text: mlp("text_embedder", sizes.pooled),
        }
    }

    /// `time [N]` in 0..1000, `pooled [N, P]` → `[N, width]`. A model that knows guidance is told 1000 `guidance`.
    pub(crate) fn forward(&self, time: Tensor<1>, guidance: f64, cond: &Conditioning) -> Tensor<2> {
        let pooled = cond.pooled.clone().expect("invariant: this network is conditioned on a pooled embedding");
        let mut sum = self.time.forward(time_features(time.clone()));
        if let Some(embedder) = &self.guidance {
            sum = sum + embedder.forward(time_features(time.full_like(1000.0 * guidance)));
        }
        sum + self.text.forward(pooled)
    }
}

/// Two layers with a SiLU between them.
#[derive(Clone, Debug)]
struct Mlp {
    first: Linear,
    second: Linear,
}

impl Mlp {
    fn new(w: &WeightSource<'_>, input: usize, width: usize) -> Self {
        Self { first: w.at("linear_1").linear(input, width), second: w.at("linear_2").linear(width, width) }
    }

    /// `[N, in] → [N, width]`
    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        self.second.forward(silu(self.first.forward(x)))
    }
}

/// `[N] → [N, 256]`: cosines, then sines, of t / 10000^(i/128).
fn time_features(time: Tensor<1>) -> Tensor<2> {
    let half = TIME_CHANNELS / 2;
    let frequencies: Vec<f32> = (0..half).map(|i| 10_000f64.powf(-(i as f64) / half as f64) as f32).collect();
    let frequencies = Tensor::<2>::from_data(TensorData::new(frequencies, [1, half]), &time.device());
    let angles = time.unsqueeze_dim::<2>(1) * frequencies;
    Tensor::cat(vec![angles.clone().cos(), angles.sin()], 1)
}
