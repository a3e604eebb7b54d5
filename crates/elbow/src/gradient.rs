//! Gradients tensor by tensor, as the backward pass leaves them.

use crate::params::{Params, TASK, Tensors};
use burn::tensor::{Gradients, Tensor};
use rayon::prelude::*;

/// One gradient per entry of a layout, where the loss depends on the entry: no copy of what the backward pass made.
#[derive(Clone, Debug)]
pub struct Gradient(Vec<Option<Tensor<1>>>);

impl Gradient {
    /// No gradient of any entry.
    pub fn none(params: &Params) -> Self {
        Self(params.entries().iter().map(|_| None).collect())
    }

    /// Takes the gradients of `leaves`, which [`Params::tensors`] or [`Tensors::leaves`] made for the layout of `params`.
    pub fn take(params: &Params, leaves: &Tensors, gradients: &mut Gradients) -> Self {
        let mut gradient = |name: &str| leaves.flat(name).and_then(|leaf| leaf.grad_remove(gradients));
        Self(params.entries().iter().map(|entry| gradient(&entry.name)).collect())
    }

    /// The sum with those of another loss on the same layout, where they are: on an accelerator it takes memory there.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        let sum = |pair| match pair {
            (Some(a), Some(b)) => Some(a + b),
            (a, b) => a.or(b),
        };
        Self(self.0.into_iter().zip(other.0).map(sum).collect())
    }

    /// Adds them to values of their layout.
    pub fn add_to(self, sum: &mut Params) {
        let (entries, values) = sum.parts_mut();
        assert_eq!(entries.len(), self.0.len(), "gradients of another layout");
        for (entry, gradient) in entries.iter().zip(self.0) {
            let Some(gradient) = gradient else { continue };
            let data = gradient.into_data();
            let slice = data.as_slice::<f32>().expect("invariant: parameters are f32");
            let add = |(sum, g): (&mut f32, &f32)| *sum += g;
            values[entry.range.clone()].par_iter_mut().zip(slice).with_min_len(TASK).for_each(add);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    fn two() -> Params {
        Params::new([("b".into(), vec![2, 1], vec![1.0, 2.0]), ("a".into(), vec![1], vec![3.0])])
    }

    #[test]
    fn gradients_land_in_their_entries() {
        let params = two();
        let leaves = params.tensors(&Device::flex().autodiff());
        let loss = leaves.tensor::<2>("b").powi_scalar(2).sum() + leaves.tensor::<1>("a") * 5.0;
        let mut sum = params.zeros_like();
        Gradient::take(&params, &leaves, &mut loss.backward()).add_to(&mut sum);
        assert_eq!(sum.values(), [2.0, 4.0, 5.0]);
    }

    #[test]
    fn leaves_collect_gradients_apart_from_each_other_and_are_summed() {
        let params = two();
        let shared = params.tensors(&Device::flex());
        let of = |loss: fn(&Tensors) -> Tensor<1>| {
            let leaves = shared.leaves();
            Gradient::take(&params, &leaves, &mut loss(&leaves).backward())
        };
        let [b, c] = [of(|l| l.tensor::<2>("b").sum()), of(|l| (l.tensor::<2>("b") * 10.0).sum())];
        let a = of(|l| l.tensor::<1>("a") * 7.0);
        let mut sum = params.zeros_like();
        Gradient::none(&params).plus(b.clone()).plus(c).add_to(&mut sum);
        assert_eq!(sum.values(), [11.0, 11.0, 0.0]);
        b.plus(a).add_to(&mut sum);
        assert_eq!(sum.values(), [12.0, 12.0, 7.0]);
    }
}
