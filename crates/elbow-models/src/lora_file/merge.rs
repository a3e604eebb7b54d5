//! Whole weights: the base with what was trained in it.

use super::{Adapter, LoraFileError, Provenance, layer_and_side, write::partial};
use crate::folder::{Checkpoint, FolderError};
use elbow::params::Params;
use half::{bf16, f16};
use safetensors::{
    View,
    tensor::{Dtype, serialize_to_file},
};
use std::{borrow::Cow, collections::BTreeMap, fs, path::Path};

/// What goes into the base.
#[derive(Clone, Copy, Debug)]
pub enum Trained<'a> {
    /// W + (alpha / rank) B A.
    Adapter(&'a Adapter),
    /// The weights themselves.
    Full(&'a Params),
}

/// Replaces `folder` by the component of `base` with `trained` in it: weights in shards of at most `shard` bytes, each
/// tensor in the type of the base, one tensor in memory at a time, and the base's `config.json`.
pub fn write_merged(
    base: &Checkpoint,
    stem: &str,
    trained: Trained<'_>,
    about: &Provenance,
    shard: usize,
    folder: &Path,
) -> Result<(), LoraFileError> {
    let tensors: Vec<Merged<'_>> = base.shapes().map(|(name, _)| Merged { base, name, trained }).collect();
    check(base, trained)?;
    let mut shards: Vec<Vec<&Merged<'_>>> = vec![Vec::new()];
    let mut room = shard;
    for tensor in &tensors {
        if tensor.data_len() > room && !shards.last().expect("invariant: never empty").is_empty() {
            shards.push(Vec::new());
            room = shard;
        }
        room = room.saturating_sub(tensor.data_len());
        shards.last_mut().expect("invariant: never empty").push(tensor);
    }
    let partial = partial(folder)?;
    let count = shards.len();
    let mut places = BTreeMap::new();
    for (i, shard) in shards.iter().enumerate() {
        let single = format!("{stem}.safetensors");
        let name = if count == 1 { single } else { format!("{stem}-{:05}-of-{count:05}.safetensors", i + 1) };
        let file = partial.join(&name);
        let views = shard.iter().map(|tensor| (tensor.name, *tensor));
        serialize_to_file(views, Some(about.metadata("")), &file).map_err(FolderError::write(&file))?;
        places.extend(shard.iter().map(|tensor| (tensor.name, name.clone())));
    }
    if count > 1 {
        let size: usize = tensors.iter().map(|tensor| tensor.data_len()).sum();
        let index = serde_json::json!({ "metadata": { "total_size": size }, "weight_map": places });
        let file = partial.join(format!("{stem}.safetensors.index.json"));
        elbow_runlog::write_atomic(&file, format!("{index:#}\n").as_bytes())?;
    }
    let config = base.place().join("config.json");
    if config.is_file() {
        fs::copy(&config, partial.join("config.json")).map_err(FolderError::write(&partial))?;
    }
    Ok(elbow_runlog::replace_dir(&partial, folder)?)
}

/// Everything trained must be in the base, under its shape.
fn check(base: &Checkpoint, trained: Trained<'_>) -> Result<(), LoraFileError> {
    let params = match trained {
        Trained::Adapter(adapter) => &adapter.factors,
        Trained::Full(params) => params,
    };
    let problem = |entry: &elbow::params::Entry| {
        // The weight, and which of its sides a factor must have.
        let (name, side) = match (trained, layer_and_side(&entry.name)) {
            (Trained::Full(_), _) => (entry.name.clone(), None),
            (Trained::Adapter(_), None) => (format!("{}.weight", entry.name), None),
            (Trained::Adapter(_), Some((layer, side))) => (format!("{layer}.weight"), Some(usize::from(side == "A"))),
        };
        let fits = |weight: &[usize], shape: &[usize]| match side {
            None => weight == shape,
            Some(side) => weight.len() == 2 && shape.len() == 2 && weight[side] == shape[side],
        };
        match base.stored(&name) {
            None => Some(format!("  {}: no such layer in the model", entry.name)),
            Some((_, weight, _)) if fits(weight, &entry.shape) => None,
            Some((_, weight, _)) => {
                Some(format!("  {}: {:?}, the layer's weight is {weight:?}", entry.name, entry.shape))
            }
        }
    };
    let problems: Vec<String> = params.entries().iter().filter_map(problem).collect();
    let path = base.place().into();
    if problems.is_empty() { Ok(()) } else { Err(LoraFileError::OtherModel { path, problems }) }
}

/// A tensor of the base, changed when it is written.
struct Merged<'a> {
    base: &'a Checkpoint,
    name: &'a str,
    trained: Trained<'a>,
}

impl Merged<'_> {
    fn stored(&self) -> (Dtype, &[usize], &[u8]) {
        self.base.stored(self.name).expect("invariant: a name of the base")
    }

    /// The new values, if there are any.
    fn values(&self) -> Option<Vec<f32>> {
        let entry = |params: &Params, name: &str| {
            let found = params.entries().iter().find(|e| e.name == name)?;
            Some((found.shape[0], params.values()[found.range.clone()].to_vec()))
        };
        match self.trained {
            Trained::Full(params) => Some(entry(params, self.name)?.1),
            Trained::Adapter(adapter) => {
                let layer = self.name.strip_suffix(".weight")?;
                let (rank, a) = entry(&adapter.factors, &format!("{layer}.lora_A.weight"))?;
                let (_, b) = entry(&adapter.factors, &format!("{layer}.lora_B.weight"))?;
                let mut values = self.base.values(self.name);
                add_product(&mut values, &b, &a, rank, adapter.config.scale() as f32);
                Some(values)
            }
        }
    }
}

impl View for &Merged<'_> {
    fn dtype(&self) -> Dtype {
        self.stored().0
    }

    fn shape(&self) -> &[usize] {
        self.stored().1
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let (dtype, _, bytes) = self.stored();
        let encode = |values: Vec<f32>| -> Vec<u8> {
            match dtype {
                Dtype::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
                Dtype::BF16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
                _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            }
        };
        self.values().map_or(Cow::Borrowed(bytes), |values| Cow::Owned(encode(values)))
    }

    fn data_len(&self) -> usize {
        self.stored().2.len()
    }
}

/// W ← W + s B A, W `[out, in]`, B `[out, rank]`, A `[rank, in]`, row by row; each row's sum is formed before it is added.
fn add_product(weight: &mut [f32], b: &[f32], a: &[f32], rank: usize, scale: f32) {
    let input = a.len() / rank;
    let mut sum = vec![0.0_f32; input];
    for (row, factors) in weight.chunks_mut(input).zip(b.chunks(rank)) {
        sum.fill(0.0);
        for (factor, line) in factors.iter().zip(a.chunks(input)) {
            for (s, v) in sum.iter_mut().zip(line) {
                *s += factor * v;
            }
        }
        for (w, s) in row.iter_mut().zip(&sum) {
            *w += scale * s;
        }
    }
}
