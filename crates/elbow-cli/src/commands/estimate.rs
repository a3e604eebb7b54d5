//! `elbow plan --config-only`: what a recipe would cost on a model of which only the configurations are there.

use crate::{failure, numbers::count, output};
use anyhow::{Context, Result};
use elbow::kl::Anchor;
use elbow_models::{
    cost::{self, Row},
    folder::{FolderError, FrozenWeights, Shapes, read_json, read_text},
    layout::Layout,
    policy::{Network, Tuning},
    recompute::Checkpointing,
    text::{clip::ClipConfig, t5::T5Config},
    vae::VaeConfig,
};
use elbow_run::{
    Recipe,
    model::{Diffusers, Model},
    plan::branches,
};
use serde_json::Value;
use std::{fmt::Write, path::Path};

/// CLIP's tokens of a prompt, which SD3 joins to T5's.
/// Copies of the trained parameters, in f32: current, behavior, average, gradient, and AdamW's two moments.
const COPIES: f64 = 6.0;
/// Share of a device's memory that can be planned with.
const USABLE: f64 = 0.9;
const GIB: f64 = (1_u64 << 30) as f64;

/// A device to estimate for.
#[derive(Clone, Debug, PartialEq)]
pub struct Gpu {
    name: String,
    /// Operations a second in dense bf16, as published.
    flops: f64,
    /// GiB, if known.
    memory: Option<f64>,
}

/// `h100`, `a100`, `4090`, `l40s`, or operations a second.
pub fn gpu(text: &str) -> Result<Gpu, String> {
    let (flops, memory) = match text.to_lowercase().as_str() {
        "h100" => (989.4e12, Some(80.0)),
        "a100" => (312.0e12, Some(80.0)),
        "4090" => (165.2e12, Some(24.0)),
        "l40s" => (362.05e12, Some(48.0)),
        other => match other.parse::<f64>() {
            Ok(flops) if flops.is_finite() && flops > 0.0 => (flops, None),
            _ => return Err("expected h100, a100, 4090, l40s or operations a second, such as 5e14".into()),
        },
    };
    Ok(Gpu { name: text.to_owned(), flops, memory })
}

/// What is said of the device beside the recipe.
#[derive(Clone, Debug)]
pub struct Device {
    /// The device.
    pub gpu: Gpu,
    /// Share of its operations that is reached.
    pub utilization: f64,
    /// GiB, in place of the published size.
    pub memory: Option<f64>,
}

/// The configurations of a model folder.
struct Sizes {
    network: Network,
    vae: Option<VaeConfig>,
    /// Bytes of network, autoencoder, and all text encoders that are there.
    network_bytes: usize,
    vae_bytes: usize,
    text_bytes: usize,
}

/// Prints the estimate.
pub fn run(recipe: &Recipe, folder: &Path, device: &Device) -> Result<()> {
    if !(device.utilization > 0.0 && device.utilization <= 1.0) {
        let message = format!("--utilization {}: must be a share, above 0 and at most 1", device.utilization);
        return Err(failure::error(message, "0.4 is usual for training"));
    }
    let model = match &recipe.setting.model {
        Model::Diffusers(model) => model.clone(),
        Model::Nano { .. } => Diffusers::at(folder.to_owned()),
    };
    let sizes = Sizes::read(folder, &model)?;
    output::line(&Estimate::new(recipe, &model, sizes)?.text(recipe, &model, device));
    Ok(())
}

impl Sizes {
    fn read(folder: &Path, model: &Diffusers) -> Result<Self> {
        let place = ["transformer", "unet"].map(|part| folder.join(part).join("config.json"));
        let Some(file) = place.iter().find(|file| file.is_file()) else {
            return Err(failure::error(
                format!("{} has neither transformer/config.json nor unet/config.json", folder.display()),
                "give a model folder as `diffusers` saves it; its weights need not be there",
            ));
        };
        let json = read_text(file)?;
        let raw: Value = read_json(file)?;
        let class = raw["_class_name"].as_str().unwrap_or("absent");
        let Some(network) = Network::from_json(class, &json, model.guidance) else {
            return Err(failure::error(
                format!("{}: `_class_name` is {class}", file.display()),
                "SD3Transformer2DModel, FluxTransformer2DModel and UNet2DConditionModel can be planned",
            ));
        };
        let network = network.with_context(|| format!("cannot use {}", file.display()))?;
        let vae = folder.join("vae/config.json");
        let vae = vae.is_file().then(|| {
            let place = || format!("cannot use {}", vae.display());
            VaeConfig::from_json(&read_text(&vae)?).with_context(place)
        });
        let encoders = ["text_encoder", "text_encoder_2", "text_encoder_3"];
        let text = encoders.map(|part| encoder(&folder.join(part).join("config.json"), model.frozen_weights));
        let text_bytes = text.into_iter().sum::<Result<usize, FolderError>>()?;
        let vae = vae.transpose()?;
        let bytes = |layout: Layout| model.frozen_weights.bytes(layout.shapes().map(|(_, shape)| shape));
        let vae_bytes = vae.as_ref().map_or(0, |vae| bytes(vae.layout()));
        Ok(Self { network_bytes: bytes(network.layout()), vae_bytes, text_bytes, network, vae })
    }
}

