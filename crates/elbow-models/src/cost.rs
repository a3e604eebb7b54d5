//! What a network costs, from its sizes alone: parameters, operations and the memory of a training step.
//!
//! Operations are those of matrix products and convolutions, a multiplication and an addition as two; everything else is
//! small beside them. What a pass holds is counted in values: 4 bytes each where training runs here, 2 where it would run in
//! half precision. Bytes of frozen weights are those of [`FrozenWeights::bytes`](crate::folder::FrozenWeights::bytes).

use crate::{
    policy::{BUFFER, Network, Tuning},
    recompute::Checkpointing,
    vae::VaeConfig,
};

/// One row of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// `[C, H, W]` of its latent.
    pub latent: [usize; 3],
    /// Tokens of its text.
    pub text: usize,
}

/// Operations of one row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Flops {
    /// Of a forward pass.
    pub forward: f64,
    /// Of a backward pass: each product again for the gradient of its input and, where the weight is trained, for that of the
    /// weight.
    pub backward: f64,
}

/// Number of parameters; fixed tables, such as those of positions, are none.
pub fn parameters(network: &Network) -> usize {
    let layout = network.layout();
    layout.shapes().filter(|(name, _)| *name != BUFFER).map(|(_, shape)| shape.iter().product::<usize>()).sum()
}

/// Number of trained parameters.
pub fn trained(network: &Network, tuning: &Tuning) -> usize {
    match tuning.clone().of(network) {
        Tuning::Full => parameters(network),
        Tuning::Lora(lora) => {
            let adapted = |(name, shape): (&str, &[usize])| match (name.strip_suffix(".weight"), shape) {
                (Some(layer), [out, input]) if lora.targets(layer) => lora.rank * (out + input),
                _ => 0,
            };
            network.layout().shapes().map(adapted).sum()
        }
    }
}

/// Operations of one row, without guidance.
pub fn flops(network: &Network, row: Row, tuning: &Tuning) -> Flops {
    let (mut weights, mut adapters, mut attention) = (0.0, 0.0, 0.0);
    let tuning = tuning.clone().of(network);
    for (name, shape) in network.layout().shapes() {
        let Some(layer) = name.strip_suffix(".weight").filter(|_| shape.len() > 1) else { continue };
        let positions = positions(network, row, layer) as f64;
        weights += 2.0 * shape.iter().product::<usize>() as f64 * positions;
        if let Tuning::Lora(lora) = &tuning
            && let [out, input] = shape
            && lora.targets(layer)
        {
            adapters += 2.0 * (lora.rank * (out + input)) as f64 * positions;
        }
        if layer.ends_with(".to_q") {
            let keys = keys(network, row, layer) as f64;
            let queries = if joint(network, layer) { keys } else { positions };
            attention += 4.0 * queries * keys * shape[0] as f64;
        }
    }
    let gradients = if tuning == Tuning::Full { 2.0 * weights } else { weights };
    Flops { forward: weights + adapters + attention, backward: gradients + 2.0 * (adapters + attention) }
}

/// Operations of decoding one latent to a picture.
pub fn decoding_flops(vae: &VaeConfig, [_, height, width]: [usize; 3]) -> f64 {
    let levels = vae.block_out_channels.len();
    let products = |(name, shape): (&str, &[usize])| {
        let layer = name.strip_suffix(".weight").filter(|_| shape.len() > 1)?;
        let path = layer.strip_prefix("decoder.")?;
        let doubled = match level(path, "up_blocks.") {
            Some(i) => i + usize::from(path.contains("upsamplers")),
            None if path.starts_with("conv_out") => levels - 1,
            None => 0,
        };
        let pixels = ((height * width) << (2 * doubled)) as f64;
        let attention = if path.ends_with(".to_q") { 4.0 * pixels * pixels * shape[0] as f64 } else { 0.0 };
        Some(2.0 * shape.iter().product::<usize>() as f64 * pixels + attention)
    };
    vae.layout().shapes().filter_map(products).sum()
}

/// Values that decoding one latent holds at its peak, roughly: the widest level at the picture's full size, as input, as
/// normalized, as convolved and as unfolded for the convolution by parts.
pub fn decoding_values(vae: &VaeConfig, [_, height, width]: [usize; 3]) -> f64 {
    let levels = vae.block_out_channels.len();
    let pixels = |doubled: usize| ((height * width) << (2 * doubled)) as f64;
    let at = |i: usize| 4.0 * vae.block_out_channels[levels - i.max(1)] as f64 * pixels(i);
    (0..levels).map(at).fold(0.0, f64::max)
}

