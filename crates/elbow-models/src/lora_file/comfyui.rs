//! Writing an adapter under the names that the networks have in their authors' code, which are ComfyUI's own.
//!
//! ComfyUI reads several names for one layer (`comfy/lora.py`). Here they are written as `lora_unet_` and the name of the weight
//! with underscores, `.lora_down.weight`, `.lora_up.weight` and `.alpha`: of all that it reads, most other programs read these too,
//! because kohya's scripts write them. `diffusers` takes them for FLUX and for SD1.x, and for SD3 it does not.
//!
//! That code keeps queries, keys and values, and in FLUX's single blocks the first half of the MLP too, in one matrix. With n of its
//! parts adapted, of rank r each, A is their factors one over the other `[n r, in]`, and B has the factor of each in its own rows
//! and columns `[out, n r]`: zero elsewhere, and in all rows of a part that is not adapted. The product is the same, and alpha
//! grows with the rank, to n alpha. For a UNet the names are those of kohya's format, which ComfyUI reads as they are.
//!
//! The names are those of `names.rs`, which reads them; that ComfyUI finds them is tested by `fixtures/lora/comfyui.json`, from
//! `comfy/utils.py` (`mmdit_to_diffusers`, `flux_to_diffusers`).

use super::{
    Adapter, LoraFileError, Network, Provenance, layer_and_side,
    names::{FLUX, Row, SD3},
    write_kohya,
};
use crate::network::Family;
use elbow::params::Params;
use std::{collections::BTreeMap, path::Path};

/// Layers of a fused matrix whose outputs are several times as wide as their input, and how many times: FLUX's MLP.
const WIDER: (&str, usize) = ("proj_mlp", 4);

/// Writes one file for ComfyUI. A layer that such a network does not have is an error before anything is written.
pub fn write_comfyui(adapter: &Adapter, family: Family, about: &Provenance, file: &Path) -> Result<(), LoraFileError> {
    let table = match family {
        Family::Unet => return write_kohya(adapter, Network::Unet, about, file),
        Family::Sd3 => &SD3[..],
        Family::Flux => &FLUX[..],
    };
    let mut weights: BTreeMap<String, Vec<Part<'_>>> = BTreeMap::new();
    for entry in adapter.factors.entries() {
        let (layer, side) = layer_and_side(&entry.name).expect("invariant: factors have PEFT's names");
        let Some((weight, layers)) = place(layer, table) else {
            return Err(LoraFileError::Unsupported {
                path: file.into(),
                field: layer.into(),
                value: "no layer that ComfyUI has in such a network".into(),
                accepted: "write another format".into(),
            });
        };
        let parts = weights
            .entry(weight)
            .or_insert_with(|| layers.into_iter().map(|layer| Part { layer, a: &[], b: &[] }).collect());
        let part = parts.iter_mut().find(|part| part.layer == layer).expect("invariant: one of its parts");
        let values = &adapter.factors.values()[entry.range.clone()];
        *(if side == "A" { &mut part.a } else { &mut part.b }) = values;
    }
    let (mut tensors, rank) = (Vec::new(), adapter.config.rank);
    for (weight, parts) in &weights {
        let key = format!("lora_unet_{}", weight.replace('.', "_"));
        let adapted = parts.iter().filter(|part| !part.a.is_empty()).count();
        let (a, b) = fused(weight, parts, rank);
        let columns = adapted * rank;
        tensors.push((format!("{key}.lora_down.weight"), vec![columns, a.len() / columns], a));
        tensors.push((format!("{key}.lora_up.weight"), vec![b.len() / columns, columns], b));
        tensors.push((format!("{key}.alpha"), vec![], vec![(adapter.config.alpha * adapted as f64) as f32]));
    }
    Ok(elbow_runlog::write_atomic(file, &Params::new(tensors).to_safetensors(Some(about.metadata("lora"))))?)
}

/// One of the layers that a weight holds: A `[rank, in]` and B `[out, rank]`, or nothing if it is not adapted.
struct Part<'a> {
    layer: String,
    a: &'a [f32],
    b: &'a [f32],
}

/// The weight that holds a layer, and all layers that it holds; `None` of a layer that is not known there.
fn place(layer: &str, table: &[Row]) -> Option<(String, Vec<String>)> {
    let number = layer.split('.').nth(1).filter(|part| part.parse::<usize>().is_ok()).unwrap_or_default();
    let named = |pattern: &str| pattern.replace("{}", number);
    let (weight, layers) = table.iter().find(|(_, layers)| layers.iter().any(|pattern| named(pattern) == layer))?;
    Some((named(weight), layers.iter().map(|pattern| named(pattern)).collect()))
}

/// A `[n rank, in]` and B `[out, n rank]` of a whole weight, n of whose parts are adapted.
fn fused(weight: &str, parts: &[Part<'_>], rank: usize) -> (Vec<f32>, Vec<f32>) {
    let a: Vec<f32> = parts.iter().flat_map(|part| part.a).copied().collect();
    let columns = rank * parts.iter().filter(|part| !part.a.is_empty()).count();
    let input = a.len() / columns;
    let (mut b, mut before) = (Vec::new(), 0);
    for part in parts {
        if part.b.is_empty() {
            let rows = if part.layer.ends_with(WIDER.0) { WIDER.1 * input } else { input };
            b.resize(b.len() + rows * columns, 0.0);
            continue;
        }
        for row in part.b.chunks(rank) {
            b.resize(b.len() + before, 0.0);
            b.extend(row);
            b.resize(b.len().next_multiple_of(columns), 0.0);
        }
        before += rank;
    }
    if swapped(weight, b.len() / columns, input) {
        let half = b.len() / 2;
        b.rotate_left(half);
    }
    (a, b)
}

/// Whether the outputs of a weight are shift and scale there, and scale and shift in `diffusers`: the modulation before the last
/// layer, and that of SD3's text in the last block, where nothing but its two halves is left.
fn swapped(weight: &str, rows: usize, input: usize) -> bool {
    weight == "final_layer.adaLN_modulation.1"
        || (weight.ends_with("context_block.adaLN_modulation.1") && rows == 2 * input)
}
