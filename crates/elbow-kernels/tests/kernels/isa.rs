//! Every instruction set that this CPU can take, in a process of its own: which one is chosen once.

use burn::tensor::{Device, Tensor};
use elbow_kernels::{Isa, Precision, VARIABLE, attention, gelu_linear, isa, layer_norm_modulate, linear, normals};
use std::process::Command;

use crate::support::{TOLERANCE, difference, evaluate, inputs, values};

/// In the environment of a process that writes its results: where to.
const RESULTS: &str = "ELBOW_TEST_RESULTS";

/// This test program again, with only the tests of that name and with one instruction set.
fn again(isa: Isa, filter: &[&str]) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(filter).env(VARIABLE, isa.name());
    command
}

#[test]
fn all_tests_pass_with_every_instruction_set() {
    for isa in Isa::available() {
        let output =
            again(isa, &["--skip", "isa::all_tests_pass", "--skip", "isa::every_instruction"]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("matches_the_composite"), "{}:\n{text}", isa.name());
    }
}

#[test]
fn the_variable_chooses_the_instruction_set() {
    let expected = match std::env::var(VARIABLE) {
        Ok(name) => Isa::available().into_iter().find(|p| p.name() == name).unwrap(),
        Err(_) => Isa::available().pop().unwrap(),
    };
    assert_eq!(isa(), Ok(expected));
}

/// Values and gradients of a chain of all fused operations, and some normal numbers, as text.
#[test]
fn writes_results() {
    let Ok(file) = std::env::var(RESULTS) else { return };
    let [batch, tokens, hidden] = [3, 70, 32];
    let length = batch * tokens * hidden;
    let sizes = [length, hidden * hidden, hidden, hidden * hidden, batch * hidden, batch * hidden];
    let chain = |t: &[Tensor<1>]| {
        let x: Tensor<3> = t[0].clone().reshape([batch, tokens, hidden]);
        let weight = |i: usize| -> Tensor<2> { t[i].clone().reshape([hidden, hidden]) };
        let narrow = |i: usize| -> Tensor<2> { t[i].clone().reshape([batch, hidden]) };
        let y = layer_norm_modulate(x.clone(), narrow(4), narrow(5), 1e-6);
        let y = linear(y, weight(1), Some(t[2].clone()), Precision::F32);
        let y = attention(y.clone(), x, y, 4);
        gelu_linear(y, weight(3), None, Precision::F32).reshape([-1])
    };
    let result = evaluate(&chain, &inputs(&sizes), &[true; 6]);
    let mut numbers = vec![0.0; 1000];
    normals(&values(1000, 5).iter().map(|v| v.to_bits().wrapping_mul(2_654_435_761)).collect::<Vec<_>>(), &mut numbers);
    let all = [vec![numbers, result.value], result.gradients.into_iter().flatten().collect()].concat();
    let line = |values: &Vec<f32>| values.iter().map(|v| v.to_bits().to_string()).collect::<Vec<_>>().join(" ");
    std::fs::write(file, all.iter().map(line).collect::<Vec<_>>().join("\n")).unwrap();
}

#[test]
fn every_instruction_set_computes_the_same() {
    let run = |isa: Isa| -> Vec<Vec<f32>> {
        let file = std::env::temp_dir().join(format!("elbow-{}-{}", std::process::id(), isa.name()));
        assert!(again(isa, &["writes_results"]).env(RESULTS, &file).output().unwrap().status.success());
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::remove_file(&file).unwrap();
        let bits = |word: &str| f32::from_bits(word.parse().unwrap());
        text.lines().map(|line| line.split(' ').map(bits).collect()).collect()
    };
    let composite = run(Isa::Composite);
    let mut seen = vec![composite.clone()];
    for isa in Isa::available().into_iter().filter(|&p| p != Isa::Composite) {
        let results = run(isa);
        assert_eq!(results.len(), 8);
        assert!(results[0].iter().zip(&composite[0]).all(|(a, b)| a.to_bits() == b.to_bits()), "normal numbers");
        for (i, (a, b)) in results.iter().zip(&composite).enumerate() {
            let error = difference(a, b);
            assert!(error <= TOLERANCE, "{}: result {i} differs by {error:.1e}", isa.name());
        }
        // The vector kernels may add up each element in one order; the others must show that they ran.
        if matches!(isa, Isa::Portable | Isa::Avx2) {
            assert!(seen.iter().all(|other| *other != results), "{}: the bits of another set", isa.name());
        }
        seen.push(results);
    }
}

#[test]
fn an_unknown_instruction_set_is_an_error_that_names_those_there_are() {
    let output = again(Isa::Portable, &["reports_the_error", "--nocapture"]).env(VARIABLE, "mmx").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("ELBOW_CPU=mmx: this CPU can take composite, portable"), "{text}");
}

#[test]
#[expect(clippy::print_stdout, reason = "read by the test above")]
fn reports_the_error() {
    if let Err(error) = isa() {
        println!("{error}");
        assert_eq!(
            linear::<2>(
                Tensor::ones([1, 1], &Device::flex()),
                Tensor::ones([1, 1], &Device::flex()),
                None,
                Precision::F32
            )
            .dims(),
            [1, 1]
        );
    }
}