/// Values that the forward pass of one row leaves for the backward pass, with what one block needs while it is
/// differentiated.
///
/// For transformers over image and text this counts the tensors that the operations here keep. Of a UNet it is rough.
pub fn activations(network: &Network, row: Row, tuning: &Tuning, checkpointing: Checkpointing) -> f64 {
    let full = tuning.clone().of(network) == Tuning::Full;
    let blocks = blocks(network, row, full);
    let kept: f64 = blocks.iter().map(|block| block.inside).sum();
    let entries: f64 = blocks.iter().map(|block| block.entry).sum();
    // While a block is differentiated, the gradients inside it are about as large as the widest of its tensors twice.
    let (most, gradients) = blocks
        .iter()
        .fold((0.0_f64, 0.0_f64), |(most, gradients), block| (most.max(block.inside), gradients.max(block.gradients)));
    match checkpointing {
        Checkpointing::None => kept + gradients,
        Checkpointing::Block => entries + most + gradients,
    }
}

/// What one block holds, in values.
struct Held {
    /// Its input.
    entry: f64,
    /// What its operations keep for the backward pass.
    inside: f64,
    /// Gradients while it is differentiated.
    gradients: f64,
}

fn blocks(network: &Network, row: Row, full: bool) -> Vec<Held> {
    let tokens = image_tokens(network, row) as f64;
    let all = tokens + row.text as f64;
    // In widths a token. With frozen weights: the norms' inputs (2), the input of the adapters and of the attention's
    // output (2), queries, keys and values (3), the input of GELU (4). Trained weights keep the inputs of both layers of
    // the feed-forward (5) and what the gates multiply (2) too.
    let of_stream = if full { 18.0 } else { 11.0 };
    // RMS norms of queries and keys keep what they divide, and, trained, what comes of it.
    let norms = if full { 4.0 } else { 2.0 };
    match network {
        Network::Mmdit(config) => {
            let width = config.width() as f64;
            let norms = if config.qk_norm.is_some() { norms } else { 0.0 };
            let block = |i: usize| {
                let dual = if config.dual_attention_layers.contains(&i) { (6.0 + norms) * tokens } else { 0.0 };
                let inside = width * (all * (of_stream + norms) + dual);
                Held { entry: width * all, inside, gradients: 8.0 * width * all }
            };
            (0..config.num_layers).map(block).collect()
        }
        Network::Flux { config, .. } => {
            let width = config.width() as f64;
            // Rotation by positions keeps its inputs no longer than it runs.
            let held =
                |inside: f64| Held { entry: width * all, inside: inside * width * all, gradients: 8.0 * width * all };
            let double = (0..config.num_layers).map(|_| held(of_stream + norms));
            // One norm; attention and feed-forward end in one layer, whose input is 5 wide.
            let single = 1.0 + 1.0 + 3.0 + 4.0 + norms + if full { 6.0 } else { 1.0 };
            double.chain((0..config.num_single_layers).map(|_| held(single))).collect()
        }
        Network::Unet(_) => vec![unet(network, row)],
    }
}

/// The whole UNet, which is one block: eight maps a residual block, and transformers as those of other networks with twice the
/// feed-forward.
fn unet(network: &Network, row: Row) -> Held {
    let (mut inside, mut widest) = (0.0, 0.0_f64);
    for (name, shape) in network.layout().shapes() {
        let Some(layer) = name.strip_suffix(".weight") else { continue };
        let map = shape[0] as f64 * positions(network, row, layer) as f64;
        let maps = match layer.rsplit('.').next().unwrap_or_default() {
            "conv1" | "conv2" => 4.0,
            "conv" | "conv_in" | "conv_shortcut" | "proj_in" | "proj_out" => 1.0,
            "to_q" => 6.0,
            _ if layer.ends_with("ff.net.0.proj") => 2.0,
            _ => continue,
        };
        inside += maps * map;
        widest = widest.max(map);
    }
    Held { entry: 0.0, inside, gradients: 2.0 * widest }
}

/// Tokens of the image; of a UNet its pixels.
fn image_tokens(network: &Network, row: Row) -> usize {
    let [_, height, width] = row.latent;
    match network {
        Network::Mmdit(config) => height / config.patch_size * (width / config.patch_size),
        Network::Flux { .. } => height / 2 * (width / 2),
        Network::Unet(_) => height * width,
    }
}

/// Positions at which a layer is applied.
fn positions(network: &Network, row: Row, layer: &str) -> usize {
    let image = image_tokens(network, row);
    match network {
        Network::Unet(config) => {
            let last = config.block_out_channels.len() - 1;
            let halved = match (level(layer, "down_blocks."), level(layer, "up_blocks.")) {
                _ if layer.contains("time_emb") => return 1,
                _ if layer.contains("attn2.to_k") || layer.contains("attn2.to_v") => return row.text,
                (Some(i), _) => i + usize::from(layer.contains("downsamplers")),
                (_, Some(i)) => last - i - usize::from(layer.contains("upsamplers")),
                _ if layer.starts_with("mid_block") => last,
                _ => 0,
            };
            image >> (2 * halved)
        }
        _ if layer.starts_with("time_text_embed") || layer.contains("norm") => 1,
        _ if layer.starts_with("single_transformer_blocks") => image + row.text,
        _ if ["context", ".add_", "to_add_out"].iter().any(|part| layer.contains(part)) => row.text,
        _ => image,
    }
}

