//! How many floating-point operations the loops need, and how many a second this machine can do.
//!
//! Only matrix products count, a multiplication and an addition as two operations. A backward pass forms one product of
//! the same size for the gradient of an input and one for that of a weight; frozen weights need only the first.

use burn::tensor::{Device, Tensor};
use elbow::{params::Params, policy::Policy};
use elbow_kernels::Precision;
use elbow_models::{mmdit::MmditConfig, policy::NetworkPolicy};
use std::time::{Duration, Instant};

/// Steps from noise to image.
pub const STEPS: usize = 10;

/// The two hot loops of training.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loop {
    /// Images from noise.
    Rollout,
    /// One optimizer step.
    Step,
}

impl Loop {
    pub const ALL: [Self; 2] = [Self::Rollout, Self::Step];

    pub fn name(self) -> &'static str {
        match self {
            Self::Rollout => "rollout",
            Self::Step => "step",
        }
    }
}

/// Operations of one sample's forward pass.
pub struct Operations {
    weights: f64,
    adapters: f64,
    attention: f64,
}

impl Operations {
    /// Of the network with its text of `text_tokens` tokens.
    pub fn of(network: &MmditConfig, policy: &NetworkPolicy, text_tokens: usize) -> Self {
        let image_tokens = (network.sample_size / network.patch_size).pow(2);
        let tokens = |name: &str| match name {
            _ if name.starts_with("time_text_embed") || name.contains("norm") => 1,
            _ if ["context", ".add_", "to_add_out"].iter().any(|part| name.contains(part)) => text_tokens,
            _ => image_tokens,
        };
        let products = |params: &Params| -> f64 {
            let matrices = params.entries().iter().filter(|e| e.name.ends_with(".weight") && e.shape.len() > 1);
            matrices.map(|e| 2.0 * e.range.len() as f64 * tokens(&e.name) as f64).sum()
        };
        let all = (image_tokens + text_tokens) as f64;
        let attention = 4.0 * all * all * network.width() as f64 * network.num_layers as f64;
        let trained = policy.initial();
        let adapters = trained.filtered(|name| name.contains(".lora_"));
        Self { weights: products(&policy.base()), adapters: products(&adapters), attention }
    }

    /// What one sample of a loop needs.
    pub fn of_loop(&self, which: Loop, lora: bool) -> f64 {
        let Self { weights, adapters, attention } = self;
        let forward = weights + adapters + attention;
        let backward = if lora { weights + 2.0 * (adapters + attention) } else { 2.0 * (weights + attention) };
        match which {
            Loop::Rollout => STEPS as f64 * forward,
            Loop::Step => 2.0 * forward + backward,
        }
    }
}

/// The most GFLOP/s that the program's own matrix product reaches here, over shapes that suit it: best of a fifth of a second each.
pub fn gemm_peak() -> f64 {
    let rate = |[rows, inner, out]: [usize; 3]| {
        let matrix = |rows, columns| Tensor::<2>::full([rows, columns], 0.5, &Device::flex());
        let (x, weight) = (matrix(rows, inner), matrix(out, inner));
        let (begin, mut best) = (Instant::now(), f64::INFINITY);
        while begin.elapsed() < Duration::from_millis(200) {
            let start = Instant::now();
            drop(elbow_kernels::linear(x.clone(), weight.clone(), None, Precision::F32));
            best = best.min(start.elapsed().as_secs_f64());
        }
        2.0 * (rows * inner * out) as f64 / best / 1e9
    };
    [[4096, 512, 512], [2048, 1024, 1024], [4096, 1024, 1024]].map(rate).into_iter().fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_four_forward_passes_and_fewer_with_adapters() {
        let operations = Operations { weights: 8.0, adapters: 1.0, attention: 2.0 };
        assert!((operations.of_loop(Loop::Rollout, true) - 110.0).abs() < 1e-9);
        assert!((operations.of_loop(Loop::Step, true) - 36.0).abs() < 1e-9);
        let operations = Operations { adapters: 0.0, ..operations };
        assert!((operations.of_loop(Loop::Step, false) - 40.0).abs() < 1e-9);
    }
}
