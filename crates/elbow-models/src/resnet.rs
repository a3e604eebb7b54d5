//! What the UNet and the autoencoder share: convolutions, group norm and residual blocks over images `[N, C, H, W]`.

use crate::{
    layout::{Layout, Start},
    linear::{Linear, Weights},
};
use burn::tensor::{
    Tensor, activation,
    module::conv2d,
    ops::{ConvOptions, PadMode},
};

/// A convolution with bias, its side taken from its weight.
#[derive(Clone, Debug)]
pub(crate) struct Conv {
    weight: Tensor<4>,
    bias: Tensor<1>,
}

impl Conv {
    /// `<path>.weight` `[out, in, side, side]` and `<path>.bias` `[out]`.
    pub(crate) fn new(weights: Weights<'_>, path: &str) -> Self {
        let tensor = |part: &str| format!("{path}.{part}");
        Self { weight: weights.base.tensor(&tensor("weight")), bias: weights.base.tensor(&tensor("bias")) }
    }

    /// Keeps height and width.
    pub(crate) fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let padding = self.weight.dims()[3] / 2;
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
    pub(crate) fn new(weights: Weights<'_>, path: &str, groups: usize, epsilon: f64) -> Self {
        let tensor = |part: &str| weights.base.tensor(&format!("{path}.{part}"));
        Self { weight: tensor("weight"), bias: tensor("bias"), groups, epsilon }
    }

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
    pub(crate) fn new(weights: Weights<'_>, path: &str, groups: usize, epsilon: f64) -> Self {
        let present = |part: &str| weights.base.contains(&format!("{path}.{part}.weight"));
        let inner = |part: &str| format!("{path}.{part}");
        Self {
            norms: ["norm1", "norm2"].map(|norm| GroupNorm::new(weights, &inner(norm), groups, epsilon)),
            convs: ["conv1", "conv2"].map(|conv| Conv::new(weights, &inner(conv))),
            time: present("time_emb_proj").then(|| Linear::new(weights, &inner("time_emb_proj"))),
            shortcut: present("conv_shortcut").then(|| Conv::new(weights, &inner("conv_shortcut"))),
        }
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
    /// Channels into and out of each block.
    pub(crate) resnets: Vec<[usize; 2]>,
    /// `downsamplers` or `upsamplers`, except at the last level.
    pub(crate) resample: Option<&'static str>,
}

impl Level {
    /// Channels after the level.
    pub(crate) fn width(&self) -> usize {
        self.resnets.last().map_or(0, |[_, out]| *out)
    }

    pub(crate) fn resnets(&self, weights: Weights<'_>, groups: usize, epsilon: f64) -> Vec<Resnet> {
        let path = |i: usize| format!("{}.resnets.{i}", self.path);
        (0..self.resnets.len()).map(|i| Resnet::new(weights, &path(i), groups, epsilon)).collect()
    }

    pub(crate) fn resample(&self, weights: Weights<'_>) -> Option<Conv> {
        self.resample.map(|kind| Conv::new(weights, &format!("{}.{kind}.0.conv", self.path)))
    }
}

impl Layout {
    /// A convolution of `side × side` pixels, with bias.
    pub(crate) fn convolution(&mut self, path: &str, input: usize, out: usize, side: usize) {
        self.linear(path, vec![out, input, side, side], 1.0 / ((input * side * side) as f64).sqrt());
    }

    /// A dense layer with bias.
    pub(crate) fn dense(&mut self, path: &str, input: usize, out: usize) {
        self.linear(path, vec![out, input], 1.0 / (input as f64).sqrt());
    }

    /// Weight and bias of a normalization.
    pub(crate) fn norm(&mut self, path: &str, width: usize) {
        self.push(format!("{path}.weight"), vec![width], Start::Ones);
        self.push(format!("{path}.bias"), vec![width], Start::Zeros);
    }

    /// The blocks of a level, told the time by a vector of width `time` if at all.
    pub(crate) fn level(&mut self, level: &Level, time: Option<usize>) {
        for (i, &[input, out]) in level.resnets.iter().enumerate() {
            let path = format!("{}.resnets.{i}", level.path);
            self.norm(&format!("{path}.norm1"), input);
            self.convolution(&format!("{path}.conv1"), input, out, 3);
            if let Some(time) = time {
                self.dense(&format!("{path}.time_emb_proj"), time, out);
            }
            self.norm(&format!("{path}.norm2"), out);
            self.convolution(&format!("{path}.conv2"), out, out, 3);
            if input != out {
                self.convolution(&format!("{path}.conv_shortcut"), input, out, 1);
            }
        }
        if let Some(kind) = level.resample {
            self.convolution(&format!("{}.{kind}.0.conv", level.path), level.width(), level.width(), 3);
        }
    }
}
