//! Parameters as one flat vector, and the tensors cut from it.
//!
//! Everything a trainer does *to* parameters (optimizer step, moving averages, lagged copies, checkpoints, norms) is
//! arithmetic on one flat slice; everything a network does *with* them starts from named tensors. [`Params`] is the
//! first, [`Tensors`] the second, and [`Params::tensors`] the bridge.

use crate::gradient::Gradient;
use burn::tensor::{DType, Device, Gradients, Tensor, TensorData};
use rayon::prelude::*;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::{collections::BTreeMap, ops::Range, sync::Arc};

/// Values that one task of several goes through.
pub(crate) const TASK: usize = 1 << 16;

/// Why a set of weights does not fit a network.
#[derive(Debug, thiserror::Error)]
pub enum WeightError {
    /// The bytes are not a safetensors file: truncated, or something else.
    #[error("not a complete safetensors file: {0}")]
    Format(#[from] safetensors::SafeTensorError),
    /// A tensor in a type that is not read.
    #[error("tensor `{name}` is stored as {dtype:?}; f32, f16 and bf16 can be read")]
    Dtype {
        /// The tensor's name.
        name: String,
        /// How it is stored.
        dtype: Dtype,
    },
    /// Names or shapes differ from what the network expects: everything that is wrong, at once.
    #[error("the weights do not fit the network:\n{}", problems.join("\n"))]
    Mismatch {
        /// One line per tensor.
        problems: Vec<String>,
    },
}

/// Where one named tensor lies in the flat vector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The tensor's name, as in a checkpoint.
    pub name: String,
    /// Its shape, row-major.
    pub shape: Vec<usize>,
    /// Its place in the flat vector.
    pub range: Range<usize>,
}

/// Named tensors laid end to end in one `f32` vector, in the order they were given. Clones share the values until one of them is changed,
/// so that to keep a state costs nothing before the next one differs from it.
#[derive(Clone, Debug, PartialEq)]
pub struct Params {
    layout: Arc<Vec<Entry>>,
    values: Arc<Vec<f32>>,
}

impl Params {
    /// Lays out `(name, shape, values)` in order.
    ///
    /// # Panics
    /// If a shape does not hold as many values as given.
    pub fn new(tensors: impl IntoIterator<Item = (String, Vec<usize>, Vec<f32>)>) -> Self {
        let (mut layout, mut values) = (Vec::new(), Vec::new());
        for (name, shape, data) in tensors {
            assert_eq!(shape.iter().product::<usize>(), data.len(), "invariant: `{name}` holds its shape");
            layout.push(Entry { name, shape, range: values.len()..values.len() + data.len() });
            values.extend(data);
        }
        Self { layout: Arc::new(layout), values: Arc::new(values) }
    }

    /// The entries whose name passes.
    #[must_use]
    pub fn filtered(&self, keep: impl Fn(&str) -> bool) -> Self {
        let kept = self.layout.iter().filter(|e| keep(&e.name));
        Self::new(kept.map(|e| (e.name.clone(), e.shape.clone(), self.values[e.range.clone()].to_vec())))
    }

    /// Takes the values of the entries that `other` has too; names and shapes there must be known here.
    pub fn assign(&mut self, other: &Self) {
        for entry in other.layout.iter() {
            let own = self.layout.iter().find(|e| e.name == entry.name).expect("invariant: a known name");
            Arc::make_mut(&mut self.values)[own.range.clone()].copy_from_slice(&other.values[entry.range.clone()]);
        }
    }

    /// The same layout, all zeros.
    #[must_use]
    pub fn zeros_like(&self) -> Self {
        Self { layout: Arc::clone(&self.layout), values: Arc::new(vec![0.0; self.values.len()]) }
    }

    /// The entries, in order.
    pub fn entries(&self) -> &[Entry] {
        &self.layout
    }

    /// All values, entry after entry.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// The entries, and all values to be changed in place.
    pub(crate) fn parts_mut(&mut self) -> (&[Entry], &mut [f32]) {
        (&self.layout, Arc::make_mut(&mut self.values).as_mut_slice())
    }

    /// All values, to be changed in place.
    pub fn values_mut(&mut self) -> &mut [f32] {
        Arc::make_mut(&mut self.values).as_mut_slice()
    }

    /// `self ← decay · self + (1 − decay) · target`, value by value.
    pub fn decay_toward(&mut self, target: &Self, decay: f64) {
        let (keep, take) = (decay as f32, (1.0 - decay) as f32);
        let pairs = self.values_mut().par_iter_mut().zip(target.values()).with_min_len(TASK);
        pairs.for_each(|(own, new)| *own = keep * *own + take * new);
    }

