//! A dense layer with an optional low-rank adapter.

pub use crate::weight_source::{Precision, Weights};

use crate::{layout::Start, weight_source::WeightSource};
use burn::tensor::Tensor;

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

impl WeightSource<'_> {
    /// A dense layer: `weight` `[out, in]`, `bias` `[out]`, and the factors of an adapter if there are any.
    pub fn linear(&self, input: usize, output: usize) -> Linear {
        let layer = self.linear_without_bias(input, output);
        Linear { bias: Some(self.bias(output)), ..layer }
    }

    /// The same without `bias`.
    pub fn linear_without_bias(&self, input: usize, output: usize) -> Linear {
        let adapter = self.adapter().map(|(a, b, scale)| Adapter { a, b, scale });
        Linear { weight: self.adaptable_weight([output, input]), bias: None, adapter, precision: self.precision() }
    }

    /// A convolution over squares of `side × side` pixels that do not overlap, `weight` `[out, in, side, side]`, as the dense
    /// layer over the values of a square that it is. Adapters pass it by.
    pub fn squares(&self, input: usize, output: usize, side: usize) -> Linear {
        let weight = self.weight([output, input, side, side]).flatten(1, 3);
        Linear { weight, bias: Some(self.bias(output)), adapter: None, precision: self.precision() }
    }

    pub(crate) fn bias(&self, output: usize) -> Tensor<1> {
        self.tensor("bias", [output], Start::Zeros)
    }
}

impl Linear {
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
