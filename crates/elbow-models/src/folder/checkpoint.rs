//! Weights on disk: one safetensors file or shards with an index, mapped into memory.

use super::{error::FolderError, json::read_json, recognize};
use burn::tensor::{DType, Device, TensorData};
use elbow::params::{Params, Tensors, to_f32};
use half::{bf16, f16};
use memmap2::{Mmap, MmapMut};
use safetensors::{SafeTensors, tensor::Dtype};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::{self, File},
    ops::Range,
    path::{Path, PathBuf},
};

/// Name and shape of each tensor a network needs.
pub type Shapes = Vec<(String, Vec<usize>)>;

/// In which type of number weights are held that are not trained. Arithmetic is in f32 either way, and so are trained weights,
/// with the same results bit for bit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum FrozenWeights {
    /// Matrices and tables as the files have them: f32, f16 or bf16. Those in half precision take half the memory, and are
    /// widened each time they are used. Vectors and the kernels of convolutions are in f32.
    #[default]
    Stored,
    /// All in f32, widened once, when they are read.
    F32,
}

impl FrozenWeights {
    /// Bytes in memory of tensors of these shapes that are stored in half precision.
    pub fn bytes<'a>(self, shapes: impl IntoIterator<Item = &'a [usize]>) -> usize {
        let size = |shape| if self.keeps(shape) { 2 } else { 4 };
        shapes.into_iter().map(|shape| size(shape) * shape.iter().product::<usize>()).sum()
    }

    /// Whether a tensor stays in half precision: what uses such shapes widens them.
    fn keeps(self, shape: &[usize]) -> bool {
        self == Self::Stored && matches!(shape.len(), 2 | 3)
    }
}

/// The tensors of one component. Opening it reads headers only; values are read when asked for, so a base of many
/// gigabytes is never held as file and as numbers at once.
#[derive(Debug)]
pub struct Checkpoint {
    place: PathBuf,
    files: Vec<(PathBuf, Mmap)>,
    tensors: BTreeMap<String, Stored>,
    metadata: HashMap<String, String>,
}

/// Where a tensor lies.
#[derive(Debug)]
struct Stored {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Range<usize>,
}

impl Checkpoint {
    /// The weights in `folder` under the names `<stem>.safetensors` or `<stem>.safetensors.index.json`. With a variant
    /// `v`, `<stem>.v.safetensors` or `<stem>.safetensors.index.v.json` come first; without one, `fp16` comes last. Shards whose index is
    /// missing are read if all of them are there.
    pub fn open(folder: &Path, stem: &str, variant: Option<&str>) -> Result<Self, FolderError> {
        let plain = [format!("{stem}.safetensors"), format!("{stem}.safetensors.index.json")];
        let other = variant.unwrap_or("fp16");
        let varied = [format!("{stem}.{other}.safetensors"), format!("{stem}.safetensors.index.{other}.json")];
        let names = if variant.is_some() { [varied, plain] } else { [plain, varied] }.concat();
        let Some(found) = names.iter().find(|name| folder.join(name).is_file()) else {
            let stems = [stem.to_owned(), format!("{stem}.{other}")];
            let order = if variant.is_some() { [1, 0] } else { [0, 1] };
            for stem in order.map(|i| &stems[i]) {
                if let Some(checkpoint) = Self::open_without_index(folder, stem)? {
                    return Ok(checkpoint);
                }
            }
            recognize::check_links(names.iter().map(|name| folder.join(name)))?;
            let hint = in_their_place(folder);
            return Err(FolderError::Missing { folder: folder.into(), files: names, hint });
        };
        if found.ends_with(".safetensors") {
            let mut checkpoint = Self::open_file(&folder.join(found))?;
            checkpoint.place = folder.into();
            return Ok(checkpoint);
        }
        Self::open_shards(folder, found)
    }

    /// A single file.
    pub fn open_file(path: &Path) -> Result<Self, FolderError> {
        let mut checkpoint = Self::empty(path);
        checkpoint.add(path, map(path)?)?;
        Ok(checkpoint)
    }

    /// A safetensors file that is in memory already; `place` is what errors call it.
    pub fn from_bytes(place: &Path, bytes: &[u8]) -> Result<Self, FolderError> {
        let mut checkpoint = Self::empty(place);
        let mut copy = MmapMut::map_anon(bytes.len().max(1)).map_err(FolderError::read(place))?;
        copy[..bytes.len()].copy_from_slice(bytes);
        checkpoint.add(place, copy.make_read_only().map_err(FolderError::read(place))?)?;
        Ok(checkpoint)
    }