    /// Multiplies all values.
    pub fn scale(&mut self, factor: f32) {
        self.values_mut().par_iter_mut().with_min_len(TASK).for_each(|value| *value *= factor);
    }

    /// One tensor per entry on `device`. On an autodiff device the tensors are leaves that collect gradients.
    pub fn tensors(&self, device: &Device) -> Tensors {
        let leaf = |e: &Entry| {
            let data = TensorData::new(self.values[e.range.clone()].to_vec(), [e.range.len()]);
            let flat = Tensor::<1>::from_data(data, device);
            let flat = if device.is_autodiff() { flat.require_grad() } else { flat };
            (e.name.clone(), Named { shape: e.shape.clone(), flat })
        };
        Tensors { named: self.layout.iter().map(leaf).collect() }
    }

    /// Adds the gradients of `leaves` (made by [`Params::tensors`] of the same layout) to this vector.
    /// A leaf the loss does not depend on adds nothing.
    pub fn add_gradients(&mut self, leaves: &Tensors, gradients: &mut Gradients) {
        Gradient::take(self, leaves, gradients).add_to(self);
    }

    /// The safetensors file of these parameters, `metadata` in its header.
    pub fn to_safetensors(&self, metadata: Option<std::collections::HashMap<String, String>>) -> Vec<u8> {
        self.serialize(Dtype::F32, metadata, |v| v.to_le_bytes().to_vec())
    }

    /// The same, rounded to `f16`: half the size, for weights that are shipped.
    pub fn to_safetensors_f16(&self, metadata: Option<std::collections::HashMap<String, String>>) -> Vec<u8> {
        self.serialize(Dtype::F16, metadata, |v| half::f16::from_f32(v).to_le_bytes().to_vec())
    }

    fn serialize(
        &self,
        dtype: Dtype,
        metadata: Option<std::collections::HashMap<String, String>>,
        encode: impl Fn(f32) -> Vec<u8>,
    ) -> Vec<u8> {
        let bytes = |e: &Entry| self.values[e.range.clone()].iter().flat_map(|&v| encode(v)).collect::<Vec<u8>>();
        let bytes: Vec<Vec<u8>> = self.layout.iter().map(bytes).collect();
        let views = self.layout.iter().zip(&bytes).map(|(e, b)| {
            let view = TensorView::new(dtype, e.shape.clone(), b).expect("invariant: bytes fill the shape");
            (e.name.as_str(), view)
        });
        safetensors::serialize(views, metadata).expect("invariant: a valid header")
    }

    /// Every tensor of a safetensors file, in the order of its header.
    pub fn from_safetensors(file: &[u8]) -> Result<Self, WeightError> {
        let read = SafeTensors::deserialize(file)?;
        let mut names: Vec<&str> = read.names().into_iter().map(AsRef::as_ref).collect();
        // Where a tensor lies in the file, whose writer sorts tensors of one type by their names.
        names.sort_by_key(|name| read.tensor(name).map_or(0, |view| view.data().as_ptr() as usize));
        let mut found = read_safetensors(file)?;
        Ok(Self::new(names.into_iter().filter_map(|name| {
            let (shape, values) = found.remove(name)?;
            Some((name.to_owned(), shape, values))
        })))
    }

    /// Reads the entries of `self`'s layout from a safetensors file that holds exactly those.
    pub fn with_values_of(&self, file: &[u8]) -> Result<Self, WeightError> {
        let found = read_safetensors(file)?;
        let mut problems = Vec::new();
        let mut values = Vec::with_capacity(self.values.len());
        for entry in self.layout.iter() {
            match found.get(&entry.name) {
                Some((shape, data)) if *shape == entry.shape => values.extend_from_slice(data),
                Some((shape, _)) => {
                    problems.push(format!("  {}: {shape:?} in the file, {:?} expected", entry.name, entry.shape));
                }
                None => problems.push(format!("  {}: missing, {:?} expected", entry.name, entry.shape)),
            }
        }
        let known: std::collections::BTreeSet<_> = self.layout.iter().map(|e| &e.name).collect();
        problems.extend(found.keys().filter(|n| !known.contains(n)).map(|n| format!("  {n}: not in the network")));
        if problems.is_empty() {
            Ok(Self { layout: Arc::clone(&self.layout), values: Arc::new(values) })
        } else {
            Err(WeightError::Mismatch { problems })
        }
    }

