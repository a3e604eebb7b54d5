//! The exact log-density of a velocity field: that of the noise at the other end of its ODE, and the divergence on the way.
//!
//! ln p(x₀) = ln N(x₁; 0, I) + ∫₀¹ div v(x_t, t) dt  along dx/dt = v.

use super::world::rows;
use burn::tensor::{Device, Tensor, TensorData};
use elbow::policy::{Conditioning, VelocityField};

/// ln p(x) of each point, in `steps` Runge–Kutta steps of fourth order. `field` gives a field anew for each backward pass. The trace is exact: one
/// backward pass a dimension.
pub fn log_density(
    field: &dyn Fn() -> Box<dyn VelocityField>,
    points: &[Vec<f64>],
    cond: &Conditioning,
    steps: usize,
) -> Vec<f64> {
    let mut x = points.to_vec();
    let mut divergence = vec![0.0; x.len()];
    let h = 1.0 / steps as f64;
    for k in 0..steps {
        let t = k as f64 * h;
        let moved = |by: f64, along: &[Vec<f64>]| -> Vec<Vec<f64>> {
            let row = |(x, v): (&Vec<f64>, &Vec<f64>)| x.iter().zip(v).map(|(x, v)| x + by * v).collect();
            x.iter().zip(along).map(row).collect()
        };
        let first = slope(field, &x, t, cond);
        let second = slope(field, &moved(h / 2.0, &first.0), t + h / 2.0, cond);
        let third = slope(field, &moved(h / 2.0, &second.0), t + h / 2.0, cond);
        let fourth = slope(field, &moved(h, &third.0), t + h, cond);
        let all = [(first, 1.0), (second, 2.0), (third, 2.0), (fourth, 1.0)];
        for ((velocities, traces), weight) in all {
            for (i, (velocity, trace)) in velocities.iter().zip(traces).enumerate() {
                x[i].iter_mut().zip(velocity).for_each(|(x, v)| *x += h * weight / 6.0 * v);
                divergence[i] += h * weight / 6.0 * trace;
            }
        }
    }
    let noise = |x: &Vec<f64>| -> f64 { x.iter().map(|x| -0.5 * (x * x + std::f64::consts::TAU.ln())).sum() };
    x.iter().zip(divergence).map(|(x, divergence)| noise(x) + divergence).collect()
}

/// The velocity and its divergence at each point.
fn slope(
    field: &dyn Fn() -> Box<dyn VelocityField>,
    points: &[Vec<f64>],
    t: f64,
    cond: &Conditioning,
) -> (Vec<Vec<f64>>, Vec<f64>) {
    let (n, dims) = (points.len(), points[0].len());
    let device = Device::flex();
    let values: Vec<f32> = points.iter().flatten().map(|&x| x as f32).collect();
    let plain = Tensor::<2>::from_data(TensorData::new(values, [n, dims]), &device);
    let (mut velocities, mut traces) = (Vec::new(), vec![0.0; n]);
    for j in 0..dims {
        let x = plain.clone().autodiff().require_grad();
        let velocity = field().velocity(x.clone(), Tensor::full([n], t, &device), cond);
        let mut gradients = velocity.clone().narrow(1, j, 1).sum().backward();
        let gradient = x.grad_remove(&mut gradients);
        let gradient = gradient.expect("invariant: a velocity depends on its point");
        traces.iter_mut().zip(rows(gradient)).for_each(|(trace, row)| *trace += row[j]);
        if j == 0 {
            velocities = rows(velocity.inner());
        }
    }
    (velocities, traces)
}
