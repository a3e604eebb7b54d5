//! The tensors of a file, sorted by the layers that they belong to.

use super::{
    LoraFileError,
    config::Config,
    names::{Names, Part, Place, bare},
};
use crate::folder::Checkpoint;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::Path,
};

/// What a tensor is to its layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Role {
    /// LoRA: A, B, what B adds to the bias, and the core between them in Tucker form.
    Down,
    Up,
    UpBias,
    Mid,
    /// One number.
    Alpha,
    /// DoRA, of LyCORIS and kohya's scripts and of `peft`.
    DoraScale,
    MagnitudeVector,
    /// LoHa.
    W1A,
    W1B,
    T1,
    W2A,
    W2B,
    T2,
    /// LoKr.
    L,
    LA,
    LB,
    R,
    RA,
    RB,
    RT,
    /// Differences of the weight and of the bias.
    Weight,
    Bias,
}

/// How names end, and what the tensor is. Longer ends come before those that they end in.
const ENDINGS: [(&str, Role); 40] = [
    // peft
    (".lora_A.weight", Role::Down),
    (".lora_B.weight", Role::Up),
    (".lora_B.bias", Role::UpBias),
    (".lora_magnitude_vector.weight", Role::MagnitudeVector),
    (".lora_magnitude_vector", Role::MagnitudeVector),
    // kohya, LyCORIS
    (".lora_down.weight", Role::Down),
    (".lora_up.weight", Role::Up),
    (".lora_mid.weight", Role::Mid),
    (".alpha", Role::Alpha),
    (".dora_scale", Role::DoraScale),
    // diffusers, newest first
    (".lora.down.weight", Role::Down),
    (".lora.up.weight", Role::Up),
    (".lora_linear_layer.down.weight", Role::Down),
    (".lora_linear_layer.up.weight", Role::Up),
    ("_lora.down.weight", Role::Down),
    ("_lora.up.weight", Role::Up),
    // XLabs
    (".down.weight", Role::Down),
    (".up.weight", Role::Up),
    // Files without modules
    (".lora_A", Role::Down),
    (".lora_B", Role::Up),
    (".hada_w1_a", Role::W1A),
    (".hada_w1_b", Role::W1B),
    (".hada_t1", Role::T1),
    (".hada_w2_a", Role::W2A),
    (".hada_w2_b", Role::W2B),
    (".hada_t2", Role::T2),
    (".lokr_w1", Role::L),
    (".lokr_w1_a", Role::LA),
    (".lokr_w1_b", Role::LB),
    (".lokr_w2", Role::R),
    (".lokr_w2_a", Role::RA),
    (".lokr_w2_b", Role::RB),
    (".lokr_t2", Role::RT),
    (".diff", Role::Weight),
    (".diff_b", Role::Bias),
    (".w_norm", Role::Weight),
    (".b_norm", Role::Bias),
    (".lora_down", Role::Down),
    (".lora_up", Role::Up),
    (".lora_mid", Role::Mid),
];

/// Parts of names of adapters that are not read, and what they are.
const OTHER_KINDS: [(&str, &str); 18] = [
    (".lora_E", "an AdaLoRA"),
    (".boft_", "a BOFT"),
    (".oft_", "an OFT"),
    (".hra_", "an HRA"),
    (".a1.weight", "a GLoRA"),
    (".b1.weight", "a GLoRA"),
    (".glora_", "a GLoRA"),
    (".on_input", "an IA3"),
    (".ia3_l", "an IA3"),
    (".vera_lambda", "a VeRA"),
    (".fourierft_", "a FourierFT"),
    (".randlora_", "a RandLoRA"),
    (".vblora_", "a VB-LoRA"),
    (".miss_block", "a MiSS"),
    (".bone_block", "a Bone"),
    (".lora_embedding_", "an adapter of a table of embeddings"),
    (".reshape_weight", "a control LoRA, which widens layers"),
    (".set_weight", "a control LoRA, which replaces weights"),
];

/// After these an adapter's name may stand.
const NAMED: [&str; 3] = ["lora_", "hada_", "lokr_"];

