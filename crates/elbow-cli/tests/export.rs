//! What a run trained, out in every format and back in.

#![expect(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

mod common;
#[path = "../../elbow-models/tests/diffusers/model_folder.rs"]
mod model_folder;

use burn::tensor::{Device, Tensor};
use common::{SMALL, elbow, files, finished, refused, sets, succeed};
use elbow::{noise, params::Params, policy::Conditioning};
use elbow_models::{
    folder::{Checkpoint, Shapes},
    linear::{Precision, Weights},
    lora::LoraConfig,
    lora_file::{Adapter, Provenance, read},
    mmdit::MmditConfig,
    policy::Network,
    recompute::Checkpointing,
};
use model_folder::whole;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};
use tempfile::TempDir;

const LORA: [&str; 3] = ["epochs=2", "model.tuning={kind='lora', rank=4, alpha=12.0}", "optimizer.learning_rate=1e-2"];

/// A run of two epochs that trained an adapter; all tests share it.
fn adapted() -> &'static Path {
    static RUN: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let (_, folder) = RUN.get_or_init(|| {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("run");
        succeed(elbow(["train", "--run"]).arg(&folder).args(sets(&SMALL)).args(sets(&LORA)));
        (root, folder)
    });
    folder
}

fn nano() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/nano.safetensors")
}

fn shapes(checkpoint: &Checkpoint) -> Shapes {
    checkpoint.shapes().map(|(name, shape)| (name.to_owned(), shape.to_vec())).collect()
}

/// The adapter in a checkpoint of [`adapted`].
fn held(name: &str) -> Adapter {
    let file = Checkpoint::open_file(&adapted().join("checkpoints").join(name)).unwrap();
    let config = LoraConfig { rank: 4, alpha: 12.0, ..LoraConfig::default() }
        .with_usual(&MmditConfig::default().layout().usual_targets());
    let layout = MmditConfig::default().layout();
    let fresh = config.initial(layout.shapes(), noise::Key::new(0, noise::Purpose::Initialization, 0));
    let values = fresh.entries().iter().map(|e| (e.name.clone(), e.shape.clone(), file.values(&e.name)));
    Adapter { factors: Params::new(values), config }
}

/// Equal factors, by whose names the layers are the same, and an equal scale.
fn same(one: &Adapter, other: &Adapter) -> bool {
    let scale = |a: &Adapter| (a.config.rank, a.config.alpha.to_bits());
    one.factors == other.factors && scale(one) == scale(other)
}

fn export(run: &Path, format: &str, out: &Path) -> Command {
    let mut command = elbow(["export"]);
    command.arg(run).args(["--format", format, "--out"]).arg(out);
    command
}

/// Velocities of the nano model at two points.
fn velocity(base: &Params, adapter: Option<&Adapter>) -> Vec<f32> {
    let device = Device::flex();
    let keys = |stream| (0..2).map(move |i| noise::Key::new(stream, noise::Purpose::Start, 0).sample(i));
    let config = MmditConfig::default();
    let x = noise::normal(keys(1), config.latent().iter().product(), &device);
    let cond = Conditioning {
        tokens: noise::normal(keys(2), 9 * config.joint_attention_dim, &device).reshape([2, 9, -1]),
        mask: None,
        pooled: Some(noise::normal(keys(3), config.pooled_projection_dim, &device)),
    };
    let t = Tensor::<1>::from_data([0.3, 0.8], &device);
    let (base, factors) = (base.tensors(&device), adapter.map(|a| a.factors.tensors(&device)));
    let adapter = factors.as_ref().zip(adapter.map(|a| a.config.scale()));
    let (latent, weights) = (config.latent(), Weights { base: &base, adapter, precision: Precision::F32 });
    let field = Network::from(config).bind(weights, Checkpointing::None, latent);
    field.velocity(x, t, &cond).into_data().try_to_vec().unwrap()
}

fn parameters(file: &Path) -> Params {
    let file = Checkpoint::open_file(file).unwrap();
    file.params(&shapes(&file), &[]).unwrap()
}

