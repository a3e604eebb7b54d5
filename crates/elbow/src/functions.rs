//! Functions of `f64` tensors on devices that only add and multiply them.
//!
//! Log-probabilities are `f64` where the device has it ([`to_f64`](crate::gaussian::to_f64)). Graphics interfaces (wgpu, Vulkan) may
//! have `f64` and still no exponential, logarithm or power of it, and what they compute for one is noise, without an error.
//! There, `exp` is made of sums and products,
//!
//! ```text
//! exp x = (Σ_k y^k / k!)^1024,  y = x / 1024,  k ≤ 10
//! ```
//!
//! good to 10⁻¹¹ for |x| ≤ 30 and 10⁻⁶ for |x| ≤ 600, so that a ratio keeps the digits of its logarithm; the others are computed in
//! `f32`.

use burn::tensor::{DType, Device, FloatDType, Tensor, activation};
use std::sync::{Mutex, PoisonError};

/// Terms of the series after the first.
const TERMS: u32 = 10;
/// Squarings after the series: the argument is divided by two to this power.
const SQUARINGS: i32 = 10;
/// The exponential is taken to be constant beyond.
const LARGEST: f64 = 600.0;

/// eˣ of each element.
pub fn exp<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    if native(&x) { x.exp() } else { exp_of_products(x) }
}

/// 1 / (1 + e⁻ˣ) of each element.
pub fn sigmoid<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    if native(&x) { activation::sigmoid(x) } else { (exp_of_products(-x) + 1.0).recip() }
}

/// ln(1 / (1 + e⁻ˣ)) of each element.
pub fn log_sigmoid<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    narrow(x, activation::log_sigmoid)
}

/// xᵖ of each element, x positive.
pub fn power<const D: usize>(x: Tensor<D>, p: f64) -> Tensor<D> {
    narrow(x, |x| x.powf_scalar(p))
}

/// ln x of each element, x positive.
pub fn ln<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    narrow(x, Tensor::log)
}

fn narrow<const D: usize>(x: Tensor<D>, f: impl Fn(Tensor<D>) -> Tensor<D>) -> Tensor<D> {
    if native(&x) { f(x) } else { f(x.cast(FloatDType::F32)).cast(FloatDType::F64) }
}

fn exp_of_products<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let y = x.clamp(-LARGEST, LARGEST) * f64::powi(0.5, SQUARINGS);
    let mut sum = y.ones_like();
    for k in (1..=TERMS).rev() {
        sum = sum * y.clone() / f64::from(k) + 1.0;
    }
    for _ in 0..SQUARINGS {
        sum = sum.square();
    }
    sum
}

/// Whether the device has functions of what the tensor is made of.
fn native<const D: usize>(x: &Tensor<D>) -> bool {
    static KNOWN: Mutex<Vec<(Device, bool)>> = Mutex::new(Vec::new());
    let device = x.device().without_autodiff();
    if x.dtype() != DType::F64 || device == Device::flex() {
        return true;
    }
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, native)) = known.iter().find(|(other, _)| *other == device) {
        return *native;
    }
    let one = Tensor::<1>::ones([1], (&device, DType::F64));
    let native = (one.exp().into_scalar::<f64>() - std::f64::consts::E).abs() < 1e-9;
    known.push((device, native));
    native
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(x: Tensor<1>) -> Vec<f64> {
        x.into_data().iter::<f64>().collect()
    }

    #[test]
    fn the_exponential_of_products_is_the_exponential() {
        let points = [-600.0_f64, -30.0, -1.0, -1e-5, 0.0, 1e-9, 1e-5, 0.3, 1.0, 12.0, 30.0, 600.0];
        let x = Tensor::<1>::from_data(points, (&Device::flex().autodiff(), DType::F64)).require_grad();
        let y = exp_of_products(x.clone());
        let slope = values(x.grad(&y.clone().sum().backward()).expect("a gradient"));
        for ((x, y), slope) in points.into_iter().zip(values(y.inner())).zip(slope) {
            let tolerance = if x.abs() <= 30.0 { 1e-11 } else { 1e-6 };
            assert!((y / x.exp() - 1.0).abs() < tolerance, "exp {x}: {y}");
            assert!(x.abs() > 599.0 || (slope / x.exp() - 1.0).abs() < tolerance, "slope of exp at {x}: {slope}");
        }
    }

    #[test]
    fn it_keeps_the_digits_of_a_small_argument_and_does_not_turn_at_large_ones() {
        let x = Tensor::<1>::from_data([1e-7, -1e5, 1e5], (&Device::flex(), DType::F64));
        let y = values(exp_of_products(x));
        assert!((y[0] - 1.0 - 1e-7).abs() < 1e-12 && y[1] < 1e-250 && y[2] > 1e250, "{y:?}");
    }

    #[test]
    fn the_cpu_has_functions_of_its_own() {
        let x = Tensor::<1>::from_data([0.5, 2.0], (&Device::flex(), DType::F64));
        assert!(native(&x));
        assert_eq!(values(exp(x.clone())), values(x.clone().exp()));
        assert_eq!(values(power(x.clone(), 0.25)), values(x.clone().powf_scalar(0.25)));
        assert_eq!(values(sigmoid(x.clone())), values(activation::sigmoid(x)));
    }
}
