//! The transformers against `SD3Transformer2DModel` and `FluxTransformer2DModel` of diffusers with adapters of PEFT: names,
//! shapes, positions, output and gradients (`fixtures/README.md` says how the references were made).

mod common;

use burn::tensor::Device;
use common::{Golden, Tolerance, close};
use elbow::{
    Prompt,
    noise::{Key, Purpose},
    params::{Entry, Params},
    policy::{Conditioning, EncodeError, Policy, TextEncoder},
    prediction::Prediction,
    schedule::Schedule,
};
use elbow_models::{
    flux::{FluxConfig, Guided},
    linear::Precision,
    lora::LoraConfig,
    mmdit::{MmditConfig, QkNorm},
    policy::{Decoder, Network, NetworkPolicy, Tuning},
    recompute::Checkpointing,
    unet::UnetConfig,
};

/// Relative to the largest value of the reference.
const POSITIONS: f64 = 1e-6;

/// Layers that the field adapts.
const JOINT_ATTENTION: [&str; 8] = [
    "attn.to_q",
    "attn.to_k",
    "attn.to_v",
    "attn.to_out.0",
    "attn.add_q_proj",
    "attn.add_k_proj",
    "attn.add_v_proj",
    "attn.to_add_out",
];
/// Layers that the field adapts in FLUX besides those of attention.
const FEED_FORWARD: [&str; 4] = ["ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"];
/// Layers of the second attention of SD3.5 medium.
const DUAL: [&str; 4] = ["attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0"];

fn mmdit(variant: &str) -> Golden {
    let network = Network::from(MmditConfig {
        sample_size: 8,
        patch_size: 2,
        in_channels: 4,
        num_layers: 3,
        attention_head_dim: 8,
        num_attention_heads: 2,
        joint_attention_dim: 12,
        caption_projection_dim: Some(16),
        pooled_projection_dim: 10,
        out_channels: Some(4),
        pos_embed_max_size: 6,
        dual_attention_layers: if variant == "dual" { vec![0, 1] } else { Vec::new() },
        qk_norm: (variant != "plain").then_some(QkNorm::RmsNorm),
    });
    let file = |part: &str| format!("mmdit/{variant}.{part}.safetensors");
    let tolerance = Tolerance { output: 1e-5, gradient: 1e-4 };
    Golden::new(network.clone(), &network, [&file("weights"), &file("reference")], tolerance)
}

fn flux(guidance_embeds: bool) -> Golden {
    let config = |guidance_embeds| FluxConfig {
        patch_size: 1,
        in_channels: 16,
        out_channels: None,
        num_layers: 2,
        num_single_layers: 2,
        attention_head_dim: 8,
        num_attention_heads: 2,
        joint_attention_dim: 12,
        pooled_projection_dim: 10,
        guidance_embeds,
        axes_dims_rope: vec![2, 2, 4],
    };
    let network = |guided| Network::from(Guided { config: config(guided), guidance: 3.5 });
    let files = ["flux/weights.safetensors", "flux/reference.safetensors"];
    // diffusers rounds frequencies to float32 more than once and multiplies them by 1000 times the guidance: with exact ones
    // its output moves by 2e-5, this crate's by 1e-5.
    let tolerance = if guidance_embeds {
        Tolerance { output: 1e-4, gradient: 1e-3 }
    } else {
        Tolerance { output: 1e-5, gradient: 1e-4 }
    };
    Golden::new(network(guidance_embeds), &network(true), files, tolerance)
}

fn attention() -> Vec<String> {
    JOINT_ATTENTION.map(String::from).to_vec()
}

#[test]
fn constructors_name_the_layers_that_the_field_adapts() {
    for network in [mmdit("plain").network, mmdit("dual").network, flux(true).network] {
        assert_eq!(network.usual_targets(), JOINT_ATTENTION);
    }
    let unet = Network::from(UnetConfig::default());
    assert_eq!(unet.usual_targets(), ["to_q", "to_k", "to_v", "to_out.0"]);
}

fn check_mmdit(variant: &str, more: &[&str]) {
    let golden = mmdit(variant);
    golden.check("square", &golden.weights, None);
    golden.check("narrow", &golden.weights, None);
    let targets = attention();
    let targets: Vec<&str> = targets.iter().map(String::as_str).chain(more.iter().copied()).collect();
    let (factors, scale) = golden.factors(&targets);
    golden.check("lora", &factors, Some(scale));
}

#[test]
fn mmdit_without_query_key_norm() {
    check_mmdit("plain", &[]);
}

#[test]
fn mmdit_with_query_key_norm() {
    check_mmdit("qk-norm", &[]);
}

#[test]
fn mmdit_with_dual_attention() {
    check_mmdit("dual", &DUAL);
}

#[test]
fn flux_with_guidance() {
    let golden = flux(true);
    golden.check("dev", &golden.weights, None);
    let targets = attention();
    let targets: Vec<&str> = targets.iter().map(String::as_str).chain(FEED_FORWARD).collect();
    let (factors, scale) = golden.factors(&targets);
    golden.check("lora", &factors, Some(scale));
}

