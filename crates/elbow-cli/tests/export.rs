//! What a run trained, out in every format and back in.

#![expect(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

mod common;
#[path = "../../elbow-models/tests/diffusers/model_folder.rs"]
mod model_folder;
#[path = "common/place.rs"]
mod place;

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
use place::Place;
use std::{
    collections::BTreeMap,
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
        assert_eq!((&*about.base, &*about.base_sha256), ("elbow-nano", manifest["base_sha256"].as_str().unwrap()));
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

/// A tiny model in diffusers' format, and a folder with a run of one epoch on it.
fn trained(pipeline: &str, recipe: &str) -> (TempDir, TempDir) {
    let small = &[
        "epochs=1",
        "model.resolution=32",
        "model.text_length=24",
        "reward.kind=jpeg",
        "eval.rewards=[]",
        "batch.groups=2",
        "batch.group_size=2",
        "batch.updates=1",
    ];
    let few = ["sampler.steps=3", "eval.measure.images_per_prompt=1", "eval.measure.sampler={steps=2, guidance=4.5}"];
    let place = Place::new(pipeline, "a red cat\nhorse\n", small);
    succeed(&mut place.train(recipe, "run", &few));
    (place.model, place.room)
}

/// A run on a model folder goes out in every format, and the adapter into the folder's network.
fn leaves_a_folder(pipeline: &str, recipe: &str, component: &str, architecture: &str) {
    let (model, room) = trained(pipeline, recipe);
    let path = |name: &str| room.path().join(name);
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

/// The bytes of a file's tensors, by name.
fn tensors(file: &Path) -> BTreeMap<String, Vec<u32>> {
    let file = Checkpoint::open_file(file).unwrap();
    file.shapes().map(|(name, _)| (name.to_owned(), file.values(name).iter().map(|v| v.to_bits()).collect())).collect()
}

/// What the files of a folder say: tensors and header entries, which may stand in any order, or the text.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Contents> {
    let read = |(name, bytes): (PathBuf, Vec<u8>)| {
        let path = folder.join(&name);
        let tensors = name.extension().is_some_and(|end| end == "safetensors");
        let held = tensors.then(|| {
            let file = Checkpoint::open_file(&path).unwrap();
            let header = file.metadata().iter().map(|(key, value)| (key.clone(), value.clone())).collect();
            (self::tensors(&path), header)
        });
        (name, held.ok_or(bytes))
    };
    files(folder).into_iter().map(read).collect()
}

type Contents = Result<(BTreeMap<String, Vec<u32>>, BTreeMap<String, String>), Vec<u8>>;

/// The run folder is all that an adapter needs: on another machine, without the model, the same files come out. Runs of earlier
/// versions, which do not say which network they trained, tell it by the names of its layers.
#[test]
fn adapters_are_written_on_a_machine_without_the_base() {
    const FORMATS: [(&str, &str); 4] =
        [("peft", "p"), ("diffusers", "d.safetensors"), ("kohya", "k.safetensors"), ("comfyui", "c.safetensors")];
    for (pipeline, recipe, key) in [
        ("sd3", "sd3.5-geneval", "lora_unet_joint_blocks_0_x_block_attn_qkv"),
        ("flux", "flux-dance-grpo", "lora_unet_single_blocks_0_linear1"),
        ("sd1", "sd1.5-ddpo-compressibility", "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"),
    ] {
        let (model, room) = trained(pipeline, recipe);
        let (here, there) = (room.path(), tempfile::tempdir().unwrap());
        let all = |place: &Path, part: &str| {
            fs::create_dir(place.join(part)).unwrap();
            for (format, name) in FORMATS {
                let out = Path::new(part).join(name);
                succeed(export(Path::new("run"), format, &out).current_dir(place));
            }
            contents(&place.join(part))
        };
        let with_base = all(here, "a");
        assert!(tensors(&here.join("a/c.safetensors")).contains_key(&format!("{key}.lora_up.weight")), "{pipeline}");
        common::copy(&here.join("run"), &there.path().join("run"));
        let moved = there.path().join("moved");
        common::copy(model.path(), &moved);
        fs::remove_dir_all(model.path()).unwrap();
        let without = all(there.path(), "a");
        assert!(with_base == without, "{pipeline}: {:?} and {:?}", with_base.keys(), without.keys());

        // As an earlier version wrote it.
        let manifest = there.path().join("run/manifest.json");
        let mut old: serde_json::Value = serde_json::from_slice(&fs::read(&manifest).unwrap()).unwrap();
        let network = old.as_object_mut().unwrap().remove("network").unwrap();
        assert_eq!(network["family"], if pipeline == "sd1" { "unet" } else { pipeline });
        fs::write(&manifest, old.to_string()).unwrap();
        all(there.path(), "b");
        for name in ["p/adapter_model.safetensors", "d.safetensors", "k.safetensors", "c.safetensors"] {
            let [new, old] = ["a", "b"].map(|part| tensors(&there.path().join(part).join(name)));
            assert!(new == old, "{pipeline} {name}");
        }

        // Where layers were chosen by name, SD3's and FLUX's are not told apart.
        let config = there.path().join("run/config.toml");
        let text = fs::read_to_string(&config).unwrap();
        assert!(text.contains("target_modules = []"), "{text}");
        fs::write(&config, text.replace("target_modules = []", "target_modules = [\"attn.to_q\"]")).unwrap();
        if pipeline == "sd3" {
            let parts = ["did not note whether it trained SD3 or FLUX", "--format kohya"];
            refused(&mut export(Path::new("run"), "comfyui", Path::new("e.safetensors")), there.path(), &parts);
        }
        fs::write(&config, text).unwrap();

        // Whole weights need the base, wherever it is now.
        let place = model.path().display().to_string();
        let parts = [&*place, "merged weights need it", "--set model.path=FOLDER", "--format diffusers"];
        refused(&mut export(Path::new("run"), "merged", Path::new("m")), there.path(), &parts);
        let at = |place: &Path| format!("model.path={}", place.display());
        succeed(
            export(Path::new("run"), "merged", Path::new("m")).args(["--set", &at(&moved)]).current_dir(there.path()),
        );
        let merged = Checkpoint::open(&there.path().join("m"), "diffusion_pytorch_model", None).unwrap();
        assert_eq!(merged.metadata()["elbow.base_model"], moved.display().to_string());
        let other = whole(if pipeline == "sd1" { "sd3" } else { "sd1" });
        let mut wrong = export(Path::new("run"), "merged", Path::new("n"));
        refused(wrong.args(["--set", &at(other.path())]), there.path(), &[]);
    }
}

/// The entries of a card's header.
fn header(card: &str) -> BTreeMap<&str, &str> {
    let (header, _) = card.strip_prefix("---\n").unwrap().split_once("\n---\n").unwrap();
    header.lines().filter_map(|line| line.split_once(": ")).collect()
}

#[test]
fn an_export_has_a_card_with_what_was_measured() {
    let (model, room) = trained("sd3", "sd3.5-geneval");
    let path = |name: &str| room.path().join(name);
    let card = |name: &str| fs::read_to_string(path(name)).unwrap();
    succeed(export(Path::new("run"), "peft", Path::new("p")).current_dir(room.path()));
    let text = card("p/README.md");
    let fields = header(&text);
    assert_eq!((fields["library_name"], fields["pipeline_tag"]), ("peft", "text-to-image"));
    assert!(!fields.contains_key("base_model") && !fields.contains_key("license"), "{text}: nobody said them");
    assert!(text.contains("\n- lora\n- diffusers-training\n"), "{text}");

    // The scores are the run's, with the protocol that they were measured by.
    let result: serde_json::Value = serde_json::from_slice(&fs::read(path("run/result.json")).unwrap()).unwrap();
    assert_eq!((&result["protocol"]["prompts"], &result["protocol"]["epoch"]), (&2.into(), &1.into()));
    assert_eq!(result["protocol"]["sampler"]["steps"], 2);
    let [base, tuned] = ["base", "tuned"].map(|when| result[when]["eval_reward_jpeg"].as_f64().unwrap());
    let measured = "Means over 2 held-out prompts, 1 image each, of 32 × 32 pixels from the noise of seed 42: sampler `dpm2`, 2 \
                    steps, guidance 4.5.";
    for part in [&*format!("| jpeg | {base:.4} | {tuned:.4} |"), measured, "![Before and after](before-after.png)"] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    assert_eq!(fs::read(path("p/before-after.png")).unwrap(), fs::read(path("run/images/before-after.png")).unwrap());
    let python = format!(
        "pipe = DiffusionPipeline.from_pretrained(\"{}\", torch_dtype=torch.bfloat16)\npipe.transformer = \
         PeftModel.from_pretrained(pipe.transformer, \".\")\n",
        model.path().display()
    );
    let drawn = "    num_inference_steps=2,\n    guidance_scale=4.5,\n    height=32,\n    width=32,\n    max_sequence_length=24,\n";
    assert!(text.contains(&python) && text.contains(drawn), "{text}");

    // An export is replaced with its card; a README of somebody else's is kept.
    succeed(export(Path::new("run"), "peft", Path::new("p")).arg("--force").current_dir(room.path()));
    fs::write(path("p/README.md"), "mine").unwrap();
    let parts = ["p/README.md, which is no part of an export"];
    refused(export(Path::new("run"), "peft", Path::new("p")).arg("--force"), room.path(), &parts);

    // Of a base on the Hub the license may be known; the card of a file goes beside it.
    fs::write(model.path().join("README.md"), "---\nlicense: openrail++\n---\n").unwrap();
    let named = ["--base-model", "black-forest-labs/FLUX.1-dev"];
    succeed(export(Path::new("run"), "diffusers", Path::new("d.safetensors")).args(named).current_dir(room.path()));
    let text = card("README.md");
    assert_eq!(header(&text)["base_model"], named[1]);
    assert_eq!(Checkpoint::open_file(&path("d.safetensors")).unwrap().metadata()["elbow.base_model"], named[1]);
    assert_eq!((header(&text)["license"], header(&text)["library_name"]), ("openrail++", "diffusers"));
    assert!(text.contains("![Before and after](d.png)") && path("d.png").is_file(), "{text}");
    assert!(text.contains("pipe.load_lora_weights(\".\", weight_name=\"d.safetensors\")"), "{text}");
    fs::remove_dir_all(model.path()).unwrap();
    succeed(export(Path::new("run"), "comfyui", Path::new("c.safetensors")).args(named).current_dir(room.path()));
    let text = card("c.md");
    assert_eq!(header(&text)["license_name"], "flux-1-dev-non-commercial-license");
    assert!(text.contains("\n- comfyui\n") && text.contains("`models/loras`"), "{text}");
    assert!(!header(&text).contains_key("library_name"), "{text}: no Python package reads it");
    assert!(card("README.md").contains("d.safetensors"), "the other's card stays");

    // Of weights that were not measured no scores are told.
    succeed(
        export(Path::new("run"), "diffusers", Path::new("r.safetensors"))
            .args(["--weights", "raw"])
            .current_dir(room.path()),
    );
    let text = card("r.md");
    assert!(!text.contains("| jpeg |") && !path("r.png").exists() && text.contains("the last weights"), "{text}");
    fs::write(path("e.md"), "mine").unwrap();
    let parts = ["e.md is there already", "--force"];
    refused(&mut export(Path::new("run"), "kohya", Path::new("e.safetensors")), room.path(), &parts);
    let parts = ["--base-model x: not of the form owner/name"];
    refused(export(Path::new("run"), "peft", Path::new("q")).args(["--base-model", "x"]), room.path(), &parts);
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
    let set = |format: &str, change: &str| {
        let mut command = export(adapted(), format, &out(if format == "peft" { "p" } else { "x.safetensors" }));
        command.args(["--set", change]);
        command
    };
    refused(&mut set("peft", "model.weights=a"), folder, &["an adapter is written without it"]);
    refused(&mut set("merged", "seed=3"), folder, &["--set seed=3", "for example --set model.path="]);
    refused(&mut set("merged", "model.weights=gone"), folder, &["is not at gone", "--set model.weights=FILE"]);
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
    refused(&mut export(Path::new("run"), "merged", &out("q.safetensors")), folder, &["base weights differ"]);

    // A run folder that was put together of two.
    let config = fs::read_to_string(folder.join("run/config.toml")).unwrap();
    fs::write(folder.join("run/config.toml"), config.replace("rank = 4", "rank = 5")).unwrap();
    let parts = ["cannot use checkpoint run/checkpoints/checkpoint-2", "no adapter of rank 5", "lora_A.weight: [4, "];
    refused(&mut export(Path::new("run"), "peft", &out("q")), folder, &parts);
    fs::write(folder.join("run/config.toml"), "seed = [").unwrap();
    refused(&mut export(Path::new("run"), "peft", &out("q")), folder, &["config.toml is not valid TOML"]);
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
