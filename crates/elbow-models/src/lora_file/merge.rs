//! Whole weights: the base with what was trained in it.

use super::{Adapter, LoraFileError, Provenance, layer_and_side, write::partial};
use crate::folder::{Checkpoint, FolderError, unreadable};
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

/// A base, what goes into it, and how the result is stored.
#[derive(Clone, Copy, Debug)]
pub struct Merge<'a> {
    /// The weights before training.
    pub base: &'a Checkpoint,
    /// What was trained.
    pub trained: Trained<'a>,
    /// F32, F16 or BF16 for all tensors; without it each keeps the type it has in the base, and what was trained is rounded
    /// to that.
    pub dtype: Option<Dtype>,
    /// For the header of every file.
    pub about: &'a Provenance,
}

/// Replaces `folder` by a component of a model folder: weights in shards of at most `shard` bytes, one tensor in memory at a
/// time, and the base's `config.json`. What does not fit the base is an error before anything is written.
pub fn write_merged(merge: &Merge<'_>, stem: &str, shard: usize, folder: &Path) -> Result<(), LoraFileError> {
    let tensors = merge.tensors()?;
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
        merge.serialize(shard.iter().copied(), &file)?;
        places.extend(shard.iter().map(|tensor| (tensor.name, name.clone())));
    }
    if count > 1 {
        let size: usize = tensors.iter().map(|tensor| tensor.data_len()).sum();
        let index = serde_json::json!({ "metadata": { "total_size": size }, "weight_map": places });
        let file = partial.join(format!("{stem}.safetensors.index.json"));
        elbow_runlog::write_atomic(&file, format!("{index:#}\n").as_bytes())?;
    }
    let config = merge.base.place().join("config.json");
    if config.is_file() {
        fs::copy(&config, partial.join("config.json")).map_err(FolderError::write(&partial))?;
    }
    Ok(elbow_runlog::replace_dir(&partial, folder)?)
}

/// The same as one file, which takes its name when it is complete.
pub fn write_merged_file(merge: &Merge<'_>, file: &Path) -> Result<(), LoraFileError> {
    let tensors = merge.tensors()?;
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let partial = file.with_file_name(format!(".{name}.tmp"));
    merge.serialize(tensors.iter(), &partial)?;
    fs::rename(&partial, file).map_err(FolderError::write(file))?;
    Ok(())
}

impl<'a> Merge<'a> {
    /// The tensors of the base, which are known to take what was trained.
    fn tensors(&self) -> Result<Vec<Merged<'a>>, LoraFileError> {
        let Self { base, trained, .. } = *self;
        check(base, trained)?;
        let tensor = |name| {
            let (stored, ..) = base.stored(name).expect("invariant: a name of the base");
            // Whole numbers and the like stay as they are.
            let dtype = if unreadable(stored).is_some() { stored } else { self.dtype.unwrap_or(stored) };
            Merged { base, name, trained, dtype }
        };
        Ok(base.shapes().map(|(name, _)| tensor(name)).collect())
    }

    /// Writes tensors to `file` and waits until the disk has them. What this program wrote into the base's header, such as
    /// the path from data to noise that it was made for, stays true of what is made of it.
    fn serialize<'t>(&self, tensors: impl Iterator<Item = &'t Merged<'t>>, file: &Path) -> Result<(), FolderError> {
        let mut metadata = self.about.metadata("");
        metadata.extend(self.base.metadata().get_key_value("elbow").map(|(key, value)| (key.clone(), value.clone())));
        serialize_to_file(tensors.map(|tensor| (tensor.name, tensor)), Some(metadata), file)
            .map_err(FolderError::write(file))?;
        fs::File::open(file).and_then(|file| file.sync_all()).map_err(FolderError::write(file))
    }
}

/// Everything trained must be in the base, under its shape and in a type that is read.
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
            Some((dtype, weight, _)) if fits(weight, &entry.shape) => {
                unreadable(dtype).map(|problem| format!("  {name}: {problem}"))
            }
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
    dtype: Dtype,
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
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        self.stored().1
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let (stored, _, bytes) = self.stored();
        let encode = |values: Vec<f32>| -> Vec<u8> {
            match self.dtype {
                Dtype::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
                Dtype::BF16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
                _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            }
        };
        match self.values() {
            Some(values) => Cow::Owned(encode(values)),
            None if stored == self.dtype => Cow::Borrowed(bytes),
            None => Cow::Owned(encode(self.base.values(self.name))),
        }
    }

    fn data_len(&self) -> usize {
        let (stored, _, bytes) = self.stored();
        bytes.len() * 8 / stored.bitsize() * self.dtype.bitsize() / 8
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
