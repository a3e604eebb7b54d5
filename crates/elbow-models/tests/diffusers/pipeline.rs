//! From the text of a prompt to pixels, against the whole pipelines of diffusers (`fixtures/make/pipeline.py`), and folders in
//! which several things are wrong.

use crate::model_folder::{fixtures, whole};
use burn::tensor::{Device, Tensor, TensorData};
use elbow::{
    Prompt, RgbImage,
    guidance::Guided,
    policy::{Policy, VelocityField},
    prediction::{Predicting, Prediction},
    sampler::{Ddim, Euler, Sampler, Step},
};
use elbow_models::{
    folder::{Checkpoint, FrozenWeights},
    pipeline::{Options, Setup, Source, SourceError},
    policy::{NetworkPolicy, Tuning},
    recompute::Checkpointing,
};
use std::{fs, path::Path};

/// Relative to the largest value of the reference.
const TOLERANCE: f64 = 1e-4;
const OPTIONS: Options<'static> = Options { variant: None, resolution: 32, text_length: 24, guidance: 3.5 };

fn open(folder: &Path) -> Result<Source, SourceError> {
    Source::open(folder, &OPTIONS)
}

fn load(folder: &Path, decode_slice: usize) -> Predicting<NetworkPolicy> {
    let setup = Setup {
        tuning: Tuning::default(),
        checkpointing: Checkpointing::None,
        frozen_weights: FrozenWeights::Stored,
        decode_slice,
        cache: &folder.join("cache"),
        seed: 0,
    };
    open(folder).expect("a model").load(setup, &Device::flex()).expect("weights")
}

/// Tensors by name, and differences from them.
struct Reference(Checkpoint);

impl Reference {
    fn new(pipeline: &str) -> Self {
        let file = fixtures().join(format!("pipeline/{pipeline}.reference.safetensors"));
        Self(Checkpoint::open_file(&file).expect("a fixture"))
    }

    fn tensor(&self, name: &str) -> Tensor<4> {
        let shape = self.0.shapes().find(|(n, _)| *n == name).expect("a reference").1.to_vec();
        Tensor::from_data(TensorData::new(self.0.values(name), shape), &Device::flex())
    }

    fn close(&self, name: &str, got: Tensor<4>) {
        let got: Vec<f32> = got.into_data().try_to_vec().expect("f32");
        let expected = self.0.values(name);
        let size = expected.iter().fold(0.0, |m, &v| f64::max(m, f64::from(v).abs()));
        let off = got.iter().zip(&expected).fold(0.0, |m, (&a, &b)| f64::max(m, (f64::from(a) - f64::from(b)).abs()));
        assert!(got.len() == expected.len() && got.iter().all(|v| v.is_finite()), "{name}");
        assert!(off <= TOLERANCE * size, "{name}: off by {off:e} of {size:e}");
    }
}

fn check(pipeline: &str, rule: &dyn Sampler, scale: f64) {
    let (folder, reference) = (whole(pipeline), Reference::new(pipeline));
    let policy = load(folder.path(), 1);
    let encode = |texts: [&str; 2]| policy.encode(&texts.map(Prompt::from)).expect("embeddings");
    let cond = encode(["a photo of a red cat left of 3 dogs!", "a horse, and on and on"]);
    let unconditional = policy.encode(&["".into()]).expect("an embedding");
    let field = Guided { field: policy.bind(None), scale, unconditional };
    let times: Vec<f64> = reference.0.values("times").into_iter().map(f64::from).collect();
    let mut x = reference.tensor("start");
    for k in 0..times.len() - 1 {
        let velocity = field.velocity(x.clone(), Tensor::full([2], times[k], &Device::flex()), &cond);
        x = rule.transition(policy.schedule, &times, k, &[Step { x, velocity }]).mean;
    }
    reference.close("latent", x.clone());
    reference.close("image", policy.network.decoder.values(x.clone()));
    let images = policy.decode(x.clone());
    assert_eq!(images.iter().map(RgbImage::dimensions).collect::<Vec<_>>(), [(32, 32); 2]);
    assert_eq!(load(folder.path(), 2).decode(x), images, "slices");
}

#[test]
fn stable_diffusion_3() {
    check("sd3", &Euler {}, 2.5);
}

#[test]
fn flux() {
    check("flux", &Euler {}, 1.0);
}

#[test]
fn stable_diffusion_1() {
    check("sd1", &Ddim { eta: 0.0 }, 3.0);
}

#[test]
fn adapters_go_where_the_network_has_attention() {
    for (pipeline, layers, prediction) in [
        ("sd3", 3 * 8 - 1, Prediction::Velocity),
        ("flux", 8 + 3, Prediction::Velocity),
        ("sd1", 4 * 8, Prediction::Noise),
    ] {
        let folder = whole(pipeline);
        let policy = load(folder.path(), 1);
        assert_eq!((policy.initial().entries().len(), policy.prediction), (2 * layers, prediction), "{pipeline}");
        assert_eq!(policy.network.problems(), Vec::<String>::new(), "{pipeline}");
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
    let error = Source::open(folder.path(), &Options { resolution: 30, ..OPTIONS }).expect_err("refused").to_string();
    for part in ["resolution 30", "4 x 4 pixels", "latents of 16 x 7 x 7: this network takes 4 channels"] {
        assert!(error.contains(part), "{part:?} is not in: {error}");
    }
}
