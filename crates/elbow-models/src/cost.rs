//! What a network costs, from its sizes alone: parameters, operations and the memory of a training step.
//!
//! Operations are those of matrix products and convolutions, a multiplication and an addition as two; everything else is
//! small beside them. What a pass holds is counted in values: 4 bytes each where training runs here, 2 where it would run in
//! half precision. Bytes of frozen weights are those of [`FrozenWeights::bytes`](crate::folder::FrozenWeights::bytes).

use crate::{
    layout::{Adapter, Attention, Block, Layout, Slot, Tokens, Vectors},
    lora::LoraConfig,
    network::Network,
    policy::Tuning,
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
    network.layout().trainable().map(|(_, shape)| shape.iter().product::<usize>()).sum()
}

/// Number of trained parameters.
pub fn trained(network: &Network, tuning: &Tuning) -> usize {
    match tuning.clone().of(network) {
        Tuning::Full => parameters(network),
        Tuning::Lora(lora) => network.layout().slots().iter().map(|slot| factors(slot, &lora)).sum(),
    }
}

/// Operations of one row, without guidance.
pub fn flops(network: &Network, row: Row, tuning: &Tuning) -> Flops {
    let (layout, tuning) = (network.layout(), tuning.clone().of(network));
    let weights = products(&layout, row, Slot::size);
    let adapters = match &tuning {
        Tuning::Full => 0.0,
        Tuning::Lora(lora) => products(&layout, row, |slot| factors(slot, lora)),
    };
    let attention = attention(&layout, row);
    let gradients = if tuning == Tuning::Full { 2.0 * weights } else { weights };
    Flops { forward: weights + adapters + attention, backward: gradients + 2.0 * (adapters + attention) }
}

/// Operations of decoding one latent to a picture.
pub fn decoding_flops(vae: &VaeConfig, latent: [usize; 3]) -> f64 {
    let (layout, row) = (vae.decoder_layout(), Row { latent, text: 0 });
    products(&layout, row, Slot::size) + attention(&layout, row)
}

/// Values that decoding one latent holds at its peak, roughly: the widest level at the picture's full size, as input, as
/// normalized, as convolved and as unfolded for the convolution by parts.
pub fn decoding_values(vae: &VaeConfig, latent: [usize; 3]) -> f64 {
    let row = Row { latent, text: 0 };
    let layout = vae.decoder_layout();
    let widest = layout.blocks().iter().map(|block| widest(block, row)).fold(0.0, f64::max);
    4.0 * widest
}

/// Values that the forward pass of one row leaves for the backward pass, with what one block needs while it is
/// differentiated.
///
/// For transformers over image and text this counts the tensors that the operations here keep. Of a UNet it is rough.
pub fn activations(network: &Network, row: Row, tuning: &Tuning, checkpointing: Checkpointing) -> f64 {
    let (layout, full) = (network.layout(), tuning.clone().of(network) == Tuning::Full);
    let (mut kept, mut inputs, mut most, mut gradients) = (0.0, 0.0, 0.0_f64, 0.0_f64);
    for block in layout.blocks() {
        let inside = inside(block, row, full);
        kept += inside;
        inputs += values(&block.input, row);
        most = most.max(inside);
        // While a block is differentiated, the gradients inside it are about as large as the widest of its tensors twice.
        gradients = gradients.max(2.0 * widest(block, row));
    }
    match checkpointing {
        Checkpointing::None => kept + gradients,
        Checkpointing::Block => inputs + most + gradients,
    }
}

/// Parameters of an adapter on a layer; 0 if it has none.
fn factors(slot: &Slot, lora: &LoraConfig) -> usize {
    let adapted = slot.adapter != Adapter::None && lora.targets(slot.layer());
    if adapted { lora.rank * slot.shape.iter().sum::<usize>() } else { 0 }
}

/// Operations of all products with tensors of `size`, each applied to its tokens.
fn products(layout: &Layout, row: Row, size: impl Fn(&Slot) -> usize) -> f64 {
    let product = |slot: &Slot| {
        let tokens = slot.product.map_or(0, |tokens| count(tokens, row));
        2.0 * size(slot) as f64 * tokens as f64
    };
    layout.slots().iter().map(product).sum()
}

/// Operations of all attentions: queries with keys, and weights with values.
fn attention(layout: &Layout, row: Row) -> f64 {
    let pairs = |attention: &Attention| count(attention.queries, row) as f64 * count(attention.keys, row) as f64;
    layout.attentions().iter().map(|attention| 4.0 * pairs(attention) * attention.width as f64).sum()
}

/// Values that the operations of a block keep for the backward pass.
fn inside(block: &Block, row: Row, full: bool) -> f64 {
    let to_train = if full { block.kept_to_train.as_slice() } else { &[] };
    block.kept.iter().chain(to_train).map(|vectors| values(vectors, row)).sum()
}

/// Values of the widest tensor of a block.
fn widest(block: &Block, row: Row) -> f64 {
    block.wide.iter().map(|vectors| values(vectors, row)).fold(0.0, f64::max)
}

fn values(vectors: &Vectors, row: Row) -> f64 {
    vectors.width as f64 * count(vectors.tokens, row) as f64
}

/// The number of these in a row.
fn count(tokens: Tokens, row: Row) -> usize {
    let [_, height, width] = row.latent;
    let squares = |side: usize| height / side * (width / side);
    match tokens {
        Tokens::One => 1,
        Tokens::Text => row.text,
        Tokens::Image { side } => squares(side),
        Tokens::Joint { side } => squares(side) + row.text,
        Tokens::Pixels { side } => height * side * width * side,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mmdit::MmditConfig;

    fn published(name: &str) -> String {
        let path = format!("{}/../../fixtures/inventory/{name}.json", env!("CARGO_MANIFEST_DIR"));
        let file: serde_json::Value = serde_json::from_slice(&std::fs::read(path).expect("a fixture")).expect("JSON");
        file["config"].to_string()
    }

    fn network(class: &str, name: &str) -> Network {
        Network::from_json(class, &published(name), 3.5).expect("a known class").expect("a configuration")
    }

    fn mmdit(name: &str) -> Network {
        network("SD3Transformer2DModel", name)
    }

    fn flux() -> Network {
        network("FluxTransformer2DModel", "flux.1-dev")
    }

    fn unet() -> Network {
        network("UNet2DConditionModel", "sd1.5-unet")
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
        let network = Network::from(MmditConfig::default());
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
