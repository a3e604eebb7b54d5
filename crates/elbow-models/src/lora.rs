//! Which layers get an adapter, and how its factors start.

use elbow::{noise::Key, params::Params};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Low-rank adapters with PEFT's names: the field trains rank 32 with alpha 64.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LoraConfig {
    /// Rank of the update.
    pub rank: usize,
    /// The update is scaled by alpha / rank.
    pub alpha: f64,
    /// A layer is adapted if its name is one of these or ends in `.` and one of these. If none is named, those that the field
    /// adapts: `to_q`, `to_k`, `to_v` and `to_out.0` of a UNet; of other networks those of `attn` and, for the text,
    /// `attn.add_q_proj`, `attn.add_k_proj`, `attn.add_v_proj` and `attn.to_add_out`.
    pub target_modules: Vec<String>,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self { rank: 32, alpha: 64.0, target_modules: Vec::new() }
    }
}

impl LoraConfig {
    /// alpha / rank
    pub fn scale(&self) -> f64 {
        self.alpha / self.rank as f64
    }

    /// The same with `usual` layers if none is named.
    #[must_use]
    pub fn with_usual(mut self, usual: &[impl AsRef<str>]) -> Self {
        if self.target_modules.is_empty() {
            self.target_modules = usual.iter().map(|layer| layer.as_ref().to_owned()).collect();
        }
        self
    }

    /// Whether a layer is adapted.
    pub fn targets(&self, layer: &str) -> bool {
        self.target_modules.iter().any(|target| names(target, layer))
    }

    /// Fresh factors for every targeted one of the tensors with the given names and shapes: A Gaussian with deviation
    /// 1 / rank (PEFT's `"gaussian"`), B zero, so that the adapted network starts equal to the base.
    pub fn initial<'a>(&self, tensors: impl IntoIterator<Item = (&'a str, &'a [usize])>, key: Key) -> Params {
        let mut factors = Vec::new();
        for (name, shape) in tensors {
            let (Some(layer), &[out, input]) = (name.strip_suffix(".weight"), shape) else { continue };
            if !self.targets(layer) {
                continue;
            }
            let mut a = Vec::new();
            key.sample(factors.len() as u64).extend_normals(self.rank * input, &mut a);
            for value in &mut a {
                *value /= self.rank as f32;
            }
            factors.push((format!("{layer}.lora_A.weight"), vec![self.rank, input], a));
            factors.push((format!("{layer}.lora_B.weight"), vec![out, self.rank], vec![0.0; out * self.rank]));
        }
        Params::new(factors)
    }

    /// What makes this unusable for a network with tensors of the given names and shapes, a line each.
    pub fn validate<'a>(&self, tensors: impl IntoIterator<Item = (&'a str, &'a [usize])>) -> Vec<String> {
        let matrices = tensors.into_iter().filter(|(_, shape)| shape.len() == 2);
        let layers: Vec<&str> = matrices.filter_map(|(name, _)| name.strip_suffix(".weight")).collect();
        let unmatched = |target: &&String| !layers.iter().any(|layer| names(target, layer));
        let mut problems: Vec<String> = self
            .target_modules
            .iter()
            .filter(unmatched)
            .map(|target| format!("target_modules has {target:?}: no dense layer of this network ends so"))
            .collect();
        if self.rank == 0 || self.target_modules.is_empty() {
            problems.push("rank and target_modules: without either nothing is trained".to_owned());
        }
        problems
    }
}

/// The ends of layers' names after the number of their block, each once: what `target_modules` names.
pub fn ends<'a>(layers: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let mut ends: Vec<String> = Vec::new();
    for layer in layers {
        let parts: Vec<&str> = layer.split('.').collect();
        let number = parts[..parts.len() - 1].iter().rposition(|part| part.parse::<usize>().is_ok());
        let end = parts[number.map_or(0, |n| n + 1)..].join(".");
        if !ends.contains(&end) {
            ends.push(end);
        }
    }
    ends
}

/// Whether `target` is the layer's name or the end of it, from a dot on.
fn names(target: &str, layer: &str) -> bool {
    layer.strip_suffix(target).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use elbow::noise::Purpose;

    #[test]
    fn only_targets_get_factors_and_b_starts_at_zero() {
        let base = ["blocks.0.attn.to_q.weight", "blocks.0.attn.to_qx.weight", "attn2.to_q.weight", "ff.net.2.weight"];
        let lora = LoraConfig { rank: 4, ..LoraConfig::default() }.with_usual(&["attn.to_q"]);
        let factors = lora.initial(base.map(|n| (n, &[2, 3][..])), Key::new(0, Purpose::Initialization, 0));
        let names: Vec<_> = factors.entries().iter().map(|e| (e.name.as_str(), e.shape.clone())).collect();
        let expected =
            [("blocks.0.attn.to_q.lora_A.weight", vec![4, 3]), ("blocks.0.attn.to_q.lora_B.weight", vec![2, 4])];
        assert_eq!(names, expected);
        assert!(factors.values()[..12].iter().all(|&v| v != 0.0) && factors.values()[12..].iter().all(|&v| v == 0.0));
    }

    #[test]
    fn targets_that_are_named_stay() {
        let named = LoraConfig { target_modules: vec!["ff".into()], ..LoraConfig::default() };
        let usual = ["to_q", "to_out.0"];
        assert_eq!(named.clone().with_usual(&usual), named);
        assert_eq!(LoraConfig::default().with_usual(&usual).target_modules, usual);
    }

    #[test]
    fn ends_are_what_follows_the_last_number_of_a_block() {
        let layers = [
            "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_out.0",
            "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0",
            "transformer_blocks.11.attn.to_q",
            "proj_out",
        ];
        assert_eq!(ends(layers), ["attn1.to_out.0", "attn.to_q", "proj_out"]);
    }

    #[test]
    fn targets_that_match_nothing_are_named() {
        let lora = LoraConfig { target_modules: vec!["to_q".into(), "to_qq".into()], ..LoraConfig::default() };
        let problems = lora.validate([("attn.to_q.weight", &[2, 3][..]), ("to_qq.weight", &[2, 3, 1, 1][..])]);
        assert!(problems.len() == 1 && problems[0].contains("\"to_qq\""), "{problems:?}");
    }
}
