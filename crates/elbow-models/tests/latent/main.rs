//! The UNet, the autoencoder and the schedulers against those of diffusers with adapters of PEFT (`fixtures/README.md` says
//! how the references were made).

mod scheduler;
mod unet;
mod vae;

use burn::tensor::{Device, Tensor, TensorData};
use safetensors::SafeTensors;
use std::{collections::BTreeMap, fs, path::Path};

/// Shapes and values by name.
type Named = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// A file under `fixtures/`.
fn read(file: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(file)).expect("a fixture")
}

fn text(file: &str) -> String {
    String::from_utf8(read(file)).expect("text")
}

fn named(file: &str) -> Named {
    let values =
        |bytes: &[u8]| bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("four bytes"))).collect();
    let file = read(file);
    let tensors = SafeTensors::deserialize(&file).expect("a safetensors file");
    tensors.iter().map(|(name, view)| (name.to_owned(), (view.shape().to_vec(), values(view.data())))).collect()
}

fn tensor<const D: usize>(named: &Named, name: &str) -> Tensor<D> {
    let (shape, values) = &named[name];
    Tensor::from_data(TensorData::new(values.clone(), shape.clone()), &Device::flex())
}

fn values<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.into_data().try_to_vec().expect("f32")
}

/// Relative to the largest value of the reference; one that is zero everywhere must be met exactly.
fn close(what: &str, got: &[f32], expected: &[f32], tolerance: f64) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let size = expected.iter().fold(0.0, |m, &v| f64::max(m, f64::from(v).abs()));
    let off = got.iter().zip(expected).fold(0.0, |m, (&a, &b)| f64::max(m, (f64::from(a) - f64::from(b)).abs()));
    assert!(off <= tolerance * size && got.iter().all(|v| v.is_finite()), "{what}: off by {off:e}, largest {size:e}");
}
