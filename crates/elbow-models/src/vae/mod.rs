//! The autoencoder of latent diffusion (arXiv 2112.10752, section 3.1), with the names of `diffusers`' `AutoencoderKL`.
//!
//! The encoder gives a Gaussian over latents z a picture, the decoder a picture for a latent. Diffusion models see scaled
//! latents, (z − shift) · scale; so does everything outside this module.

mod config;
mod layout;

pub use config::{DownBlock, UpBlock, VaeConfig};
pub use layout::current_name;

use crate::{
    linear::{Linear, Weights},
    policy::decode_pixels,
    resnet::{Conv, GroupNorm, Level, Resnet},
};
use burn::tensor::{Device, Tensor, TensorData};
use elbow::RgbImage;

/// ε of every group norm.
const EPSILON: f64 = 1e-6;

/// An autoencoder bound to weights.
#[derive(Clone, Debug)]
pub struct Vae {
    encoder: Half,
    quantize: Option<Conv>,
    unquantize: Option<Conv>,
    decoder: Half,
    scale: f64,
    shift: f64,
}

/// The encoder or the decoder: they differ in which end the levels are.
#[derive(Clone, Debug)]
struct Half {
    conv_in: Conv,
    levels: Vec<(Vec<Resnet>, Option<Conv>)>,
    middle: [Resnet; 2],
    attention: Attention,
    norm_out: GroupNorm,
    conv_out: Conv,
}

/// A Gaussian over the scaled latents of pictures, `[N, C, h, w]` both.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// Its mean.
    pub mean: Tensor<4>,
    /// Its deviation, value by value.
    pub std: Tensor<4>,
}

impl Encoded {
    /// The latents that standard normal `noise` stands for.
    pub fn sample(&self, noise: Tensor<4>) -> Tensor<4> {
        self.mean.clone() + self.std.clone() * noise
    }
}

impl Vae {
    /// Builds the network from weights laid out as [`VaeConfig::layout`] says.
    pub fn new(config: &VaeConfig, weights: Weights<'_>) -> Self {
        let conv = |present: bool, path: &str| present.then(|| Conv::new(weights, path));
        Self {
            encoder: Half::new(config, weights, "encoder", &config.down()),
            quantize: conv(config.use_quant_conv, "quant_conv"),
            unquantize: conv(config.use_post_quant_conv, "post_quant_conv"),
            decoder: Half::new(config, weights, "decoder", &config.up()),
            scale: config.scaling_factor,
            shift: config.shift_factor.unwrap_or(0.0),
        }
    }

    /// Pictures in [−1, 1] `[N, 3, H, W]` to scaled latents; height and width are multiples of [`VaeConfig::reduction`].
    pub fn encode(&self, x: Tensor<4>) -> Encoded {
        let mut moments = self.encoder.down(x);
        if let Some(conv) = &self.quantize {
            moments = conv.forward(moments);
        }
        let channels = moments.dims()[1] / 2;
        let mean = (moments.clone().narrow(1, 0, channels) - self.shift) * self.scale;
        let log_variance = moments.narrow(1, channels, channels).clamp(-30.0, 20.0);
        Encoded { mean, std: (log_variance * 0.5).exp() * self.scale }
    }

    /// Scaled latents `[N, C, h, w]` to pictures around [−1, 1] `[N, 3, H, W]`.
    pub fn decode(&self, latents: Tensor<4>) -> Tensor<4> {
        let z = latents / self.scale + self.shift;
        self.decoder.up(match &self.unquantize {
            None => z,
            Some(conv) => conv.forward(z),
        })
    }

    /// The same as 8-bit pictures, at most `slice` at a time: memory grows with the slice, not with N.
    pub fn pictures(&self, latents: Tensor<4>, slice: usize) -> Vec<RgbImage> {
        let (n, slice) = (latents.dims()[0], slice.max(1));
        let part = |from: usize| decode_pixels(self.decode(latents.clone().narrow(0, from, slice.min(n - from))));
        (0..n).step_by(slice).flat_map(part).collect()
    }
}

