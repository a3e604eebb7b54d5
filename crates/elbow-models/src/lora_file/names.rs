//! What layers are called: by diffusers, by the original code of each network, and by trainers.
//!
//! A row of a table is a layer of the original code and the layers of diffusers that its weight holds, from the first row of
//! it to the last; `{}` is the number of a block. A name more is a row more. [`originals`] has all pairs for a network, so
//! that whoever writes files can turn them around.

use crate::folder::Shapes;
use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
};

pub(super) type Row = (&'static str, &'static [&'static str]);

/// FLUX.1 of Black Forest Labs.
pub(super) const FLUX: [Row; 23] = [
    ("img_in", &["x_embedder"]),
    ("txt_in", &["context_embedder"]),
    ("time_in.in_layer", &["time_text_embed.timestep_embedder.linear_1"]),
    ("time_in.out_layer", &["time_text_embed.timestep_embedder.linear_2"]),
    ("vector_in.in_layer", &["time_text_embed.text_embedder.linear_1"]),
    ("vector_in.out_layer", &["time_text_embed.text_embedder.linear_2"]),
    ("guidance_in.in_layer", &["time_text_embed.guidance_embedder.linear_1"]),
    ("guidance_in.out_layer", &["time_text_embed.guidance_embedder.linear_2"]),
    ("final_layer.adaLN_modulation.1", &["norm_out.linear"]),
    ("final_layer.linear", &["proj_out"]),
    ("double_blocks.{}.img_mod.lin", &["transformer_blocks.{}.norm1.linear"]),
    ("double_blocks.{}.txt_mod.lin", &["transformer_blocks.{}.norm1_context.linear"]),
    ("double_blocks.{}.img_attn.qkv", &JOINT_IMAGE),
    ("double_blocks.{}.txt_attn.qkv", &JOINT_TEXT),
    ("double_blocks.{}.img_attn.proj", &["transformer_blocks.{}.attn.to_out.0"]),
    ("double_blocks.{}.txt_attn.proj", &["transformer_blocks.{}.attn.to_add_out"]),
    ("double_blocks.{}.img_mlp.0", &["transformer_blocks.{}.ff.net.0.proj"]),
    ("double_blocks.{}.img_mlp.2", &["transformer_blocks.{}.ff.net.2"]),
    ("double_blocks.{}.txt_mlp.0", &["transformer_blocks.{}.ff_context.net.0.proj"]),
    ("double_blocks.{}.txt_mlp.2", &["transformer_blocks.{}.ff_context.net.2"]),
    ("single_blocks.{}.modulation.lin", &["single_transformer_blocks.{}.norm.linear"]),
    (
        "single_blocks.{}.linear1",
        &[
            "single_transformer_blocks.{}.attn.to_q",
            "single_transformer_blocks.{}.attn.to_k",
            "single_transformer_blocks.{}.attn.to_v",
            "single_transformer_blocks.{}.proj_mlp",
        ],
    ),
    ("single_blocks.{}.linear2", &["single_transformer_blocks.{}.proj_out"]),
];

/// What XLabs' trainer calls the layers of FLUX.
const XLABS: [Row; 6] = [
    (
        "single_blocks.{}.processor.qkv",
        &[
            "single_transformer_blocks.{}.attn.to_q",
            "single_transformer_blocks.{}.attn.to_k",
            "single_transformer_blocks.{}.attn.to_v",
        ],
    ),
    ("single_blocks.{}.processor.proj", &["single_transformer_blocks.{}.proj_out"]),
    ("double_blocks.{}.processor.qkv_lora1", &JOINT_IMAGE),
    ("double_blocks.{}.processor.qkv_lora2", &JOINT_TEXT),
    ("double_blocks.{}.processor.proj_lora1", &["transformer_blocks.{}.attn.to_out.0"]),
    ("double_blocks.{}.processor.proj_lora2", &["transformer_blocks.{}.attn.to_add_out"]),
];

/// SD3 and SD3.5 of Stability AI.
pub(super) const SD3: [Row; 20] = [
    ("x_embedder.proj", &["pos_embed.proj"]),
    ("context_embedder", &["context_embedder"]),
    ("t_embedder.mlp.0", &["time_text_embed.timestep_embedder.linear_1"]),
    ("t_embedder.mlp.2", &["time_text_embed.timestep_embedder.linear_2"]),
    ("y_embedder.mlp.0", &["time_text_embed.text_embedder.linear_1"]),
    ("y_embedder.mlp.2", &["time_text_embed.text_embedder.linear_2"]),
    ("final_layer.adaLN_modulation.1", &["norm_out.linear"]),
    ("final_layer.linear", &["proj_out"]),
    ("joint_blocks.{}.x_block.adaLN_modulation.1", &["transformer_blocks.{}.norm1.linear"]),
    ("joint_blocks.{}.x_block.attn.qkv", &JOINT_IMAGE),
    ("joint_blocks.{}.x_block.attn.proj", &["transformer_blocks.{}.attn.to_out.0"]),
    (
        "joint_blocks.{}.x_block.attn2.qkv",
        &["transformer_blocks.{}.attn2.to_q", "transformer_blocks.{}.attn2.to_k", "transformer_blocks.{}.attn2.to_v"],
    ),
    ("joint_blocks.{}.x_block.attn2.proj", &["transformer_blocks.{}.attn2.to_out.0"]),
    ("joint_blocks.{}.x_block.mlp.fc1", &["transformer_blocks.{}.ff.net.0.proj"]),
    ("joint_blocks.{}.x_block.mlp.fc2", &["transformer_blocks.{}.ff.net.2"]),
    ("joint_blocks.{}.context_block.adaLN_modulation.1", &["transformer_blocks.{}.norm1_context.linear"]),
    ("joint_blocks.{}.context_block.attn.qkv", &JOINT_TEXT),
    ("joint_blocks.{}.context_block.attn.proj", &["transformer_blocks.{}.attn.to_add_out"]),
    ("joint_blocks.{}.context_block.mlp.fc1", &["transformer_blocks.{}.ff_context.net.0.proj"]),
    ("joint_blocks.{}.context_block.mlp.fc2", &["transformer_blocks.{}.ff_context.net.2"]),
];

const JOINT_IMAGE: [&str; 3] =
    ["transformer_blocks.{}.attn.to_q", "transformer_blocks.{}.attn.to_k", "transformer_blocks.{}.attn.to_v"];
const JOINT_TEXT: [&str; 3] = [
    "transformer_blocks.{}.attn.add_q_proj",
    "transformer_blocks.{}.attn.add_k_proj",
    "transformer_blocks.{}.attn.add_v_proj",
];

/// The UNet of Stable Diffusion, outside its blocks.
const UNET: [(&str, &str); 6] = [
    ("input_blocks.0.0", "conv_in"),
    ("time_embed.0", "time_embedding.linear_1"),
    ("time_embed.2", "time_embedding.linear_2"),
    ("middle_block.0", "mid_block.resnets.0"),
    ("middle_block.1", "mid_block.attentions.0"),
    ("middle_block.2", "mid_block.resnets.1"),
];
const UNET_OUT: [(&str, &str); 2] = [("out.0", "conv_norm_out"), ("out.2", "conv_out")];
/// What its residual blocks call their layers.
const RESNET: [(&str, &str); 6] = [
    ("in_layers.0", "norm1"),
    ("in_layers.2", "conv1"),
    ("emb_layers.1", "time_emb_proj"),
    ("out_layers.0", "norm2"),
    ("out_layers.3", "conv2"),
    ("skip_connection", "conv_shortcut"),
];

/// What wrappers of a network put into its names: DDP, FSDP, `torch.compile`, recomputation, and PEFT around a layer.
const WRAPPERS: [&str; 5] = ["module", "_fsdp_wrapped_module", "_orig_mod", "_checkpoint_wrapped_module", "base_layer"];

/// What may stand before a layer's name, where dots stay dots.
const DOTTED: [&str; 7] = [
    "base_model.model.",
    "base_model.",
    "model.diffusion_model.",
    "diffusion_model.",
    "transformer.",
    "unet.",
    "model.",
];
/// What may stand before a layer's name, where dots are written as underscores.
const FLAT: [&str; 3] = ["lora_unet_", "lora_transformer_", "lycoris_"];
/// What begins the names of what is not the network, and what that is.
const ELSEWHERE: [(&str, &str); 32] = [
    ("text_encoders.clip_l.", TEXT),
    ("text_encoders.clip_g.", TEXT),
    ("text_encoders.t5xxl.", TEXT),
    ("text_encoders.", TEXT),
    ("text_encoder.", TEXT),
    ("text_encoder_1.", TEXT),
    ("text_encoder_2.", TEXT),
    ("text_encoder_3.", TEXT),
    ("text_model.", TEXT),
    ("te.", TEXT),
    ("te1.", TEXT),
    ("te2.", TEXT),
    ("te3.", TEXT),
    ("clip_l.", TEXT),
    ("clip_g.", TEXT),
    ("clip_h.", TEXT),
    ("t5xxl.", TEXT),
    ("conditioner.embedders.0.", TEXT),
    ("conditioner.embedders.1.", TEXT),
    ("conditioner.", TEXT),
    ("cond_stage_model.", TEXT),
    ("lora_te_", TEXT),
    ("lora_te1_", TEXT),
    ("lora_te2_", TEXT),
    ("lora_te3_", TEXT),
    ("lora_text_encoder", TEXT),
    ("lycoris_te", TEXT),
    ("bundle_emb.", "words of a prompt"),
    ("vae.", AUTOENCODER),
    ("first_stage_model.", AUTOENCODER),
    ("lora_vae_", AUTOENCODER),
    ("image_encoder.", "an image encoder"),
];
const TEXT: &str = "a text encoder";
const AUTOENCODER: &str = "the autoencoder";

/// A layer of the network as a part of a layer of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// diffusers' name, without `.weight`.
    pub(super) layer: String,
    /// The rows of the file's layer that are its rows, in order.
    pub(super) rows: Vec<Range<usize>>,
}

/// Whose a name in a file is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place<'a> {
    /// A layer of the network by the name that the tables know, and what it holds.
    Network(&'a str, &'a [Part]),
    /// Another component: how its names begin, and what it is.
    Elsewhere(&'static str, &'static str),
    /// Nobody's.
    Unknown,
}

