//! Evaluation of an operation and of its gradients, and the comparisons the tests share.

use burn::tensor::{Device, Tensor, TensorData};

/// The largest relative L² difference between a fused operation and its composite.
pub(crate) const TOLERANCE: f64 = 1e-5;

/// An operation on flat inputs: it gives them their shapes itself.
pub(crate) type Function<'a> = &'a dyn Fn(&[Tensor<1>]) -> Tensor<1>;

/// Deterministic values, roughly uniform in ±2.
pub(crate) fn values(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(1);
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 22) as f32 - 2.0
        })
        .collect()
}

/// One vector of values for each length.
pub(crate) fn inputs(lengths: &[usize]) -> Vec<Vec<f32>> {
    lengths.iter().enumerate().map(|(i, &len)| values(len, i as u64 + 1)).collect()
}

pub(crate) fn tensor(values: &[f32], device: &Device) -> Tensor<1> {
    Tensor::from_data(TensorData::new(values.to_vec(), [values.len()]), device)
}

pub(crate) fn read<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_into_vec().unwrap()
}

/// The value `y` of an operation and, for each tracked input, the gradient of `Σ w y` with fixed weights `w`.
pub(crate) struct Evaluation {
    pub(crate) value: Vec<f32>,
    pub(crate) weights: Vec<f32>,
    pub(crate) gradients: Vec<Option<Vec<f32>>>,
}

pub(crate) fn evaluate(f: Function, inputs: &[Vec<f32>], tracked: &[bool]) -> Evaluation {
    let device = Device::flex().autodiff();
    let leaves: Vec<Tensor<1>> = inputs
        .iter()
        .zip(tracked)
        .map(
            |(values, &tracked)| if tracked { tensor(values, &device).require_grad() } else { tensor(values, &device) },
        )
        .collect();
    let y = f(&leaves);
    let value = read(y.clone().inner());
    let weights = values(value.len(), 99);
    let gradients = if tracked.contains(&true) {
        let grads = (y * tensor(&weights, &device)).sum().backward();
        leaves.iter().zip(tracked).map(|(leaf, &t)| t.then(|| read(leaf.grad(&grads).unwrap()))).collect()
    } else {
        vec![None; inputs.len()]
    };
    Evaluation { value, weights, gradients }
}

/// `‖a − b‖ / ‖b‖`.
pub(crate) fn difference(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let square = |x: f64| x * x;
    let error: f64 = a.iter().zip(b).map(|(&a, &b)| square(f64::from(a) - f64::from(b))).sum();
    let norm: f64 = b.iter().map(|&b| square(f64::from(b))).sum();
    error.sqrt() / norm.sqrt().max(1e-30)
}

/// Asserts that values and gradients agree for every choice of tracked inputs, and with no autodiff at all.
pub(crate) fn assert_same(name: &str, fused: Function, composite: Function, lengths: &[usize]) {
    let inputs = inputs(lengths);
    for mask in 0..1_u32 << inputs.len() {
        let tracked: Vec<bool> = (0..inputs.len()).map(|i| mask >> i & 1 == 1).collect();
        let (a, b) = (evaluate(fused, &inputs, &tracked), evaluate(composite, &inputs, &tracked));
        let error = difference(&a.value, &b.value);
        assert!(error <= TOLERANCE, "{name}: value differs by {error:.1e}");
        for (i, (a, b)) in a.gradients.iter().zip(&b.gradients).enumerate() {
            if let (Some(a), Some(b)) = (a, b) {
                let error = difference(a, b);
                assert!(error <= TOLERANCE, "{name}, tracked {tracked:?}: gradient {i} differs by {error:.1e}");
            }
        }
    }
    let plain: Vec<Tensor<1>> = inputs.iter().map(|values| tensor(values, &Device::flex())).collect();
    let error = difference(&read(fused(&plain)), &read(composite(&plain)));
    assert!(error <= TOLERANCE, "{name} without autodiff: value differs by {error:.1e}");
}

/// Asserts that each gradient is the slope of `Σ w y`, by central differences along one direction.
pub(crate) fn assert_slope(name: &str, f: Function, lengths: &[usize]) {
    const STEP: f32 = 5e-3;
    let inputs = inputs(lengths);
    let exact = evaluate(f, &inputs, &vec![true; inputs.len()]);
    for (i, gradient) in exact.gradients.iter().enumerate() {
        let direction = values(inputs[i].len(), 7);
        let at = |sign: f32| {
            let mut moved = inputs.clone();
            moved[i].iter_mut().zip(&direction).for_each(|(x, d)| *x += sign * STEP * d);
            dot(&evaluate(f, &moved, &vec![false; inputs.len()]).value, &exact.weights)
        };
        let slope = (at(1.0) - at(-1.0)) / (2.0 * f64::from(STEP));
        let gradient = gradient.as_ref().unwrap();
        let size = (dot(gradient, gradient) * dot(&direction, &direction)).sqrt();
        let error = (slope - dot(gradient, &direction)).abs() / size;
        assert!(error <= 1e-4, "{name}: slope along input {i} is off by {error:.1e}");
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}
