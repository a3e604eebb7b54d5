//! Adapters for ComfyUI, loaded as it loads them: by its own names for layers (`fixtures/lora/comfyui.json`, see
//! `fixtures/README.md`), W + (alpha / rank) B A for the whole weight of each.

use crate::model_folder::fixtures;
use elbow::noise::{Key, Purpose};
use elbow_models::{
    folder::{Checkpoint, Shapes},
    lora::LoraConfig,
    lora_file::{Adapter, Family, LoraFileError, Provenance, write_comfyui},
};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

const NETWORKS: [(&str, Family); 3] = [("sd3", Family::Sd3), ("flux", Family::Flux), ("sd1", Family::Unet)];
/// What the field adapts; of FLUX's and SD3's fused weights it is a part only of FLUX's `linear1`.
const USUAL: [&str; 9] = [
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "attn.add_q_proj",
    "attn.add_k_proj",
    "attn.add_v_proj",
    "attn.to_add_out",
    "ff.net.2",
];

fn shapes(pipeline: &str) -> Shapes {
    let file = fixtures().join(format!("pipeline/{pipeline}.network.safetensors"));
    let file = Checkpoint::open_file(&file).expect("a fixture");
    file.shapes().map(|(name, shape)| (name.to_owned(), shape.to_vec())).collect()
}

/// Random factors for the layers of a tiny network that end so; without an end, for all dense ones.
fn adapter(pipeline: &str, ends: &[&str], alpha: f64) -> Adapter {
    let shapes = shapes(pipeline);
    let dense =
        shapes.iter().filter(|(_, shape)| shape.len() == 2).filter_map(|(name, _)| name.strip_suffix(".weight"));
    let chosen = |layer: &&str| ends.is_empty() || ends.iter().any(|end| layer.ends_with(end));
    let target_modules = dense.filter(chosen).map(str::to_owned).collect();
    let config = LoraConfig { rank: 3, alpha, target_modules };
    let key = Key::new(0, Purpose::Initialization, 0);
    let mut factors = config.initial(shapes.iter().map(|(name, shape)| (&**name, &**shape)), key);
    let mut values = Vec::new();
    Key::new(1, Purpose::Initialization, 0).extend_normals(factors.values().len(), &mut values);
    factors.values_mut().copy_from_slice(&values);
    Adapter { config, factors }
}

/// A matrix by rows, and how wide it is.
type Matrix = (Vec<f64>, usize);

/// s B A in f64.
fn product(b: &[f32], a: &[f32], rank: usize, scale: f64) -> Matrix {
    let width = a.len() / rank;
    let entry = |row: &[f32], column: usize| -> f64 {
        (0..rank).map(|r| f64::from(row[r]) * f64::from(a[r * width + column])).sum::<f64>() * scale
    };
    (b.chunks(rank).flat_map(|row| (0..width).map(move |column| entry(row, column))).collect(), width)
}

/// What is added to each weight, and that nothing in the file is left over.
fn loaded(file: &Path, keys: &Value) -> BTreeMap<String, Matrix> {
    let file = Checkpoint::open_file(file).expect("a file");
    let ends = [".lora_down.weight", ".lora_up.weight", ".alpha"];
    let layer = |name: &str| ends.iter().find_map(|end| name.strip_suffix(end)).expect("an ending").to_owned();
    let named: BTreeSet<String> = file.shapes().map(|(name, _)| layer(name)).collect();
    let added = |name: &String| {
        let weight = keys[name].as_str().unwrap_or_else(|| panic!("{name} is no name of ComfyUI"));
        let [a, b, alpha] = ends.map(|end| file.values(&format!("{name}{end}")));
        let down = format!("{name}.lora_down.weight");
        let rank = file.shapes().find(|(other, _)| *other == down).expect("a factor").1[0];
        (weight.to_owned(), product(&b, &a, rank, f64::from(alpha[0]) / rank as f64))
    };
    assert_eq!(file.shapes().count(), 3 * named.len());
    named.iter().map(added).collect()
}

