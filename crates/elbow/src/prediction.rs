//! What a network predicts, turned into velocity, so that nothing else asks.

use crate::{
    policy::{Conditioning, VelocityField},
    schedule::{Level, Schedule, per_row},
};
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
    /// α ε − σ x₀, which `diffusers` calls `v_prediction` (SD2.1; arXiv 2202.00512, section 4).
    VPrediction,
}

impl Prediction {
    /// The velocity at `x [N, D]` that the network's `output` (same shape) amounts to, one time a row.
    ///
    /// With Δ = α σ′ − α′ σ: v = (Δ ε + α′ x) / α from noise, v = (σ′ x − Δ x₀) / σ from the clean sample, and
    /// v = (Δ u + (α α′ + σ σ′) x) / (α² + σ²) from u = α ε − σ x₀.
    pub fn velocity(self, schedule: Schedule, x: Tensor<2>, output: Tensor<2>, t: &[f64]) -> Tensor<2> {
        let device = x.device();
        let row = |f: &dyn Fn(Level) -> f64| per_row(t, &device, |t| f(schedule.level(t)));
        match self {
            Self::Velocity => output,
            Self::Noise => output * row(&|l| l.determinant() / l.alpha) + x * row(&|l| l.d_alpha / l.alpha),
            Self::VPrediction => {
                let size = |l: Level| l.alpha * l.alpha + l.sigma * l.sigma;
                let along = |l: Level| l.alpha * l.d_alpha + l.sigma * l.d_sigma;
                output * row(&|l| l.determinant() / size(l)) + x * row(&|l| along(l) / size(l))
            }
            Self::Clean => x * row(&|l| l.d_sigma / l.sigma) - output * row(&|l| l.determinant() / l.sigma),
        }
    }

    /// What models of this path customarily predict: velocity on rectified flow (SD3), noise on a variance-preserving path
    /// (DDPM).
    pub fn customary(schedule: Schedule) -> Self {
        match schedule {
            Schedule::RectifiedFlow => Self::Velocity,
            Schedule::VariancePreserving { .. }
            | Schedule::ScaledLinear { .. }
            | Schedule::Linear { .. }
            | Schedule::SquaredCosine => Self::Noise,
        }
    }

    /// The velocity field of a network on this path; `output`'s fields are its raw outputs.
    pub fn field(self, schedule: Schedule, output: Box<dyn VelocityField>) -> Box<dyn VelocityField> {
        if self == Self::Velocity { output } else { Box::new(Predicted { output, prediction: self, schedule }) }
    }

    /// How much an error of the velocity moves the network's output, up to sign.
    pub fn gain(self, level: Level) -> f64 {
        match self {
            Self::Velocity => 1.0,
            Self::Noise => level.noise_gain(),
            Self::Clean => level.clean_gain(),
            Self::VPrediction => (level.alpha * level.alpha + level.sigma * level.sigma) / level.determinant(),
        }
    }
}

struct Predicted {
    output: Box<dyn VelocityField>,
    prediction: Prediction,
    schedule: Schedule,
}

impl VelocityField for Predicted {
    fn velocity(&self, x: Tensor<2>, t: Tensor<1>, cond: &Conditioning) -> Tensor<2> {
        let times: Vec<f64> = t.clone().into_data().iter::<f64>().collect();
        let output = self.output.velocity(x.clone(), t, cond);
        self.prediction.velocity(self.schedule, x, output, &times)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn each_prediction_gives_the_velocity_of_the_path(
            t in 0.1f64..0.9, x0 in -2f32..2.0, e in -2f32..2.0, path in 0usize..3,
        ) {
            let schedule = [
                Schedule::RectifiedFlow,
                Schedule::VariancePreserving { beta_min: 0.1, beta_max: 20.0 },
                Schedule::ScaledLinear { beta_start: 0.00085, beta_end: 0.012 },
            ][path];
            let device = burn::tensor::Device::flex();
            let one = |v: f32| Tensor::<2>::full([1, 1], v, &device);
            let (x, v) = (schedule.mix(one(x0), one(e), &[t]), schedule.target(one(x0), one(e), &[t]).into_scalar::<f32>());
            let level = schedule.level(t);
            let angular = level.alpha as f32 * e - level.sigma as f32 * x0;
            // An error of 1 in the velocity is an error of `gain` in each output.
            let off = one(v + 1.0);
            let noise = schedule.noise(x.clone(), off.clone(), t).into_scalar::<f32>();
            let clean = schedule.clean(x.clone(), off, t).into_scalar::<f32>();
            let outputs = [
                (Prediction::Velocity, v, 1.0),
                (Prediction::Noise, e, noise - e),
                (Prediction::Clean, x0, x0 - clean),
                (Prediction::VPrediction, angular, level.alpha as f32 * noise - level.sigma as f32 * clean - angular),
            ];
            for (kind, output, moved) in outputs {
                let off = (kind.gain(level) - f64::from(moved)).abs();
                prop_assert!(off < 2e-4 * (1.0 + 1.0 / level.alpha), "{kind:?}: {moved} {}", kind.gain(level));
                let got = kind.velocity(schedule, x.clone(), one(output), &[t]).into_scalar::<f32>();
                prop_assert!((got - v).abs() < 1e-4 * (1.0 + v.abs() + got.abs()), "{kind:?}: {got} {v}");
            }
        }
    }
}