/// Bytes of a text encoder; 0 if there is none.
fn encoder(file: &Path, weights: FrozenWeights) -> Result<usize, FolderError> {
    if !file.is_file() {
        return Ok(0);
    }
    let size = |shapes: Shapes| weights.bytes(shapes.iter().map(|(_, shape)| shape.as_slice()));
    let raw: Value = read_json(file)?;
    if raw["model_type"] == "t5" || raw["architectures"][0] == "T5EncoderModel" {
        return Ok(size(T5Config::read(file)?.shapes()));
    }
    Ok(size(ClipConfig::read(file)?.shapes("")))
}

/// What is known of a recipe on a model.
struct Estimate {
    sizes: Sizes,
    row: Row,
    tuning: Tuning,
    /// Rows of the network for one image: 2 with guidance.
    branches: usize,
    /// Operations to draw an image, decoding included, and to train on it.
    draw: f64,
    train: f64,
    flops: cost::Flops,
}

impl Estimate {
    fn new(recipe: &Recipe, model: &Diffusers, sizes: Sizes) -> Result<Self> {
        let method = &recipe.method;
        let reduction = sizes.vae.as_ref().map_or(8, VaeConfig::reduction);
        let [height, width] = model.resolution.sides().map(|side| side / reduction);
        let channels = sizes.network.latent_channels();
        let row = Row { latent: [channels, height, width], text: sizes.network.text_tokens(model.text_length) };
        let tuning = Tuning::Lora(model.lora.clone()).of(&sizes.network);
        let problems = sizes.network.validate(row.latent, &tuning, model.checkpointing);
        if !problems.is_empty() {
            return Err(failure::error(problems.join("\n"), "the model's section of the recipe must fit the network"));
        }
        let flops = cost::flops(&sizes.network, row, &tuning);
        let branches = branches(&method.sampler);
        let schedule = recipe.setting.model.schedule();
        let built = method.build(schedule)?;
        let points = built.points(schedule);
        let others = usize::from(method.behavior.moves_apart(method.batch.updates))
            + usize::from(method.kl.weight > 0.0 && method.kl.reference == Anchor::Base);
        let again = if model.checkpointing == Checkpointing::Block { flops.forward } else { 0.0 };
        let decode = sizes.vae.as_ref().map_or(0.0, |vae| cost::decoding_flops(vae, row.latent));
        let passes = (1 + others) as f64 * flops.forward + again + flops.backward;
        Ok(Self {
            draw: (method.sampler.steps * branches) as f64 * flops.forward + decode,
            train: (points * branches) as f64 * passes,
            sizes,
            row,
            tuning,
            branches,
            flops,
        })
    }

    /// Values held for one row of a micro-batch.
    fn held(&self, checkpointing: Checkpointing) -> f64 {
        self.branches as f64 * cost::activations(&self.sizes.network, self.row, &self.tuning, checkpointing)
    }

    fn decoding(&self, slice: usize) -> f64 {
        let vae = self.sizes.vae.as_ref();
        vae.map_or(0.0, |vae| slice as f64 * cost::decoding_values(vae, self.row.latent))
    }

    /// GiB that do not depend on the micro-batch.
    fn fixed(&self) -> f64 {
        let trained = cost::trained(&self.sizes.network, &self.tuning) as f64;
        ((self.sizes.network_bytes + self.sizes.vae_bytes) as f64 + COPIES * 4.0 * trained) / GIB
    }