/// Positions that the queries of a layer attend to.
fn keys(network: &Network, row: Row, layer: &str) -> usize {
    match network {
        Network::Unet(_) if layer.contains("attn2.") => row.text,
        _ if joint(network, layer) => image_tokens(network, row) + row.text,
        _ => positions(network, row, layer),
    }
}

/// Whether a layer belongs to an attention of image and text to both.
fn joint(network: &Network, layer: &str) -> bool {
    !matches!(network, Network::Unet(_)) && layer.contains(".attn.")
}

/// The number after `before` at the start of a name.
fn level(name: &str, before: &str) -> Option<usize> {
    name.strip_prefix(before)?.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{flux::FluxConfig, lora::LoraConfig, mmdit::MmditConfig, unet::UnetConfig};

    fn published(name: &str) -> String {
        let path = format!("{}/../../fixtures/inventory/{name}.json", env!("CARGO_MANIFEST_DIR"));
        let file: serde_json::Value = serde_json::from_slice(&std::fs::read(path).expect("a fixture")).expect("JSON");
        file["config"].to_string()
    }

    fn mmdit(name: &str) -> Network {
        Network::Mmdit(MmditConfig::from_json(&published(name)).expect("a configuration"))
    }

    fn flux() -> Network {
        let config = FluxConfig::from_json(&published("flux.1-dev")).expect("a configuration");
        Network::Flux { config, guidance: 3.5 }
    }

    fn unet() -> Network {
        Network::Unet(UnetConfig::from_json(&published("sd1.5-unet")).expect("a configuration"))
    }

    fn near(value: f64, expected: f64, share: f64) {
        assert!((value / expected - 1.0).abs() < share, "{value:e}, {expected:e} expected");
    }

    #[test]
    fn parameters_are_the_published_ones() {
        for (network, billions) in
            [(mmdit("sd3.5-medium"), 2.243), (mmdit("sd3.5-large"), 8.06), (flux(), 11.90), (unet(), 0.8595)]
        {
            near(parameters(&network) as f64, billions * 1e9, 0.005);
        }
        let lora = Tuning::Lora(LoraConfig::default());
        // 24 blocks: four layers of the image and, but in the last, of the text; the last has no `to_add_out`. No `attn2`.
        assert_eq!(trained(&mmdit("sd3.5-medium"), &lora), (24 * 7 + 23) * 32 * 2 * 1536);
        assert_eq!(trained(&flux(), &lora), (19 * 8 + 38 * 3) * 32 * 2 * 3072);
    }

    /// By hand: width 128, 64 image tokens and 9 of text, 4 blocks.
    #[test]
    fn operations_of_the_nano_network() {
        let (h, i, t) = (128.0, 64.0, 9.0);
        let network = Network::Mmdit(MmditConfig::default());
        let row = Row { latent: [3, 32, 32], text: 9 };
        let dense = i * (3.0 * 16.0) * h + t * 192.0 * h + (256.0 + 64.0 + 2.0 * h) * h; // patches, text, time
        let block = (i + t) * (4.0 + 8.0) * h * h + 12.0 * h * h; // attention's layers, feed-forward, modulations
        let last = t * (1.0 + 8.0) * h * h + 4.0 * h * h; // the text has no output there
        let head = 2.0 * h * h + i * h * 48.0;
        let products = 2.0 * (dense + 4.0 * block - last + head);
        let attention = 4.0 * 4.0 * (i + t) * (i + t) * h;
        let got = flops(&network, row, &Tuning::Full);
        near(got.forward, products + attention, 1e-12);
        near(got.backward, 2.0 * (products + attention), 1e-12);
        let lora = flops(&network, row, &Tuning::Lora(LoraConfig { rank: 4, ..LoraConfig::default() }));
        let adapters = 2.0 * 4.0 * 2.0 * h * (4.0 * 4.0 * i + (4.0 * 4.0 - 1.0) * t);
        near(lora.forward, products + attention + adapters, 1e-12);
        near(lora.backward, products + 2.0 * (attention + adapters), 1e-12);
    }

    /// Stable Diffusion 1.5 at 512 × 512 is known for 0.80 TFLOP a forward pass, and its decoder for 2.5.
    #[test]
    fn operations_of_published_networks() {
        let row = Row { latent: [4, 64, 64], text: 77 };
        near(flops(&unet(), row, &Tuning::Full).forward, 0.80e12, 0.05);
        let vae = VaeConfig::from_json(&published("sd1.5-vae")).expect("a configuration");
        near(decoding_flops(&vae, [4, 64, 64]), 2.5e12, 0.1);
    }

    #[test]
    fn recomputed_blocks_hold_less_and_trained_weights_more() {
        let lora = Tuning::Lora(LoraConfig::default());
        for network in [mmdit("sd3.5-medium"), flux()] {
            let row = Row { latent: [16, 64, 64], text: 333 };
            let held = |tuning, checkpointing| activations(&network, row, tuning, checkpointing);
            assert!(held(&lora, Checkpointing::Block) * 5.0 < held(&lora, Checkpointing::None));
            assert!(held(&lora, Checkpointing::None) < held(&Tuning::Full, Checkpointing::None));
        }
    }
}