/// The tensors of a file by what they are for.
#[derive(Default)]
pub(super) struct Sorted {
    /// By the name that the tables know: what of the network the layer is, and its tensors.
    pub(super) layers: BTreeMap<String, (Vec<Part>, BTreeMap<Role, String>)>,
    /// Tensors of the network that are there as a whole, and their names in the file.
    pub(super) whole: BTreeMap<String, String>,
    /// Layers of other components, and what those are.
    pub(super) left_out: BTreeMap<(&'static str, &'static str), usize>,
    /// What is wrong with them, a line each.
    pub(super) faults: Vec<String>,
}

/// Sorts the tensors of a file; names that nobody knows and kinds that are not read are errors.
pub(super) fn sort(
    checkpoint: &Checkpoint,
    file: &Path,
    config: Option<&Config>,
    names: &Names,
    shapes: &HashMap<&str, &[usize]>,
) -> Result<Sorted, LoraFileError> {
    let mut sorted = Sorted::default();
    let mut elsewhere = BTreeSet::new();
    let mut adapters = BTreeSet::new();
    let mut unknown = Vec::new();
    for (name, shape) in checkpoint.shapes() {
        let (plain, adapter) = without_adapter(name);
        let role = ENDINGS.iter().find_map(|(ending, role)| Some((plain.strip_suffix(ending)?, *role)));
        let layer = role.map_or(plain.as_str(), |(layer, _)| layer);
        match (role, names.find(layer)) {
            (_, Place::Elsewhere(prefix, what)) => {
                elsewhere.insert((prefix, what, layer.to_owned()));
            }
            (Some((_, role)), Place::Network(known, parts)) => {
                if role != Role::Alpha {
                    adapters.insert(adapter);
                }
                let (_, tensors) =
                    sorted.layers.entry(known.into()).or_insert_with(|| (parts.to_vec(), BTreeMap::new()));
                if let Some(first) = tensors.insert(role, name.into()) {
                    sorted.faults.push(format!("  {name}: the layer has {first} already"));
                }
            }
            (None, _) if config.is_some_and(|c| c.whole) && replaced(&plain, shape, shapes).is_some() => {
                sorted.whole.extend(replaced(&plain, shape, shapes).map(|tensor| (tensor, name.to_owned())));
            }
            _ => {
                if let Some((_, kind)) = OTHER_KINDS.iter().find(|(part, _)| plain.contains(part)) {
                    return Err(LoraFileError::OtherKind { path: file.into(), kind, tensor: name.into() });
                }
                unknown.push(format!("  {name}: {shape:?} in the file, no such layer in the model"));
            }
        }
    }
    if !unknown.is_empty() {
        return Err(LoraFileError::OtherModel { path: file.into(), problems: unknown });
    }
    if adapters.len() > 1 {
        let names: Vec<String> =
            adapters.into_iter().map(|name| name.unwrap_or_else(|| "one without name".into())).collect();
        sorted.faults.push(format!("  it holds several adapters: {}", names.join(", ")));
    }
    for (prefix, what, _) in elsewhere {
        *sorted.left_out.entry((prefix, what)).or_default() += 1;
    }
    Ok(sorted)
}

/// The tensor of the network that this one stands for as a whole.
fn replaced(name: &str, shape: &[usize], shapes: &HashMap<&str, &[usize]>) -> Option<String> {
    let tensor = bare(name, |name| shapes.contains_key(name))?;
    (shapes[tensor.as_str()] == shape).then_some(tensor)
}

/// A name without that of the adapter, which `peft` has after the factor's own unless it saves: `lora_A.default.weight`.
fn without_adapter(name: &str) -> (String, Option<String>) {
    let mut parts: Vec<&str> = name.split('.').collect();
    // kohya's names begin so, too.
    let factor = (1..parts.len()).find(|&i| NAMED.iter().any(|start| parts[i].starts_with(start)));
    let after = factor.map(|factor| factor + 1).filter(|&after| after < parts.len());
    match after.filter(|&after| !["weight", "bias", "down", "up"].contains(&parts[after])) {
        Some(after) => {
            let adapter = parts.remove(after).to_owned();
            (parts.join("."), Some(adapter))
        }
        None => (name.to_owned(), None),
    }
}