#[test]
fn flux_without_guidance() {
    let golden = flux(false);
    golden.check("schnell", &golden.weights, None);
}

/// Recomputing blocks changes no bit of a gradient of LoRA, and those of full fine-tuning by rounding only.
fn check_recomputation(golden: &Golden, case: &str, targets: &[&str]) {
    let (factors, scale) = golden.factors(targets);
    let both = |trained: (&Params, Option<f64>)| {
        [Checkpointing::None, Checkpointing::Block].map(|c| golden.differentiate(&Device::flex(), case, trained, c))
    };
    let equal = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits());
    let [kept, recomputed] = both((&factors, Some(scale)));
    assert!(kept.1.norm() > 1.0, "gradients flow");
    assert!(equal(&kept.0, &recomputed.0), "{case} output");
    let differs = |e: &&Entry| !equal(&kept.1.values()[e.range.clone()], &recomputed.1.values()[e.range.clone()]);
    let different: Vec<&str> = factors.entries().iter().filter(differs).map(|e| e.name.as_str()).collect();
    assert!(different.is_empty(), "{case}: {different:?}");
    let [kept, recomputed] = both((&golden.weights, None));
    assert!(equal(&kept.0, &recomputed.0), "{case} output");
    for entry in golden.weights.entries() {
        let [kept, recomputed] = [&kept.1, &recomputed.1].map(|g| &g.values()[entry.range.clone()]);
        close(&entry.name, recomputed, kept, 1e-5);
    }
}

#[test]
fn recomputed_blocks_of_the_mmdit_have_the_same_gradients() {
    let targets = attention();
    let targets: Vec<&str> = targets.iter().map(String::as_str).collect();
    check_recomputation(&mmdit("plain"), "square", &targets);
    let targets: Vec<&str> = targets.into_iter().chain(DUAL).collect();
    check_recomputation(&mmdit("dual"), "narrow", &targets);
}

#[test]
fn recomputed_blocks_of_flux_have_the_same_gradients() {
    let targets = attention();
    let targets: Vec<&str> = targets.iter().map(String::as_str).chain(FEED_FORWARD).collect();
    check_recomputation(&flux(true), "dev", &targets);
}

/// Encodes nothing.
struct NoText;

impl TextEncoder for NoText {
    fn encode(&self, prompts: &[Prompt]) -> Result<Conditioning, EncodeError> {
        let prompt = prompts.first().map(|p| p.text.clone()).unwrap_or_default();
        Err(EncodeError { prompt, reason: "this encoder takes none".to_owned() })
    }
}

#[test]
fn a_policy_starts_at_its_reference_and_trains_factors_alone() {
    let golden = flux(true);
    let mut policy = NetworkPolicy {
        network: golden.network.clone(),
        latent: [4, 8, 4],
        schedule: Schedule::RectifiedFlow,
        prediction: Prediction::Velocity,
        base: golden.weights.tensors(&Device::flex()),
        tuning: Tuning::default().of(&golden.network),
        precision: Precision::F32,
        checkpointing: Checkpointing::Block,
        text: Box::new(NoText),
        decoder: Decoder::Pixels,
        adapter: None,
        seed: 0,
    };
    assert_eq!((policy.validate(), policy.base()), (Vec::new(), golden.weights.clone()));
    let (initial, device) = (policy.initial(), Device::flex().autodiff());
    let leaves = initial.tensors(&device);
    let (reference, _) = golden.forward("dev", &*policy.bind(None), &Device::flex());
    let (start, loss) = golden.forward("dev", &*policy.bind(Some(&leaves)), &Device::flex());
    close("the first output", &start, &reference, 0.0);
    let mut gradients = initial.zeros_like();
    gradients.add_gradients(&leaves, &mut loss.backward());
    for entry in initial.entries() {
        // B is zero, so nothing flows to A yet.
        let flows = gradients.values()[entry.range.clone()].iter().any(|g| g.abs() > 0.0);
        assert_eq!(flows, entry.name.ends_with("lora_B.weight"), "{}", entry.name);
    }
    policy.latent = [4, 7, 4];
    policy.tuning = Tuning::Lora(LoraConfig { target_modules: vec!["to_qq".to_owned()], ..LoraConfig::default() });
    assert_eq!(policy.validate().len(), 2, "{:?}", policy.validate());
}

#[test]
fn own_positions_are_the_reference_positions() {
    let golden = mmdit("plain");
    let fresh = golden.network.layout().initial(Key::new(0, Purpose::Initialization, 0));
    let entry = fresh.entries().iter().find(|e| e.name == "pos_embed.pos_embed").unwrap();
    let (own, reference) = (&fresh.values()[entry.range.clone()], &golden.weights.values()[entry.range.clone()]);
    close("positions", own, reference, POSITIONS);
}
