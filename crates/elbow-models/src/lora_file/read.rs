//! Reading an adapter of any program, against the tensors of the model it is for.

use super::{
    Adapter, LoraFileError,
    config::Config,
    delta::{Delta, Magnitude, Matrix, Product, Update},
    layer_and_side,
    names::{Names, Part, Place, bare},
    open::{Opened, open},
};
use crate::{
    folder::{Checkpoint, Shapes},
    lora::LoraConfig,
};
use elbow::{
    noise::{Key, Purpose},
    params::to_f32,
};
use safetensors::tensor::Dtype;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Range,
    path::{Path, PathBuf},
};

/// What a tensor is to its layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Role {
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
const OTHER_KINDS: [(&str, &str); 17] = [
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
    path: PathBuf,
    /// By diffusers' name of the tensor.
    pub(super) changes: BTreeMap<String, Change>,
    /// Layers of other components, and what those are.
    left_out: BTreeMap<(&'static str, &'static str), usize>,
    header: HashMap<String, String>,
    target_modules: Option<Vec<String>>,
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
        let mut insert = |tensor: String, change: Change, from: &str, faults: &mut Vec<String>| {
            if changes.insert(tensor.clone(), change).is_some() {
                faults.push(format!("  {from}: {tensor} is changed twice"));
            }
        };
        for (name, (parts, tensors)) in &sorted.layers {
            match reader.layer(name, parts, tensors) {
                Ok(changed) => {
                    for (tensor, change) in changed {
                        insert(tensor, change, name, &mut faults);
                    }
                }
                Err(Problem::Misfit(problem)) => misfits.push(problem),
                Err(Problem::Fault(problem)) => faults.push(problem),
                Err(Problem::Refused(error)) => return Err(*error),
            }
        }
        for (tensor, name) in &sorted.whole {
            match reader.matrix(name) {
                Ok(matrix) => insert(tensor.clone(), Change::Replace(matrix.values), name, &mut faults),
                Err(Problem::Misfit(problem) | Problem::Fault(problem)) => faults.push(problem),
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

    /// The same as factors of one rank and one scale, which is what training has; `base` are the shapes it was read with.
    /// Of plain LoRA of dense layers only.
    ///
    /// Layers of lower rank get rows of A as [`LoraConfig::initial`] makes them and columns of B that are zero, so that they
    /// compute the same and can use the whole rank from here on. Where scales differ, the one that most layers have becomes
    /// that of all, and B is multiplied by the layer's own scale over it.
    pub fn adapter(&self, base: &Shapes) -> Result<Adapter, LoraFileError> {
        let shapes: HashMap<&str, &[usize]> =
            base.iter().map(|(name, shape)| (name.as_str(), shape.as_slice())).collect();
        let mut layers = BTreeMap::new();
        for (tensor, change) in &self.changes {
            let refused = |value: &str| LoraFileError::Unsupported {
                path: self.path.clone(),
                field: tensor.clone(),
                value: value.into(),
                accepted: "training starts from plain LoRA of dense layers".into(),
            };
            let layer = tensor.strip_suffix(".weight").ok_or_else(|| refused("a bias that was trained"))?;
            match change {
                Change::Replace(_) => return Err(refused("a weight that was trained as a whole")),
                Change::Update(Update { delta: Delta::Product(product), scale, magnitude: None }) => {
                    if shapes[tensor.as_str()].len() != 2 {
                        return Err(refused("the kernel of a convolution"));
                    }
                    layers.insert(layer.to_owned(), (product, *scale));
                }
                Change::Update(update) => return Err(refused(&format!("changed by a {}", update.kind()))),
            }
        }
        let rank = layers.values().map(|(product, _)| product.a.rows).max().expect("invariant: there is a layer");
        let mut count = HashMap::<u64, usize>::new();
        for (_, scale) in layers.values() {
            *count.entry(scale.to_bits()).or_default() += 1;
        }
        let common = layers.values().map(|(_, scale)| *scale).max_by_key(|scale| count[&scale.to_bits()]);
        let common = common.expect("invariant: there is a layer");
        if common == 0.0 {
            let value = "0".into();
            let accepted = "training cannot start from an adapter that is scaled by 0".into();
            return Err(LoraFileError::Unsupported { path: self.path.clone(), field: "alpha".into(), value, accepted });
        }
        let alpha = common * rank as f64;
        // The quotient was rounded, and alpha was a whole number more often than not.
        let whole = (alpha.round() / rank as f64).to_bits() == common.to_bits();
        let alpha = if whole { alpha.round() } else { alpha };
        let target_modules = targets(self.target_modules.clone(), |layer| layers.contains_key(layer), base);
        let config = LoraConfig { rank, alpha, target_modules };
        let tensors = base.iter().map(|(name, shape)| (name.as_str(), shape.as_slice()));
        let mut factors = config.initial(tensors, Key::new(0, Purpose::Initialization, 0));
        let entries = factors.entries().to_vec();
        for entry in entries {
            let (layer, side) = layer_and_side(&entry.name).expect("invariant: factors have PEFT's names");
            let (product, scale) = &layers[layer];
            let values = &mut factors.values_mut()[entry.range];
            if side == "A" {
                values[..product.a.values.len()].copy_from_slice(&product.a.values);
            } else {
                let factor = (scale / common) as f32;
                for (row, own) in values.chunks_mut(rank).zip(product.b.values.chunks(product.b.columns)) {
                    row.iter_mut().zip(own).for_each(|(value, own)| *value = own * factor);
                }
            }
        }
        Ok(Adapter { config, factors })
    }
}

/// The tensors of a file by what they are for.
#[derive(Default)]
struct Sorted {
    /// By the name that the tables know: what of the network the layer is, and its tensors.
    layers: BTreeMap<String, (Vec<Part>, BTreeMap<Role, String>)>,
    /// Tensors of the network that are there as a whole, and their names in the file.
    whole: BTreeMap<String, String>,
    left_out: BTreeMap<(&'static str, &'static str), usize>,
    faults: Vec<String>,
}

fn sort(
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

/// Why a layer cannot be used.
enum Problem {
    /// It is not one of this model.
    Misfit(String),
    /// It is damaged.
    Fault(String),
    /// The whole file is refused.
    Refused(Box<LoraFileError>),
}

/// Reads the layers of a file.
struct Reader<'a> {
    checkpoint: &'a Checkpoint,
    file: &'a Path,
    config: Option<&'a Config>,
    shapes: &'a HashMap<&'a str, &'a [usize]>,
}

impl Reader<'_> {
    /// What one layer of the file changes.
    fn layer(
        &self,
        name: &str,
        parts: &[Part],
        tensors: &BTreeMap<Role, String>,
    ) -> Result<Vec<(String, Change)>, Problem> {
        let (mut changed, mut push) = (Vec::new(), Vec::new());
        let weights: Vec<&[usize]> =
            parts.iter().map(|part| self.shapes[format!("{}.weight", part.layer).as_str()]).collect();
        let columns: usize = weights[0][1.min(weights[0].len())..].iter().product();
        let rows: usize = parts.iter().flat_map(|part| &part.rows).map(Range::len).sum();
        // Of one layer its weight's shape, of several that of all together.
        let shape = if parts.len() == 1 { weights[0].to_vec() } else { vec![rows, columns] };
        let misfit = |role: Role| {
            let tensor = &tensors[&role];
            let found = self.checkpoint.stored(tensor).expect("invariant: a name of the file").1;
            Problem::Misfit(format!("  {tensor}: {found:?} in the file, the layer's weight is {shape:?}"))
        };
        let delta = self.delta(tensors, [rows, columns], &misfit)?;
        let dim = delta.as_ref().and_then(|(_, dim)| *dim);
        let scale = match &delta {
            Some((Delta::Whole(_), _)) => 1.0,
            _ => self.scale(name, dim, tensors)?,
        };
        let magnitude = self.magnitude(name, tensors, rows, weights[0], parts.len(), &misfit)?;
        match delta {
            Some((delta, _)) => push.push((".weight", Update { delta, scale, magnitude })),
            None if magnitude.is_some() => return Err(fault(name, "has magnitudes and nothing else")),
            None => {}
        }
        for (role, scale) in [(Role::UpBias, scale), (Role::Bias, 1.0)] {
            if let Some(tensor) = tensors.get(&role) {
                let mut bias = self.matrix(tensor)?;
                (bias.rows, bias.columns) = (bias.values.len(), 1);
                push.push((".bias", Update { delta: Delta::Whole(bias), scale, magnitude: None }));
            }
        }
        if push.is_empty() {
            return Err(fault(name, "has an alpha and no factors"));
        }
        for part in parts {
            for (end, update) in &push {
                let tensor = format!("{}{end}", part.layer);
                let fits = self
                    .shapes
                    .get(tensor.as_str())
                    .is_some_and(|shape| shape[0] == part.rows.iter().map(Range::len).sum::<usize>());
                if !fits || update.delta.shape()[0] != rows {
                    return Err(Problem::Misfit(format!("  {name}: the model has no {tensor} of that size")));
                }
                changed.push((tensor, Change::Update(update.select(&part.rows))));
            }
        }
        Ok(changed)
    }

    /// ΔW of all rows, and what alpha is divided by; none of a layer whose bias alone changes.
    fn delta(
        &self,
        tensors: &BTreeMap<Role, String>,
        [rows, columns]: [usize; 2],
        misfit: &dyn Fn(Role) -> Problem,
    ) -> Result<Option<(Delta, Option<usize>)>, Problem> {
        let has = |role: Role| tensors.contains_key(&role);
        let any = |roles: &[Role]| roles.iter().any(|role| has(*role));
        let get = |role: Role| {
            let there = tensors.values().next().expect("invariant: a layer has a tensor");
            let missing = || fault(there, "one of its two factors is missing");
            self.matrix(tensors.get(&role).ok_or_else(missing)?)
        };
        // B A, with a core between them if there is one. In Tucker form LyCORIS turns B of LoHa and LoKr around.
        let product = |b: Role, core: Option<Role>, a: Role| {
            let (left, right) = (get(b)?, get(a)?);
            let Some(role) = core.filter(|core| has(*core)) else {
                return if left.columns == right.rows { Ok(Product { b: left, a: right }) } else { Err(misfit(b)) };
            };
            let (left, core) = (if role == Role::Mid { left } else { left.transposed() }, get(role)?);
            if left.columns != core.rows || core.columns % right.rows != 0 {
                return Err(misfit(role));
            }
            Ok(Product::tucker(left, &core, &right))
        };
        let fits = |product: &Product, b: Role, a: Role| match [product.b.rows, product.a.columns] {
            [out, _] if out != rows => Err(misfit(b)),
            [_, input] if input != columns => Err(misfit(a)),
            _ => Ok(()),
        };
        if any(&[Role::Down, Role::Up, Role::Mid]) {
            let product = product(Role::Up, Some(Role::Mid), Role::Down)?;
            fits(&product, Role::Up, Role::Down)?;
            let rank = product.a.rows;
            return Ok(Some((Delta::Product(product), Some(rank))));
        }
        if any(&[Role::W1A, Role::W1B, Role::W2A, Role::W2B]) {
            let one = product(Role::W1A, Some(Role::T1), Role::W1B)?;
            let other = product(Role::W2A, Some(Role::T2), Role::W2B)?;
            fits(&one, Role::W1A, Role::W1B)?;
            fits(&other, Role::W2A, Role::W2B)?;
            let rank = one.a.rows;
            return Ok(Some((Delta::Hadamard(one, other), Some(rank))));
        }
        if any(&[Role::L, Role::LA, Role::LB, Role::R, Role::RA, Role::RB]) {
            let factor = |whole: Role, b: Role, core: Option<Role>, a: Role| {
                if has(whole) {
                    return Ok((get(whole)?, None));
                }
                let product = product(b, core, a)?;
                Ok((product.matrix(), Some(product.a.rows)))
            };
            let (left, of_left) = factor(Role::L, Role::LA, None, Role::LB)?;
            let (right, of_right) = factor(Role::R, Role::RA, Some(Role::RT), Role::RB)?;
            let rank = of_right.or(of_left);
            if left.rows * right.rows != rows || left.columns * right.columns != columns {
                return Err(misfit(if has(Role::R) { Role::R } else { Role::RB }));
            }
            return Ok(Some((Delta::Kronecker { left, right, rows: (0..rows).collect() }, rank)));
        }
        let Some(tensor) = tensors.get(&Role::Weight) else { return Ok(None) };
        let whole = self.matrix(tensor)?;
        if whole.values.len() != rows * columns {
            return Err(misfit(Role::Weight));
        }
        Ok(Some((Delta::Whole(Matrix { rows, columns, values: whole.values }), None)))
    }

    /// s of one layer; `dim` is the rank of its factors, if they have one.
    fn scale(&self, name: &str, dim: Option<usize>, tensors: &BTreeMap<Role, String>) -> Result<f64, Problem> {
        let written = tensors.get(&Role::Alpha).map(|tensor| self.alpha(tensor)).transpose()?;
        let Some(config) = self.config else {
            return Ok(written.zip(dim).map_or(1.0, |(alpha, dim)| alpha / dim as f64));
        };
        let refused = |path: &Path, field: &str, value: String, accepted: String| {
            let (path, field) = (path.into(), field.into());
            Problem::Refused(Box::new(LoraFileError::Unsupported { path, field, value, accepted }))
        };
        let rank = config.rank(name);
        if let Some((rank, dim)) = rank.zip(dim).filter(|(rank, dim)| rank != dim) {
            let accepted = format!("the factors of {name} have rank {dim}");
            return Err(refused(&config.place, "r", rank.to_string(), accepted));
        }
        let alpha = config.alpha(name);
        // The file's may be rounded to f16.
        if let Some(written) = written.filter(|written| (written - alpha).abs() > 1e-3 * alpha.abs()) {
            let accepted = format!("the configuration says {alpha}");
            return Err(refused(self.file, &format!("{name}.alpha"), written.to_string(), accepted));
        }
        Ok(config.scale(name, rank.or(dim).unwrap_or(1)))
    }

    fn magnitude(
        &self,
        name: &str,
        tensors: &BTreeMap<Role, String>,
        rows: usize,
        weight: &[usize],
        parts: usize,
        misfit: &dyn Fn(Role) -> Problem,
    ) -> Result<Option<Magnitude>, Problem> {
        if let Some(tensor) = tensors.get(&Role::MagnitudeVector) {
            let all = self.matrix(tensor)?.values;
            return if all.len() == rows { Ok(Some(Magnitude::Rows(all))) } else { Err(misfit(Role::MagnitudeVector)) };
        }
        let Some(tensor) = tensors.get(&Role::DoraScale) else {
            let dora = self.config.is_some_and(|config| config.dora);
            return if dora { Err(fault(name, "has no magnitudes, and use_dora is true")) } else { Ok(None) };
        };
        let (shape, all) =
            (self.checkpoint.stored(tensor).expect("invariant: a name of the file").1, self.matrix(tensor)?);
        let channels = weight.get(1).copied().unwrap_or(1);
        if shape[0] == rows && all.values.len() == rows {
            Ok(Some(Magnitude::Rows(all.values)))
        } else if shape[0] == 1 && all.values.len() == channels && parts == 1 {
            Ok(Some(Magnitude::Channels(all.values)))
        } else if shape[0] == 1 && all.values.len() == channels {
            Err(fault(tensor, "a DoRA by columns of a layer that is several here"))
        } else {
            Err(misfit(Role::DoraScale))
        }
    }

    /// The values of a tensor, as many rows as its first side says.
    fn matrix(&self, tensor: &str) -> Result<Matrix, Problem> {
        let (dtype, shape, bytes) = self.checkpoint.stored(tensor).expect("invariant: a name of the file");
        let values = numbers(dtype, bytes);
        let values =
            values.ok_or_else(|| fault(tensor, &format!("stored as {dtype:?}; f32, f16, bf16 and f64 can be read")))?;
        if values.is_empty() {
            return Err(fault(tensor, &format!("{shape:?} in the file, of rank 0: there is nothing in it")));
        }
        if !values.iter().all(|value| value.is_finite()) {
            return Err(fault(tensor, "holds NaN or an infinite number"));
        }
        let rows = shape.first().copied().unwrap_or(1);
        Ok(Matrix { rows, columns: values.len() / rows, values })
    }

    /// One number, which some programs write as an integer.
    fn alpha(&self, tensor: &str) -> Result<f64, Problem> {
        let (dtype, shape, bytes) = self.checkpoint.stored(tensor).expect("invariant: a name of the file");
        let alpha = match dtype {
            Dtype::I64 => bytes.try_into().ok().map(|bytes| i64::from_le_bytes(bytes) as f64),
            Dtype::I32 => bytes.try_into().ok().map(|bytes| f64::from(i32::from_le_bytes(bytes))),
            _ => numbers(dtype, bytes).filter(|all| all.len() == 1).map(|all| f64::from(all[0])),
        };
        let alpha = alpha.ok_or_else(|| fault(tensor, &format!("{shape:?} of {dtype:?}, one number is expected")))?;
        if alpha.is_finite() { Ok(alpha) } else { Err(fault(tensor, &format!("it is {alpha}"))) }
    }
}

fn fault(tensor: &str, what: &str) -> Problem {
    Problem::Fault(format!("  {tensor}: {what}"))
}

/// Numbers of the types in which adapters are stored.
fn numbers(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    match dtype {
        Dtype::F64 => {
            let number = |b: &[u8]| f64::from_le_bytes(b.try_into().expect("invariant: eight bytes")) as f32;
            Some(bytes.chunks_exact(8).map(number).collect())
        }
        _ => to_f32(dtype, bytes),
    }
}

/// Names that select exactly the given layers: the declared ones if they do; else the ends of the layers' names after the
/// number of their block, if those do; else the layers themselves.
fn targets(declared: Option<Vec<String>>, adapted: impl Fn(&str) -> bool, base: &Shapes) -> Vec<String> {
    let dense = || base.iter().filter(|(_, s)| s.len() == 2).filter_map(|(name, _)| name.strip_suffix(".weight"));
    let exact = |names: &Vec<String>| {
        let config = LoraConfig { target_modules: names.clone(), ..LoraConfig::default() };
        dense().all(|layer| config.targets(layer) == adapted(layer))
    };
    let whole: Vec<String> = dense().filter(|layer| adapted(layer)).map(String::from).collect();
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
