//! One step of a walk from noise to data, as a table of numbers.
//!
//! Every rule of this folder is linear in the newest three points of the walk and in the velocities there:
//!
//! x′ ~ N( Σ_i x[i] x_{k−i} + v[i] v_{k−i},  std² I ).
//!
//! One piece of code therefore draws every rule and scores every rule.

use crate::schedule::Grid;
use burn::tensor::{Tensor, TensorData};
use std::ops::{Add, Mul, Sub};

/// Points and velocities that a step may look at: the newest and two before it.
pub const HISTORY: usize = 3;

/// A weighted sum of the newest points and of the velocities there, newest first.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Mean {
    /// Weights of the points at `times[k]`, `times[k − 1]`, `times[k − 2]`.
    pub x: [f64; HISTORY],
    /// Weights of the velocities there.
    pub v: [f64; HISTORY],
}

impl Mean {
    /// The point `back` steps ago; 0 is the newest.
    pub fn point(back: usize) -> Self {
        let mut mean = Self::default();
        mean.x[back] = 1.0;
        mean
    }

    /// The velocity at that point.
    pub fn velocity(back: usize) -> Self {
        let mut mean = Self::default();
        mean.v[back] = 1.0;
        mean
    }

    /// The clean sample x̂₀ = (σ′ x − σ v)/Δ predicted `back` steps before step `k`.
    pub fn clean(grid: &Grid, k: usize, back: usize) -> Self {
        let level = grid.level(k - back);
        let delta = level.determinant();
        Self::point(back) * (level.d_sigma / delta) - Self::velocity(back) * (level.sigma / delta)
    }

    /// The noise ε̂ = (α v − α′ x)/Δ predicted `back` steps before step `k`.
    pub fn noise(grid: &Grid, k: usize, back: usize) -> Self {
        let level = grid.level(k - back);
        let delta = level.determinant();
        Self::velocity(back) * (level.alpha / delta) - Self::point(back) * (level.d_alpha / delta)
    }

    /// Whether it looks at points or velocities before the newest.
    pub fn remembers(&self) -> bool {
        self.x[1..].iter().chain(&self.v[1..]).any(|&weight| weight != 0.0)
    }
}

impl Add for Mean {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        let sum = |a: [f64; HISTORY], b: [f64; HISTORY]| std::array::from_fn(|i| a[i] + b[i]);
        Self { x: sum(self.x, other.x), v: sum(self.v, other.v) }
    }
}

impl Mul<f64> for Mean {
    type Output = Self;

    fn mul(self, factor: f64) -> Self {
        Self { x: self.x.map(|weight| weight * factor), v: self.v.map(|weight| weight * factor) }
    }
}

impl Sub for Mean {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        self + other * -1.0
    }
}

/// The distribution of the next point, N(mean, std² I).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// The mean of the next point.
    pub mean: Mean,
    /// Its deviation, the same for every element; 0 is a deterministic step, which has no density.
    pub std: f64,
}

impl Step {
    /// A step without noise.
    pub fn deterministic(mean: Mean) -> Self {
        Self { mean, std: 0.0 }
    }

    /// The path through what is predicted at step `k`, with noise of deviation `std` drawn anew at the next time:
    /// N( α′ x̂₀ + √(σ′² − std²) ε̂, std² I ).
    pub fn redrawn(grid: &Grid, k: usize, std: f64) -> Self {
        let next = grid.level(k + 1);
        let kept = (next.sigma * next.sigma - std * std).max(0.0).sqrt();
        Self { mean: Mean::clean(grid, k, 0) * next.alpha + Mean::noise(grid, k, 0) * kept, std }
    }
}

/// A point of a walk and the velocity there, both `[N, D]`.
#[derive(Clone, Debug)]
pub struct Visit {
    /// The point.
    pub x: Tensor<2>,
    /// dx/dt at it.
    pub velocity: Tensor<2>,
}

/// The mean of the next point `[N, D]`: `steps` has one step a row, `visits` the newest points first, as many as the steps
/// look at.
pub fn mean(steps: &[Step], visits: &[Visit]) -> Tensor<2> {
    let mut terms = Vec::new();
    for (back, visit) in visits.iter().enumerate().take(HISTORY) {
        terms.extend(scaled(visit.x.clone(), steps.iter().map(|step| step.mean.x[back])));
        terms.extend(scaled(visit.velocity.clone(), steps.iter().map(|step| step.mean.v[back])));
    }
    terms.into_iter().reduce(|sum, term| sum + term).expect("invariant: a step looks at the newest point")
}

/// `x [N, D]` times one factor a row; nothing if all are zero.
pub fn scaled(x: Tensor<2>, factors: impl ExactSizeIterator<Item = f64>) -> Option<Tensor<2>> {
    let factors: Vec<f64> = factors.collect();
    let first = *factors.first()?;
    if factors.iter().all(|factor| factor.to_bits() == first.to_bits()) {
        return (first != 0.0).then(|| x * first);
    }
    let column = TensorData::new(factors, [x.dims()[0], 1]);
    Some(x.clone() * Tensor::from_data(column, (&x.device(), x.dtype())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::Schedule;
    use burn::tensor::Device;

    fn column(values: [f32; 2]) -> Tensor<2> {
        Tensor::<1>::from_data(values, &Device::flex()).reshape([2, 1])
    }

    /// On rectified flow x̂₀ = x − t v and ε̂ = x + (1 − t) v.
    #[test]
    fn predictions_are_those_of_the_path() {
        let grid = Grid::new(Schedule::RectifiedFlow, vec![1.0, 0.6, 0.0]);
        let (clean, noise) = (Mean::clean(&grid, 1, 0), Mean::noise(&grid, 1, 0));
        assert_eq!((clean.x, clean.v), ([1.0, 0.0, 0.0], [-0.6, 0.0, 0.0]));
        assert_eq!((noise.x, noise.v), ([1.0, 0.0, 0.0], [0.4, 0.0, 0.0]));
        let before = Mean::clean(&grid, 1, 1);
        assert_eq!((before.x, before.v), ([0.0, 1.0, 0.0], [0.0, -1.0, 0.0]));
        assert!(before.remembers() && !clean.remembers());
    }

    #[test]
    fn each_row_takes_its_own_step() {
        let visit = |x, velocity| Visit { x: column(x), velocity: column(velocity) };
        let visits = [visit([1.0, 2.0], [3.0, 4.0]), visit([5.0, 6.0], [7.0, 8.0])];
        let first = Step::deterministic(Mean::point(0) * 2.0 + Mean::velocity(1));
        let second = Step::deterministic(Mean::velocity(0) - Mean::point(1) * 0.5);
        let values = |steps: &[Step]| mean(steps, &visits).into_data().iter::<f32>().collect::<Vec<_>>();
        assert_eq!(values(&[first, second]), [9.0, 1.0]);
        assert_eq!(values(&[first, first]), [9.0, 12.0]);
    }
}
