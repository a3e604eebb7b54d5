//! The list of architectures. One more is a folder, and a line here.

use crate::{
    config_json::{ConfigError, Told},
    flux::{FluxConfig, Guided},
    mmdit::MmditConfig,
    network::Network,
    unet::UnetConfig,
};

/// A network from its `config.json`, and the strength of guidance that it is told if it knows that; with what is worth a warning.
type Read = fn(&str, f64) -> Result<Told<Network>, ConfigError>;

/// By the name of the class in `diffusers`.
const ARCHITECTURES: [(&str, Read); 3] = [
    ("SD3Transformer2DModel", |json, _| MmditConfig::read(json).map(network)),
    ("FluxTransformer2DModel", |json, guidance| {
        FluxConfig::read(json).map(|(config, warnings)| network((Guided { config, guidance }, warnings)))
    }),
    ("UNet2DConditionModel", |json, _| UnetConfig::read(json).map(network)),
];

fn network<A: Into<Network>>((architecture, warnings): Told<A>) -> Told<Network> {
    (architecture.into(), warnings)
}

impl Network {
    /// The network of diffusers' class and its `config.json`; `None` of another class. `guidance` is what FLUX is told.
    pub fn from_json(class: &str, json: &str, guidance: f64) -> Option<Result<Self, ConfigError>> {
        Some(Self::read(class, json, guidance)?.map(|(network, _)| network))
    }

    /// The same, with what is worth a warning.
    pub(crate) fn read(class: &str, json: &str, guidance: f64) -> Option<Result<Told<Self>, ConfigError>> {
        let (_, read) = ARCHITECTURES.iter().find(|(name, _)| *name == class)?;
        Some(read(json, guidance))
    }

    /// The classes that [`Network::from_json`] knows.
    pub fn classes() -> impl Iterator<Item = &'static str> {
        ARCHITECTURES.iter().map(|(name, _)| *name)
    }
}