fn distance(one: &[f32], other: &[f32]) -> f32 {
    one.iter().zip(other).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn every_format_holds_the_adapter_bit_for_bit() {
    let root = tempfile::tempdir().unwrap();
    let layout = MmditConfig::default().layout();
    let base: Shapes = layout.shapes().map(|(name, shape)| (name.to_owned(), shape.to_vec())).collect();
    for (format, name) in [("peft", "peft"), ("diffusers", "d.safetensors"), ("kohya", "k.safetensors")] {
        let out = root.path().join(name);
        for (more, file, saying) in [
            (&[][..], "checkpoint-2/ema.safetensors", "the averaged weights of epoch 2 in "),
            (
                &["--weights", "raw", "--epoch", "1"],
                "checkpoint-1/weights.safetensors",
                "the last weights of epoch 1 in ",
            ),
        ] {
            let said = succeed(export(adapted(), format, &out).arg("--force").args(more));
            assert!(said.starts_with(saying), "{said}");
            let expected = held(file);
            assert!(expected.factors.entries().iter().any(|e| e.name.ends_with("lora_B.weight")));
            assert!(same(&read(&out, &base).unwrap(), &expected), "{format} {more:?}");
        }
    }
    assert!(held("checkpoint-2/ema.safetensors") != held("checkpoint-2/weights.safetensors"), "two sets of weights");

    let header = |name: &str| Checkpoint::open_file(&root.path().join(name)).unwrap().metadata().clone();
    for name in ["peft/adapter_model.safetensors", "d.safetensors", "k.safetensors"] {
        let about = Provenance::of(&header(name));
        assert_eq!(
            (about.step, about.ema, about.run.len(), &*about.architecture),
            (1, false, 64, "elbow-nano"),
            "{name}"
        );
        let manifest: serde_json::Value =
            serde_json::from_slice(&fs::read(adapted().join("manifest.json")).unwrap()).unwrap();
        assert_eq!(about.base, format!("elbow-nano sha256:{}", manifest["base_sha256"].as_str().unwrap()));
    }
}

#[test]
fn merged_weights_do_what_the_base_with_the_adapter_does() {
    let root = tempfile::tempdir().unwrap();
    let (merged, peft, other) = ["m.safetensors", "peft", "o.safetensors"].map(|n| root.path().join(n)).into();
    let adapter = held("checkpoint-2/ema.safetensors");
    succeed(export(adapted(), "merged", &merged).args(["--dtype", "f32"]));
    let base = parameters(&nano());
    let expected = velocity(&base, Some(&adapter));
    let got = velocity(&parameters(&merged), None);
    let (changed, off) = (distance(&expected, &velocity(&base, None)), distance(&expected, &got));
    assert!(changed > 1e-3 && off < 1e-4 * changed.max(1.0), "changed by {changed}, off by {off}");

    // The adapter goes out by itself and into the base.
    succeed(&mut export(adapted(), "peft", &peft));
    let said = succeed(
        elbow(["merge"]).arg(&peft).arg("--base").arg(nano()).arg("--out").arg(&other).args(["--dtype", "f32"]),
    );
    assert!(said.contains("layers changed, rank 4, scale 3: "), "{said}");
    let tensors = |file: &Path| parameters(file).values().iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    assert!(tensors(&merged) == tensors(&other), "the same weights either way");

    // In the type of the base, half as large; and the program draws with both.
    let half = root.path().join("half.safetensors");
    succeed(&mut export(adapted(), "merged", &half));
    assert!(2 * fs::metadata(&half).unwrap().len() < fs::metadata(&merged).unwrap().len() + 100_000);
    for weights in [&half, &other] {
        let setting = format!("model.weights={}", weights.display());
        let out = root.path().join("x.png");
        succeed(
            elbow(["sample", "a photo of a cat", "--images", "1", "--set", "eval.measure.sampler.steps=1"])
                .args(["--set", &setting, "--out"])
                .arg(&out),
        );
    }
}

#[test]
fn a_run_that_trained_every_weight_goes_out_whole() {
    let root = tempfile::tempdir().unwrap();
    let out = root.path().join("m.safetensors");
    succeed(export(finished(), "merged", &out).args(["--dtype", "f32"]));
    let (merged, trained) = (parameters(&out), finished().join("checkpoints/checkpoint-4/ema.safetensors"));
    let trained = parameters(&trained);
    let mut expected = merged.clone();
    expected.assign(&trained);
    assert_eq!(merged, expected);
    let fixed: Vec<&str> = merged
        .entries()
        .iter()
        .filter(|e| !trained.entries().iter().any(|t| t.name == e.name))
        .map(|e| e.name.as_str())
        .collect();
    assert_eq!(fixed, ["pos_embed.pos_embed"]);
}

/// A run on a model folder goes out in every format, and the adapter into the folder's network.
fn leaves_a_folder(pipeline: &str, recipe: &str, component: &str, architecture: &str) {
    let (model, room) = (whole(pipeline), tempfile::tempdir().unwrap());
    let path = |name: &str| room.path().join(name);
    fs::write(path("prompts.txt"), "a red cat\nhorse\n").unwrap();
    let folder = format!("model.path={}", model.path().display());
    let changes = [&folder, "model.cache=cache", "prompts.train=prompts.txt", "prompts.test=prompts.txt", "epochs=1"];
    let small = [
        "model.resolution=32",
        "reward.kind=jpeg",
        "eval.rewards=[]",
        "batch.groups=2",
        "batch.group_size=2",
        "batch.updates=1",
    ];
    let few = ["sampler.steps=3", "eval.measure.images_per_prompt=1", "eval.measure.sampler.steps=2"];
    let train = ["train", recipe, "--run", "run"];
    succeed(elbow(train).args(sets(&changes)).args(sets(&small)).args(sets(&few)).current_dir(room.path()));

    let base = Checkpoint::open(&model.path().join(component), "diffusion_pytorch_model", None).unwrap();
    let mut adapters = Vec::new();
    for (format, name) in [("peft", "peft"), ("diffusers", "d.safetensors"), ("kohya", "k.safetensors")] {
        succeed(export(&path("run"), format, &path(name)).current_dir(room.path()));
        adapters.push(read(&path(name), &shapes(&base)).unwrap());
    }
    assert!(adapters[1..].iter().all(|adapter| same(adapter, &adapters[0])), "{pipeline}");
    let trained = parameters(&path("run/checkpoints/checkpoint-1/ema.safetensors"));
    let mut expected = adapters[0].factors.zeros_like();
    expected.assign(&trained);
    assert!(expected.norm() > 0.0 && adapters[0].factors == expected, "{pipeline}");
    let header = Checkpoint::open_file(&path("k.safetensors")).unwrap().metadata()["modelspec.architecture"].clone();
    assert_eq!(header, format!("{architecture}/lora"));

    succeed(export(&path("run"), "merged", &path("merged")).current_dir(room.path()));
    succeed(elbow(["merge", "k.safetensors", "--out", "again", "--base"]).arg(model.path()).current_dir(room.path()));
    let [merged, again] =
        ["merged", "again"].map(|n| Checkpoint::open(&path(n), "diffusion_pytorch_model", None).unwrap());
    merged.check(&shapes(&base), &[]).unwrap();
    let changed = shapes(&base).iter().filter(|(name, _)| merged.values(name) != base.values(name)).count();
    // Not every layer learns: what the text asks in the last block leads nowhere.
    let factors = adapters[0].factors.entries().iter().filter(|e| e.name.ends_with("lora_B.weight"));
    let learned = factors.filter(|e| adapters[0].factors.values()[e.range.clone()].iter().any(|&v| v != 0.0)).count();
    assert!(changed == learned && learned > 4, "{pipeline}: {changed} and {learned}");
    assert!(shapes(&base).iter().all(|(name, _)| merged.values(name) == again.values(name)), "{pipeline}");
    let config = |folder: &Path| fs::read(folder.join("config.json")).unwrap();
    assert_eq!(config(&path("merged")), config(&model.path().join(component)));
}

#[test]
fn runs_on_model_folders_go_out_in_every_format() {
    leaves_a_folder("sd3", "sd3.5-geneval", "transformer", "stable-diffusion-3");
    leaves_a_folder("sd1", "sd1.5-ddpo-compressibility", "unet", "stable-diffusion-v2-512");
}

#[test]
fn exports_that_cannot_be_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path();
    let out = |name: &str| PathBuf::from(name);
    for format in ["peft", "diffusers", "kohya"] {
        let parts = ["trained every weight: there is no adapter in it", "--format merged"];
        refused(
            &mut export(finished(), format, &out(if format == "peft" { "p" } else { "x.safetensors" })),
            folder,
            &parts,
        );
    }
    refused(&mut export(adapted(), "kohya", &out("x")), folder, &["--out x", "must end in .safetensors"]);
    refused(&mut export(adapted(), "merged", &out("x")), folder, &["must end in .safetensors"]);
    refused(&mut export(adapted(), "kohya", &out("no/x.safetensors")), folder, &["there is no folder no"]);
    refused(export(adapted(), "peft", &out("p")).args(["--dtype", "f16"]), folder, &["--dtype is for merged weights"]);
    let parts = ["no checkpoint of epoch 7", "those of epoch 1, 2"];
    refused(export(adapted(), "peft", &out("p")).args(["--epoch", "7"]), folder, &parts);
    refused(&mut export(Path::new("absent"), "peft", &out("p")), folder, &["absent"]);

    succeed(&mut export(adapted(), "peft", &folder.join("p")));
    succeed(&mut export(adapted(), "kohya", &folder.join("k.safetensors")));
    refused(&mut export(adapted(), "peft", &out("p")), folder, &["p is there already", "--force"]);
    refused(&mut export(adapted(), "kohya", &out("k.safetensors")), folder, &["k.safetensors is there already"]);
    fs::write(folder.join("p/notes.txt"), "mine").unwrap();
    refused(
        export(adapted(), "peft", &out("p")).arg("--force"),
        folder,
        &["p/notes.txt, which is no part of an export"],
    );

    // A run whose base is another one by now.
    common::copy(adapted(), &folder.join("run"));
    let manifest = fs::read_to_string(folder.join("run/manifest.json")).unwrap();
    fs::write(folder.join("run/manifest.json"), manifest.replace("\"base_sha256\": \"", "\"base_sha256\": \"0"))
        .unwrap();
    refused(&mut export(Path::new("run"), "peft", &out("q")), folder, &["base weights differ"]);
}

