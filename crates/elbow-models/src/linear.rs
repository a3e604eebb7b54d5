//! A dense layer with an optional low-rank adapter.

use burn::tensor::Tensor;
use elbow::params::Tensors;
pub use elbow_kernels::Precision;

/// `x Wᵀ + b + s·(x Aᵀ) Bᵀ` (LoRA, arXiv 2106.09685). The adapter stays factored: neither W nor its gradient is ever
/// formed from it. A frozen W may be in half precision: it is widened to f32 for each product.
#[derive(Clone, Debug)]
pub struct Linear {
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    adapter: Option<Adapter>,
    precision: Precision,
}

#[derive(Clone, Debug)]
struct Adapter {
    a: Tensor<2>,
    b: Tensor<2>,
    scale: f64,
}

/// The tensors a network is built from: its weights, and the adapter factors if there are any.
#[derive(Clone, Copy, Debug)]
pub struct Weights<'a> {
    /// The network's own tensors.
    pub base: &'a Tensors,
    /// `<layer>.lora_A.weight` `[rank, in]` and `<layer>.lora_B.weight` `[out, rank]`, with their scale alpha / rank.
    pub adapter: Option<(&'a Tensors, f64)>,
    /// What the factors of the products of dense layers are rounded to.
    pub precision: Precision,
}

impl<'a> Weights<'a> {
    /// A network as it is, in `f32`.
    pub fn plain(base: &'a Tensors) -> Self {
        Self { base, adapter: None, precision: Precision::F32 }
    }
}

impl Linear {
    /// The layer at `path`: `<path>.weight` `[out, in]`, `<path>.bias` `[out]` if present, adapter factors if present.
    pub fn new(weights: Weights<'_>, path: &str) -> Self {
        let bias = format!("{path}.bias");
        let factors = |(tensors, scale): (&Tensors, f64)| {
            let (a, b) = (format!("{path}.lora_A.weight"), format!("{path}.lora_B.weight"));
            tensors.contains(&a).then(|| Adapter { a: tensors.tensor(&a), b: tensors.tensor(&b), scale })
        };
        Self {
            weight: weights.base.tensor(&format!("{path}.weight")),
            bias: weights.base.contains(&bias).then(|| weights.base.tensor(&bias)),
            adapter: weights.adapter.and_then(factors),
            precision: weights.precision,
        }
    }

    /// A convolution of one pixel, `<path>.weight` `[out, in, 1, 1]`, as the dense layer over channels that it is. Adapters
    /// pass it by.
    pub fn pointwise(weights: Weights<'_>, path: &str) -> Self {
        let weight: Tensor<4> = weights.base.tensor(&format!("{path}.weight"));
        let [out, input, _, _] = weight.dims();
        let bias = Some(weights.base.tensor(&format!("{path}.bias")));
        Self { weight: weight.reshape([out, input]), bias, adapter: None, precision: weights.precision }
    }

    /// The same of gelu(x), which is not kept for the backward pass: `[.., in] → [.., out]`.
    pub fn after_gelu<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        match self.adapter {
            None => elbow_kernels::gelu_linear(x, self.weight.clone(), self.bias.clone(), self.precision),
            Some(_) => self.forward(elbow_kernels::gelu_tanh(x)),
        }
    }

    /// `[.., in] → [.., out]`
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let y = elbow_kernels::linear(x.clone(), self.weight.clone(), self.bias.clone(), self.precision);
        match &self.adapter {
            None => y,
            Some(Adapter { a, b, scale }) => {
                let low = elbow_kernels::linear(x, a.clone(), None, self.precision) * *scale;
                y + elbow_kernels::linear(low, b.clone(), None, self.precision)
            }
        }
    }
}
