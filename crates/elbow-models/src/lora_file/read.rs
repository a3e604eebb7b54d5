//! Reading an adapter in any of the formats, against the tensors of the model it is for.

use super::{Adapter, LoraFileError};
use crate::{
    folder::{Checkpoint, Shapes, read_json, unreadable},
    lora::LoraConfig,
};
use elbow::params::{Params, to_f32};
use safetensors::tensor::Dtype;
use serde_json::{Map, Value};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// What may stand before a layer's name, where dots stay dots.
const DOTTED: [&str; 6] = ["base_model.model.", "transformer.", "unet.", "diffusion_model.", "base_model.", ""];
/// What may stand before a layer's name, where dots are written as underscores.
const FLAT: [&str; 3] = ["lora_unet_", "lora_transformer_", "lycoris_"];
/// How the two factors and their scale are called.
const ENDINGS: [(&str, Role); 7] = [
    (".lora_A.weight", Role::A),
    (".lora_B.weight", Role::B),
    (".lora.down.weight", Role::A),
    (".lora.up.weight", Role::B),
    (".lora_down.weight", Role::A),
    (".lora_up.weight", Role::B),
    (".alpha", Role::Alpha),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    A,
    B,
    Alpha,
}

/// What a file says of one layer.
#[derive(Debug, Default)]
struct Layer {
    a: Option<String>,
    b: Option<String>,
    alpha: Option<f64>,
}

impl Layer {
    /// The name of factor A, once it is known that every layer has both.
    fn a(&self) -> &str {
        self.a.as_deref().expect("invariant: both factors are there")
    }

    fn b(&self) -> &str {
        self.b.as_deref().expect("invariant: both factors are there")
    }
}

/// Reads a PEFT folder, or a `.safetensors` file in the diffusers or kohya format, for the model whose tensors `base`
/// lists. A layer without `.alpha` in a file without a header entry has alpha = rank, which is what diffusers and kohya's
/// scripts take it for.
pub fn read(path: &Path, base: &Shapes) -> Result<Adapter, LoraFileError> {
    let folder = path.join("adapter_config.json");
    let (file, declared) = if path.is_dir() {
        let config: Map<String, Value> = read_json(&folder)?;
        (path.join("adapter_model.safetensors"), Some((folder, config)))
    } else {
        (path.to_path_buf(), None)
    };
    let checkpoint = Checkpoint::open_file(&file)?;
    let declared = match declared {
        Some(declared) => Some(declared),
        None => header(&checkpoint, &file)?.map(|config| (file.clone(), config)),
    };
    if let Some((place, config)) = &declared {
        refuse(place, config)?;
    }
    let layers = layers(&checkpoint, &file, base)?;
    let rank = rank(&checkpoint, &file, &layers)?;
    let alpha = alpha(&file, declared.as_ref(), &layers, rank)?;
    let names = |config: &Map<String, Value>| serde_json::from_value(config.get("target_modules")?.clone()).ok();
    let target_modules = targets(declared.and_then(|(_, config)| names(&config)), &layers, base);
    let mut factors = Vec::new();
    for layer in base.iter().filter_map(|(name, _)| name.strip_suffix(".weight")) {
        let Some(found) = layers.get(layer) else { continue };
        for (side, name) in [("A", found.a()), ("B", found.b())] {
            let shape = checkpoint.stored(name).expect("invariant: a name of the file").1.to_vec();
            factors.push((format!("{layer}.lora_{side}.weight"), shape, checkpoint.values(name)));
        }
    }
    Ok(Adapter { config: LoraConfig { rank, alpha, target_modules }, factors: Params::new(factors) })
}

/// The configuration that diffusers writes into the header, without its prefix.
fn header(checkpoint: &Checkpoint, file: &Path) -> Result<Option<Map<String, Value>>, LoraFileError> {
    let Some(text) = checkpoint.metadata().get("lora_adapter_metadata") else { return Ok(None) };
    let json: Map<String, Value> = serde_json::from_str(text).map_err(|error| LoraFileError::Unsupported {
        path: file.into(),
        field: "lora_adapter_metadata".into(),
        value: error.to_string(),
        accepted: "it must be JSON".into(),
    })?;
    let bare = |(key, value): (String, Value)| {
        let prefix = DOTTED.iter().find(|p| !p.is_empty() && key.starts_with(**p))?;
        Some((key[prefix.len()..].to_owned(), value))
    };
    Ok(Some(json.into_iter().filter_map(bare).collect()))
}

