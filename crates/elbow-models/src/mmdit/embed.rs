//! Patches to tokens with positions.

use super::config::MmditConfig;
use crate::{joint::patches, layout::Start, linear::Linear, weight_source::WeightSource};
use burn::tensor::{DType, Tensor};

/// A convolution whose stride is its size, written as a product, plus fixed 2-D sinusoids.
#[derive(Clone, Debug)]
pub(super) struct PatchEmbed {
    projection: Linear,
    positions: Tensor<3>,
    patch: usize,
    max_size: usize,
}

impl PatchEmbed {
    pub(super) fn new(config: &MmditConfig, w: &WeightSource<'_>) -> Self {
        let (h, patch, max_size) = (config.width(), config.patch_size, config.pos_embed_max_size);
        let positions = Start::Positions { base: config.sample_size / patch };
        Self {
            projection: w.at("proj").on(config.image_tokens()).squares(config.in_channels, h, patch),
            positions: w.tensor("pos_embed", [1, max_size.pow(2), h], positions),
            patch,
            max_size,
        }
    }

    /// `[N, C, H, W] → [N, (H/p)·(W/p), width]`
    pub(super) fn forward(&self, x: Tensor<4>) -> Tensor<3> {
        let [_, _, height, width] = x.dims();
        let positions = self.crop(height / self.patch, width / self.patch);
        self.projection.forward(patches(x, self.patch)) + positions
    }

    /// The middle `rows × columns` of the grid of position embeddings, in f32.
    fn crop(&self, rows: usize, columns: usize) -> Tensor<3> {
        let (m, h) = (self.max_size, self.positions.dims()[2]);
        let grid: Tensor<4> = self.positions.clone().reshape([1, m, m, h]);
        let grid = grid.narrow(1, (m - rows) / 2, rows).narrow(2, (m - columns) / 2, columns);
        grid.reshape([1, rows * columns, h]).cast(DType::F32)
    }
}
