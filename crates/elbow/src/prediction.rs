//! What a network predicts, turned into velocity, so that nothing else asks.

use crate::schedule::Schedule;
use burn::tensor::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the last layer of a network means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Prediction {
    /// dx/dt of the path (SD3, FLUX).
    #[default]
    Velocity,
    /// ε, the noise in x (SD1.5).
    Noise,
    /// x₀, the clean sample.
    Clean,
}

impl Prediction {
    /// The velocity at `x [N, C, H, W]` that the network's `output` (same shape) amounts to, one time a row.
    ///
    /// With Δ = α σ′ − α′ σ: v = (Δ ε + α′ x) / α from noise and v = (σ′ x − Δ x₀) / σ from the clean sample.
    pub fn velocity(self, schedule: Schedule, x: Tensor<4>, output: Tensor<4>, t: &[f64]) -> Tensor<4> {
        let device = x.device();
        let row = |f: fn(crate::schedule::Level) -> f64| crate::schedule::per_row(t, &device, |t| f(schedule.level(t)));
        match self {
            Self::Velocity => output,
            Self::Noise => output * row(|l| l.determinant() / l.alpha) + x * row(|l| l.d_alpha / l.alpha),
            Self::Clean => x * row(|l| l.d_sigma / l.sigma) - output * row(|l| l.determinant() / l.sigma),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn each_prediction_gives_the_velocity_of_the_path(t in 0.1f64..0.9, x0 in -2f32..2.0, e in -2f32..2.0, vp: bool) {
            let schedule = if vp { Schedule::VariancePreserving { beta_min: 0.1, beta_max: 20.0 } } else { Schedule::RectifiedFlow };
            let device = burn::tensor::Device::flex();
            let one = |v: f32| Tensor::<4>::full([1, 1, 1, 1], v, &device);
            let (x, v) = (schedule.mix(one(x0), one(e), &[t]), schedule.target(one(x0), one(e), &[t]).into_scalar::<f32>());
            for (kind, output) in [(Prediction::Velocity, v), (Prediction::Noise, e), (Prediction::Clean, x0)] {
                let got = kind.velocity(schedule, x.clone(), one(output), &[t]).into_scalar::<f32>();
                prop_assert!((got - v).abs() < 1e-4 * (1.0 + v.abs() + got.abs()), "{kind:?}: {got} {v}");
            }
        }
    }
}
