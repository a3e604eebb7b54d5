//! The precision that log-probabilities are kept in, and how latent dimensions become one number.

use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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

/// Casts to `f64` where the device has it: log-ratios of 1e-5 drown in `f32` sums.
pub fn to_f64<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    if x.device().supports_dtype(DType::F64) { x.cast(FloatDType::F64) } else { x }
}

/// `[N, D] → [N]`
pub fn reduce(x: Tensor<2>, reduction: Reduction) -> Tensor<1> {
    let n = x.dims()[0];
    let reduced = match reduction {
        Reduction::Mean => x.mean_dim(1),
        Reduction::Sum => x.sum_dim(1),
    };
    reduced.reshape([n])
}

/// Mean over all but the first dimension, in [`to_f64`] precision.
pub fn mean(x: Tensor<2>) -> Tensor<1> {
    reduce(to_f64(x), Reduction::Mean)
}

/// One number a row, `[N]`, in the precision of log-probabilities.
pub fn rows(values: &[f64], device: &Device) -> Tensor<1> {
    // Through f32 only where f64 does not exist: `to_f64` of an f32 tensor would round first.
    let one = to_f64(Tensor::<1>::zeros([1], device));
    Tensor::from_data(TensorData::new(values.to_vec(), [values.len()]), (device, one.dtype()))
}

/// ln N(x; mean, std² I) `[N]` of x − mean `[N, D]`, with a deviation a row, in `f64` where the device has it:
/// −(x − mean)²/(2 std²) − ln std − ½ ln 2π, reduced over dimensions.
///
/// # Panics
/// If a deviation is 0, where there is no density.
pub fn log_density(off: Tensor<2>, std: &[f64], reduction: Reduction) -> Tensor<1> {
    assert!(std.iter().all(|&std| std > 0.0), "invariant: a deterministic step is never scored");
    let ([_, dims], device) = (off.dims(), off.device());
    let count = if reduction == Reduction::Sum { dims as f64 } else { 1.0 };
    let constants: Vec<f64> = std.iter().map(|s| count * (-s.ln() - 0.5 * std::f64::consts::TAU.ln())).collect();
    let scales: Vec<f64> = std.iter().map(|s| -1.0 / (2.0 * s * s)).collect();
    reduce(to_f64(off).square(), reduction) * rows(&scales, &device) + rows(&constants, &device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closed_form() {
        let device = Device::flex();
        let off = Tensor::<2>::from_data([[1.0, 2.0], [3.0, 0.5]], &device);
        let density = |v: f64, s: f64| (-v * v / (2.0 * s * s)).exp() / (s * std::f64::consts::TAU.sqrt());
        let exact = [density(1.0, 2.0).ln() + density(2.0, 2.0).ln(), density(3.0, 0.7).ln() + density(0.5, 0.7).ln()];
        for (reduction, share) in [(Reduction::Sum, 1.0), (Reduction::Mean, 0.5)] {
            let got = log_density(off.clone(), &[2.0, 0.7], reduction).into_data();
            for (got, exact) in got.iter::<f64>().zip(exact) {
                assert!((got - share * exact).abs() < 1e-12, "{got} {exact}");
            }
        }
    }
}
