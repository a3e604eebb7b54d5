//! From the text of a prompt to pixels, against the whole pipelines of diffusers (`fixtures/make/pipeline.py`), and folders in
//! which several things are wrong.

use crate::{
    drawing::{OPTIONS, Reference, draw, load, loaded, open, setup},
    model_folder::{fixtures, whole},
    ruined::ruin,
};
use burn::tensor::{Device, Tensor};
use elbow::{
    Prompt,
    policy::{Policy, TextEncoder},
    prediction::Prediction,
    schedule::Spacing,
};
use elbow_models::{
    lora_file::read,
    pipeline::{Options, Source},
    policy::{NetworkPolicy, Tuning},
};
use std::{cell::RefCell, fs, path::Path};

/// Relative to the largest value of the reference.
const TOLERANCE: f64 = 1e-4;

fn check(pipeline: &str) {
    let folder = whole(pipeline);
    let reference = Reference::open(&fixtures().join(format!("pipeline/{pipeline}.reference.safetensors")));
    let close = |name: &str, got| {
        let (off, size) = reference.off(name, got);
        assert!(off <= TOLERANCE * size, "{name}: off by {off:e} of {size:e}");
    };
    let policy = load(folder.path(), Tuning::default(), 1);
    let x = draw(pipeline, &policy, None, reference.tensor("start"), &reference.times());
    close("latent", x.clone());
    close("image", policy.decoder.values(x.clone()));
    let x: Tensor<2> = x.reshape([2, -1]);
    let images = policy.decode(x.clone());
    assert_eq!(images.iter().map(|image| image.picture.dimensions()).collect::<Vec<_>>(), [(32, 32); 2]);
    assert!(images.iter().all(|image| image.finite));
    assert_eq!(load(folder.path(), Tuning::default(), 2).decode(x), images, "slices");
}

#[test]
fn stable_diffusion_3() {
    check("sd3");
}

#[test]
fn flux() {
    check("flux");
}

#[test]
fn stable_diffusion_1() {
    check("sd1");
}

/// Pictures of 24 x 40 pixels: positions, patches and the shift by tokens know height from width.
#[test]
fn pictures_need_not_be_square() {
    for pipeline in ["sd3", "flux", "sd1"] {
        let folder = whole(pipeline);
        let source = Source::open(folder.path(), &Options { resolution: Some([24, 40]), ..OPTIONS }).expect("a model");
        assert_eq!(source.latent[1..], [6, 10], "{pipeline}");
        let reference = Reference::open(&fixtures().join(format!("pipeline/{pipeline}.wide.safetensors")));
        let times = reference.times();
        if pipeline == "flux" {
            // 3 x 5 tokens of 2 x 2.
            let expected = Spacing::Uniform.times(4, source.scheduler.shift.by(15));
            let off = expected.iter().zip(&times).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(expected.len() == times.len() && off < 1e-6, "{expected:?} {times:?}");
        }
        let policy = loaded(folder.path(), source, Tuning::default(), 1);
        let x = draw(pipeline, &policy, None, reference.tensor("start"), &times);
        for (name, got) in [("latent", x.clone()), ("image", policy.decoder.values(x.clone()))] {
            let (off, size) = reference.off(name, got);
            assert!(off <= TOLERANCE * size, "{pipeline} {name}: off by {off:e} of {size:e}");
        }
        let pictures = policy.decode(x.reshape([2, -1]));
        assert_eq!(pictures.iter().map(|image| image.picture.dimensions()).collect::<Vec<_>>(), [(40, 24); 2]);
    }
}

#[test]
fn a_model_has_a_size_of_its_own() {
    for (pipeline, side) in [("sd3", 8 * 4), ("sd1", 8 * 4), ("flux", 128 * 4)] {
        let folder = whole(pipeline);
        let source = Source::open(folder.path(), &Options { resolution: None, ..OPTIONS }).expect("a model");
        assert_eq!(source.resolution, [side; 2], "{pipeline}");
    }
}

#[test]
fn prompts_that_are_encoded_before_the_network_is_read_need_no_encoder_after() {
    let prompts: Vec<Prompt> = (0..9).map(|i| Prompt::from(format!("a photo of {i} dogs").as_str())).collect();
    let device = Device::flex();
    for pipeline in ["sd3", "flux", "sd1"] {
        let (folder, other) = (whole(pipeline), whole(pipeline));
        let source = open(folder.path()).expect("a model");
        let cache = folder.path().join("cache");
        let text = source.text(&setup(&cache, Tuning::default(), 1), &device).expect("text encoders");
        let told = RefCell::new(Vec::new());
        let prepare = || text.prepare(&prompts, &|done, total| told.borrow_mut().push((done, total)));
        prepare().expect("encoded");
        ruin(folder.path());
        prepare().expect("known");
        assert_eq!(told.take(), [(0, 9), (8, 9), (9, 9)], "the second time there is nothing to do");
        let policy = source.load(setup(&cache, Tuning::default(), 1), &device).expect("weights");
        let velocity = |policy: &NetworkPolicy, prompts: &[Prompt]| -> Vec<f32> {
            let cond = policy.encode(prompts).expect("embeddings");
            let x = Tensor::<2>::full([prompts.len(), policy.dims()], 0.3, &device);
            let t = Tensor::full([prompts.len()], 0.7, &device);
            policy.bind(None).velocity(x, t, &cond).into_data().try_to_vec().expect("f32")
        };
        let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        assert_eq!(
            bits(velocity(&policy, &prompts)),
            bits(velocity(&load(other.path(), Tuning::default(), 1), &prompts)),
            "{pipeline}"
        );
        let unseen =
            policy.encode(&["a prompt that was not encoded".into()]).expect_err("the encoders are of no use by now");
        assert!(unseen.reason.contains("holds NaN"), "{pipeline}: {unseen}");
    }
}

