//! The distribution of one step of a sampler, and the precision log-probabilities are kept in.

use burn::tensor::{DType, FloatDType, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// N(mean, std² I) over latents; std 0 is a deterministic step.
#[derive(Clone, Debug)]
pub struct Gaussian {
    /// `[N, C, H, W]`
    pub mean: Tensor<4>,
    /// The same for every element and row.
    pub std: f64,
}

/// How a sum over latent dimensions becomes one number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Reduction {
    /// Mean over dimensions: the field's convention, on which clips and temperatures depend.
    #[default]
    Mean,
    /// Sum over dimensions: the true log-density.
    Sum,
}

impl Gaussian {
    /// mean + std · noise
    pub fn sample(self, noise: Tensor<4>) -> Tensor<4> {
        if self.std == 0.0 { self.mean } else { self.mean + noise * self.std }
    }

    /// ln N(x; mean, std² I) `[N]`, in `f64` where the device has it:
    /// −(x − mean)²/(2 std²) − ln std − ½ ln 2π, reduced over dimensions.
    ///
    /// # Panics
    /// If std is 0, where there is no density.
    pub fn log_prob(self, x: Tensor<4>, reduction: Reduction) -> Tensor<1> {
        assert!(self.std > 0.0, "invariant: a deterministic step is never scored");
        let [_, c, h, w] = x.dims();
        let constant = -self.std.ln() - 0.5 * std::f64::consts::TAU.ln();
        let square = reduce(wide(x - self.mean).square(), reduction) / (-2.0 * self.std * self.std);
        let count = if reduction == Reduction::Sum { (c * h * w) as f64 } else { 1.0 };
        square + constant * count
    }
}

/// Casts to `f64` where the device has it: log-ratios of 1e-5 drown in `f32` sums.
pub fn wide<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    if x.device().supports_dtype(DType::F64) { x.cast(FloatDType::F64) } else { x }
}

/// `[N, C, H, W] → [N]`
pub fn reduce(x: Tensor<4>, reduction: Reduction) -> Tensor<1> {
    let [n, c, h, w] = x.dims();
    let rows: Tensor<2> = x.reshape([n, c * h * w]);
    let reduced = match reduction {
        Reduction::Mean => rows.mean_dim(1),
        Reduction::Sum => rows.sum_dim(1),
    };
    reduced.reshape([n])
}

/// Mean over all but the first dimension, in [`wide`] precision.
pub fn mean(x: Tensor<4>) -> Tensor<1> {
    reduce(wide(x), Reduction::Mean)
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    #[test]
    fn closed_form() {
        let device = Device::flex();
        let mean = Tensor::<4>::zeros([1, 1, 1, 2], &device);
        let x = Tensor::<4>::from_data([[[[1.0, 2.0]]]], &device);
        let density = |v: f64| (-v * v / 8.0).exp() / (2.0 * std::f64::consts::TAU.sqrt());
        let exact = density(1.0).ln() + density(2.0).ln();
        for (reduction, expected) in [(Reduction::Sum, exact), (Reduction::Mean, exact / 2.0)] {
            let got = Gaussian { mean: mean.clone(), std: 2.0 }.log_prob(x.clone(), reduction).into_scalar::<f64>();
            assert!((got - expected).abs() < 1e-12, "{got} {expected}");
        }
    }

    #[test]
    fn a_sample_is_mean_plus_scaled_noise() {
        let device = Device::flex();
        let one = |v: f32| Tensor::<4>::full([1, 1, 1, 1], v, &device);
        let sample = Gaussian { mean: one(1.0), std: 0.5 }.sample(one(4.0));
        assert_eq!(sample.into_data(), one(3.0).into_data());
    }
}
