//! The autoencoder of latent diffusion (arXiv 2112.10752, section 3.1), with the names of `diffusers`' `AutoencoderKL`.
//!
//! The encoder gives a Gaussian over latents z a picture, the decoder a picture for a latent. Diffusion models see scaled
//! latents, (z − shift) · scale; so does everything outside this module.

mod config;
mod names;

pub use crate::pixels::pixels;
pub use config::{DownBlock, UpBlock, VaeConfig};
pub use names::current_name;

use crate::{
    layout::{Layout, Start, Tokens},
    linear::Linear,
    pixels::pictures,
    resnet::{Conv, GroupNorm, Groups, Level, Resnet},
    weight_source::WeightSource,
};
use burn::tensor::Tensor;
use elbow::{noise::Key, params::Params, policy::Decoded};

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
    middle: Vec<Resnet>,
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
    /// The network of these sizes.
    pub fn new(config: &VaeConfig, w: &WeightSource<'_>) -> Self {
        let w = w.clone().starting(Start::FanIn).on(config::pixels(0));
        let latent = config.latent_channels;
        let conv = |name: &str, channels: usize| w.at(name).conv(channels, channels, 1);
        Self {
            encoder: Half::encoder(config, &w),
            quantize: config.use_quant_conv.then(|| conv("quant_conv", 2 * latent)),
            unquantize: config.use_post_quant_conv.then(|| conv("post_quant_conv", latent)),
            decoder: Half::decoder(config, &w),
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
    pub fn pictures(&self, latents: Tensor<4>, slice: usize) -> Vec<Decoded> {
        let (n, slice) = (latents.dims()[0], slice.max(1));
        let part = |from: usize| pictures(self.decode(latents.clone().narrow(0, from, slice.min(n - from))));
        (0..n).step_by(slice).flat_map(part).collect()
    }
}

impl VaeConfig {
    /// Every tensor.
    pub fn layout(&self) -> Layout {
        Layout::of(|w| Vae::new(self, w))
    }

    /// Those of the decoder alone, without the convolution before it.
    pub fn decoder_layout(&self) -> Layout {
        Layout::of(|w| Half::decoder(self, w))
    }

    /// Fresh weights.
    pub fn initial(&self, key: Key) -> Params {
        self.layout().initial(key)
    }
}

/// One of the halves: what decides its tensors.
struct Sizes {
    /// Channels into it and out of it.
    channels: [usize; 2],
    /// Channels at the first convolution and at the last.
    ends: [usize; 2],
    /// Resolutions of both.
    resolutions: [Tokens; 2],
    levels: Vec<Level>,
}

impl Half {
    fn encoder(config: &VaeConfig, w: &WeightSource<'_>) -> Self {
        let (first, deepest) = (config.block_out_channels[0], config.deepest());
        let sizes = Sizes {
            channels: [config.in_channels, 2 * config.latent_channels],
            ends: [first, deepest],
            resolutions: [config.picture(), config::pixels(0)],
            levels: config.down(),
        };
        Self::new(config, &w.at("encoder"), &sizes)
    }

    fn decoder(config: &VaeConfig, w: &WeightSource<'_>) -> Self {
        let (first, deepest) = (config.block_out_channels[0], config.deepest());
        let sizes = Sizes {
            channels: [config.latent_channels, config.out_channels],
            ends: [deepest, first],
            resolutions: [config::pixels(0), config.picture()],
            levels: config.up(),
        };
        Self::new(config, &w.at("decoder"), &sizes)
    }

    fn new(config: &VaeConfig, w: &WeightSource<'_>, sizes: &Sizes) -> Self {
        let norms = Groups { number: config.norm_num_groups, epsilon: EPSILON };
        let ([input, output], [first, last]) = (sizes.channels, sizes.ends);
        let [before, after] = sizes.resolutions;
        w.begin_block(0);
        Self {
            conv_in: w.at("conv_in").on(before).conv(input, first, 3),
            levels: sizes.levels.iter().map(|level| level.build(w, None, norms)).collect(),
            middle: config.middle().build(w, None, norms).0,
            attention: Attention::new(&w.at("mid_block.attentions.0"), config.deepest(), norms),
            norm_out: w.at("conv_norm_out").group_norm(last, norms),
            conv_out: w.at("conv_out").on(after).conv(last, output, 3),
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
    fn new(w: &WeightSource<'_>, width: usize, norms: Groups) -> Self {
        let pixels = config::pixels(0);
        let w = w.clone().on(pixels);
        w.attention(width, pixels, pixels);
        Self {
            norm: w.at("group_norm").group_norm(width, norms),
            q: w.at("to_q").linear(width, width),
            k: w.at("to_k").linear(width, width),
            v: w.at("to_v").linear(width, width),
            out: w.at("to_out.0").linear(width, width),
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
