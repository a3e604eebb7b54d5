//! The model that comes with the program.

use crate::{
    error::{At, Error, Result},
    machine,
};
use burn::tensor::Device;
use elbow::{
    noise::{Key, Purpose},
    params::Params,
    prediction::Prediction,
    schedule::Schedule,
};
use elbow_models::{
    folder::recognize,
    linear::Precision,
    mmdit::MmditConfig,
    policy::{Decoder, Network, NetworkPolicy, Tuning},
    recompute::Checkpointing,
};
use elbow_world::encoder::WordCodes;
use safetensors::SafeTensors;
use std::path::Path;

/// The embedded base models: one for each path from data to noise.
const NANO: &[u8] = include_bytes!("../../../../assets/nano.safetensors");
const NANO_VP: &[u8] = include_bytes!("../../../../assets/nano-vp.safetensors");

/// The nano model over the given weights, predicting what is customary on the path.
pub fn nano(base: Params, tuning: Tuning, seed: u64, schedule: Schedule, device: &Device) -> NetworkPolicy {
    let prediction = Prediction::customary(schedule);
    NetworkPolicy { schedule, prediction, ..pixels(MmditConfig::default(), base, tuning, seed, device) }
}

/// A network of the nano model's kind, of any size, over the given weights.
pub fn pixels(config: MmditConfig, base: Params, tuning: Tuning, seed: u64, device: &Device) -> NetworkPolicy {
    let latent = config.latent();
    let network = Network::from(config);
    NetworkPolicy {
        latent,
        schedule: Schedule::RectifiedFlow,
        prediction: Prediction::Velocity,
        tuning: tuning.of(&network),
        network,
        base: base.tensors(&device.clone().without_autodiff()),
        precision: Precision::F32,
        checkpointing: Checkpointing::None,
        text: Box::new(WordCodes { device: device.clone() }),
        decoder: Decoder::Pixels,
        adapter: None,
        seed,
    }
}

/// The nano model as a recipe asks for it, and the SHA-256 of its weights.
pub(super) fn policy(
    weights: Option<&Path>,
    schedule: Schedule,
    tuning: &Tuning,
    seed: u64,
    device: &Device,
) -> Result<(NetworkPolicy, String)> {
    let bytes = self::weights(weights, schedule)?;
    let layout = MmditConfig::default().initial(Key::new(0, Purpose::Initialization, 0));
    let place = weights.map_or_else(|| "the embedded weights".to_owned(), |p| format!("weights {}", p.display()));
    let base = layout.with_values_of(&bytes).at(|| format!("cannot use {place}"))?;
    made_for(&bytes, schedule).at(|| format!("cannot use {place}"))?;
    let policy = nano(base, tuning.clone(), seed, schedule, device);
    Ok((policy, machine::sha256(&bytes)))
}

/// The file of the nano model's base weights: the given one, or the embedded one for the path from data to noise.
pub(super) fn weights(weights: Option<&Path>, schedule: Schedule) -> Result<Vec<u8>> {
    match weights {
        None if schedule == Schedule::RectifiedFlow => Ok(NANO.to_vec()),
        None => Ok(NANO_VP.to_vec()),
        Some(path) => {
            let bytes = std::fs::read(path).at(|| format!("cannot read weights {}", path.display()))?;
            match recognize::bytes(&bytes) {
                Some(foreign) => Err(foreign.at(path)).at(|| format!("cannot use weights {}", path.display())),
                None => Ok(bytes),
            }
        }
    }
}

/// An error if the weights say that they were made for another path; files made elsewhere say nothing.
fn made_for(weights: &[u8], schedule: Schedule) -> Result<()> {
    let (_, metadata) = SafeTensors::read_metadata(weights)?;
    let made = metadata.metadata().as_ref().and_then(|entries| entries.get("elbow"));
    let Some(made) = made.and_then(|text| serde_json::from_str::<serde_json::Value>(text).ok()) else { return Ok(()) };
    // Before there were several, it went without saying.
    let path = &made["pretrain"]["config"]["schedule"];
    let path = if path.is_null() { Schedule::RectifiedFlow } else { serde_json::from_value(path.clone())? };
    if path == schedule {
        return Ok(());
    }
    let written = |schedule| serde_json::to_string(&schedule).unwrap_or_default();
    Err(Error::new(
        format!("they were made for {}, and the recipe says {}", written(path), written(schedule)),
        "set model.schedule to what the weights were made for, or make others with `elbow pretrain --schedule`",
    ))
}
