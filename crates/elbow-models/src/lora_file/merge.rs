//! Whole weights: the base with what was trained in it.

use super::{
    Adapter, AdapterFile, LoraFileError, Provenance,
    delta::{Delta, Matrix, Product, Update},
    file::Change,
    layer_and_side,
    write::partial,
};
use crate::folder::{Checkpoint, FolderError, finite, unreadable};
use elbow::params::Params;
use half::{bf16, f16};
use safetensors::{
    View,
    tensor::{Dtype, serialize_to_file},
};
use std::{borrow::Cow, cell::RefCell, collections::BTreeMap, fs, path::Path};

/// What goes into the base.
#[derive(Clone, Copy, Debug)]
pub enum Trained<'a> {
    /// W + (alpha / rank) B A.
    Adapter(&'a Adapter),
    /// What an adapter's file does to the weights.
    File(&'a AdapterFile),
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
/// time, and the base's `config.json`. What does not fit the base is an error before anything is written; after a weight that
/// is NaN or infinite, or does not fit the type of number, nothing is left of what was.
pub fn write_merged(merge: &Merge<'_>, stem: &str, shard: usize, folder: &Path) -> Result<(), LoraFileError> {
    let changes = merge.trained.changes();
    let tensors = merge.tensors(&changes)?;
    let partial = partial(folder)?;
    let written = merge.write_shards(&tensors, stem, shard, &partial);
    if written.is_err() {
        // The error that is reported is the first one.
        let _ = fs::remove_dir_all(&partial);
    }
    written?;
    Ok(elbow_runlog::replace_dir(&partial, folder)?)
}

/// The same as one file, which takes its name when it is complete.
pub fn write_merged_file(merge: &Merge<'_>, file: &Path) -> Result<(), LoraFileError> {
    let changes = merge.trained.changes();
    let tensors = merge.tensors(&changes)?;
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let partial = file.with_file_name(format!(".{name}.tmp"));
    let put = |()| Ok(fs::rename(&partial, file).map_err(FolderError::write(file))?);
    let written = merge.serialize(tensors.iter(), &partial).and_then(put);
    if written.is_err() {
        let _ = fs::remove_file(&partial);
    }
    written
}

impl<'a> Trained<'a> {
    /// What becomes of each tensor, of adapters.
    fn changes(self) -> Cow<'a, BTreeMap<String, Change>> {
        match self {
            Self::Full(_) => Cow::Owned(BTreeMap::new()),
            Self::File(file) => Cow::Borrowed(&file.changes),
            Self::Adapter(adapter) => {
                let mut layers = BTreeMap::<&str, [Option<Matrix>; 2]>::new();
                for entry in adapter.factors.entries() {
                    let (layer, side) = layer_and_side(&entry.name).expect("invariant: factors have PEFT's names");
                    let values = adapter.factors.values()[entry.range.clone()].to_vec();
                    let matrix = Matrix { rows: entry.shape[0], columns: entry.shape[1], values };
                    layers.entry(layer).or_default()[usize::from(side == "A")] = Some(matrix);
                }
                let scale = adapter.config.scale();
                let change = |(layer, factors): (&str, [Option<Matrix>; 2])| {
                    let [b, a] = factors.map(|factor| factor.expect("invariant: each layer has both factors"));
                    let delta = Delta::Product(Product { b, a });
                    (format!("{layer}.weight"), Change::Update(Update { delta, scale, magnitude: None }))
                };
                Cow::Owned(layers.into_iter().map(change).collect())
            }
        }
    }
}

impl<'a> Merge<'a> {
    /// The tensors of the base, which are known to take what was trained.
    fn tensors<'c>(&'c self, changes: &'c BTreeMap<String, Change>) -> Result<Vec<Merged<'c>>, LoraFileError>
    where
        'a: 'c,
    {
        let Self { base, trained, .. } = *self;
        check(base, trained, changes)?;
        let tensor = |name| {
            let (stored, ..) = base.stored(name).expect("invariant: a name of the base");
            // Whole numbers and the like stay as they are.
            let dtype = if unreadable(stored).is_some() { stored } else { self.dtype.unwrap_or(stored) };
            let change = match (trained, changes.get(name)) {
                (Trained::Full(params), _) => params
                    .entries()
                    .iter()
                    .find(|entry| entry.name == name)
                    .map(|entry| New::Values(&params.values()[entry.range.clone()])),
                (_, Some(Change::Replace(values))) => Some(New::Values(values)),
                (_, Some(Change::Update(update))) => Some(New::Update(update)),
                (_, None) => None,
            };
            Merged { base, name, change, dtype, problem: RefCell::default() }
        };
        Ok(base.shapes().map(|(name, _)| tensor(name)).collect())
    }

    /// Writes all tensors into `folder`, and what belongs to them.
    fn write_shards(
        &self,
        tensors: &[Merged<'_>],
        stem: &str,
        shard: usize,
        folder: &Path,
    ) -> Result<(), LoraFileError> {
        let mut shards: Vec<Vec<&Merged<'_>>> = vec![Vec::new()];
        let mut room = shard;
        for tensor in tensors {
            if tensor.data_len() > room && !shards.last().expect("invariant: never empty").is_empty() {
                shards.push(Vec::new());
                room = shard;
            }
            room = room.saturating_sub(tensor.data_len());
            shards.last_mut().expect("invariant: never empty").push(tensor);
        }
        let count = shards.len();
        let mut places = BTreeMap::new();
        for (i, shard) in shards.iter().enumerate() {
            let single = format!("{stem}.safetensors");
            let name = if count == 1 { single } else { format!("{stem}-{:05}-of-{count:05}.safetensors", i + 1) };
            self.serialize(shard.iter().copied(), &folder.join(&name))?;
            places.extend(shard.iter().map(|tensor| (tensor.name, name.clone())));
        }
        if count > 1 {
            let size: usize = tensors.iter().map(|tensor| tensor.data_len()).sum();
            let index = serde_json::json!({ "metadata": { "total_size": size }, "weight_map": places });
            let file = folder.join(format!("{stem}.safetensors.index.json"));
            elbow_runlog::write_atomic(&file, format!("{index:#}\n").as_bytes())?;
        }
        let config = self.base.place().join("config.json");
        if config.is_file() {
            fs::copy(&config, folder.join("config.json")).map_err(FolderError::write(folder))?;
        }
        Ok(())
    }

    /// Writes tensors to `file` and waits until the disk has them. What this program wrote into the base's header, such as
    /// the path from data to noise that it was made for, stays true of what is made of it.
    fn serialize<'t>(
        &self,
        tensors: impl Iterator<Item = &'t Merged<'t>> + Clone,
        file: &Path,
    ) -> Result<(), LoraFileError> {
        let mut metadata = self.about.metadata("");
        metadata.extend(self.base.metadata().get_key_value("elbow").map(|(key, value)| (key.clone(), value.clone())));
        serialize_to_file(tensors.clone().map(|tensor| (tensor.name, tensor)), Some(metadata), file)
            .map_err(FolderError::write(file))?;
        let problems: Vec<String> = tensors.filter_map(|tensor| tensor.problem.take()).collect();
        if !problems.is_empty() {
            return Err(LoraFileError::NotFinite { problems });
        }
        fs::File::open(file).and_then(|file| file.sync_all()).map_err(FolderError::write(file))?;
        Ok(())
    }
}

/// Everything trained must be in the base, under its shape and in a type that is read.
fn check(base: &Checkpoint, trained: Trained<'_>, changes: &BTreeMap<String, Change>) -> Result<(), LoraFileError> {
    let fits = |name: &str, shape: &dyn Fn(&[usize]) -> bool, trained: &dyn std::fmt::Debug| match base.stored(name) {
        None => Some(format!("  {name}: no such layer in the model")),
        Some((dtype, weight, _)) if shape(weight) => unreadable(dtype).map(|problem| format!("  {name}: {problem}")),
        Some((_, weight, _)) => Some(format!("  {name}: {trained:?}, the layer's weight is {weight:?}")),
    };
    let problems: Vec<String> = match trained {
        Trained::Full(params) => {
            let own = |e: &elbow::params::Entry| fits(&e.name, &|weight| weight == e.shape, &e.shape);
            params.entries().iter().filter_map(own).collect()
        }
        Trained::Adapter(_) | Trained::File(_) => {
            let own = |(name, change): (&String, &Change)| match change {
                Change::Replace(values) => {
                    fits(name, &|weight| weight.iter().product::<usize>() == values.len(), &values.len())
                }
                Change::Update(update) => {
                    let shape = update.delta.shape();
                    let same = |weight: &[usize]| {
                        !weight.is_empty() && [weight[0], weight[1..].iter().product::<usize>()] == shape
                    };
                    fits(name, &same, &shape)
                }
            };
            changes.iter().filter_map(own).collect()
        }
    };
    let path = base.place().into();
    if problems.is_empty() { Ok(()) } else { Err(LoraFileError::OtherModel { path, problems }) }
}

/// What a tensor becomes.
enum New<'a> {
    Update(&'a Update),
    Values(&'a [f32]),
}

/// A tensor of the base, changed when it is written.
struct Merged<'a> {
    base: &'a Checkpoint,
    name: &'a str,
    change: Option<New<'a>>,
    dtype: Dtype,
    /// Why what was written cannot be used.
    problem: RefCell<Option<String>>,
}

impl Merged<'_> {
    fn stored(&self) -> (Dtype, &[usize], &[u8]) {
        self.base.stored(self.name).expect("invariant: a name of the base")
    }

    /// The new values, in the type in which they are stored.
    fn bytes(&self) -> Cow<'_, [u8]> {
        let (stored, _, bytes) = self.stored();
        let values = match &self.change {
            None if stored == self.dtype => return Cow::Borrowed(bytes),
            None => Cow::Owned(self.base.values(self.name)),
            Some(New::Values(values)) => Cow::Borrowed(*values),
            Some(New::Update(update)) => {
                let mut values = self.base.values(self.name);
                update.apply(&mut values);
                Cow::Owned(values)
            }
        };
        Cow::Owned(match self.dtype {
            Dtype::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
            Dtype::BF16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
            _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        })
    }

    /// What is wrong with values that are not finite.
    fn complaint(&self) -> String {
        let (stored, _, bytes) = self.stored();
        let name = self.name;
        match self.dtype {
            _ if !finite(stored, bytes) => format!("  {name}: it is not finite in the base"),
            Dtype::F16 => format!("  {name}: it has values beyond 65504, the largest of f16"),
            dtype => format!("  {name}: it has values beyond the largest of {dtype:?}"),
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
        let bytes = self.bytes();
        if !finite(self.dtype, &bytes) {
            *self.problem.borrow_mut() = Some(self.complaint());
        }
        bytes
    }

    fn data_len(&self) -> usize {
        let (stored, _, bytes) = self.stored();
        bytes.len() * 8 / stored.bitsize() * self.dtype.bitsize() / 8
    }
}