    /// The shards an index lists; each tensor must be where the index says.
    fn open_shards(folder: &Path, index: &str) -> Result<Self, FolderError> {
        #[derive(serde::Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let index_path = folder.join(index);
        let Index { weight_map } = read_json(&index_path)?;
        let shards: BTreeSet<&String> = weight_map.values().collect();
        let all = Self::open_all(folder, shards.into_iter().map(String::as_str))?;
        let elsewhere = |(name, shard): (&String, &String)| match all.tensors.get(name) {
            None => Some(format!("  {shard}: {name}: listed in {index}, and not in the shard")),
            Some(t) if all.file_name(t.file) != *shard => Some(format!("  {shard}: {name}: it is in another shard")),
            Some(_) => None,
        };
        let problems: Vec<String> = weight_map.iter().filter_map(elsewhere).collect();
        if problems.is_empty() { Ok(all) } else { Err(FolderError::Mismatch { folder: folder.into(), problems }) }
    }

    /// Shards that number themselves, `<stem>-00001-of-00002.safetensors`; `None` if there is none.
    fn open_without_index(folder: &Path, stem: &str) -> Result<Option<Self>, FolderError> {
        let number = |name: &str| {
            let (_, of) =
                name.strip_prefix(stem)?.strip_prefix('-')?.strip_suffix(".safetensors")?.split_once("-of-")?;
            of.parse::<usize>().ok().filter(|_| of.len() == 5)
        };
        let Some(count) = names_in(folder).iter().find_map(|name| number(name)) else { return Ok(None) };
        let names: Vec<String> = (1..=count).map(|i| format!("{stem}-{i:05}-of-{count:05}.safetensors")).collect();
        Self::open_all(folder, names.iter().map(String::as_str)).map(Some)
    }

