//! What the UNet and the autoencoder share: convolutions, group norm and residual blocks over images `[N, C, H, W]`.

use crate::{
    layout::{Start, Tokens},
    linear::Linear,
    weight_source::WeightSource,
};
use burn::tensor::{
    Tensor, activation,
    module::conv2d,
    ops::{ConvOptions, PadMode},
};

/// A convolution with bias.
#[derive(Clone, Debug)]
pub(crate) struct Conv {
    weight: Tensor<4>,
    bias: Tensor<1>,
}

impl Conv {
    /// Keeps height and width.
    pub(crate) fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let padding = self.weight.dims()[3] / 2; // half of its side
        self.run(x, 1, padding)
    }

    /// Halves height and width, a row and a column of zeros on every side: the UNet's.
    pub(crate) fn halve(&self, x: Tensor<4>) -> Tensor<4> {
        self.run(x, 2, 1)
    }

    /// Halves height and width, zeros below and on the right only: the autoencoder's.
    pub(crate) fn halve_from_corner(&self, x: Tensor<4>) -> Tensor<4> {
        self.run(x.pad([(0, 1), (0, 1)], PadMode::Constant(0.0)), 2, 0)
    }

    /// Doubles height and width, each pixel four times, then convolves.
    pub(crate) fn double(&self, x: Tensor<4>) -> Tensor<4> {
        let [n, c, h, w] = x.dims();
        let x: Tensor<6> = x.reshape([n, c, h, 1, w, 1]).expand([n, c, h, 2, w, 2]);
        self.forward(x.reshape([n, c, 2 * h, 2 * w]))
    }

    fn run(&self, x: Tensor<4>, stride: usize, padding: usize) -> Tensor<4> {
        let options = ConvOptions::new([stride; 2], [padding; 2], [1; 2], 1);
        conv2d(x, self.weight.clone(), Some(self.bias.clone()), options)
    }
}

/// Normalization over groups of channels and all pixels (arXiv 1803.08494), then a weight and a bias a channel.
#[derive(Clone, Debug)]
pub(crate) struct GroupNorm {
    weight: Tensor<1>,
    bias: Tensor<1>,
    groups: usize,
    epsilon: f64,
}

impl GroupNorm {
    /// Shape stays.
    pub(crate) fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let [n, c, h, w] = x.dims();
        let x: Tensor<3> = x.reshape([n, self.groups, c / self.groups * h * w]);
        let (variance, mean) = x.clone().var_mean_bias(2);
        let x: Tensor<4> = ((x - mean) / (variance + self.epsilon).sqrt()).reshape([n, c, h, w]);
        x * self.weight.clone().reshape([1, c, 1, 1]) + self.bias.clone().reshape([1, c, 1, 1])
    }

    /// The same, then x · σ(x).
    pub(crate) fn silu(&self, x: Tensor<4>) -> Tensor<4> {
        activation::silu(self.forward(x))
    }
}

/// `ResnetBlock2D`: x + conv(silu(norm(conv(silu(norm(x))) + time))).
#[derive(Clone, Debug)]
pub(crate) struct Resnet {
    norms: [GroupNorm; 2],
    convs: [Conv; 2],
    time: Option<Linear>,
    shortcut: Option<Conv>,
}

impl Resnet {
    /// The block at `w` with the given channels into and out of it, told the time by a vector of width `time` if at all.
    pub(crate) fn new(w: &WeightSource<'_>, [input, out]: [usize; 2], time: Option<usize>, norms: Groups) -> Self {
        // Four maps a convolution: as normalized, activated, convolved, and the norm's own.
        w.keeps(8 * out);
        w.widens_to(input.max(out));
        let norm1 = w.at("norm1").group_norm(input, norms);
        let conv1 = w.at("conv1").conv(input, out, 3);
        let time = time.map(|width| w.at("time_emb_proj").on(Tokens::One).linear(width, out));
        let norm2 = w.at("norm2").group_norm(out, norms);
        let conv2 = w.at("conv2").conv(out, out, 3);
        let shortcut = (input != out).then(|| {
            w.keeps(out);
            w.at("conv_shortcut").conv(input, out, 1)
        });
        Self { norms: [norm1, norm2], convs: [conv1, conv2], time, shortcut }
    }

    /// `x [N, in, H, W]`, `time [N, E]` after its activation, for blocks that have one → `[N, out, H, W]`
    pub(crate) fn forward(&self, x: Tensor<4>, time: Option<&Tensor<2>>) -> Tensor<4> {
        let mut y = self.convs[0].forward(self.norms[0].silu(x.clone()));
        if let (Some(layer), Some(time)) = (&self.time, time) {
            let [n, c, _, _] = y.dims();
            y = y + layer.forward(time.clone()).reshape([n, c, 1, 1]);
        }
        let y = self.convs[1].forward(self.norms[1].silu(y));
        match &self.shortcut {
            None => x + y,
            Some(shortcut) => shortcut.forward(x) + y,
        }
    }
}

/// Residual blocks of one resolution, and the way to the next: what decides their tensors.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Level {
    pub(crate) path: String,
    /// The pixels of the level.
    pub(crate) pixels: Tokens,
    /// Channels into and out of each block.
    pub(crate) resnets: Vec<[usize; 2]>,
    /// The convolution to the next level, except at the last.
    pub(crate) resample: Option<Resample>,
}

/// A convolution to another resolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Resample {
    /// `downsamplers` or `upsamplers`
    pub(crate) kind: &'static str,
    /// The pixels that come of it.
    pub(crate) pixels: Tokens,
}

impl Level {
    /// Channels after the level.
    pub(crate) fn width(&self) -> usize {
        self.resnets.last().map_or(0, |[_, out]| *out)
    }

    /// The blocks and the convolution to the next level. Blocks are told the time by a vector of width `time` if at all.
    pub(crate) fn build(
        &self,
        w: &WeightSource<'_>,
        time: Option<usize>,
        norms: Groups,
    ) -> (Vec<Resnet>, Option<Conv>) {
        let w = w.at(&self.path).on(self.pixels);
        let resnets = self.resnets.iter().enumerate();
        let resnets = resnets.map(|(i, &channels)| Resnet::new(&w.at(&format!("resnets.{i}")), channels, time, norms));
        let resnets = resnets.collect();
        let resample = self.resample.map(|Resample { kind, pixels }| {
            let w = w.at(&format!("{kind}.0.conv")).on(pixels);
            w.keeps(self.width());
            w.conv(self.width(), self.width(), 3)
        });
        (resnets, resample)
    }
}

/// Groups of a group norm, and its ε.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Groups {
    pub(crate) number: usize,
    pub(crate) epsilon: f64,
}

impl WeightSource<'_> {
    /// A convolution of `side × side` pixels: `weight` `[out, in, side, side]`, `bias` `[out]`.
    pub(crate) fn conv(&self, input: usize, output: usize, side: usize) -> Conv {
        Conv { weight: self.weight([output, input, side, side]), bias: self.bias(output) }
    }

    /// A group norm of so many channels: `weight` and `bias`.
    pub(crate) fn group_norm(&self, channels: usize, Groups { number, epsilon }: Groups) -> GroupNorm {
        let weight = self.tensor("weight", [channels], Start::Ones);
        GroupNorm { weight, bias: self.bias(channels), groups: number, epsilon }
    }
}