/// Refuses a configuration under which the factors mean something else than W + (alpha / r) B A.
fn refuse(path: &Path, config: &Map<String, Value>) -> Result<(), LoraFileError> {
    let refused = |field: &str, value: &Value, accepted: &str| LoraFileError::Unsupported {
        path: path.into(),
        field: field.into(),
        value: value.to_string(),
        accepted: accepted.into(),
    };
    if let Some(kind) = config.get("peft_type").filter(|kind| *kind != "LORA") {
        return Err(refused("peft_type", kind, "only \"LORA\" is implemented"));
    }
    let empty = |value: &Value| {
        matches!(value, Value::Null | Value::Bool(false))
            || value == "none"
            || value.as_object().is_some_and(Map::is_empty)
            || value.as_array().is_some_and(Vec::is_empty)
    };
    let unused = ["use_dora", "use_rslora", "lora_bias", "fan_in_fan_out", "rank_pattern", "alpha_pattern"];
    for field in unused.into_iter().chain(["bias", "modules_to_save", "use_qalora", "trainable_token_indices"]) {
        if let Some(value) = config.get(field).filter(|value| !empty(value)) {
            return Err(refused(field, value, "this version reads adapters that do not use it"));
        }
    }
    let start = config.get("init_lora_weights").and_then(Value::as_str).map(str::to_lowercase);
    if let Some(start) =
        start.filter(|s| ["pissa", "olora", "corda", "loftq", "lora_ga"].iter().any(|p| s.starts_with(p)))
    {
        return Err(refused(
            "init_lora_weights",
            &start.into(),
            "it changes the base weights, which the file does not hold",
        ));
    }
    Ok(())
}

/// Sorts the tensors of a file by layers of the model; everything that does not fit is reported at once.
fn layers(checkpoint: &Checkpoint, file: &Path, base: &Shapes) -> Result<BTreeMap<String, Layer>, LoraFileError> {
    let weights: BTreeMap<&str, &[usize]> =
        base.iter().filter_map(|(name, shape)| Some((name.strip_suffix(".weight")?, shape.as_slice()))).collect();
    let flat: BTreeMap<String, &str> = weights.keys().map(|name| (name.replace('.', "_"), *name)).collect();
    let find = |raw: &str| {
        let dotted = DOTTED.iter().find_map(|p| weights.get_key_value(raw.strip_prefix(p)?).map(|(name, _)| *name));
        dotted.or_else(|| FLAT.iter().find_map(|p| flat.get(raw.strip_prefix(p)?).copied()))
    };
    let (mut layers, mut problems) = (BTreeMap::<String, Layer>::new(), Vec::new());
    for (name, shape) in checkpoint.shapes() {
        let plain = name.replace(".default.weight", ".weight");
        let role = ENDINGS.iter().find_map(|(ending, role)| Some((plain.strip_suffix(ending)?, *role)));
        let Some((layer, role)) = role.and_then(|(raw, role)| Some((find(raw)?, role))) else {
            problems.push(format!("  {name}: {shape:?} in the file, no such layer in the model"));
            continue;
        };
        let (dtype, _, bytes) = checkpoint.stored(name).expect("invariant: a name of the file");
        if role == Role::Alpha {
            match number(dtype, bytes) {
                Some(alpha) => layers.entry(layer.to_owned()).or_default().alpha = Some(alpha),
                None => problems.push(format!("  {name}: {shape:?} of {dtype:?}, one number is expected")),
            }
            continue;
        }
        if let Some(problem) = unreadable(dtype) {
            problems.push(format!("  {name}: {problem}"));
            continue;
        }
        let (weight, entry) = (weights[layer], layers.entry(layer.to_owned()).or_default());
        let fits = match (role, weight, shape) {
            (Role::A, &[_, input], &[_, found]) => input == found,
            (Role::B, &[out, _], &[found, _]) => out == found,
            _ => false,
        };
        match role {
            _ if !fits => problems.push(format!("  {name}: {shape:?} in the file, the layer's weight is {weight:?}")),
            Role::A => entry.a = Some(name.to_owned()),
            _ => entry.b = Some(name.to_owned()),
        }
    }
    let half = layers.iter().filter(|(_, layer)| layer.a.is_none() || layer.b.is_none());
    problems.extend(half.map(|(name, _)| format!("  {name}: one of its two factors is missing")));
    if !problems.is_empty() {
        return Err(LoraFileError::OtherModel { path: file.into(), problems });
    }
    if layers.is_empty() { Err(LoraFileError::Empty { path: file.into() }) } else { Ok(layers) }
}

