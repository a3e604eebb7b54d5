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
//! Names: `comfy/utils.py` (`mmdit_to_diffusers`, `flux_to_diffusers`), as `fixtures/lora/comfyui.json` has them.

use super::{Adapter, LoraFileError, Network, Provenance, layer_and_side, write_kohya};
use crate::network::Family;
use elbow::params::Params;
use std::{collections::BTreeMap, path::Path};

/// The layers of the blocks `<ours>.<number>`, which are `<theirs>.<number>` there.
struct Block {
    ours: &'static str,
    theirs: &'static str,
    /// Layers that are one matrix there too.
    single: &'static [(&'static str, &'static str)],
    /// Layers that lie over each other in one matrix.
    fused: &'static [(&'static [&'static str], &'static str)],
}

const SD3: &[Block] = &[Block {
    ours: "transformer_blocks",
    theirs: "joint_blocks",
    single: &[
        ("norm1.linear", "x_block.adaLN_modulation.1"),
        ("norm1_context.linear", "context_block.adaLN_modulation.1"),
        ("attn.to_out.0", "x_block.attn.proj"),
        ("attn.to_add_out", "context_block.attn.proj"),
        ("attn2.to_out.0", "x_block.attn2.proj"),
        ("ff.net.0.proj", "x_block.mlp.fc1"),
        ("ff.net.2", "x_block.mlp.fc2"),
        ("ff_context.net.0.proj", "context_block.mlp.fc1"),
        ("ff_context.net.2", "context_block.mlp.fc2"),
    ],
    fused: &[
        (&["attn.to_q", "attn.to_k", "attn.to_v"], "x_block.attn.qkv"),
        (&["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"], "context_block.attn.qkv"),
        (&["attn2.to_q", "attn2.to_k", "attn2.to_v"], "x_block.attn2.qkv"),
    ],
}];

const SD3_OUTSIDE: &[(&str, &str)] = &[
    ("context_embedder", "context_embedder"),
    ("time_text_embed.timestep_embedder.linear_1", "t_embedder.mlp.0"),
    ("time_text_embed.timestep_embedder.linear_2", "t_embedder.mlp.2"),
    ("time_text_embed.text_embedder.linear_1", "y_embedder.mlp.0"),
    ("time_text_embed.text_embedder.linear_2", "y_embedder.mlp.2"),
    ("norm_out.linear", "final_layer.adaLN_modulation.1"),
    ("proj_out", "final_layer.linear"),
];

const FLUX: &[Block] = &[
    Block {
        ours: "transformer_blocks",
        theirs: "double_blocks",
        single: &[
            ("norm1.linear", "img_mod.lin"),
            ("norm1_context.linear", "txt_mod.lin"),
            ("attn.to_out.0", "img_attn.proj"),
            ("attn.to_add_out", "txt_attn.proj"),
            ("ff.net.0.proj", "img_mlp.0"),
            ("ff.net.2", "img_mlp.2"),
            ("ff_context.net.0.proj", "txt_mlp.0"),
            ("ff_context.net.2", "txt_mlp.2"),
        ],
        fused: &[
            (&["attn.to_q", "attn.to_k", "attn.to_v"], "img_attn.qkv"),
            (&["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"], "txt_attn.qkv"),
        ],
    },
    Block {
        ours: "single_transformer_blocks",
        theirs: "single_blocks",
        single: &[("norm.linear", "modulation.lin"), ("proj_out", "linear2")],
        fused: &[(&["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"], "linear1")],
    },
];

const FLUX_OUTSIDE: &[(&str, &str)] = &[
    ("x_embedder", "img_in"),
    ("context_embedder", "txt_in"),
    ("time_text_embed.timestep_embedder.linear_1", "time_in.in_layer"),
    ("time_text_embed.timestep_embedder.linear_2", "time_in.out_layer"),
    ("time_text_embed.text_embedder.linear_1", "vector_in.in_layer"),
    ("time_text_embed.text_embedder.linear_2", "vector_in.out_layer"),
    ("time_text_embed.guidance_embedder.linear_1", "guidance_in.in_layer"),
    ("time_text_embed.guidance_embedder.linear_2", "guidance_in.out_layer"),
    ("norm_out.linear", "final_layer.adaLN_modulation.1"),
    ("proj_out", "final_layer.linear"),
];

/// Layers of a fused matrix whose outputs are several times as wide as their input, and how many times: FLUX's MLP.
const WIDER: (&str, usize) = ("proj_mlp", 4);

/// Writes one file for ComfyUI. A layer that such a network does not have is an error before anything is written.
pub fn write_comfyui(adapter: &Adapter, family: Family, about: &Provenance, file: &Path) -> Result<(), LoraFileError> {
    let (blocks, outside) = match family {
        Family::Unet => return write_kohya(adapter, Network::Unet, about, file),
        Family::Sd3 => (SD3, SD3_OUTSIDE),
        Family::Flux => (FLUX, FLUX_OUTSIDE),
    };
    let mut weights: BTreeMap<String, Vec<Part<'_>>> = BTreeMap::new();
    for entry in adapter.factors.entries() {
        let (layer, side) = layer_and_side(&entry.name).expect("invariant: factors have PEFT's names");
        let Some((weight, layers)) = place(layer, blocks, outside) else {
            return Err(LoraFileError::Unsupported {
                path: file.into(),
                field: layer.into(),
                value: "no layer that ComfyUI has in such a network".into(),
                accepted: "write another format".into(),
            });
        };
        let parts = weights
            .entry(weight)
            .or_insert_with(|| layers.iter().map(|layer| Part { layer, a: &[], b: &[] }).collect());
        let part = parts.iter_mut().find(|part| layer.ends_with(part.layer)).expect("invariant: one of its parts");
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
    layer: &'static str,
    a: &'a [f32],
    b: &'a [f32],
}

/// The weight that holds a layer, and all layers that it holds; `None` of a layer that is not known there.
fn place(layer: &str, blocks: &[Block], outside: &[(&'static str, &str)]) -> Option<(String, Vec<&'static str>)> {
    if let Some((ours, theirs)) = outside.iter().find(|(ours, _)| *ours == layer) {
        return Some(((*theirs).to_owned(), vec![ours]));
    }
    for block in blocks {
        let rest = layer.strip_prefix(block.ours).and_then(|rest| rest.strip_prefix('.'));
        let Some((number, inside)) = rest.and_then(|rest| rest.split_once('.')) else { continue };
        let name = |theirs: &str| format!("{}.{number}.{theirs}", block.theirs);
        if let Some((ours, theirs)) = block.single.iter().find(|(ours, _)| *ours == inside) {
            return Some((name(theirs), vec![ours]));
        }
        if let Some((parts, theirs)) = block.fused.iter().find(|(parts, _)| parts.contains(&inside)) {
            return Some((name(theirs), parts.to_vec()));
        }
    }
    None
}

/// A `[n rank, in]` and B `[out, n rank]` of a whole weight, n of whose parts are adapted.
fn fused(weight: &str, parts: &[Part<'_>], rank: usize) -> (Vec<f32>, Vec<f32>) {
    let a: Vec<f32> = parts.iter().flat_map(|part| part.a).copied().collect();
    let columns = rank * parts.iter().filter(|part| !part.a.is_empty()).count();
    let input = a.len() / columns;
    let (mut b, mut before) = (Vec::new(), 0);
    for part in parts {
        if part.b.is_empty() {
            let rows = if part.layer == WIDER.0 { WIDER.1 * input } else { input };
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