/// All names of the layers of one network.
#[derive(Debug)]
pub(super) struct Names {
    layers: BTreeMap<String, Vec<Part>>,
    /// The same with underscores for dots.
    flat: HashMap<String, String>,
}

impl Names {
    /// The names of the network whose tensors `base` lists.
    pub(super) fn of(base: &Shapes) -> Self {
        let weights = weights(base);
        let mut layers: BTreeMap<String, Vec<Part>> = weights
            .iter()
            .map(|(layer, shape)| {
                let whole = 0..shape.first().copied().unwrap_or(1);
                ((*layer).to_owned(), vec![Part { layer: (*layer).to_owned(), rows: vec![whole] }])
            })
            .collect();
        let xlabs = if is_flux(&weights) { fused(joint(&XLABS, &weights), &weights) } else { Vec::new() };
        for (name, parts) in originals(&weights).into_iter().chain(xlabs) {
            layers.entry(name).or_insert(parts);
        }
        let flat = layers.keys().map(|name| (name.replace('.', "_"), name.clone())).collect();
        Self { layers, flat }
    }

    /// Whose the layer called `name` in a file is.
    pub(super) fn find(&self, name: &str) -> Place<'_> {
        let name = unwrapped(name);
        let mut rest = name.as_str();
        loop {
            if let Some((known, parts)) = self.known(rest) {
                return Place::Network(known, parts);
            }
            if let Some((prefix, what)) = ELSEWHERE.into_iter().find(|(prefix, _)| rest.starts_with(prefix)) {
                return Place::Elsewhere(prefix.trim_end_matches(['.', '_']), what);
            }
            match DOTTED.iter().find_map(|prefix| rest.strip_prefix(prefix)) {
                Some(shorter) => rest = shorter,
                None => break,
            }
        }
        let flat = FLAT.iter().filter_map(|prefix| rest.strip_prefix(prefix));
        let found = flat.map(|flat| flat.replace("_orig_mod_", "")).find_map(|flat| self.flat.get(&flat));
        match found.and_then(|name| self.layers.get_key_value(name)) {
            Some((known, parts)) => Place::Network(known, parts),
            None => Place::Unknown,
        }
    }

    /// A dotted name without a prefix, as it stands or as attention processors of older versions of diffusers write it.
    fn known(&self, name: &str) -> Option<(&str, &[Part])> {
        let plain = name.replace(".processor.", ".");
        let out = plain.ends_with(".to_out").then(|| format!("{plain}.0"));
        let found = [Some(name.to_owned()), Some(plain), out].into_iter().flatten();
        let (known, parts) = found.into_iter().find_map(|name| self.layers.get_key_value(&name))?;
        Some((known, parts))
    }
}

