//! An adapter under the rank and scale of another, as a teacher of that other needs it.

use super::{Adapter, layer_and_side};
use crate::lora::LoraConfig;
use elbow::params::Params;
use std::collections::BTreeSet;

impl Adapter {
    /// The same update to the weights, laid out as `layout`, which are factors of `config`: ranks are filled up with zeros, B is scaled to
    /// `config`'s alpha / rank, and layers that this adapter leaves alone get zeros.
    ///
    /// # Errors
    /// A line for each layer that `layout` lacks, and one for a rank that is larger than `config`'s.
    pub fn fitted(&self, config: &LoraConfig, layout: &Params) -> Result<Params, Vec<String>> {
        let (from, to) = (self.config.rank, config.rank);
        let known: BTreeSet<&str> = layout.entries().iter().map(|entry| entry.name.as_str()).collect();
        let unknown = self.factors.entries().iter().filter(|entry| !known.contains(entry.name.as_str()));
        let mut problems: Vec<String> = unknown
            .filter_map(|entry| layer_and_side(&entry.name))
            .filter(|(_, side)| *side == "A")
            .map(|(layer, _)| format!("  {layer}: not a layer that is trained"))
            .collect();
        if from > to {
            problems.push(format!("  rank {from}: what is trained has rank {to}"));
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let scale = (self.config.scale() / config.scale()) as f32;
        let mut fitted = layout.zeros_like();
        for entry in self.factors.entries() {
            let place = layout.entries().iter().find(|own| own.name == entry.name).expect("invariant: looked up above");
            let given = &self.factors.values()[entry.range.clone()];
            let (_, side) = layer_and_side(&entry.name).expect("invariant: factors have PEFT's names");
            lay(side, given, from, scale, &mut fitted.values_mut()[place.range.clone()], to);
        }
        Ok(fitted)
    }
}

/// Lays a factor of rank `from` into one of rank `to`, which is no smaller: A `[from, in]` into the first rows, B `[out, from]` into the first
/// columns, multiplied by `scale`. What it does not reach stays.
pub(super) fn lay(side: &str, given: &[f32], from: usize, scale: f32, own: &mut [f32], to: usize) {
    if side == "A" {
        own[..given.len()].copy_from_slice(given);
        return;
    }
    for (row, own) in given.chunks(from).zip(own.chunks_mut(to)) {
        own.iter_mut().zip(row).for_each(|(own, given)| *own = scale * given);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapter(config: &LoraConfig, a: Vec<f32>, b: Vec<f32>) -> Adapter {
        let (input, output) = (a.len() / config.rank, b.len() / config.rank);
        let factors = [
            ("to_q.lora_A.weight".to_owned(), vec![config.rank, input], a),
            ("to_q.lora_B.weight".to_owned(), vec![output, config.rank], b),
        ];
        Adapter { config: config.clone(), factors: Params::new(factors) }
    }

    /// s B A `[2, 3]`.
    fn update(config: &LoraConfig, factors: &Params) -> Vec<f64> {
        let values = |side| {
            let name = format!("to_q.lora_{side}.weight");
            let entry = factors.entries().iter().find(|entry| entry.name == name).expect("a factor");
            factors.values()[entry.range.clone()].iter().map(|&v| f64::from(v)).collect::<Vec<_>>()
        };
        let (a, b) = (values("A"), values("B"));
        let cells = (0..2).flat_map(|row| (0..3).map(move |column| (row, column)));
        let sum = |(row, column)| (0..config.rank).map(|k| b[row * config.rank + k] * a[k * 3 + column]).sum::<f64>();
        cells.map(|cell| config.scale() * sum(cell)).collect()
    }

    #[test]
    fn the_update_stays_the_same_under_another_rank_and_scale() {
        let small = LoraConfig { rank: 2, alpha: 3.0, target_modules: vec!["to_q".into()] };
        let large = LoraConfig { rank: 4, alpha: 1.0, ..small.clone() };
        let given = adapter(&small, vec![1.0, -2.0, 0.5, 4.0, 0.25, -1.0], vec![2.0, -1.0, 0.5, 3.0]);
        let layout = adapter(&large, vec![9.0; 12], vec![9.0; 8]).factors;
        let fitted = given.fitted(&large, &layout).expect("it fits");
        assert_eq!(update(&large, &fitted), update(&small, &given.factors));
        assert_eq!(given.fitted(&small, &given.factors).expect("it fits"), given.factors);
    }

    #[test]
    fn layers_and_ranks_that_do_not_fit_are_named() {
        let config = LoraConfig { rank: 2, alpha: 3.0, target_modules: vec!["to_q".into()] };
        let given = adapter(&config, vec![1.0; 6], vec![1.0; 4]);
        let other = Params::new([("to_k.lora_A.weight".to_owned(), vec![2, 3], vec![0.0; 6])]);
        let problems = given.fitted(&LoraConfig { rank: 1, ..config }, &other).expect_err("it does not fit");
        assert!(problems.len() == 2 && problems[0].contains("to_q") && problems[1].contains("rank 2"), "{problems:?}");
    }
}