/// One number, which some programs write as an integer.
fn number(dtype: Dtype, bytes: &[u8]) -> Option<f64> {
    match dtype {
        Dtype::I64 => Some(i64::from_le_bytes(bytes.try_into().ok()?) as f64),
        Dtype::I32 => Some(f64::from(i32::from_le_bytes(bytes.try_into().ok()?))),
        Dtype::F64 => Some(f64::from_le_bytes(bytes.try_into().ok()?)),
        _ => match to_f32(dtype, bytes)?[..] {
            [alpha] => Some(f64::from(alpha)),
            _ => None,
        },
    }
}

/// The rank all layers share.
fn rank(checkpoint: &Checkpoint, file: &Path, layers: &BTreeMap<String, Layer>) -> Result<usize, LoraFileError> {
    let size = |name: &str, axis: usize| checkpoint.stored(name).expect("invariant: a name of the file").1[axis];
    let mut ranks = layers.iter().map(|(name, layer)| (name, size(layer.a(), 0), size(layer.b(), 1)));
    let (_, rank, _) = ranks.clone().next().expect("invariant: there is a layer");
    match ranks.find(|&(_, a, b)| a != rank || b != rank) {
        None => Ok(rank),
        Some((layer, a, b)) => Err(LoraFileError::Unsupported {
            path: file.into(),
            field: layer.clone(),
            value: format!("of rank {a} and {b}"),
            accepted: format!("the first layer has rank {rank}, and this version reads adapters of one rank"),
        }),
    }
}

/// The alpha all layers share: of the configuration, else of the layers, else the rank.
fn alpha(
    file: &Path,
    declared: Option<&(PathBuf, Map<String, Value>)>,
    layers: &BTreeMap<String, Layer>,
    rank: usize,
) -> Result<f64, LoraFileError> {
    let refused = |path: &Path, field: &str, value: String, accepted: String| LoraFileError::Unsupported {
        path: path.into(),
        field: field.into(),
        value,
        accepted,
    };
    if let Some((place, config)) = declared {
        if let Some(r) = config.get("r").filter(|r| r.as_u64() != Some(rank as u64)) {
            return Err(refused(place, "r", r.to_string(), format!("the factors have rank {rank}")));
        }
        let alpha = config.get("lora_alpha").unwrap_or(&Value::Null);
        return alpha
            .as_f64()
            .ok_or_else(|| refused(place, "lora_alpha", alpha.to_string(), "it must be a number".into()));
    }
    let mut alphas = layers.iter().map(|(name, layer)| (name, layer.alpha.unwrap_or(rank as f64)));
    let (_, first) = alphas.clone().next().expect("invariant: there is a layer");
    match alphas.find(|(_, alpha)| alpha.to_bits() != first.to_bits()) {
        None => Ok(first),
        Some((layer, alpha)) => {
            let accepted = format!("another layer has {first}, and this version reads adapters of one alpha");
            Err(refused(file, &format!("{layer}.alpha"), alpha.to_string(), accepted))
        }
    }
}

/// Names that select exactly the layers of the file: the declared ones if they do; else the ends of the layers' names
/// after the number of their block, if those do; else the layers themselves.
fn targets(declared: Option<Vec<String>>, layers: &BTreeMap<String, Layer>, base: &Shapes) -> Vec<String> {
    let dense = || base.iter().filter(|(_, s)| s.len() == 2).filter_map(|(name, _)| name.strip_suffix(".weight"));
    let exact = |names: &Vec<String>| {
        let config = LoraConfig { target_modules: names.clone(), ..LoraConfig::default() };
        dense().all(|layer| config.targets(layer) == layers.contains_key(layer))
    };
    let whole: Vec<String> = dense().filter(|layer| layers.contains_key(*layer)).map(String::from).collect();
    let mut ends: Vec<String> = Vec::new();
    for layer in &whole {
        let parts: Vec<&str> = layer.split('.').collect();
        let number = parts[..parts.len() - 1].iter().rposition(|part| part.parse::<usize>().is_ok());
        let end = parts[number.map_or(0, |n| n + 1)..].join(".");
        if !ends.contains(&end) {
            ends.push(end);
        }
    }
    [declared, Some(ends)].into_iter().flatten().find(exact).unwrap_or(whole)
}
