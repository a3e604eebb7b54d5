//! Each operation, fused and composite, at the sizes of the nano model: batch 64, 70 tokens, 128 features, 4 heads.

use burn::tensor::{Device, Distribution, Tensor};
use divan::Bencher;
use elbow_kernels::Precision;

fn main() {
    divan::main();
}

const BATCH: usize = 64;
const TOKENS: usize = 70;
const HIDDEN: usize = 128;
const HEADS: usize = 4;

/// Which implementation, and whether gradients of every input are computed as well.
#[derive(Clone, Copy, Debug)]
enum Case {
    Fused,
    Composite,
    FusedStep,
    CompositeStep,
}

use Case::{Composite, CompositeStep, Fused, FusedStep};

const CASES: [Case; 4] = [Fused, Composite, FusedStep, CompositeStep];

impl Case {
    fn device(self) -> Device {
        if matches!(self, Fused | Composite) { Device::flex() } else { Device::flex().autodiff() }
    }

    fn fused(self) -> bool {
        matches!(self, Fused | FusedStep)
    }

    fn input<const D: usize>(self, shape: [usize; D]) -> Tensor<D> {
        let tensor = Tensor::random(shape, Distribution::Normal(0.0, 1.0), &self.device());
        if matches!(self, Fused | Composite) { tensor } else { tensor.require_grad() }
    }

    /// Times `f`, followed by the backward pass if this case has one.
    fn run<const D: usize>(self, bencher: Bencher, f: impl Fn() -> Tensor<D>) {
        let weights = Tensor::ones(f().dims(), &self.device());
        bencher.bench_local(|| {
            let y = f();
            if matches!(self, FusedStep | CompositeStep) {
                drop((y * weights.clone()).sum().backward());
            }
        });
    }
}

fn linear(bencher: Bencher, case: Case, [rows, inner, out]: [usize; 3]) {
    let (x, weight, bias) = (case.input([rows, inner]), case.input([out, inner]), case.input([out]));
    let f = if case.fused() { elbow_kernels::linear } else { elbow_kernels::composite::linear };
    case.run(bencher, || f(x.clone(), weight.clone(), Some(bias.clone()), Precision::F32));
}

#[divan::bench(args = CASES)]
fn linear_qkv(bencher: Bencher, case: Case) {
    linear(bencher, case, [BATCH * TOKENS, HIDDEN, 3 * HIDDEN]);
}

#[divan::bench(args = CASES)]
fn linear_mlp_in(bencher: Bencher, case: Case) {
    linear(bencher, case, [BATCH * TOKENS, HIDDEN, 4 * HIDDEN]);
}

#[divan::bench(args = CASES)]
fn linear_mlp_out(bencher: Bencher, case: Case) {
    linear(bencher, case, [BATCH * TOKENS, 4 * HIDDEN, HIDDEN]);
}

#[divan::bench(args = CASES)]
fn linear_text(bencher: Bencher, case: Case) {
    linear(bencher, case, [BATCH * 6, HIDDEN, HIDDEN]);
}

#[divan::bench(args = CASES)]
fn linear_modulation(bencher: Bencher, case: Case) {
    linear(bencher, case, [BATCH, HIDDEN, 6 * HIDDEN]);
}

#[divan::bench(args = CASES)]
fn attention(bencher: Bencher, case: Case) {
    let [q, k, v] = [(); 3].map(|()| case.input([BATCH, TOKENS, HIDDEN]));
    let f = if case.fused() { elbow_kernels::attention } else { elbow_kernels::composite::attention };
    case.run(bencher, || f(q.clone(), k.clone(), v.clone(), HEADS));
}

#[divan::bench(args = CASES)]
fn layer_norm_modulate(bencher: Bencher, case: Case) {
    let x = case.input([BATCH, TOKENS, HIDDEN]);
    let (shift, scale) = (case.input([BATCH, HIDDEN]), case.input([BATCH, HIDDEN]));
    let f =
        if case.fused() { elbow_kernels::layer_norm_modulate } else { elbow_kernels::composite::layer_norm_modulate };
    case.run(bencher, || f(x.clone(), shift.clone(), scale.clone(), 1e-6));
}

#[divan::bench(args = CASES)]
fn gated_residual(bencher: Bencher, case: Case) {
    let (x, y) = (case.input([BATCH, TOKENS, HIDDEN]), case.input([BATCH, TOKENS, HIDDEN]));
    let gate = case.input([BATCH, HIDDEN]);
    let f = if case.fused() { elbow_kernels::gated_residual } else { elbow_kernels::composite::gated_residual };
    case.run(bencher, || f(x.clone(), gate.clone(), y.clone()));
}

#[divan::bench(args = CASES)]
fn gelu_tanh(bencher: Bencher, case: Case) {
    let x = case.input([BATCH, TOKENS, 4 * HIDDEN]);
    let f = if case.fused() { elbow_kernels::gelu_tanh } else { elbow_kernels::composite::gelu_tanh };
    case.run(bencher, || f(x.clone()));
}

/// What the step cases spend outside the operation: the product with the weights, its sum and their gradients.
#[divan::bench(args = [FusedStep])]
fn nothing(bencher: Bencher, case: Case) {
    let x = case.input([BATCH, TOKENS, HIDDEN]);
    case.run(bencher, || x.clone());
}

#[divan::bench]
fn adamw_million(bencher: Bencher) {
    let rule = elbow_kernels::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 };
    let (mut param, grad, mut m, mut v) =
        (vec![0.1; 1 << 20], vec![0.2; 1 << 20], vec![0.0; 1 << 20], vec![0.0; 1 << 20]);
    bencher.bench_local(|| rule.step(1, 1e-4, &mut param, &grad, &mut m, &mut v));
}
