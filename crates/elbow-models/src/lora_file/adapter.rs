//! A file as an adapter of one rank and one scale, which is what training has.

use super::{
    Adapter, AdapterFile, LoraFileError,
    delta::{Delta, Update},
    file::Change,
    fit::lay,
    layer_and_side,
};
use crate::{
    folder::Shapes,
    lora::{self, LoraConfig},
};
use elbow::noise::{Key, Purpose};
use std::collections::{BTreeMap, HashMap};

impl AdapterFile {
    /// The same as factors of one rank and one scale, of plain LoRA of dense layers only; `base` are the shapes that it was
    /// read with.
    ///
    /// Layers of lower rank get rows of A as [`LoraConfig::initial`] makes them and columns of B that are zero, so that they
    /// compute the same and can use the whole rank from here on. Where scales differ, the one that most layers have becomes
    /// that of all, and B is multiplied by the layer's own scale over it. Where no names select these layers alone, those that
    /// are selected beside them start as fresh ones.
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
                    if shapes.get(tensor.as_str()).is_none_or(|shape| shape.len() != 2) {
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
            let Some((product, scale)) = layers.get(layer) else { continue };
            let given = if side == "A" { &product.a } else { &product.b };
            let factor = (scale / common) as f32;
            lay(side, &given.values, product.a.rows, factor, &mut factors.values_mut()[entry.range], rank);
        }
        Ok(Adapter { config, factors })
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
    let ends = lora::ends(whole.iter().map(String::as_str));
    [declared, Some(ends)].into_iter().flatten().find(exact).unwrap_or(whole)
}
