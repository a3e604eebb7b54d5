//! The whole network on every path that this CPU can take, against the composite operations: output and all gradients.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use burn::tensor::{Device, Tensor};
use elbow::{
    noise::{self, Key, Purpose},
    params::Params,
    policy::{Conditioning, VelocityField},
};
use elbow_kernels::{Path, VARIABLE};
use elbow_models::{
    linear::{Precision, Weights},
    lora::LoraConfig,
    mmdit::{Mmdit, MmditConfig},
    recompute::Checkpointing,
};
use std::{collections::BTreeMap, process::Command};

/// In the environment of a process that writes its results: where to.
const RESULTS: &str = "ELBOW_TEST_RESULTS";
/// Relative L².
const TOLERANCE: f64 = 1e-5;

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
    noise::normal([key(sample)], [1, 1, shape.iter().product()], &Device::flex()).reshape(shape)
}

/// The output of the nano network for four images, and the gradients of its product with fixed numbers.
fn gradients(full: bool) -> Params {
    let config = MmditConfig::default();
    let base = jittered(config.initial(key(0)));
    let lora = LoraConfig::default();
    let trained = if full { base.clone() } else { jittered(lora.initial(config.layout().shapes(), key(2))) };
    let (shared, leaves) = (base.tensors(&Device::flex()), trained.tensors(&Device::flex()).leaves());
    let weights = if full {
        Weights::plain(&leaves)
    } else {
        Weights { base: &shared, adapter: Some((&leaves, lora.scale())), precision: Precision::F32 }
    };
    let cond = Conditioning {
        tokens: normal(3, [4, 6, config.joint_attention_dim]),
        pooled: normal(4, [4, config.pooled_projection_dim]),
    };
    let t = Tensor::from_data([0.1, 0.4, 0.7, 1.0], &Device::flex());
    let y = Mmdit::new(&config, weights, Checkpointing::None).velocity(normal(5, [4, 3, 32, 32]), t, &cond);
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
    for full in [true, false] {
        std::fs::write(format!("{folder}/{full}"), gradients(full).to_safetensors(None)).unwrap();
    }
}

/// By name, from a process of its own: a path is chosen once.
fn run(path: Path, full: bool) -> BTreeMap<String, Vec<f32>> {
    let folder = std::env::temp_dir().join(format!("elbow-network-{}-{}-{full}", std::process::id(), path.name()));
    std::fs::create_dir_all(&folder).unwrap();
    let mut again = Command::new(std::env::current_exe().unwrap());
    let output = again.arg("writes_results").env(VARIABLE, path.name()).env(RESULTS, &folder).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let file = std::fs::read(folder.join(full.to_string())).unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&file).unwrap();
    let values = |bytes: &[u8]| bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    tensors.iter().map(|(name, view)| (name.to_owned(), values(view.data()))).collect()
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|v| v * v).sum::<f64>().sqrt()
}

fn check(full: bool) {
    let composite = run(Path::Composite, full);
    for path in Path::available().into_iter().filter(|&p| p != Path::Composite) {
        let found = run(path, full);
        assert_eq!(found.len(), composite.len());
        for (name, expected) in &composite {
            let wide = |v: &Vec<f32>| v.iter().map(|&v| f64::from(v)).collect::<Vec<_>>();
            let (got, expected) = (wide(&found[name]), wide(expected));
            let error = norm(got.iter().zip(&expected).map(|(a, b)| a - b)) / norm(expected.iter().copied()).max(1e-30);
            assert!(error <= TOLERANCE, "{}: {name} differs by {error:.1e}", path.name());
        }
    }
}

#[test]
fn all_weights_trained() {
    check(true);
}

#[test]
fn adapters_trained() {
    check(false);
}
