//! Tiny models in `diffusers`' format, through the recipes of the large ones: trained, resumed, sampled, measured, refused.

#![expect(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

mod common;
#[path = "../../elbow-models/tests/diffusers/drawing.rs"]
mod drawing;
#[path = "../../elbow-models/tests/diffusers/model_folder.rs"]
mod model_folder;
#[path = "common/place.rs"]
mod place;
#[path = "../../elbow-models/tests/diffusers/ruined.rs"]
mod ruined;
#[path = "../../elbow-models/tests/diffusers/stored_as.rs"]
mod stored_as;

use burn::tensor::{Device, Tensor};
use common::{assert_same, copy, elbow, files, numbers, records, resume, sets, succeed, text};
use drawing::{Reference, draw, load};
use elbow::{
    noise::{self, Key, Purpose},
    params::Params,
    policy::Policy,
};
use elbow_models::{lora::LoraConfig, policy::Tuning};
use model_folder::fixtures;
use place::Place;
use ruined::ruin;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::{fs, path::Path};

/// `--set` of the small run, apart from paths.
const SMALL: [&str; 12] = [
    "model.resolution=32",
    "reward.kind=jpeg",
    "eval.rewards=[]",
    "batch.groups=2",
    "batch.group_size=2",
    "batch.updates=1",
    "sampler.steps=3",
    "eval.measure.images_per_prompt=1",
    "eval.measure.sampler.steps=2",
    "eval.measure.every=2",
    "keep.checkpoint_every=1",
    "keep.images_every=1",
];

fn small(pipeline: &str) -> Place {
    Place::new(pipeline, "a red cat\na photo of 3 dogs\nhorse\n", &SMALL)
}

/// Trains two epochs at once and one after the other, and uses what came of it.
fn trains(pipeline: &str, recipe: &str, changes: &[&str]) {
    let place = small(pipeline);
    let train = |run: &str, epochs| place.train(recipe, run, &[changes, &[epochs]].concat());
    let printed = succeed(&mut train("straight", "epochs=2"));
    assert!(printed.contains("the reward on held-out prompts") && printed.contains("jpeg tuned"), "{printed}");
    assert!(!printed.contains("strict scores"), "{printed}");
    let straight = place.run("straight");
    let scored = records(&straight);
    assert_eq!(scored.len(), 3);
    assert!(scored[0]["eval_reward_jpeg"].as_f64().unwrap() < -0.6 && scored[2]["eval_reward_jpeg"].is_number());
    assert!(!scored[0].contains_key("eval_reward_geneval"));
    let checkpoints = files(&straight.join("checkpoints"));
    let factors: Vec<&Vec<u8>> =
        checkpoints.iter().filter(|(name, _)| name.ends_with("weights.safetensors")).map(|(_, bytes)| bytes).collect();
    assert!(factors.len() == 2 && factors[0] != factors[1], "{:?}", checkpoints.keys());

    let run = ["--run", "straight"];
    let sample = ["sample", "a cat", "--images", "2", "--out", "cat.png"];
    succeed(elbow(sample).args(run).current_dir(place.room.path()));
    assert!(fs::read(place.run("cat.png")).unwrap().starts_with(b"\x89PNG"));

    // All of these prompts are known by now, and no text encoder is read.
    ruin(place.model.path());
    succeed(&mut train("resumed", "epochs=1"));
    succeed(resume(Path::new("resumed")).args(sets(&["epochs=2"])).current_dir(place.room.path()));
    assert_same(&straight, &place.run("resumed"));
    let picture = fs::read(place.run("cat.png")).unwrap();
    succeed(elbow(sample).args(run).current_dir(place.room.path()));
    assert!(picture == fs::read(place.run("cat.png")).unwrap());
    let refused =
        elbow(sample).args(run).args(sets(&["model.cache=other"])).current_dir(place.room.path()).output().unwrap();
    assert!(
        !refused.status.success() && text(&refused).contains("holds NaN or an infinite number"),
        "{}",
        text(&refused)
    );
    let measured = succeed(elbow(["eval"]).args(run).current_dir(place.room.path()));
    assert!(measured.contains("jpeg"), "{measured}");
}