    /// Euclidean norm of all values, accumulated in `f64`.
    pub fn norm(&self) -> f64 {
        let squares = |values: &[f32]| {
            // Several sums, since one would wait for each addition.
            let mut sums = [0.0; 8];
            for values in values.chunks(sums.len()) {
                sums.iter_mut().zip(values).for_each(|(sum, &v)| *sum += f64::from(v).powi(2));
            }
            sums.iter().sum::<f64>()
        };
        // Collected first: the order of the sum does not depend on the threads.
        let parts: Vec<f64> = self.values.par_chunks(TASK).map(squares).collect();
        parts.iter().sum::<f64>().sqrt()
    }
}

/// A tensor and its shape; the tensor is flat so that tensors of every rank live in one map.
#[derive(Clone, Debug)]
struct Named {
    shape: Vec<usize>,
    flat: Tensor<1>,
}

/// Named tensors on a device: what a network is built from. Clones share their data.
#[derive(Clone, Debug, Default)]
pub struct Tensors {
    named: BTreeMap<String, Named>,
}

impl Tensors {
    /// Tensors without gradients, from name, shape and values in a row; each is moved to `device` before the next is asked
    /// for, and stays in the type of number it comes in.
    pub fn frozen(named: impl IntoIterator<Item = (String, Vec<usize>, TensorData)>, device: &Device) -> Self {
        let device = device.clone().without_autodiff();
        let tensor = |(name, shape, values): (String, Vec<usize>, TensorData)| {
            let dtype = values.dtype();
            (name, Named { shape, flat: Tensor::from_data(values, (&device, dtype)) })
        };
        Self { named: named.into_iter().map(tensor).collect() }
    }

    /// The tensor called `name`: in f32 but for frozen weights in another type ([`Tensors::frozen`]).
    ///
    /// # Panics
    /// If there is none of that name and rank. Files are checked against the layout when they are read
    /// ([`Params::with_values_of`]), so a miss here is a bug of the network, not of its user.
    pub fn tensor<const D: usize>(&self, name: &str) -> Tensor<D> {
        let named = self.named.get(name).unwrap_or_else(|| panic!("invariant: the layout has `{name}`"));
        let shape: [usize; D] = named.shape.clone().try_into().expect("invariant: the network knows its ranks");
        named.flat.clone().reshape(shape)
    }

    /// These tensors, replaced by those of the same name in `other`, which may add more.
    #[must_use]
    pub fn overlaid(&self, other: &Self) -> Self {
        let mut named = self.named.clone();
        named.extend(other.named.iter().map(|(n, t)| (n.clone(), t.clone())));
        Self { named }
    }

    /// Those whose name begins with `prefix`.
    #[must_use]
    pub fn under(&self, prefix: &str) -> Self {
        let from = self.named.range(prefix.to_owned()..).take_while(|(name, _)| name.starts_with(prefix));
        Self { named: from.map(|(n, t)| (n.clone(), t.clone())).collect() }
    }

    /// Whether any of them collects gradients.
    pub fn collects_gradients(&self) -> bool {
        self.named.values().any(|t| t.flat.is_require_grad())
    }

    /// Those that collect gradients, and the others.
    pub fn by_gradient(&self) -> (Self, Self) {
        let (leaves, others) = self.named.clone().into_iter().partition(|(_, t)| t.flat.is_require_grad());
        (Self { named: leaves }, Self { named: others })
    }

    /// All values in one vector through which gradients flow back, if there are any, and where each tensor lies in it.
    pub fn joined(&self) -> (Option<Tensor<1>>, Vec<Entry>) {
        let mut end = 0;
        let entry = |(name, tensor): (&String, &Named)| {
            let start = end;
            end += tensor.flat.dims()[0];
            Entry { name: name.clone(), shape: tensor.shape.clone(), range: start..end }
        };
        let entries = self.named.iter().map(entry).collect();
        let flat: Vec<_> = self.named.values().map(|t| t.flat.clone()).collect();
        ((!flat.is_empty()).then(|| Tensor::cat(flat, 0)), entries)
    }

    /// The tensors that lie in a vector as [`joined`](Self::joined) made it.
    pub fn cut(vector: &Tensor<1>, entries: &[Entry]) -> Self {
        let tensor = |e: &Entry| {
            let flat = vector.clone().narrow(0, e.range.start, e.range.len());
            (e.name.clone(), Named { shape: e.shape.clone(), flat })
        };
        Self { named: entries.iter().map(tensor).collect() }
    }