    /// Shards, all of which must be there.
    fn open_all<'a>(folder: &Path, shards: impl Iterator<Item = &'a str>) -> Result<Self, FolderError> {
        let (there, absent): (Vec<&str>, Vec<&str>) = shards.partition(|shard| folder.join(shard).is_file());
        recognize::check_links(absent.iter().map(|shard| folder.join(shard)))?;
        if !absent.is_empty() {
            let problems = absent.iter().map(|shard| format!("  {shard}: this shard is missing")).collect();
            return Err(FolderError::Mismatch { folder: folder.into(), problems });
        }
        let mut all = Self::empty(folder);
        for shard in there {
            let path = folder.join(shard);
            all.add(&path, map(&path)?)?;
        }
        Ok(all)
    }

    fn empty(place: &Path) -> Self {
        Self { place: place.into(), files: Vec::new(), tensors: BTreeMap::new(), metadata: HashMap::new() }
    }

    fn add(&mut self, path: &Path, map: Mmap) -> Result<(), FolderError> {
        if let Some(foreign) = recognize::in_place_of_weights(&map[..map.len().min(recognize::HEAD)]) {
            return Err(foreign.at(path));
        }
        let (header, metadata) = SafeTensors::read_metadata(&map)
            .map_err(|error| FolderError::Damaged { path: path.into(), reason: truncation(&map, &error) })?;
        let data = header + 8;
        for (name, info) in metadata.tensors() {
            let bytes = data + info.data_offsets.0..data + info.data_offsets.1;
            let stored = Stored { file: self.files.len(), dtype: info.dtype, shape: info.shape.clone(), bytes };
            if self.tensors.insert(name.clone(), stored).is_some() {
                let reason = format!("tensor `{name}` is in another shard too");
                return Err(FolderError::Damaged { path: path.into(), reason });
            }
        }
        self.metadata.extend(metadata.metadata().clone().unwrap_or_default());
        self.files.push((path.into(), map));
        Ok(())
    }

    /// Without the tensors that `not_wanted` names.
    #[must_use]
    pub fn without(mut self, not_wanted: impl Fn(&str) -> bool) -> Self {
        self.tensors.retain(|name, _| !not_wanted(name));
        self
    }

    /// The same tensors under other names.
    #[must_use]
    pub fn renamed(mut self, name: impl Fn(&str) -> String) -> Self {
        self.tensors = self.tensors.into_iter().map(|(old, tensor)| (name(&old), tensor)).collect();
        self
    }

    /// Adds all names, types, shapes and bytes to `hash`. How tensors are spread over files does not matter.
    pub fn digest(&self, hash: &mut Sha256) {
        for (name, t) in &self.tensors {
            hash.update(format!("{name} {:?} {:?}\n", t.dtype, t.shape));
            hash.update(&self.files[t.file].1[t.bytes.clone()]);
        }
    }

    /// The folder, or the only file.
    pub fn place(&self) -> &Path {
        &self.place
    }

    /// What the headers say beside the tensors.
    pub fn metadata(&self) -> &HashMap<String, String> {
        &self.metadata
    }

    /// Names and shapes of all tensors, in the order of their names.
    pub fn shapes(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.tensors.iter().map(|(name, t)| (name.as_str(), t.shape.as_slice()))
    }

    /// Whether there is a tensor called `name`.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// How a tensor is stored.
    pub(crate) fn stored(&self, name: &str) -> Option<(Dtype, &[usize], &[u8])> {
        let t = self.tensors.get(name)?;
        Some((t.dtype, &t.shape, &self.files[t.file].1[t.bytes.clone()]))
    }

    /// Everything in which the files differ from `shapes`, at once. Tensors in `extra` may be there and are not read.
    pub fn check(&self, shapes: &Shapes, extra: &[&str]) -> Result<(), FolderError> {
        let mut problems = Vec::new();
        for (name, expected) in shapes {
            match self.tensors.get(name) {
                None => problems.push(format!("  {name}: missing, {expected:?} expected")),
                Some(t) if t.shape != *expected => {
                    let file = self.file_name(t.file);
                    problems.push(format!("  {file}: {name}: {:?} in the file, {expected:?} expected", t.shape));
                }
                Some(t) => {
                    let told = |problem| format!("  {}: {name}: {problem}", self.file_name(t.file));
                    problems.extend(unreadable(t.dtype).map(told));
                }
            }
        }
        let known: BTreeSet<&str> = shapes.iter().map(|(name, _)| name.as_str()).chain(extra.iter().copied()).collect();
        let unknown = self.tensors.iter().filter(|(name, _)| !known.contains(name.as_str()));
        problems.extend(unknown.map(|(name, t)| format!("  {}: {name}: not in the network", self.file_name(t.file))));
        let lacks = shapes.iter().any(|(name, _)| !self.contains(name));
        if let Some(foreign) = lacks.then(|| recognize::layout(self.shapes())).flatten() {
            let file = self.files.first().map_or(&self.place, |(path, _)| path);
            return Err(foreign.at(file));
        }
        if problems.is_empty() { Ok(()) } else { Err(FolderError::Mismatch { folder: self.place.clone(), problems }) }
    }

    /// The tensors of `shapes` that hold NaN or an infinite number, at once: a network with such weights draws the same picture for every prompt.
    pub fn check_values(&self, shapes: &Shapes) -> Result<(), FolderError> {
        let broken = |(name, _): &(String, Vec<usize>)| {
            let (dtype, _, bytes) = self.stored(name)?;
            (!finite(dtype, bytes)).then(|| {
                let file = self.file_name(self.tensors[name].file);
                format!("  {file}: {name}: holds NaN or an infinite number")
            })
        };
        let problems: Vec<String> = shapes.iter().filter_map(broken).collect();
        if problems.is_empty() { Ok(()) } else { Err(FolderError::Mismatch { folder: self.place.clone(), problems }) }
    }

    /// The values of one tensor, in f32.
    ///
    /// # Panics
    /// If it is not there or not of a type that is read: [`Checkpoint::check`] comes first.
    pub fn values(&self, name: &str) -> Vec<f32> {
        let (dtype, _, bytes) = self.stored(name).expect("invariant: checked");
        to_f32(dtype, bytes).expect("invariant: checked")
    }

    /// The tensors of `shapes` as parameters, in that order, after [`Checkpoint::check`].
    pub fn params(&self, shapes: &Shapes, extra: &[&str]) -> Result<Params, FolderError> {
        self.check(shapes, extra)?;
        self.check_values(shapes)?;
        Ok(Params::new(shapes.iter().map(|(name, shape)| (name.clone(), shape.clone(), self.values(name)))))
    }

    /// The tensors of `shapes` on `device`, after [`Checkpoint::check`]: a frozen network, without a copy in between.
    pub fn tensors(
        &self,
        shapes: &Shapes,
        extra: &[&str],
        weights: FrozenWeights,
        device: &Device,
    ) -> Result<Tensors, FolderError> {
        self.check(shapes, extra)?;
        self.check_values(shapes)?;
        let held =
            |(name, shape): &(String, Vec<usize>)| (name.clone(), shape.clone(), self.held(name, weights, device));
        Ok(Tensors::frozen(shapes.iter().map(held), device))
    }

    /// The values of one tensor in the type of number in which they are held.
    fn held(&self, name: &str, weights: FrozenWeights, device: &Device) -> TensorData {
        let (dtype, shape, bytes) = self.stored(name).expect("invariant: checked");
        let keeps = |dtype: DType| weights.keeps(shape) && device.supports_dtype(dtype);
        let halves = || bytes.chunks_exact(2).map(|b| [b[0], b[1]]);
        let len = [shape.iter().product::<usize>()];
        match dtype {
            Dtype::BF16 if keeps(DType::BF16) => TensorData::new(halves().map(bf16::from_le_bytes).collect(), len),
            Dtype::F16 if keeps(DType::F16) => TensorData::new(halves().map(f16::from_le_bytes).collect(), len),
            _ => TensorData::new(self.values(name), len),
        }
    }

    fn file_name(&self, file: usize) -> &str {
        self.files[file].0.file_name().and_then(|name| name.to_str()).unwrap_or("?")
    }
}

