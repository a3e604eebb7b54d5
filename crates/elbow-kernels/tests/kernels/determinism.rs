//! The same bits on repetition and for any number of threads.

use burn::tensor::Tensor;
use elbow_kernels::{AdamW, Precision, attention, gated_residual, gelu_linear, gelu_tanh, layer_norm_modulate, linear};
use rayon::ThreadPoolBuilder;

use crate::support::{Function, evaluate, inputs, values};

/// Runs `f` twice on one thread and then on two and three.
fn assert_deterministic<T: PartialEq + Send>(name: &str, f: impl Fn() -> T + Sync) {
    let run = |threads: usize| ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(&f);
    let first = run(1);
    for threads in [1, 2, 2, 3] {
        assert!(run(threads) == first, "{name}: other bits with {threads} threads");
    }
}

fn assert_operation(name: &str, f: impl Fn(&[Tensor<1>]) -> Tensor<1> + Sync, lengths: &[usize]) {
    let inputs = inputs(lengths);
    assert_deterministic(name, || {
        let function: Function = &f;
        let result = evaluate(function, &inputs, &vec![true; inputs.len()]);
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<u32>>();
        let gradients: Vec<_> = result.gradients.iter().flatten().map(|gradient| bits(gradient)).collect();
        (bits(&result.value), gradients)
    });
}

#[test]
fn linear_is_deterministic() {
    for precision in [Precision::F32, Precision::Bf16] {
        for [rows, inner, out] in [[4480, 128, 512], [4480, 512, 128], [384, 128, 384], [64, 128, 768], [2000, 70, 48]]
        {
            for (name, f) in [("linear", linear::<2> as fn(_, _, _, _) -> _), ("gelu_linear", gelu_linear)] {
                assert_operation(
                    &format!("{precision:?} {name} {rows}×{inner}→{out}"),
                    |t| {
                        let x: Tensor<2> = t[0].clone().reshape([rows, inner]);
                        f(x, t[1].clone().reshape([out, inner]), Some(t[2].clone()), precision).reshape([-1])
                    },
                    &[rows * inner, out * inner, out],
                );
            }
        }
    }
}

#[test]
fn attention_is_deterministic() {
    for [batch, tokens, heads, hidden] in [[16, 70, 4, 128], [1, 300, 2, 64]] {
        let length = batch * tokens * hidden;
        assert_operation(
            &format!("attention {batch}×{tokens}×{hidden}"),
            |t| {
                let shape = |i: usize| t[i].clone().reshape([batch, tokens, hidden]);
                attention(shape(0), shape(1), shape(2), heads).reshape([-1])
            },
            &[length; 3],
        );
    }
}

#[test]
fn token_wise_operations_are_deterministic() {
    let [batch, tokens, hidden] = [16, 70, 128];
    let (stream, vector) = (batch * tokens * hidden, batch * hidden);
    let wide = |t: &Tensor<1>| -> Tensor<3> { t.clone().reshape([batch, tokens, hidden]) };
    let narrow = |t: &Tensor<1>| -> Tensor<2> { t.clone().reshape([batch, hidden]) };
    assert_operation(
        "layer_norm_modulate",
        |t| layer_norm_modulate(wide(&t[0]), narrow(&t[1]), narrow(&t[2]), 1e-6).reshape([-1]),
        &[stream, vector, vector],
    );
    assert_operation(
        "gated_residual",
        |t| gated_residual(wide(&t[0]), narrow(&t[1]), wide(&t[2])).reshape([-1]),
        &[stream, vector, stream],
    );
    assert_operation("gelu_tanh", |t| gelu_tanh(t[0].clone()), &[stream]);
}

#[test]
fn adamw_is_deterministic() {
    assert_deterministic("AdamW", || {
        let rule = AdamW { beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.1 };
        let (mut param, mut m, mut v) = (values(100_001, 1), vec![0.0; 100_001], vec![0.0; 100_001]);
        for step in 1..4 {
            rule.step(step, 1e-2, &mut param, &values(100_001, step + 5), &mut m, &mut v);
        }
        param.iter().map(|p| p.to_bits()).collect::<Vec<u32>>()
    });
}