#[test]
fn adapters_go_where_the_network_has_attention() {
    for (pipeline, layers, prediction) in [
        ("sd3", 3 * 8 - 1, Prediction::Velocity),
        ("flux", 8 + 3, Prediction::Velocity),
        ("sd1", 4 * 8, Prediction::Noise),
    ] {
        let folder = whole(pipeline);
        let policy = load(folder.path(), Tuning::default(), 1);
        assert_eq!((policy.initial().entries().len(), policy.prediction), (2 * layers, prediction), "{pipeline}");
        assert_eq!(policy.validate(), Vec::<String>::new(), "{pipeline}");
    }
}

/// An adapter of peft, from its folder and from diffusers' file (`fixtures/make/adapted.py`), to the same picture.
#[test]
fn adapters_made_elsewhere_draw_the_same_picture() {
    for pipeline in ["sd3", "flux", "sd1"] {
        let (folder, fixtures) = (whole(pipeline), fixtures().join("pipeline"));
        let plain = Reference::open(&fixtures.join(format!("{pipeline}.reference.safetensors")));
        let adapted = Reference::open(&fixtures.join(format!("{pipeline}.adapted.safetensors")));
        let network = open(folder.path()).expect("a model").network;
        let shapes = network.layout().shapes().map(|(name, shape)| (name.to_owned(), shape.to_vec())).collect();
        for file in ["peft", "lora.safetensors"] {
            let adapter = read(&fixtures.join(format!("{pipeline}.{file}")), &shapes).expect("an adapter");
            let policy = load(folder.path(), Tuning::Lora(adapter.config), 1);
            let x = draw(pipeline, &policy, Some(&adapter.factors), plain.tensor("start"), &plain.times());
            let image = policy.decoder.values(x);
            let (off, changed) = (adapted.off("image", image.clone()).0, plain.off("image", image).0);
            assert!(off <= 1e-4 && changed > 0.1, "{pipeline}.{file}: off by {off:e}, changed by {changed:e}");
        }
    }
}

#[test]
fn the_hash_sees_every_part_and_no_file_name() {
    let hash = |folder: &Path| open(folder).expect("a model").digest().expect("a hash");
    let (one, other) = (whole("sd3"), whole("sd3"));
    assert_eq!(hash(one.path()), hash(other.path()));
    let weights = |part: &str| other.path().join(part).join("diffusion_pytorch_model.safetensors");
    fs::rename(weights("vae"), other.path().join("vae/diffusion_pytorch_model.fp16.safetensors")).expect("renamed");
    let mut all = vec![hash(one.path())];
    assert_eq!(all[0], hash(other.path()));
    for file in ["transformer/diffusion_pytorch_model", "vae/diffusion_pytorch_model.fp16", "text_encoder/model"] {
        let file = other.path().join(format!("{file}.safetensors"));
        let mut bytes = fs::read(&file).expect("read");
        *bytes.last_mut().expect("a byte") ^= 1;
        // The sample of a text encoder's bytes has the first of each tensor.
        let first = u64::from_le_bytes(bytes[..8].try_into().expect("a length")) as usize + 8;
        bytes[first] ^= 1;
        fs::write(&file, bytes).expect("written");
        let changed = hash(other.path());
        assert!(!all.contains(&changed), "{}", file.display());
        all.push(changed);
    }
}

#[test]
fn all_parts_that_are_wrong_are_named_at_once() {
    let folder = whole("sd3");
    let path = |part: &str| folder.path().join(part);
    let file = path("transformer/diffusion_pytorch_model.safetensors");
    let bytes = fs::read(&file).expect("read");
    fs::write(&file, &bytes[..bytes.len() - 3]).expect("cut");
    fs::remove_file(path("vae/config.json")).expect("gone");
    fs::remove_file(path("tokenizer/merges.txt")).expect("gone");
    fs::write(path("scheduler/scheduler_config.json"), r#"{"_class_name": "UnknownScheduler"}"#).expect("written");
    let error = open(folder.path()).expect_err("damaged");
    assert_eq!(error.faults.len(), 4);
    let text = error.to_string();
    for part in ["transformer/diffusion", "bytes, in tensor `", "vae/config.json", "merges.txt", "UnknownScheduler"] {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

#[test]
fn parts_must_fit_each_other_and_the_resolution() {
    let folder = whole("sd1");
    for (from, to) in
        [("vae/sd3.json", "config.json"), ("vae/sd3.weights.safetensors", "diffusion_pytorch_model.safetensors")]
    {
        fs::copy(fixtures().join(from), folder.path().join("vae").join(to)).expect("copied");
    }
    let error = Source::open(folder.path(), &Options { resolution: Some([30, 32]), ..OPTIONS })
        .expect_err("refused")
        .to_string();
    for part in ["resolution 30 x 32", "4 x 4 pixels", "latents of 16 x 7 x 8: this network takes 4 channels"] {
        assert!(error.contains(part), "{part:?} is not in: {error}");
    }
}