#[test]
fn stable_diffusion_3_trains_with_the_papers_recipe() {
    trains("sd3", "sd3.5-geneval", &["model.text_length=24", "model.checkpointing=block"]);
}

#[test]
fn stable_diffusion_1_trains_with_ddpo() {
    trains("sd1", "sd1.5-ddpo-compressibility", &[]);
}

#[test]
fn flux_trains_with_dance_grpo() {
    trains("flux", "flux-dance-grpo", &["model.text_length=24", "model.decode_slice=3"]);
}

/// What `elbow merge` makes of an adapter of peft draws the picture that peft and diffusers draw.
#[test]
fn an_adapter_made_elsewhere_is_merged_to_the_same_picture() {
    for (pipeline, component) in [("sd3", "transformer"), ("flux", "transformer"), ("sd1", "unet")] {
        let place = small(pipeline);
        let (model, golden) = (place.model.path(), fixtures().join("pipeline"));
        let mut merge = elbow(["merge"]);
        merge.arg(golden.join(format!("{pipeline}.peft"))).arg("--base").arg(model).args(["--dtype", "f32"]);
        succeed(merge.arg("--out").arg(place.run("merged")));
        copy(&place.run("merged"), &model.join(component));
        let reference = |name| Reference::open(&golden.join(format!("{pipeline}.{name}.safetensors")));
        let (plain, adapted) = (reference("reference"), reference("adapted"));
        let policy = load(model, Tuning::default(), 2);
        let x = draw(pipeline, &policy, None, plain.tensor("start"), &plain.times());
        let image = policy.decoder.values(x);
        let (off, changed) = (adapted.off("image", image.clone()).0, plain.off("image", image).0);
        assert!(off <= 1e-4 && changed > 0.1, "{pipeline}: off by {off:e}, changed by {changed:e}");
    }
}

/// For `fixtures/check/images.py`, which draws in diffusers with what the program trained and exported here.
#[test]
#[ignore = "writes files for the reference packages to ELBOW_CHECK"]
fn exports_for_the_reference_packages() {
    let root = std::path::PathBuf::from(std::env::var_os("ELBOW_CHECK").expect("ELBOW_CHECK names a folder"));
    for (pipeline, component, recipe) in [
        ("sd3", "transformer", "sd3.5-geneval"),
        ("flux", "transformer", "flux-dance-grpo"),
        ("sd1", "unet", "sd1.5-ddpo-compressibility"),
    ] {
        let place = small(pipeline);
        let changes =
            ["epochs=2", "model.lora={rank=4, alpha=12.0}", "optimizer.learning_rate=3e-2", "model.text_length=24"];
        succeed(&mut place.train(recipe, "run", &changes));
        for (format, out) in [
            ("peft", "peft"),
            ("diffusers", "pytorch_lora_weights.safetensors"),
            ("kohya", "kohya.safetensors"),
            ("comfyui", "comfyui.safetensors"),
            ("merged", component),
        ] {
            let mut export = elbow(["export", "run", "--format", format, "--out", out]);
            let whole: &[&str] = if format == "merged" { &["--dtype", "f32"] } else { &[] };
            succeed(export.args(whole).current_dir(place.room.path()));
        }
        fs::write(place.run("elbow.safetensors"), drawn(&place, pipeline)).unwrap();
        copy(place.room.path(), &root.join(pipeline));
        copy(place.model.path(), &root.join(pipeline).join("model"));
    }
}