/// 8-bit pictures of one size to `[N, 3, H, W]` in [−1, 1]: what [`Vae::encode`] takes.
///
/// # Panics
/// If their sizes differ, or there are none.
pub fn pixels(pictures: &[RgbImage], device: &Device) -> Tensor<4> {
    let (width, height) = pictures[0].dimensions();
    assert!(pictures.iter().all(|p| p.dimensions() == (width, height)), "invariant: pictures of one size");
    let values: Vec<f32> = pictures.iter().flat_map(|p| p.iter().map(|&v| f32::from(v) / 127.5 - 1.0)).collect();
    let data = TensorData::new(values, [pictures.len(), height as usize, width as usize, 3]);
    Tensor::<4>::from_data(data, device).permute([0, 3, 1, 2])
}

impl Half {
    fn new(config: &VaeConfig, weights: Weights<'_>, half: &str, levels: &[Level]) -> Self {
        let groups = config.norm_num_groups;
        let path = |part: &str| format!("{half}.{part}");
        let bound = |level: &Level| (level.resnets(weights, groups, EPSILON), level.resample(weights));
        let middle = |i: usize| Resnet::new(weights, &path(&format!("mid_block.resnets.{i}")), groups, EPSILON);
        Self {
            conv_in: Conv::new(weights, &path("conv_in")),
            levels: levels.iter().map(bound).collect(),
            middle: [0, 1].map(middle),
            attention: Attention::new(weights, &path("mid_block.attentions.0"), groups),
            norm_out: GroupNorm::new(weights, &path("conv_norm_out"), groups, EPSILON),
            conv_out: Conv::new(weights, &path("conv_out")),
        }
    }

    fn down(&self, x: Tensor<4>) -> Tensor<4> {
        let x = self.levels.iter().fold(self.conv_in.forward(x), |x, (resnets, resample)| {
            let x = resnets.iter().fold(x, |x, resnet| resnet.forward(x, None));
            if let Some(conv) = resample { conv.halve_from_corner(x) } else { x }
        });
        self.out(self.middle(x))
    }

    fn up(&self, x: Tensor<4>) -> Tensor<4> {
        let x = self.middle(self.conv_in.forward(x));
        self.out(self.levels.iter().fold(x, |x, (resnets, resample)| {
            let x = resnets.iter().fold(x, |x, resnet| resnet.forward(x, None));
            if let Some(conv) = resample { conv.double(x) } else { x }
        }))
    }

    fn middle(&self, x: Tensor<4>) -> Tensor<4> {
        let x = self.attention.forward(self.middle[0].forward(x, None));
        self.middle[1].forward(x, None)
    }

    fn out(&self, x: Tensor<4>) -> Tensor<4> {
        self.conv_out.forward(self.norm_out.silu(x))
    }
}

/// Attention of all pixels to all, one head, around which the input is added.
#[derive(Clone, Debug)]
struct Attention {
    norm: GroupNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
}

impl Attention {
    fn new(weights: Weights<'_>, path: &str, groups: usize) -> Self {
        let linear = |name: &str| Linear::new(weights, &format!("{path}.{name}"));
        Self {
            norm: GroupNorm::new(weights, &format!("{path}.group_norm"), groups, EPSILON),
            q: linear("to_q"),
            k: linear("to_k"),
            v: linear("to_v"),
            out: linear("to_out.0"),
        }
    }

    /// Shape stays.
    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let [n, c, h, w] = x.dims();
        let tokens: Tensor<3> = self.norm.forward(x.clone()).reshape([n, c, h * w]).swap_dims(1, 2);
        let [q, k, v] = [&self.q, &self.k, &self.v].map(|layer| layer.forward(tokens.clone()));
        let y = self.out.forward(elbow_kernels::attention(q, k, v, 1));
        x + y.swap_dims(1, 2).reshape([n, c, h, w])
    }
}
