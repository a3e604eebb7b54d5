//! A policy over points of the plane, for examples and tests: small enough to check by hand, real enough to train.
//!
//! The base draws from N(0, ¼ I), whose velocity is known exactly; a one-layer network adds to it and starts at zero.
//! A point is shown as a 1×1 picture whose red and green are its coordinates.

use crate::{
    noise::{Key, Purpose},
    params::{Params, Tensors},
    policy::{Conditioning, Decoded, EncodeError, Policy, VelocityField},
    prompts::Prompt,
    schedule::Schedule,
};
use burn::tensor::{Device, Tensor};
use image::{Rgb, RgbImage};

/// Points from −`EXTENT` to `EXTENT` fit in a picture.
const EXTENT: f32 = 4.0;
/// Variance of the base in each direction.
const VARIANCE: f32 = 0.25;

/// A velocity field on the plane with `hidden` trained units.
#[derive(Clone, Copy, Debug)]
pub struct Toy {
    /// Width of the trained layer.
    pub hidden: usize,
}

impl Default for Toy {
    fn default() -> Self {
        Self { hidden: 32 }
    }
}

/// The point that a picture of the toy shows, to within 0.02.
pub fn point(image: &RgbImage) -> [f32; 2] {
    let Rgb([x, y, _]) = *image.get_pixel(0, 0);
    [x, y].map(|byte| (f32::from(byte) / 127.5 - 1.0) * EXTENT)
}

struct Field {
    layers: Option<[Tensor<2>; 2]>,
}

impl VelocityField for Field {
    fn velocity(&self, x: Tensor<2>, t: Tensor<1>, _: &Conditioning) -> Tensor<2> {
        let n = t.dims()[0];
        let t: Tensor<2> = t.reshape([n, 1]);
        // E[ε − x₀ | x] for x₀ ~ N(0, s²): x (t − (1 − t) s²) / ((1 − t)² s² + t²).
        let rest = -t.clone() + 1.0;
        let variance = rest.clone().square() * VARIANCE + t.clone().square();
        let base = x.clone() * ((t.clone() - rest * VARIANCE) / variance);
        match &self.layers {
            None => base,
            Some([first, second]) => {
                let one = Tensor::ones_like(&t);
                base + Tensor::cat(vec![x, t, one], 1).matmul(first.clone()).tanh().matmul(second.clone())
            }
        }
    }
}

impl Policy for Toy {
    fn schedule(&self) -> Schedule {
        Schedule::RectifiedFlow
    }

    fn dims(&self) -> usize {
        2
    }

    fn initial(&self) -> Params {
        let mut first = Vec::new();
        Key::new(0, Purpose::Initialization, 0).extend_normals(4 * self.hidden, &mut first);
        let second = vec![0.0; 2 * self.hidden];
        Params::new([("first".into(), vec![4, self.hidden], first), ("second".into(), vec![self.hidden, 2], second)])
    }

    fn bind(&self, trained: Option<&Tensors>) -> Box<dyn VelocityField> {
        Box::new(Field { layers: trained.map(|t| [t.tensor("first"), t.tensor("second")]) })
    }

    fn encode(&self, prompts: &[Prompt]) -> Result<Conditioning, EncodeError> {
        let (n, device) = (prompts.len(), Device::flex());
        Ok(Conditioning { tokens: Tensor::zeros([n, 1, 1], &device), mask: None, pooled: None })
    }

    fn decode(&self, latents: Tensor<2>) -> Vec<Decoded> {
        let values: Vec<f32> = latents.into_data().iter::<f32>().collect();
        let byte = |v: f32| ((v / EXTENT + 1.0) * 127.5).round().clamp(0.0, 255.0) as u8;
        values.chunks(2).map(|p| RgbImage::from_pixel(1, 1, Rgb([byte(p[0]), byte(p[1]), 0])).into()).collect()
    }
}
