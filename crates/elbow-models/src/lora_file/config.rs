//! What PEFT's configuration says of the factors: `adapter_config.json`, or diffusers' entry in the header of a file.

use super::LoraFileError;
use regex::Regex;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// Ranks and scales by layer.
#[derive(Debug)]
pub(super) struct Config {
    pub(super) place: PathBuf,
    rank: Option<usize>,
    alpha: f64,
    ranks: Vec<(Regex, f64)>,
    alphas: Vec<(Regex, f64)>,
    rslora: bool,
    /// Every layer has magnitudes.
    pub(super) dora: bool,
    /// Some tensors of the network are in the file as a whole: biases, or what `modules_to_save` names.
    pub(super) whole: bool,
    /// The layers that were trained, if they are given as a list.
    pub(super) target_modules: Option<Vec<String>>,
}

/// Fields under which the factors would mean something else, unless they are empty.
const UNUSED: [&str; 10] = [
    "use_qalora",
    "trainable_token_indices",
    "target_parameters",
    "layer_replication",
    "alora_invocation_tokens",
    "arrow_config",
    "use_bdlora",
    "kasa_config",
    "monteclora_config",
    "velora_config",
];
/// What `init_lora_weights` begins with where the base weights were changed before the first step: what was trained is to be
/// added to those. Of a PiSSA, an OLoRA, a CorDA and a LoRA-GA `peft` makes plain LoRA when it saves, and then says so.
const CHANGED_BASE: [&str; 5] = ["pissa", "olora", "corda", "loftq", "lora_ga"];

impl Config {
    /// Reads a configuration, and refuses one under which the factors mean something that is not implemented.
    /// `fan_in_fan_out` and how factors that leave the base alone started (`init_lora_weights`) do not matter to `nn.Linear`.
    pub(super) fn new(place: &Path, config: &Map<String, Value>) -> Result<Self, LoraFileError> {
        let refused = |field: &str, value: &Value, accepted: &str| LoraFileError::Unsupported {
            path: place.into(),
            field: field.into(),
            value: value.to_string(),
            accepted: accepted.into(),
        };
        let value = |field: &str| config.get(field).filter(|value| !empty(value));
        let kind = value("peft_type").map_or("LORA", |kind| kind.as_str().unwrap_or(""));
        let alpha = match kind {
            "LORA" => "lora_alpha",
            "LOHA" | "LOKR" => "alpha",
            _ => {
                let accepted = "\"LORA\", \"LOHA\" and \"LOKR\" are read";
                return Err(refused("peft_type", &config["peft_type"], accepted));
            }
        };
        if let Some((field, value)) = UNUSED.iter().find_map(|field| Some((field, value(field)?))) {
            return Err(refused(field, value, "this version reads adapters that do not use it"));
        }
        if let Some(start) = value("init_lora_weights").and_then(Value::as_str)
            && CHANGED_BASE.iter().any(|changed| start.to_lowercase().starts_with(changed))
        {
            return Err(LoraFileError::ChangedBase { path: place.into(), start: start.to_owned() });
        }
        let rank = match config.get("r") {
            None => None,
            Some(r) => {
                let rank = r.as_u64().filter(|rank| *rank > 0);
                Some(rank.ok_or_else(|| refused("r", r, "it must be a whole number above 0"))? as usize)
            }
        };
        let absent = Value::Null;
        let scale = config.get(alpha).unwrap_or(&absent);
        Ok(Self {
            place: place.into(),
            rank,
            alpha: scale.as_f64().ok_or_else(|| refused(alpha, scale, "it must be a number"))?,
            ranks: patterns(config, "rank_pattern").map_err(|value| refused("rank_pattern", &value, PATTERN))?,
            alphas: patterns(config, "alpha_pattern").map_err(|value| refused("alpha_pattern", &value, PATTERN))?,
            rslora: value("use_rslora").is_some(),
            dora: value("use_dora").is_some(),
            whole: value("bias").is_some() || value("modules_to_save").is_some(),
            target_modules: config.get("target_modules").and_then(|names| serde_json::from_value(names.clone()).ok()),
        })
    }

    /// The rank of a layer, if it is written.
    pub(super) fn rank(&self, layer: &str) -> Option<usize> {
        matching(&self.ranks, layer).map(|rank| rank as usize).or(self.rank)
    }

    /// The alpha of a layer.
    pub(super) fn alpha(&self, layer: &str) -> f64 {
        matching(&self.alphas, layer).unwrap_or(self.alpha)
    }

    /// alpha / r, or alpha / √r of rsLoRA (arXiv 2312.03732).
    pub(super) fn scale(&self, layer: &str, rank: usize) -> f64 {
        let rank = rank as f64;
        self.alpha(layer) / if self.rslora { rank.sqrt() } else { rank }
    }
}

const PATTERN: &str = "it must give numbers by name, and each name must be a regular expression";

fn empty(value: &Value) -> bool {
    matches!(value, Value::Null | Value::Bool(false))
        || value == "none"
        || value.as_object().is_some_and(Map::is_empty)
        || value.as_array().is_some_and(Vec::is_empty)
}

/// Numbers by name. A name is a regular expression, and stands for the whole name of a layer or its end from a dot on.
fn patterns(config: &Map<String, Value>, field: &str) -> Result<Vec<(Regex, f64)>, Value> {
    let Some(value) = config.get(field).filter(|value| !empty(value)) else { return Ok(Vec::new()) };
    let pattern =
        |(name, number): (&String, &Value)| Some((Regex::new(&format!("^(.*\\.)?({name})$")).ok()?, number.as_f64()?));
    value.as_object().and_then(|map| map.iter().map(pattern).collect()).ok_or_else(|| value.clone())
}

/// The number of the first name that a layer has, in the order of the file.
fn matching(patterns: &[(Regex, f64)], layer: &str) -> Option<f64> {
    patterns.iter().find(|(pattern, _)| pattern.is_match(layer)).map(|(_, number)| *number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: &str) -> Config {
        Config::new(Path::new("x"), &serde_json::from_str(json).expect("JSON")).expect("a configuration")
    }

    /// As `peft.utils.other.get_pattern_key`: an expression, from a dot on, and the first that fits.
    #[test]
    fn patterns_are_expressions_and_the_first_that_fits_counts() {
        let config = config(
            r#"{"r": 2, "lora_alpha": 4, "rank_pattern": {"to_q": 8, "blocks\\.[01]\\.to_(q|k)": 3, "^to_v": 5}, "alpha_pattern": {"blocks.0.to_q": 1}}"#,
        );
        let ranks = ["blocks.0.to_q", "blocks.0.to_k", "blocks.2.to_k", "to_v", "blocks.0.to_v", "to_qx"];
        assert_eq!(ranks.map(|layer| config.rank(layer)), [8, 3, 2, 5, 2, 2].map(Some));
        let layers = ["blocks.0.to_q", "a.blocks.0.to_q", "blocks.1.to_q"];
        assert_eq!(layers.map(|layer| config.alpha(layer)).to_vec(), [1.0, 1.0, 4.0]);
    }

    #[test]
    fn rank_stabilized_scales_divide_by_the_root() {
        let [plain, stable] = ["false", "true"]
            .map(|on| config(&format!(r#"{{"r": 16, "lora_alpha": 8, "use_rslora": {on}}}"#)).scale("x", 16));
        assert_eq!(vec![plain, stable], [0.5, 2.0]);
    }
}
