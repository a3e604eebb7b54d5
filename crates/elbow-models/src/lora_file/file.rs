//! An adapter's file as a whole.

use super::{
    Adapter, LoraFileError,
    delta::Update,
    layers::{Role, sort},
    names::Names,
    open::{Opened, open},
    read::{Problem, Reader},
};
use crate::folder::Shapes;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::{Path, PathBuf},
};

/// What an adapter does to one tensor of the network.
#[derive(Clone, Debug)]
pub(super) enum Change {
    /// It is updated.
    Update(Update),
    /// It is in the file as a whole.
    Replace(Vec<f32>),
}

/// An adapter's file, as far as it is for one network.
#[derive(Clone, Debug)]
pub struct AdapterFile {
    pub(super) path: PathBuf,
    /// By diffusers' name of the tensor.
    pub(super) changes: BTreeMap<String, Change>,
    /// Layers of other components, and what those are.
    left_out: BTreeMap<(&'static str, &'static str), usize>,
    header: HashMap<String, String>,
    /// The layers that were trained, if a configuration lists them.
    pub(super) target_modules: Option<Vec<String>>,
    scaled: bool,
}

/// Reads an adapter that training can go on from: see [`AdapterFile::read`] and [`AdapterFile::adapter`].
pub fn read(path: &Path, base: &Shapes) -> Result<Adapter, LoraFileError> {
    AdapterFile::read(path, base)?.adapter(base)
}

impl AdapterFile {
    /// Reads a folder of `peft`, of diffusers or of a trainer, or a `.safetensors` file in any of the formats at the top of
    /// this module, for the network whose tensors `base` lists. What the file holds for other components is left out and
    /// counted; whatever else cannot be used as a whole is an error.
    ///
    /// A layer's scale is alpha / rank: of PEFT's configuration, or of the layer's `.alpha`. Where none of the two is
    /// written alpha is the rank, which is what diffusers, ComfyUI and kohya's scripts take it for.
    pub fn read(path: &Path, base: &Shapes) -> Result<Self, LoraFileError> {
        let Opened { checkpoint, file, config } = open(path)?;
        let names = Names::of(base);
        let shapes: HashMap<&str, &[usize]> =
            base.iter().map(|(name, shape)| (name.as_str(), shape.as_slice())).collect();
        let sorted = sort(&checkpoint, &file, config.as_ref(), &names, &shapes)?;
        let reader = Reader { checkpoint: &checkpoint, file: &file, config: config.as_ref(), shapes: &shapes };
        let (mut changes, mut misfits, mut faults) = (BTreeMap::new(), Vec::new(), sorted.faults);
        let layers = sorted.layers.iter().map(|(name, (parts, tensors))| (name, reader.layer(name, parts, tensors)));
        let whole = sorted.whole.iter().map(|(tensor, name)| (name, reader.whole(tensor, name)));
        for (name, read) in layers.chain(whole) {
            match read {
                Ok(changed) => {
                    for (tensor, change) in changed {
                        if changes.contains_key(&tensor) {
                            faults.push(format!("  {name}: {tensor} is changed twice"));
                        }
                        changes.insert(tensor, change);
                    }
                }
                Err(Problem::Misfit(problem)) => misfits.push(problem),
                Err(Problem::Fault(problem)) => faults.push(problem),
                Err(Problem::Refused(error)) => return Err(*error),
            }
        }
        if !misfits.is_empty() {
            return Err(LoraFileError::OtherModel { path: file, problems: misfits });
        }
        if !faults.is_empty() {
            return Err(LoraFileError::Unusable { path: file, problems: faults });
        }
        let scaled = |tensors: &BTreeMap<Role, String>| {
            let alone = |role: &Role| matches!(role, Role::Weight | Role::Bias);
            tensors.contains_key(&Role::Alpha) || tensors.keys().all(alone)
        };
        let scaled = config.is_some() || sorted.layers.values().all(|(_, tensors)| scaled(tensors));
        let read = Self {
            path: file,
            changes,
            left_out: sorted.left_out,
            header: checkpoint.metadata().clone(),
            target_modules: config.and_then(|config| config.target_modules),
            scaled,
        };
        if read.changes.is_empty() {
            let left_out = read.left_out().map(|left_out| format!(": it holds {left_out}")).unwrap_or_default();
            return Err(LoraFileError::Empty { path: read.path, left_out });
        }
        Ok(read)
    }

    /// The entries of the file's header.
    pub fn header(&self) -> &HashMap<String, String> {
        &self.header
    }

    /// Number of layers of the network that it changes.
    pub fn layers(&self) -> usize {
        let layer = |tensor: &String| tensor.rsplit_once('.').map_or(tensor.clone(), |(layer, _)| layer.to_owned());
        self.changes.keys().map(layer).collect::<BTreeSet<_>>().len()
    }

    /// The names of its kinds in the field, such as `LoRA` and `DoRA`.
    pub fn kinds(&self) -> Vec<&'static str> {
        let kinds = self.updates().filter(|(tensor, _)| tensor.ends_with(".weight")).map(|(_, update)| update.kind());
        kinds.collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// The lowest and the highest rank, where there are ranks.
    pub fn ranks(&self) -> Option<(usize, usize)> {
        let ranks = self.updates().filter_map(|(_, update)| update.delta.rank());
        ranks.fold(None, |range, r| range.map_or(Some((r, r)), |(a, b): (usize, usize)| Some((a.min(r), b.max(r)))))
    }

    /// The lowest and the highest scale, alpha / rank, where weights are updated.
    pub fn scales(&self) -> Option<(f64, f64)> {
        let scales = self.updates().filter(|(tensor, _)| tensor.ends_with(".weight")).map(|(_, update)| update.scale);
        scales.fold(None, |range, s| range.map_or(Some((s, s)), |(a, b): (f64, f64)| Some((a.min(s), b.max(s)))))
    }

    /// Whether each layer's alpha is written; without one it is the rank.
    pub fn alpha_is_written(&self) -> bool {
        self.scaled
    }

    /// What is left out because it is for another component, in words.
    pub fn left_out(&self) -> Option<String> {
        let told = |((prefix, what), count): (&(&str, &str), &usize)| {
            format!("{count} {} of `{prefix}` ({what})", if *count == 1 { "layer" } else { "layers" })
        };
        let all: Vec<String> = self.left_out.iter().map(told).collect();
        (!all.is_empty()).then(|| all.join(", "))
    }

    fn updates(&self) -> impl Iterator<Item = (&String, &Update)> {
        self.changes.iter().filter_map(|(tensor, change)| match change {
            Change::Update(update) => Some((tensor, update)),
            Change::Replace(_) => None,
        })
    }
}