    fn text(&self, recipe: &Recipe, model: &Diffusers, device: &Device) -> String {
        let mut out = self.memory(recipe, model);
        let batch = recipe.method.batch;
        let images = (batch.groups * batch.group_size) as f64;
        let rate = device.gpu.flops * device.utilization;
        let tera = |flops: f64| format!("{:.2} TFLOP", flops / 1e12);
        let _ = writeln!(out, "a forward pass    {}; backward {}", tera(self.flops.forward), tera(self.flops.backward));
        let _ = writeln!(out, "an image          {} to draw, {} to train on it", tera(self.draw), tera(self.train));
        let epoch = images * (self.draw + self.train);
        let _ = writeln!(out, "an epoch          {images} images, {:.2} PFLOP", epoch / 1e15);
        let _ = writeln!(
            out,
            "time              {:.0} s an epoch and {:.1} h for {} epochs on one {}: {:.0} TFLOP/s in bf16 as published, {:.0} % reached",
            epoch / rate,
            epoch / rate * recipe.method.epochs as f64 / 3600.0,
            recipe.method.epochs,
            device.gpu.name,
            device.gpu.flops / 1e12,
            100.0 * device.utilization,
        );
        let Some(memory) = device.memory.or(device.gpu.memory) else {
            let _ = write!(out, "micro-batch       unknown: say how much memory there is with --memory");
            return out;
        };
        let room = memory * USABLE - self.fixed() - self.decoding(model.decode_slice) * 2.0 / GIB;
        let fits = |checkpointing| (room * GIB / (2.0 * self.held(checkpointing))).max(0.0).floor();
        let _ = write!(
            out,
            "micro-batch       up to {} in bf16, {} with blocks recomputed, in {:.0} % of {memory} GiB",
            fits(Checkpointing::None),
            self.recomputed(|| fits(Checkpointing::Block).to_string()),
            100.0 * USABLE,
        );
        out
    }

    /// A UNet's blocks cannot be recomputed.
    fn recomputed(&self, text: impl Fn() -> String) -> String {
        if self.sizes.network.checkpointing_problem().is_some() { "none".to_owned() } else { text() }
    }

    fn memory(&self, recipe: &Recipe, model: &Diffusers) -> String {
        let network = &self.sizes.network;
        let (all, trained) = (cost::parameters(network), cost::trained(network, &self.tuning));
        let both = |values: f64| format!("{:8.2} {:8.2}", values * 4.0 / GIB, values * 2.0 / GIB);
        let mut out = String::new();
        let [channels, height, width] = self.row.latent;
        let _ = writeln!(out, "network           {} parameters, {} trained", count(all), count(trained));
        let _ =
            writeln!(out, "a row             latent {channels} × {height} × {width}, {} text tokens", self.row.text);
        let alike = |bytes: f64| format!("{:8.2} {:8.2}", bytes / GIB, bytes / GIB);
        let held = match model.frozen_weights {
            FrozenWeights::Stored => "as stored, in half precision",
            FrozenWeights::F32 => "in f32",
        };
        let _ = writeln!(out, "\nmemory, GiB, computing in        f32     bf16");
        let _ = writeln!(out, "frozen weights {held}");
        let _ = writeln!(out, "  base                      {}", alike(self.sizes.network_bytes as f64));
        let _ = writeln!(out, "  autoencoder               {}", alike(self.sizes.vae_bytes as f64));
        if self.sizes.text_bytes > 0 {
            let _ = writeln!(out, "  text encoders, not in all {}", alike(self.sizes.text_bytes as f64));
        }
        let _ = writeln!(
            out,
            "trained: weights, gradient, AdamW, average, behavior, in f32\n{:28}{}",
            "",
            alike(COPIES * trained as f64 * 4.0)
        );
        let _ = writeln!(out, "activations a row           {}", both(self.held(Checkpointing::None)));
        let recomputed = self.recomputed(|| both(self.held(Checkpointing::Block)));
        let _ = writeln!(out, "  with blocks recomputed    {recomputed}");
        let _ = writeln!(
            out,
            "decoding {:<2} at once         {}",
            model.decode_slice,
            both(self.decoding(model.decode_slice))
        );
        let rows = recipe.method.batch.micro_batch.size();
        let total = |bytes: f64| self.fixed() + rows as f64 * self.held(model.checkpointing) * bytes / GIB;
        let _ = writeln!(out, "in all at micro_batch = {rows:<3} {:8.2} {:8.2}\n", total(4.0), total(2.0));
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_have_their_published_peaks_or_what_is_said() {
        assert_eq!(gpu("H100").expect("known").memory, Some(80.0));
        assert_eq!(gpu("5e14").expect("a number").flops.to_bits(), 5e14_f64.to_bits());
        for wrong in ["h1000x", "-1", "nan", "0"] {
            assert!(gpu(wrong).is_err_and(|e| e.contains("l40s")), "{wrong}");
        }
    }
}