/// The name of a tensor that stands for itself in a file, in the network's own names.
pub(super) fn bare(name: &str, known: impl Fn(&str) -> bool) -> Option<String> {
    let name = unwrapped(name);
    let mut rest = name.as_str();
    while !known(rest) {
        rest = DOTTED.iter().find_map(|prefix| rest.strip_prefix(prefix))?;
    }
    Some(rest.to_owned())
}

/// Whether a name begins with that of the network's component, or with another's, and what follows; none if with neither.
pub(super) fn component(name: &str) -> Option<(bool, &str)> {
    let network = ["transformer.", "unet."].iter().find_map(|prefix| name.strip_prefix(prefix));
    let other = || ELSEWHERE.iter().find_map(|(prefix, _)| name.strip_prefix(prefix));
    network.map(|field| (true, field)).or_else(|| Some((false, other()?)))
}

/// A name without what wrappers put into it.
fn unwrapped(name: &str) -> String {
    name.split('.').filter(|part| !WRAPPERS.contains(part)).collect::<Vec<_>>().join(".")
}

/// Shapes of weights by layer.
fn weights(base: &Shapes) -> BTreeMap<&str, &[usize]> {
    base.iter().filter_map(|(name, shape)| Some((name.strip_suffix(".weight")?, shape.as_slice()))).collect()
}