#[test]
fn merges_that_cannot_be_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path();
    succeed(&mut export(adapted(), "kohya", &folder.join("k.safetensors")));
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures");
    let merge = |lora: &Path, base: &Path, out: &str| {
        let mut command = elbow(["merge"]);
        command.arg(lora).arg("--base").arg(base).args(["--out", out]);
        command
    };
    let lora = Path::new("k.safetensors");
    let parts =
        ["k.safetensors is an adapter for another model", "lora_transformer_transformer_blocks_", "more", "trained on"];
    refused(&mut merge(lora, &fixtures.join("mmdit/plain.weights.safetensors"), "m.safetensors"), folder, &parts);
    refused(&mut merge(lora, Path::new("absent"), "m"), folder, &["absent has none of: model_index.json"]);
    refused(&mut merge(Path::new("absent"), &nano(), "m.safetensors"), folder, &["cannot read absent"]);
    refused(&mut merge(&nano(), &nano(), "m.safetensors"), folder, &["no such layer in the model", "another model"]);
    refused(&mut merge(lora, &nano(), "k.safetensors"), folder, &["k.safetensors is there already"]);
    refused(&mut merge(lora, &nano(), "m"), folder, &["must end in .safetensors"]);

    // Of a component's folder a folder is made.
    fs::create_dir(folder.join("base")).unwrap();
    fs::copy(nano(), folder.join("base/diffusion_pytorch_model.safetensors")).unwrap();
    fs::write(folder.join("base/config.json"), "{}").unwrap();
    succeed(merge(lora, Path::new("base"), "made").current_dir(folder));
    let names: Vec<_> = files(&folder.join("made")).into_keys().collect();
    assert_eq!(names, ["config.json", "diffusion_pytorch_model.safetensors"].map(PathBuf::from));
}