/// Names of the files in a folder, in order.
fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// What a folder has in place of weights of the usual names.
fn in_their_place(folder: &Path) -> String {
    let names = names_in(folder);
    let ending = |ends: &'static [&'static str]| {
        let found = names.iter().filter(move |name| ends.iter().any(|end| name.ends_with(end)));
        found.map(String::as_str).collect::<Vec<_>>().join(", ")
    };
    let (pickled, quantized) = (ending(&[".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".h5"]), ending(&[".gguf"]));
    let (unfinished, others) =
        (ending(&[".incomplete", ".crdownload", ".part", ".aria2", ".download"]), ending(&[".safetensors"]));
    if !unfinished.is_empty() {
        format!(": {unfinished} shows that a download was not finished")
    } else if !others.is_empty() {
        format!(": there is {others}; if that is a variant, name it with model.variant")
    } else if !pickled.is_empty() {
        format!(": its weights are pickled ({pickled}); save them with safe_serialization=True")
    } else if !quantized.is_empty() {
        format!(": its weights are quantized ({quantized}); take them in f32, f16 or bf16")
    } else {
        String::new()
    }
}

/// Whether all values are finite: none has all bits of its exponent set. Types that are not read count as finite.
pub(crate) fn finite(dtype: Dtype, bytes: &[u8]) -> bool {
    let halves =
        |mask: u16| bytes.chunks_exact(2).fold(true, |all, b| all & (u16::from_le_bytes([b[0], b[1]]) & mask != mask));
    match dtype {
        Dtype::F32 => {
            let mask = f32::INFINITY.to_bits();
            bytes
                .chunks_exact(4)
                .fold(true, |all, b| all & (u32::from_le_bytes([b[0], b[1], b[2], b[3]]) & mask != mask))
        }
        Dtype::F16 => halves(f16::INFINITY.to_bits()),
        Dtype::BF16 => halves(bf16::INFINITY.to_bits()),
        _ => true,
    }
}

/// Why values of a type are not read, if they are not.
pub(crate) fn unreadable(dtype: Dtype) -> Option<String> {
    let read = matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16);
    (!read).then(|| format!("stored as {dtype:?}; f32, f16 and bf16 can be read"))
}

/// Maps a file. As with every mapped file, a program that changes it meanwhile changes what is read here.
#[expect(unsafe_code, reason = "a mapped file can be changed by others; weights are not written while they are read")]
fn map(path: &Path) -> Result<Mmap, FolderError> {
    let file = File::open(path).map_err(FolderError::read(path))?;
    // SAFETY: the map is only read, and no reference to it outlives `Checkpoint`.
    unsafe { Mmap::map(&file) }.map_err(FolderError::read(path))
}

/// What to say of a file whose header does not fit: if the file ends early, where, and in which tensor.
fn truncation(bytes: &[u8], error: &safetensors::SafeTensorError) -> String {
    let header = || {
        let length = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?) as usize;
        let json: serde_json::Value = serde_json::from_slice(bytes.get(8..length.checked_add(8)?)?).ok()?;
        let end = |info: &serde_json::Value| Some(info.get("data_offsets")?.get(1)?.as_u64()? as usize + length + 8);
        let ends = json.as_object()?.iter().filter_map(|(name, info)| Some((end(info)?, name.clone())));
        let mut cut: Vec<_> = ends.filter(|(end, _)| *end > bytes.len()).collect();
        cut.sort();
        let (last, first) = (cut.last()?.0, cut.first()?.1.clone());
        Some(format!("it is cut at {} of {last} bytes, in tensor `{first}`: download it again", bytes.len()))
    };
    header().unwrap_or_else(|| error.to_string())
}