fn is_flux(weights: &BTreeMap<&str, &[usize]>) -> bool {
    weights.keys().any(|layer| layer.starts_with("single_transformer_blocks.0."))
}

/// The layers of the original code of a network, and what they hold. The network is known by its tensors.
pub(super) fn originals(weights: &BTreeMap<&str, &[usize]>) -> Vec<(String, Vec<Part>)> {
    let has = |start: &str| weights.keys().any(|layer| layer.starts_with(start));
    let pairs = if is_flux(weights) {
        joint(&FLUX, weights)
    } else if has("transformer_blocks.0.attn.add_q_proj") && has("pos_embed.proj") {
        joint(&SD3, weights)
    } else if has("down_blocks.0.") {
        unet(weights)
    } else {
        Vec::new()
    };
    fused(pairs, weights)
}

/// Layers of the original code, with the rows that each of diffusers' has in them.
fn fused(pairs: Vec<(String, Vec<String>)>, weights: &BTreeMap<&str, &[usize]>) -> Vec<(String, Vec<Part>)> {
    let parts = |(original, layers): (String, Vec<String>)| {
        let mut start = 0;
        let part = |layer: String| {
            let shape = weights[layer.as_str()];
            let rows = start..start + shape.first().copied().unwrap_or(1);
            start = rows.end;
            // A modulation of shift and scale alone: the original code has the shift first, diffusers the scale.
            let swapped = original.ends_with("adaLN_modulation.1") && shape.len() == 2 && shape[0] == 2 * shape[1];
            let rows = if swapped { vec![shape[1]..shape[0], 0..shape[1]] } else { vec![rows] };
            Part { layer, rows }
        };
        let parts = layers.into_iter().map(part).collect();
        (original, parts)
    };
    pairs.into_iter().map(parts).collect()
}

