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

/// Gradients added up in one pairwise tree over their numbers 0, 1, 2, …, in which they must come.
///
/// The sum of the 2ᵏ gradients from a multiple of 2ᵏ on depends on these alone. Whoever computes such a range, a thread or another
/// machine, therefore hands over the same bits, and the sum of all does not depend on who computed what.
#[derive(Debug, Default)]
pub struct Tree {
    /// Sums of complete ranges, from left to right, each with its k; no two have the same.
    ranges: Vec<(u32, Gradient)>,
}

impl Tree {
    /// Adds the next gradient.
    pub fn push(&mut self, gradient: Gradient) {
        let (mut size, mut sum) = (0, gradient);
        while let Some((_, left)) = self.ranges.pop_if(|(left, _)| *left == size) {
            sum = left.plus(sum);
            size += 1;
        }
        self.ranges.push((size, sum));
    }

    /// The sum of all; nothing if none came.
    pub fn sum(self) -> Option<Gradient> {
        self.ranges.into_iter().map(|(_, sum)| sum).rev().reduce(|right, left| left.plus(right))
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

    fn pairwise(values: &[f32]) -> f32 {
        match values {
            [value] => *value,
            values => {
                let half = values.len().next_power_of_two() / 2;
                pairwise(&values[..half]) + pairwise(&values[half..])
            }
        }
    }

    /// ((a + b) + (c + d)) + e, in `f32`, where the order shows.
    #[test]
    fn a_tree_adds_pairs_of_pairs() {
        let params = Params::new([("w".into(), vec![1], vec![0.0])]);
        let gradient = |value: f32| Gradient(vec![Some(Tensor::from_data([value], &Device::flex()))]);
        let values: Vec<f32> = (0..13).map(|i| 0.1 + (i as f32 * 1.7).sin() * 10f32.powi(i % 5)).collect();
        for count in 1..=values.len() {
            let mut tree = Tree::default();
            values[..count].iter().for_each(|&value| tree.push(gradient(value)));
            let mut sum = params.zeros_like();
            tree.sum().expect("some").add_to(&mut sum);
            assert_eq!(sum.values()[0].to_bits(), pairwise(&values[..count]).to_bits(), "{count}");
        }
        // A gradient that is not there changes nothing.
        let mut tree = Tree::default();
        for part in [Gradient::none(&params), gradient(2.5), Gradient::none(&params)] {
            tree.push(part);
        }
        let mut sum = params.zeros_like();
        tree.sum().expect("some").add_to(&mut sum);
        assert_eq!(sum.values(), [2.5]);
        assert!(Tree::default().sum().is_none());
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