/// Noise of this library, what the base draws from it, and what the averaged weights of the run's last checkpoint do.
fn drawn(place: &Place, pipeline: &str) -> Vec<u8> {
    let lora = LoraConfig { rank: 4, alpha: 12.0, ..LoraConfig::default() };
    let policy = load(place.model.path(), Tuning::Lora(lora), 1);
    let weights = fs::read(place.run("run/checkpoints/checkpoint-2/ema.safetensors")).unwrap();
    let trained = policy.initial().with_values_of(&weights).unwrap();
    let keys = (0..2).map(|i| Key::new(7, Purpose::Evaluation, 0).sample(i));
    let start = noise::normal(keys, policy.dims(), &Device::flex());
    let [c, h, w] = policy.latent;
    let start: Tensor<4> = start.reshape([2, c, h, w]);
    let times = Reference::open(&fixtures().join(format!("pipeline/{pipeline}.reference.safetensors"))).times();
    let image = |trained| policy.decoder.values(draw(pipeline, &policy, trained, start.clone(), &times));
    let entry = |(name, tensor): (&str, Tensor<4>)| {
        (name.to_owned(), tensor.dims().to_vec(), tensor.into_data().try_to_vec().unwrap())
    };
    let tensors = [("start", start.clone()), ("base", image(None)), ("image", image(Some(&trained)))];
    Params::new(tensors.map(entry)).to_safetensors(None)
}

/// A bf16 folder, held as it is and held in f32: the same records, factors and merged weights, which stay in bf16.
#[test]
fn frozen_weights_in_half_precision_train_and_merge_the_same() {
    let place = small("sd3");
    stored_as::store_as(Dtype::BF16, place.model.path());
    let [stored, wide] = ["stored", "f32"].map(|held| {
        let changes = [&*format!("model.frozen_weights={held}"), "model.text_length=24", "epochs=1"];
        succeed(&mut place.train("sd3.5-geneval", held, &changes));
        let out = format!("{held}-merged");
        succeed(elbow(["export", held, "--format", "merged", "--out", &out]).current_dir(place.room.path()));
        let weights = files(&place.run(held).join("checkpoints"));
        let weights = weights.into_iter().filter(|(name, _)| name.ends_with("weights.safetensors"));
        let merged = fs::read(place.run(&out).join("diffusion_pytorch_model.safetensors")).unwrap();
        (numbers(&place.run(held)), weights.collect::<Vec<_>>(), merged)
    });
    assert!(stored.0 == wide.0 && stored.1 == wide.1 && stored.1.len() == 1);
    let tensors = |file: &[u8]| -> Vec<_> {
        let tensors = SafeTensors::deserialize(file).unwrap();
        let held = |(name, view): (&str, TensorView<'_>)| (name.to_owned(), view.dtype(), view.data().to_vec());
        let mut all: Vec<_> = tensors.iter().map(held).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    };
    let merged = tensors(&stored.2);
    assert!(merged == tensors(&wide.2) && merged.iter().all(|(_, dtype, _)| *dtype == Dtype::BF16));
    let base = fs::read(place.model.path().join("transformer/diffusion_pytorch_model.safetensors")).unwrap();
    assert!(merged != tensors(&base), "something was trained");
}

/// `damage` must make the command fail with `parts` in its message, and nothing written.
#[track_caller]
fn refused(pipeline: &str, changes: &[&str], damage: impl FnOnce(&Path), parts: &[&str]) {
    let place = small(pipeline);
    damage(place.model.path());
    let before = files(place.room.path());
    let output = place.train("sd3.5-geneval", "run", changes).output().unwrap();
    let told = text(&output);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.starts_with("error: cannot use model") && told.contains("\nhint: "), "{told}");
    for part in parts {
        assert!(told.contains(part), "{part:?} is not in\n{told}");
    }
    assert!(before.keys().eq(files(place.room.path()).keys()));
}

