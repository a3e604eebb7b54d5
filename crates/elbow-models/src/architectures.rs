//! The list of architectures. One more is a folder, and a line here.

use crate::{
    config_json::ConfigError,
    flux::{FluxConfig, Guided},
    mmdit::MmditConfig,
    network::Network,
    unet::UnetConfig,
};

/// A network from its `config.json`, and the strength of guidance that it is told if it knows that.
type Read = fn(&str, f64) -> Result<Network, ConfigError>;

/// By the name of the class in `diffusers`.
const ARCHITECTURES: [(&str, Read); 3] = [
    ("SD3Transformer2DModel", |json, _| Ok(MmditConfig::from_json(json)?.into())),
    ("FluxTransformer2DModel", |json, guidance| Ok(Guided { config: FluxConfig::from_json(json)?, guidance }.into())),
    ("UNet2DConditionModel", |json, _| Ok(UnetConfig::from_json(json)?.into())),
];

impl Network {
    /// The network of diffusers' class and its `config.json`; `None` of another class. `guidance` is what FLUX is told.
    pub fn from_json(class: &str, json: &str, guidance: f64) -> Option<Result<Self, ConfigError>> {
        let (_, read) = ARCHITECTURES.iter().find(|(name, _)| *name == class)?;
        Some(read(json, guidance))
    }

    /// The classes that [`Network::from_json`] knows.
    pub fn classes() -> impl Iterator<Item = &'static str> {
        ARCHITECTURES.iter().map(|(name, _)| *name)
    }
}
