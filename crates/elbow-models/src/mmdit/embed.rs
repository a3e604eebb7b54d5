//! What turns pixels, time and pooled text into vectors of the network's width.

use super::{MmditConfig, block::silu};
use crate::linear::{Linear, Precision, Weights};
use burn::tensor::{DType, Tensor, TensorData};

/// Width of the sinusoidal time features.
pub(crate) const TIME_CHANNELS: usize = 256;

/// Patches to tokens: a convolution whose stride is its size, written as a product, plus fixed 2-D sinusoids.
#[derive(Clone, Debug)]
pub(super) struct PatchEmbed {
    weight: Tensor<2>,
    bias: Tensor<1>,
    precision: Precision,
    positions: Tensor<3>,
    patch: usize,
    max_size: usize,
}

impl PatchEmbed {
    pub(super) fn new(config: &MmditConfig, weights: Weights<'_>) -> Self {
        let weight: Tensor<4> = weights.base.tensor("pos_embed.proj.weight");
        let inputs = config.in_channels * config.patch_size.pow(2);
        Self {
            weight: weight.reshape([config.width(), inputs]),
            bias: weights.base.tensor("pos_embed.proj.bias"),
            precision: weights.precision,
            positions: weights.base.tensor("pos_embed.pos_embed"),
            patch: config.patch_size,
            max_size: config.pos_embed_max_size,
        }
    }

    /// `[N, C, H, W] → [N, (H/p)·(W/p), width]`
    pub(super) fn forward(&self, x: Tensor<4>) -> Tensor<3> {
        let [_, _, height, width] = x.dims();
        let positions = self.crop(height / self.patch, width / self.patch);
        let x = patches(x, self.patch);
        elbow_kernels::linear(x, self.weight.clone(), Some(self.bias.clone()), self.precision) + positions
    }

    /// The middle `rows × columns` of the grid of position embeddings, in f32.
    fn crop(&self, rows: usize, columns: usize) -> Tensor<3> {
        let (m, h) = (self.max_size, self.positions.dims()[2]);
        let grid: Tensor<4> = self.positions.clone().reshape([1, m, m, h]);
        let grid = grid.narrow(1, (m - rows) / 2, rows).narrow(2, (m - columns) / 2, columns);
        grid.reshape([1, rows * columns, h]).cast(DType::F32)
    }
}

/// `[N, C, H, W] → [N, (H/p)·(W/p), C·p·p]`: patches row by row, channels outermost in each.
pub(crate) fn patches(x: Tensor<4>, p: usize) -> Tensor<3> {
    let [n, c, height, width] = x.dims();
    let (rows, columns) = (height / p, width / p);
    let x: Tensor<6> = x.reshape([n, c, rows, p, columns, p]);
    x.permute([0, 2, 4, 1, 3, 5]).reshape([n, rows * columns, c * p * p])
}

/// Position embeddings `[1, m·m, width]` as the reference makes them: columns in the first half of the channels, rows in
/// the second, positions in units of the model's own grid (`base` patches a side).
pub(crate) fn sinusoids_2d(width: usize, max_size: usize, base: usize) -> Vec<f32> {
    let half = width / 2;
    let encode = |position: f64| {
        let angles = (0..half / 2).map(move |i| position / 10_000f64.powf(i as f64 / (half / 2) as f64));
        angles.clone().map(f64::sin).chain(angles.map(f64::cos)).map(|v| v as f32)
    };
    let scale = base as f64 / max_size as f64;
    let cells = (0..max_size * max_size).map(|cell| (cell / max_size, cell % max_size));
    cells.flat_map(|(row, column)| encode(column as f64 * scale).chain(encode(row as f64 * scale))).collect()
}

/// Time, guidance if the model knows it, and pooled text to one vector: `CombinedTimestepTextProjEmbeddings` and
/// `CombinedTimestepGuidanceTextProjEmbeddings`.
#[derive(Clone, Debug)]
pub(crate) struct TimeText {
    time: [Linear; 2],
    guidance: Option<[Linear; 2]>,
    text: [Linear; 2],
}

impl TimeText {
    pub(crate) fn new(weights: Weights<'_>) -> Self {
        let pair = |name: &str| [1, 2].map(|i| Linear::new(weights, &format!("time_text_embed.{name}.linear_{i}")));
        let guided = weights.base.contains("time_text_embed.guidance_embedder.linear_1.weight");
        Self {
            time: pair("timestep_embedder"),
            guidance: guided.then(|| pair("guidance_embedder")),
            text: pair("text_embedder"),
        }
    }

    /// `time [N]` in 0..1000, `pooled [N, P]` → `[N, width]`. A model that knows guidance is told 1000 `guidance`.
    pub(crate) fn forward(&self, time: Tensor<1>, guidance: f64, pooled: Tensor<2>) -> Tensor<2> {
        let mlp = |[first, second]: &[Linear; 2], x| second.forward(silu(first.forward(x)));
        let mut sum = mlp(&self.time, time_features(time.clone()));
        if let Some(embedder) = &self.guidance {
            sum = sum + mlp(embedder, time_features(time.full_like(1000.0 * guidance)));
        }
        sum + mlp(&self.text, pooled)
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
