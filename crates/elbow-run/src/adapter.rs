//! The adapter that a run trained, from its folder alone: the model that it was trained on may be on another machine.

use crate::{
    components::{Weights, saved},
    error::{At, Error, Result},
    model::{Diffusers, Model},
    recipe::Recipe,
    run,
};
use elbow::params::Params;
use elbow_models::{
    lora::{self, LoraConfig},
    lora_file::{Adapter, Family},
    policy::Tuning,
};
use elbow_runlog::RunFolder;
use serde::Deserialize;

/// An adapter, and what its run says of it.
#[derive(Clone, Debug)]
pub struct TrainedAdapter {
    /// Epochs that it was trained for.
    pub epoch: u64,
    /// Its layers are as `adapter_config.json` wants them, and are all named.
    pub adapter: Adapter,
    /// Whose layers these are. `None` if they may be those of SD3 or of FLUX: runs of earlier versions do not say it.
    pub family: Option<Family>,
    /// The network in the words of `modelspec.architecture`; empty if the run does not say it.
    pub architecture: String,
    /// SHA-256 of the base.
    pub base_sha256: String,
}

/// What a manifest says of the network.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Manifest {
    network: Option<Network>,
    base_sha256: String,
}

#[derive(Deserialize)]
struct Network {
    family: Family,
    architecture: String,
}

/// Reads it from the checkpoint of an epoch, or the last one. A run that trained every weight has none.
pub fn read(folder: &RunFolder, recipe: &Recipe, epoch: Option<u64>, weights: Weights) -> Result<TrainedAdapter> {
    let model = &recipe.setting.model;
    let config = match model {
        Model::Nano { tuning: Tuning::Lora(lora), .. } | Model::Diffusers(Diffusers { lora, .. }) => lora,
        Model::Nano { .. } => {
            return Err(Error::new(
                format!("{} trained every weight: there is no adapter in it", folder.path().display()),
                "write the whole weights with --format merged, or train with model.tuning.kind = \"lora\"",
            ));
        }
    };
    let manifest: Manifest = serde_json::from_value(run::manifest(folder)?)
        .map_err(|error| Error::new(format!("{}: {error}", folder.manifest().display()), "restore the file"))?;
    let saved = saved(folder, epoch, weights)?;
    let place = || format!("cannot use checkpoint {}", saved.path.display());
    let factors = Params::from_safetensors(&saved.bytes).at(place)?;
    let layers: Vec<&str> = factors.entries().iter().filter_map(|e| e.name.strip_suffix(".lora_A.weight")).collect();
    let found = family(&layers, config, matches!(model, Model::Nano { .. }));
    let (family, architecture) = match manifest.network {
        Some(network) => (Some(network.family), network.architecture),
        None => (found, String::new()),
    };
    let ends = lora::ends(layers.iter().copied());
    let adapter = Adapter::new(config.clone().with_usual(&ends), factors).map_err(|problems| {
        Error::new(
            format!("it is no adapter of rank {}:\n{}", config.rank, problems.join("\n")),
            "restore the run folder: its config.toml and its checkpoints are not of one run",
        )
    });
    let (adapter, base_sha256) = (adapter.at(place)?, manifest.base_sha256);
    Ok(TrainedAdapter { epoch: saved.epoch, adapter, family, architecture, base_sha256 })
}

/// Whose layers these are, as far as their names tell.
fn family(layers: &[&str], config: &LoraConfig, nano: bool) -> Option<Family> {
    let some = |starts: &[&str]| layers.iter().any(|layer| starts.iter().any(|start| layer.starts_with(start)));
    if some(&["single_transformer_blocks."]) {
        Some(Family::Flux)
    } else if some(&["down_blocks.", "mid_block.", "up_blocks.", "time_embedding."]) {
        Some(Family::Unet)
    } else {
        // The layers that the field adapts are in FLUX's single blocks too.
        (nano || config.target_modules.is_empty()).then_some(Family::Sd3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_layers_tell_the_network_as_far_as_they_can() {
        let usual = LoraConfig::default();
        let named = LoraConfig { target_modules: vec!["ff.net.2".into()], ..LoraConfig::default() };
        let joint = ["transformer_blocks.0.ff.net.2"];
        assert_eq!(family(&joint, &usual, false), Some(Family::Sd3));
        assert_eq!(family(&joint, &named, false), None, "FLUX has that layer too");
        assert_eq!(family(&joint, &named, true), Some(Family::Sd3));
        let single = ["transformer_blocks.0.attn.to_q", "single_transformer_blocks.0.attn.to_q"];
        assert_eq!(family(&single, &named, false), Some(Family::Flux));
        let unet = ["mid_block.attentions.0.transformer_blocks.0.attn1.to_q"];
        assert_eq!(family(&unet, &named, false), Some(Family::Unet));
    }
}