/// The rows of a table, block by block, whose layers the network has.
fn joint(table: &[Row], weights: &BTreeMap<&str, &[usize]>) -> Vec<(String, Vec<String>)> {
    let blocks = weights.keys().filter_map(|layer| layer.split('.').nth(1)?.parse::<usize>().ok()).max();
    let mut pairs = Vec::new();
    for (original, layers) in table {
        let last = if original.contains("{}") { blocks.unwrap_or(0) } else { 0 };
        for number in (0..=last).map(|number| number.to_string()) {
            let named: Vec<String> = layers.iter().map(|layer| layer.replace("{}", &number)).collect();
            if named.iter().all(|layer| weights.contains_key(layer.as_str())) {
                pairs.push((original.replace("{}", &number), named));
            }
        }
    }
    pairs
}

/// The UNet numbers its blocks through, with those between resolutions; which are there is seen from diffusers' names.
fn unet(weights: &BTreeMap<&str, &[usize]>) -> Vec<(String, Vec<String>)> {
    let has = |start: &str| weights.keys().any(|layer| layer.starts_with(start));
    let mut blocks: Vec<(String, String)> =
        UNET.iter().chain(&UNET_OUT).map(|(a, b)| ((*a).into(), (*b).into())).collect();
    let mut number = 1;
    for block in (0..).take_while(|block| has(&format!("down_blocks.{block}."))) {
        for i in (0..).take_while(|i| has(&format!("down_blocks.{block}.resnets.{i}."))) {
            blocks.push((format!("input_blocks.{number}.0"), format!("down_blocks.{block}.resnets.{i}")));
            blocks.push((format!("input_blocks.{number}.1"), format!("down_blocks.{block}.attentions.{i}")));
            number += 1;
        }
        blocks.push((format!("input_blocks.{number}.0.op"), format!("down_blocks.{block}.downsamplers.0.conv")));
        number += 1;
    }
    number = 0;
    for block in (0..).take_while(|block| has(&format!("up_blocks.{block}."))) {
        let mut last = 1;
        for i in (0..).take_while(|i| has(&format!("up_blocks.{block}.resnets.{i}."))) {
            blocks.push((format!("output_blocks.{number}.0"), format!("up_blocks.{block}.resnets.{i}")));
            blocks.push((format!("output_blocks.{number}.1"), format!("up_blocks.{block}.attentions.{i}")));
            last = if has(&format!("up_blocks.{block}.attentions.{i}.")) { 2 } else { 1 };
            number += 1;
        }
        let upsampler = format!("up_blocks.{block}.upsamplers.0.conv");
        blocks.push((format!("output_blocks.{}.{last}.conv", number - 1), upsampler));
    }
    let original = |layer: &str| {
        let (original, block) = blocks.iter().find(|(_, block)| {
            layer.strip_prefix(block.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        })?;
        let inner = layer[block.len()..].trim_start_matches('.');
        let inner = match RESNET.iter().find(|(_, own)| *own == inner && block.contains("resnets")) {
            Some((original, _)) => original,
            None => inner,
        };
        Some(format!("{original}.{inner}").trim_end_matches('.').to_owned())
    };
    weights.keys().filter_map(|layer| Some((original(layer)?, vec![(*layer).to_owned()]))).collect()
}
