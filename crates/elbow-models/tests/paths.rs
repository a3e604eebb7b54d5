//! The whole network on every path that this CPU can take, against the composite operations: output and all gradients.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use burn::tensor::{Device, Tensor};
use elbow::{
    noise::{self, Key, Purpose},
    params::Params,
    policy::Conditioning,
};
use elbow_kernels::{Isa, VARIABLE};
use elbow_models::{
    linear::{Precision, Weights},
    lora::LoraConfig,
    mmdit::{Mmdit, MmditConfig},
    network::Backbone,
    recompute::Checkpointing,
};
use std::{collections::BTreeMap, process::Command};

/// In the environment of a process that writes its results: where to.
const RESULTS: &str = "ELBOW_TEST_RESULTS";
/// Relative L² of every tensor in `f32`.
const TOLERANCE: f64 = 1e-5;
/// The same in bf16: each product of the two rounds slightly other numbers.
const BF16: f64 = 1e-2;

fn key(sample: u64) -> Key {
    Key::new(9, Purpose::Initialization, 0).sample(sample)
}

/// Fresh weights have zeros, behind which gradients vanish.
fn jittered(mut params: Params) -> Params {
    let mut noise = Vec::new();
    key(1).extend_normals(params.values().len(), &mut noise);
    for (value, noise) in params.values_mut().iter_mut().zip(noise) {
        *value += 0.05 * noise;
    }
    params
}

fn normal<const D: usize>(sample: u64, shape: [usize; D]) -> Tensor<D> {
    noise::normal([key(sample)], shape.iter().product(), &Device::flex()).reshape(shape)
}

/// What is computed: with which weights trained, and in which precision.
#[derive(Clone, Copy, Debug)]
struct Case {
    full: bool,
    precision: Precision,
}

const CASES: [Case; 4] = [
    Case { full: true, precision: Precision::F32 },
    Case { full: false, precision: Precision::F32 },
    Case { full: true, precision: Precision::Bf16 },
    Case { full: false, precision: Precision::Bf16 },
];

/// The output of the nano network for four images, and the gradients of its product with fixed numbers.
fn gradients(case: Case) -> Params {
    let config = MmditConfig::default();
    let base = jittered(config.initial(key(0)));
    let lora = LoraConfig::default().with_usual(&config.layout().usual_targets());
    let trained = if case.full { base.clone() } else { jittered(lora.initial(config.layout().shapes(), key(2))) };
    let (shared, leaves) = (base.tensors(&Device::flex()), trained.tensors(&Device::flex()).leaves());
    let (base, adapter) = if case.full { (&leaves, None) } else { (&shared, Some((&leaves, lora.scale()))) };
    let weights = Weights { base, adapter, precision: case.precision };
    let cond = Conditioning {
        tokens: normal(3, [4, 6, config.joint_attention_dim]),
        mask: None,
        pooled: Some(normal(4, [4, config.pooled_projection_dim])),
    };
    let t = Tensor::from_data([0.1, 0.4, 0.7, 1.0], &Device::flex());
    let y = Mmdit::new(&config, &weights.into(), Checkpointing::None).predict(normal(5, [4, 3, 32, 32]), t, &cond);
    let mut sums = trained.zeros_like();
    sums.add_gradients(&leaves, &mut (y.clone() * normal(6, [4, 3, 32, 32])).sum().backward());
    let output: Vec<f32> = y.inner().into_data().try_into_vec().unwrap();
    let gradients =
        sums.entries().iter().map(|e| (e.name.clone(), e.shape.clone(), sums.values()[e.range.clone()].to_vec()));
    Params::new(gradients.chain([("output".to_owned(), vec![output.len()], output)]))
}

#[test]
fn writes_results() {
    let Ok(folder) = std::env::var(RESULTS) else { return };
    for case in CASES {
        std::fs::write(format!("{folder}/{case:?}"), gradients(case).to_safetensors(None)).unwrap();
    }
}

/// All cases, by name, from a process of its own: a path is chosen once.
fn run(path: Isa) -> Vec<BTreeMap<String, Vec<f32>>> {
    let folder = std::env::temp_dir().join(format!("elbow-network-{}-{}", std::process::id(), path.name()));
    std::fs::create_dir_all(&folder).unwrap();
    let mut again = Command::new(std::env::current_exe().unwrap());
    let output = again.arg("writes_results").env(VARIABLE, path.name()).env(RESULTS, &folder).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let read = |case: Case| {
        let file = std::fs::read(folder.join(format!("{case:?}"))).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&file).unwrap();
        let values = |bytes: &[u8]| bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        tensors.iter().map(|(name, view)| (name.to_owned(), values(view.data()))).collect()
    };
    let results = CASES.map(read).to_vec();
    std::fs::remove_dir_all(&folder).unwrap();
    results
}

/// `‖a − b‖ / ‖b‖`.
fn difference<'a>(a: impl IntoIterator<Item = &'a f32>, b: impl IntoIterator<Item = &'a f32>) -> f64 {
    let pairs = a.into_iter().zip(b).map(|(&a, &b)| (f64::from(a), f64::from(b)));
    let (error, size) = pairs.fold((0.0, 0.0), |(e, s), (a, b)| (e + (a - b) * (a - b), s + b * b));
    error.sqrt() / size.sqrt().max(1e-30)
}

#[test]
#[expect(clippy::print_stderr, reason = "seen with --nocapture")]
fn every_path_computes_what_the_composite_does() {
    let composite = run(Isa::Composite);
    for path in Isa::available().into_iter().filter(|&p| p != Isa::Composite) {
        for ((case, expected), found) in CASES.iter().zip(&composite).zip(run(path)) {
            assert_eq!(found.len(), expected.len());
            let off = |name: &String| difference(&found[name], &expected[name]);
            let worst = expected.keys().max_by(|a, b| off(a).total_cmp(&off(b))).unwrap();
            let gradients = |all: &BTreeMap<String, Vec<f32>>| -> Vec<f32> {
                all.iter().filter(|(name, _)| *name != "output").flat_map(|(_, v)| v).copied().collect()
            };
            let (output, gradient) = (off(&"output".to_owned()), difference(&gradients(&found), &gradients(expected)));
            let said = format!(
                "{} {case:?}: output {output:.1e}, gradient {gradient:.1e}; at most {:.1e}, of {worst}",
                path.name(),
                off(worst)
            );
            eprintln!("{said}");
            let tolerance = if case.precision == Precision::F32 { TOLERANCE } else { BF16 };
            assert!(off(worst) <= tolerance, "{said}");
        }
    }
}