/// Every row of every weight gets what its layer got here, and rows of layers that are not adapted get nothing.
#[test]
fn comfyui_adds_the_same_to_every_layer() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("x.safetensors");
    let table: Value =
        serde_json::from_slice(&std::fs::read(fixtures().join("lora/comfyui.json")).expect("a fixture")).expect("JSON");
    for (pipeline, family) in NETWORKS {
        for (ends, alpha) in [(&[][..], 4.0), (&USUAL[..], 6.5), (&["to_k", "proj_mlp", "add_v_proj"][..], 1.0)] {
            let adapter = adapter(pipeline, ends, alpha);
            write_comfyui(&adapter, family, &Provenance::default(), &file).expect("written");
            let mut added = loaded(&file, &table[pipeline]["keys"]);
            let factors = |layer: &str| {
                let factor = |side: &str| {
                    let name = format!("{layer}.lora_{side}.weight");
                    let entry = adapter.factors.entries().iter().find(|entry| entry.name == name)?;
                    Some(&adapter.factors.values()[entry.range.clone()])
                };
                Some(product(factor("B")?, factor("A")?, 3, adapter.config.scale()))
            };
            let mut compared = 0;
            for (layer, there) in table[pipeline]["layers"].as_object().expect("layers") {
                let Some((mut expected, width)) = factors(layer) else { continue };
                if there["swapped"] == true {
                    let half = expected.len() / 2;
                    expected.rotate_left(half);
                }
                let (weight, columns) =
                    added.get_mut(there["weight"].as_str().expect("a weight")).expect("in the file");
                assert_eq!(*columns, width, "{layer}");
                let rows = match there["rows"].as_array() {
                    None => 0..weight.len(),
                    Some(rows) => {
                        let [from, count] = [0, 1].map(|i| rows[i].as_u64().expect("a number") as usize * width);
                        from..from + count
                    }
                };
                assert_eq!(rows.len(), expected.len(), "{pipeline} {layer}");
                for (got, want) in weight[rows].iter_mut().zip(&expected) {
                    assert!((*got - want).abs() < 1e-5, "{pipeline} {layer}: {got} {want}");
                    *got = 0.0;
                }
                compared += 1;
            }
            assert_eq!(compared, adapter.config.target_modules.len(), "{pipeline} {ends:?}");
            let left = added.values().flat_map(|(values, _)| values).filter(|value| **value != 0.0).count();
            assert_eq!(left, 0, "{pipeline} {ends:?}: of layers that are not adapted");
            // Whole weights, which ComfyUI does not fit to a part of theirs.
            let sizes = shapes(pipeline);
            for (layer, there) in table[pipeline]["layers"].as_object().expect("layers") {
                let Some((values, width)) = added.get(there["weight"].as_str().expect("a weight")) else { continue };
                let parts = table[pipeline]["layers"].as_object().expect("layers").iter();
                let parts = parts.filter(|(_, other)| other["weight"] == there["weight"]);
                let rows =
                    |name: &str| sizes.iter().find(|(n, _)| *n == format!("{name}.weight")).expect("a layer").1[0];
                assert_eq!(
                    values.len() / width,
                    parts.map(|(name, _)| rows(name)).sum::<usize>(),
                    "{pipeline} {layer}"
                );
            }
        }
    }
}

#[test]
fn a_layer_that_such_a_network_does_not_have_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("x.safetensors");
    let adapter = adapter("flux", &["single_transformer_blocks.0.proj_mlp"], 1.0);
    let error = write_comfyui(&adapter, Family::Sd3, &Provenance::default(), &file).expect_err("another network");
    assert!(matches!(&error, LoraFileError::Unsupported { field, .. } if field.ends_with(".proj_mlp")), "{error}");
    assert!(error.to_string().contains("write another format") && !file.exists(), "{error}");
}