    /// The same values as leaves that collect gradients.
    #[must_use]
    pub fn leaves(&self) -> Self {
        let leaf = |t: &Named| Named { shape: t.shape.clone(), flat: t.flat.clone().autodiff().require_grad() };
        Self { named: self.named.iter().map(|(name, t)| (name.clone(), leaf(t))).collect() }
    }

    /// The gradients of all these leaves end to end, as [`joined`](Self::joined) lays them out; zero for one that the loss
    /// does not depend on. None if there are no leaves.
    pub fn gradients(&self, gradients: &mut Gradients) -> Option<Tensor<1>> {
        let gradient = |t: &Named| {
            let zero = || t.flat.clone().without_autodiff().zeros_like();
            t.flat.grad_remove(gradients).unwrap_or_else(zero)
        };
        let all: Vec<_> = self.named.values().map(gradient).collect();
        (!all.is_empty()).then(|| Tensor::cat(all, 0))
    }

    /// The values of the tensors with the given names and shapes, copied, in f32 whatever they are held in.
    ///
    /// # Panics
    /// If one is missing.
    pub fn params<'a>(&self, layout: impl IntoIterator<Item = (&'a str, &'a [usize])>) -> Params {
        Params::new(layout.into_iter().map(|(name, shape)| {
            let flat = self.named.get(name).map(|named| named.flat.clone());
            let flat = flat.expect("invariant: the tensors are those of the layout").cast(DType::F32);
            (name.to_owned(), shape.to_vec(), flat.into_data().try_into_vec().expect("invariant: cast to f32"))
        }))
    }

    /// The values of a tensor.
    pub(crate) fn flat(&self, name: &str) -> Option<&Tensor<1>> {
        self.named.get(name).map(|named| &named.flat)
    }

    /// Whether there is a tensor called `name`.
    pub fn contains(&self, name: &str) -> bool {
        self.named.contains_key(name)
    }
}

/// Shape and values.
type Values = (Vec<usize>, Vec<f32>);

/// Every tensor of a safetensors file as `f32`.
fn read_safetensors(file: &[u8]) -> Result<BTreeMap<String, Values>, WeightError> {
    let file = SafeTensors::deserialize(file)?;
    file.iter()
        .map(|(name, view)| {
            let values = to_f32(view.dtype(), view.data())
                .ok_or_else(|| WeightError::Dtype { name: name.to_owned(), dtype: view.dtype() })?;
            Ok((name.to_owned(), (view.shape().to_vec(), values)))
        })
        .collect()
}

/// Little-endian f32, f16 or bf16 as `f32`; no other type is read.
pub fn to_f32(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    let halves = || bytes.chunks_exact(2).map(|b| [b[0], b[1]]);
    Some(match dtype {
        Dtype::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        Dtype::F16 => halves().map(|b| half::f16::from_le_bytes(b).to_f32()).collect(),
        Dtype::BF16 => halves().map(|b| half::bf16::from_le_bytes(b).to_f32()).collect(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two() -> Params {
        Params::new([("b".into(), vec![2, 1], vec![1.0, 2.0]), ("a".into(), vec![1], vec![3.0])])
    }

    #[test]
    fn safetensors_round_trip_keeps_order_and_values() {
        let file = two().to_safetensors(None);
        assert_eq!(two().zeros_like().with_values_of(&file).expect("reads back"), two());
    }

    #[test]
    fn clones_share_values_until_one_changes() {
        let before = two();
        let mut after = before.clone();
        assert!(Arc::ptr_eq(&before.values, &after.values));
        after.values_mut()[0] = 5.0;
        assert_eq!((before.values(), after.values()), (&[1.0, 2.0, 3.0][..], &[5.0, 2.0, 3.0][..]));
    }

    #[test]
    fn every_mismatch_is_named() {
        let file = Params::new([("b".into(), vec![3], vec![0.0; 3]), ("c".into(), vec![1], vec![0.0])]);
        let error = two().with_values_of(&file.to_safetensors(None)).expect_err("differs").to_string();
        for part in ["b: [3] in the file, [2, 1] expected", "a: missing", "c: not in the network"] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn truncated_file_is_an_error() {
        let file = two().to_safetensors(None);
        assert!(matches!(two().with_values_of(&file[..file.len() - 1]), Err(WeightError::Format(_))));
    }

    #[test]
    fn decay_is_the_weight_on_the_old_value() {
        let mut lagged = two();
        lagged.decay_toward(&two().zeros_like(), 0.75);
        assert_eq!(lagged.values(), [0.75, 1.5, 2.25]);
    }
}
