//! What the tensors of one layer of a file mean for the network.

use super::{
    LoraFileError,
    config::Config,
    delta::{Delta, Magnitude, Matrix, Product, Update},
    file::Change,
    layers::Role,
    names::Part,
};
use crate::folder::Checkpoint;
use elbow::params::to_f32;
use safetensors::tensor::Dtype;
use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
    path::Path,
};

/// The tensors of each kind of adapter.
const LORA: &[Role] = &[Role::Down, Role::Up, Role::Mid];
const LOHA: &[Role] = &[Role::W1A, Role::W1B, Role::T1, Role::W2A, Role::W2B, Role::T2];
const LOKR: &[Role] = &[Role::L, Role::LA, Role::LB, Role::R, Role::RA, Role::RB, Role::RT];

/// Why a layer cannot be used.
pub(super) enum Problem {
    /// It is not one of this model.
    Misfit(String),
    /// It is damaged.
    Fault(String),
    /// The whole file is refused.
    Refused(Box<LoraFileError>),
}

/// Reads the layers of a file.
pub(super) struct Reader<'a> {
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) file: &'a Path,
    pub(super) config: Option<&'a Config>,
    pub(super) shapes: &'a HashMap<&'a str, &'a [usize]>,
}

impl Reader<'_> {
    /// What one layer of the file changes.
    pub(super) fn layer(
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
            let own: usize = part.rows.iter().map(Range::len).sum();
            for (end, update) in &push {
                let tensor = format!("{}{end}", part.layer);
                let there = self.shapes.get(tensor.as_str()).is_some_and(|shape| shape.first() == Some(&own));
                if !there || update.delta.shape()[0] != rows {
                    return Err(Problem::Misfit(format!("  {name}: the model has no {tensor} of that size")));
                }
                changed.push((tensor, Change::Update(update.select(&part.rows))));
            }
        }
        Ok(changed)
    }

    /// A tensor of the network that is in the file as a whole.
    pub(super) fn whole(&self, tensor: &str, name: &str) -> Result<Vec<(String, Change)>, Problem> {
        Ok(vec![(tensor.to_owned(), Change::Replace(self.matrix(name)?.values))])
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
        let there = tensors.values().next().expect("invariant: a layer has a tensor");
        if [LORA, LOHA, LOKR, &[Role::Weight]].into_iter().filter(|roles| any(roles)).count() > 1 {
            return Err(fault(there, "the layer is changed in two ways"));
        }
        let get = |role: Role| {
            let missing = || fault(there, "one of its two factors is missing");
            self.matrix(tensors.get(&role).ok_or_else(missing)?)
        };
        // B A, with a core between them if there is one. In Tucker form LyCORIS turns B of LoHa and LoKr around.
        let product = |b: Role, core: Option<Role>, a: Role| {
            let (left, right) = (get(b)?, get(a)?);
            let Some(role) = core.filter(|core| has(*core)) else {
                return match (left.columns == right.rows, left.rows == rows) {
                    (true, _) => Ok(Product { b: left, a: right }),
                    (false, false) => Err(misfit(b)),
                    (false, true) => {
                        let ranks = format!("of rank {}, and {} of rank {}", left.columns, tensors[&a], right.rows);
                        Err(fault(&tensors[&b], &ranks))
                    }
                };
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
        if any(LORA) {
            let product = product(Role::Up, Some(Role::Mid), Role::Down)?;
            fits(&product, Role::Up, Role::Down)?;
            let rank = product.a.rows;
            return Ok(Some((Delta::Product(product), Some(rank))));
        }
        if any(LOHA) {
            let one = product(Role::W1A, Some(Role::T1), Role::W1B)?;
            let other = product(Role::W2A, Some(Role::T2), Role::W2B)?;
            fits(&one, Role::W1A, Role::W1B)?;
            fits(&other, Role::W2A, Role::W2B)?;
            let rank = one.a.rows;
            return Ok(Some((Delta::Hadamard(one, other), Some(rank))));
        }
        if any(LOKR) {
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
        if shape.first() == Some(&rows) && all.values.len() == rows {
            Ok(Some(Magnitude::Rows(all.values)))
        } else if shape.first() == Some(&1) && all.values.len() == channels && parts == 1 {
            Ok(Some(Magnitude::Channels(all.values)))
        } else if shape.first() == Some(&1) && all.values.len() == channels {
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