#[test]
fn folders_that_cannot_be_used_are_refused_with_file_and_tensor() {
    let network = "transformer/diffusion_pytorch_model.safetensors";
    let cut = |file: &Path| {
        let bytes = fs::read(file).unwrap();
        fs::write(file, &bytes[..bytes.len() - 5]).unwrap();
    };
    refused("sd3", &[], |model| cut(&model.join(network)), &[network, "bytes, in tensor `"]);
    let shard = "text_encoder_3/model-00002-of-00003.safetensors";
    refused("sd3", &[], |model| cut(&model.join(shard)), &[shard, "bytes, in tensor `encoder"]);
    let gone = |model: &Path| fs::remove_file(model.join("tokenizer_2/tokenizer.json")).unwrap();
    refused("sd3", &[], gone, &["tokenizer_2", "tokenizer.json"]);
    let other = |model: &Path| {
        let index = fs::read_to_string(model.join("model_index.json")).unwrap();
        let index = index.replace("StableDiffusion3Pipeline", "StableDiffusionXLPipeline");
        fs::write(model.join("model_index.json"), index).unwrap();
    };
    refused("sd3", &[], other, &["model_index.json", "StableDiffusionXLPipeline"]);
    let eighth = |model: &Path| {
        let bytes = fs::read(model.join(network)).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let halved = tensors.iter().map(|(name, view)| {
            let narrow = |v: &TensorView<'_>| {
                let data = &bytes[..v.data().len() / 2];
                TensorView::new(Dtype::F8_E4M3, v.shape().to_vec(), data).unwrap()
            };
            (name.to_owned(), if name == "proj_out.weight" { narrow(&view) } else { view })
        });
        fs::write(model.join(network), safetensors::serialize(halved, None).unwrap()).unwrap();
    };
    refused("sd3", &[], eighth, &["diffusion_pytorch_model.safetensors: proj_out.weight: stored as F8_E4M3"]);
}

#[test]
fn recipes_that_do_not_suit_the_model_are_refused_with_what_to_set() {
    let whole = |_: &Path| ();
    // The path is the folder's.
    let output = small("sd1").train("sd3.5-geneval", "run", &["sampler.rule={kind='flow-sde'}"]).output().unwrap();
    let told = text(&output);
    assert!(output.status.code() == Some(1) && told.contains("`flow-sde` is defined on rectified flow"), "{told}");
    refused("sd3", &["model.resolution=30"], whole, &["resolution 30", "4 x 4 pixels"]);
    let targets = "model.lora.target_modules=['attn9.to_q']";
    refused("sd3", &[targets], whole, &["\"attn9.to_q\": no dense layer of this network ends so"]);
    let path = ["sampler.rule={kind='ddim', eta=0}", "model.checkpointing=block"];
    refused("sd1", &path, whole, &["blocks of a UNet"]);
}

/// Self-consistency asks nothing but the model: it is trained on, and rises.
#[test]
fn a_model_raises_its_own_consistency() {
    let place = small("sd3");
    let changes = [
        "reward.kind=self-consistency",
        "model.text_length=24",
        "batch.groups=3",
        "batch.group_size=16",
        "batch.micro_batch=16",
        "epochs=8",
        "sampler.steps=4",
        "eval.measure.images_per_prompt=8",
        "eval.measure.sampler.steps=4",
        "eval.measure.every=0",
        "advantage={kind='standard', deviation='group'}",
        "kl.weight=0",
        "optimizer.learning_rate=3e-3",
    ];
    succeed(&mut place.train("sd3.5-geneval", "run", &changes));
    let result: serde_json::Value = serde_json::from_slice(&fs::read(place.run("run/result.json")).unwrap()).unwrap();
    let score = |when: &str| result[when]["eval_reward_self_consistency"].as_f64().unwrap();
    // Measured: -0.985 and -0.922.
    assert!(score("base") < -0.9 && score("tuned") > score("base") + 0.03, "{result}");
}

#[test]
fn weights_that_are_no_numbers_are_named_before_anything_is_drawn() {
    for file in ["transformer", "vae"] {
        let sd3 = small("sd3");
        let path = sd3.model.path().join(file).join("diffusion_pytorch_model.safetensors");
        let mut bytes = fs::read(&path).unwrap();
        let end = bytes.len();
        bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
        fs::write(&path, bytes).unwrap();
        let output = sd3.train("sd3.5-geneval", "run", &["model.text_length=24", "epochs=1"]).output().unwrap();
        let told = text(&output);
        let place = format!("weights in {}", path.parent().unwrap().display());
        let words = [&*place, "holds NaN or an infinite number"];
        assert!(!output.status.success() && words.iter().all(|word| told.contains(word)), "{file}: {told}");
    }
}
