//! Model folders in another type of number.

use elbow::params::to_f32;
use half::{bf16, f16};
use safetensors::{
    SafeTensors,
    tensor::{Dtype, TensorView, serialize},
};
use std::{fs, path::Path};

/// Rewrites every weight below a folder as f32, f16 or bf16. Whole numbers stay.
pub(crate) fn store_as(dtype: Dtype, folder: &Path) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            store_as(dtype, &path);
        } else if path.extension().is_some_and(|extension| extension == "safetensors") {
            let file = fs::read(&path).expect("read");
            fs::write(&path, file_as(dtype, &file)).expect("written");
        }
    }
}

/// A safetensors file with its weights in another type.
fn file_as(dtype: Dtype, file: &[u8]) -> Vec<u8> {
    let encode = |values: Vec<f32>| -> Vec<u8> {
        match dtype {
            Dtype::BF16 => values.into_iter().flat_map(|v| bf16::from_f32(v).to_le_bytes()).collect(),
            Dtype::F16 => values.into_iter().flat_map(|v| f16::from_f32(v).to_le_bytes()).collect(),
            _ => values.into_iter().flat_map(f32::to_le_bytes).collect(),
        }
    };
    let tensors = SafeTensors::deserialize(file).expect("tensors");
    let stored = |(name, view): (&str, TensorView<'_>)| match to_f32(view.dtype(), view.data()) {
        Some(values) => (name.to_owned(), dtype, view.shape().to_vec(), encode(values)),
        None => (name.to_owned(), view.dtype(), view.shape().to_vec(), view.data().to_vec()),
    };
    let all: Vec<_> = tensors.iter().map(stored).collect();
    let views = all.iter().map(|(n, d, s, b)| (n, TensorView::new(*d, s.clone(), b).expect("a view")));
    serialize(views, None).expect("a file")
}
