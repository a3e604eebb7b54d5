//! Writing an adapter in each of the formats. Factors are f32; nothing is left half written.

use super::{Adapter, LoraFileError, Network, Provenance};
use crate::folder::FolderError;
use elbow::params::Params;
use serde_json::{Map, Value, json};
use std::{fs, path::Path};

/// Replaces `folder` by a PEFT folder: `PeftModel.from_pretrained(pipe.transformer, folder)`.
pub fn write_peft(adapter: &Adapter, about: &Provenance, folder: &Path) -> Result<(), LoraFileError> {
    let mut config = configuration(adapter);
    let text = |text: &str| if text.is_empty() { Value::Null } else { text.into() };
    config.insert("base_model_name_or_path".into(), text(&about.base));
    config.insert("revision".into(), text(&about.revision));
    // The tasks that PEFT knows are those of language models.
    config.insert("task_type".into(), Value::Null);
    config.insert("inference_mode".into(), true.into());
    let factors = renamed(adapter, |layer, side| format!("base_model.model.{layer}.lora_{side}.weight"));
    let partial = partial(folder)?;
    let write = |name: &str, bytes: &[u8]| elbow_runlog::write_atomic(&partial.join(name), bytes);
    write("adapter_config.json", format!("{:#}\n", Value::Object(config)).as_bytes())?;
    write("adapter_model.safetensors", &factors.to_safetensors(Some(about.metadata("lora"))))?;
    Ok(elbow_runlog::replace_dir(&partial, folder)?)
}

/// Writes `pytorch_lora_weights.safetensors`: `pipe.load_lora_weights(folder)`.
pub fn write_diffusers(
    adapter: &Adapter,
    network: Network,
    about: &Provenance,
    file: &Path,
) -> Result<(), LoraFileError> {
    let component = network.component();
    let factors = renamed(adapter, |layer, side| format!("{component}.{layer}.lora_{side}.weight"));
    let entry = |(key, value): (String, Value)| (format!("{component}.{key}"), value);
    let config: Map<String, Value> = configuration(adapter).into_iter().map(entry).collect();
    let mut metadata = about.metadata("lora");
    metadata.insert("lora_adapter_metadata".into(), Value::Object(config).to_string());
    Ok(elbow_runlog::write_atomic(file, &factors.to_safetensors(Some(metadata)))?)
}

/// Writes kohya's keys with an `.alpha` for each layer: `lora_unet_…` for SD1.x and SD2.x; for SD3 and FLUX
/// `lora_transformer_…` over diffusers' layers, which ComfyUI maps to its own.
pub fn write_kohya(adapter: &Adapter, network: Network, about: &Provenance, file: &Path) -> Result<(), LoraFileError> {
    let prefix = format!("lora_{}_", network.component());
    let flat = |layer: &str| format!("{prefix}{}", layer.replace('.', "_"));
    let (mut tensors, factors) = (Vec::new(), &adapter.factors);
    for entry in factors.entries() {
        let (layer, side) = layer_and_side(&entry.name);
        let end = if side == "A" { "lora_down" } else { "lora_up" };
        let values = factors.values()[entry.range.clone()].to_vec();
        tensors.push((format!("{}.{end}.weight", flat(layer)), entry.shape.clone(), values));
        if side == "A" {
            tensors.push((format!("{}.alpha", flat(layer)), vec![], vec![adapter.config.alpha as f32]));
        }
    }
    let mut metadata = about.metadata("lora");
    metadata.insert("ss_network_module".into(), "networks.lora".into());
    metadata.insert("ss_network_dim".into(), adapter.config.rank.to_string());
    metadata.insert("ss_network_alpha".into(), adapter.config.alpha.to_string());
    Ok(elbow_runlog::write_atomic(file, &Params::new(tensors).to_safetensors(Some(metadata)))?)
}

/// PEFT's configuration.
fn configuration(adapter: &Adapter) -> Map<String, Value> {
    let whole = adapter.config.alpha.fract() == 0.0;
    // PEFT takes alpha for an integer, and compares it as one.
    let alpha = if whole { json!(adapter.config.alpha as i64) } else { json!(adapter.config.alpha) };
    let entries = [
        ("peft_type", json!("LORA")),
        ("r", json!(adapter.config.rank)),
        ("lora_alpha", alpha),
        ("target_modules", json!(adapter.config.target_modules)),
        ("lora_dropout", json!(0.0)),
        ("bias", json!("none")),
        ("fan_in_fan_out", json!(false)),
        ("init_lora_weights", json!("gaussian")),
        // diffusers fails on a header without these two.
        ("rank_pattern", json!({})),
        ("alpha_pattern", json!({})),
    ];
    entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

fn renamed(adapter: &Adapter, name: impl Fn(&str, &str) -> String) -> Params {
    let entry = |e: &elbow::params::Entry| {
        let (layer, side) = layer_and_side(&e.name);
        (name(layer, side), e.shape.clone(), adapter.factors.values()[e.range.clone()].to_vec())
    };
    Params::new(adapter.factors.entries().iter().map(entry))
}

/// `<layer>.lora_A.weight` as `<layer>` and `A`.
fn layer_and_side(name: &str) -> (&str, &'static str) {
    super::layer_and_side(name).expect("invariant: factors have PEFT's names")
}

/// An empty folder beside `folder`, to be filled and renamed.
pub(super) fn partial(folder: &Path) -> Result<std::path::PathBuf, FolderError> {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let partial = folder.with_file_name(format!(".{name}.tmp"));
    if partial.exists() {
        fs::remove_dir_all(&partial).map_err(FolderError::write(&partial))?;
    }
    fs::create_dir_all(&partial).map_err(FolderError::write(&partial))?;
    Ok(partial)
}
