//! Model folders and texts as users have them, through the program: what is wrong is said with the way out, and what may not be meant is
//! a warning.

#![expect(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

mod common;
#[path = "../../elbow-models/tests/diffusers/model_folder.rs"]
mod model_folder;
#[path = "common/place.rs"]
mod place;

use common::{assert_same, elbow, files, records, sets, succeed, text};
use model_folder::whole;
use place::Place;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::{Map, Value, json};
use std::{fs, path::Path, process::Command};

const SMALL: [&str; 12] = [
    "model.resolution=32",
    "model.text_length=24",
    "reward.kind=jpeg",
    "eval.rewards=[]",
    "batch.groups=2",
    "batch.group_size=2",
    "batch.updates=1",
    "sampler.steps=2",
    "eval.measure.images_per_prompt=1",
    "eval.measure.sampler.steps=2",
    "eval.measure.every=0",
    "epochs=1",
];

fn small(pipeline: &str) -> Place {
    Place::new(pipeline, "a red cat\nhorse\n", &SMALL)
}

fn sd3(place: &Place, run: &str, changes: &[&str]) -> Command {
    place.train("sd3.5-geneval", run, changes)
}

fn sd1(place: &Place, run: &str, changes: &[&str]) -> Command {
    place.train("sd1.5-ddpo-compressibility", run, changes)
}

/// A command that must fail with all `parts` in its message, and no file more.
#[track_caller]
fn refused(command: &mut Command, room: &Path, parts: &[&str]) -> String {
    let before = files(room);
    let told = text(&command.output().unwrap());
    assert!(told.starts_with("error: ") && told.contains("\nhint: "), "{told}");
    for part in parts {
        assert!(told.contains(part), "{part:?} is not in\n{told}");
    }
    assert!(before.keys().eq(files(room).keys()));
    told
}

/// Writes a JSON file again.
fn edit(file: &Path, change: impl FnOnce(&mut Map<String, Value>)) {
    let mut fields = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    change(&mut fields);
    fs::write(file, serde_json::to_vec(&fields).unwrap()).unwrap();
}

#[test]
fn a_pointer_of_git_lfs_is_named_with_what_to_run() {
    let pointer =
        format!("version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 3438167536\n", "a".repeat(64));
    let place = small("sd1");
    let file = "unet/diffusion_pytorch_model.safetensors";
    fs::write(place.model.path().join(file), &pointer).unwrap();
    let told =
        refused(&mut sd1(&place, "run", &[]), place.room.path(), &[file, "a pointer of git-lfs", "`git lfs pull`"]);
    assert!(!told.contains("download it again") && !told.contains("header"), "{told}");
    let place = small("flux");
    let words = place.model.path().join("tokenizer_2");
    fs::remove_file(words.join("tokenizer.json")).unwrap();
    fs::write(words.join("spiece.model"), &pointer).unwrap();
    let parts = ["tokenizer_2/spiece.model", "a pointer of git-lfs", "`git lfs pull`"];
    refused(&mut place.train("flux-dance-grpo", "run", &[]), place.room.path(), &parts);
}

/// A folder saved after a swap of schedulers trains to the same numbers: only what they say of the model counts.
#[test]
fn the_class_of_the_scheduler_makes_no_difference() {
    let place = small("sd1");
    succeed(&mut sd1(&place, "plain", &[]));
    let file = place.model.path().join("scheduler/scheduler_config.json");
    let common = json!({"beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "num_train_timesteps": 1000,
        "prediction_type": "epsilon", "trained_betas": null, "steps_offset": 1, "timestep_spacing": "leading"});
    for (class, more) in [
        (
            "EulerDiscreteScheduler",
            json!({"interpolation_type": "linear", "use_karras_sigmas": true, "sigma_min": null, "timestep_type": "discrete"}),
        ),
        (
            "DPMSolverMultistepScheduler",
            json!({"algorithm_type": "dpmsolver++", "solver_order": 2, "lower_order_final": true}),
        ),
        ("LMSDiscreteScheduler", json!({})),
    ] {
        let mut fields = common.as_object().unwrap().clone();
        fields.insert("_class_name".into(), class.into());
        fields.extend(more.as_object().unwrap().clone());
        // Python's own word, which no other JSON has.
        let text = serde_json::to_string(&fields).unwrap().replacen('{', "{\"lambda_min_clipped\": -Infinity, ", 1);
        fs::write(&file, text).unwrap();
        let printed = succeed(&mut sd1(&place, class, &[]));
        assert!(!printed.contains("warning"), "{printed}");
        assert_eq!(common::numbers(&place.run("plain")), common::numbers(&place.run(class)), "{class}");
    }
}

/// Fields of a newer diffusers: switched off, a warning in run and doctor; else an error that does not send one to download again.
#[test]
fn fields_of_a_newer_version_are_warned_of_or_refused() {
    for (file, change, warning) in [
        ("transformer/config.json", json!({"new_option": null}), Some("new_option = null")),
        ("transformer/config.json", json!({"new_flag": false}), Some("new_flag = false")),
        ("vae/config.json", json!({"new_option": null}), Some("new_option = null")),
        ("transformer/config.json", json!({"quantization_config": {"load_in_4bit": true}}), None),
        ("transformer/config.json", json!({"new_flag": true}), None),
    ] {
        let place = small("sd3");
        edit(&place.model.path().join(file), |fields| fields.extend(change.as_object().unwrap().clone()));
        if let Some(warning) = warning {
            let printed = succeed(&mut sd3(&place, "run", &[]));
            let told: Vec<&str> = printed.lines().filter(|line| line.starts_with("warning: ")).collect();
            assert!(told.len() == 1 && told[0].contains(file) && told[0].contains(warning), "{printed}");
            let told = succeed(elbow(["doctor", "--model"]).arg(place.model.path()));
            assert!(told.contains(&format!("{file}: {warning}")), "{told}");
        } else {
            let name = change.as_object().unwrap().keys().next().unwrap();
            let told = refused(&mut sd3(&place, "run", &[]), place.room.path(), &[file, name]);
            assert!(!told.contains("download"), "{told}");
            assert!(told.contains("newer Elbow") || told.contains("bf16"), "{told}");
        }
    }
}

#[test]
fn sd3_without_t5_says_how_and_trains() {
    let place = small("sd3");
    let model = place.model.path();
    fs::remove_dir_all(model.join("text_encoder_3")).unwrap();
    fs::remove_dir_all(model.join("tokenizer_3")).unwrap();
    let way_out = "put [null, null] for text_encoder_3 and tokenizer_3 into model_index.json";
    refused(&mut sd3(&place, "run", &[]), place.room.path(), &["has none of: text_encoder_3/", way_out]);
    edit(&model.join("model_index.json"), |index| {
        index.extend(["text_encoder_3", "tokenizer_3"].map(|part| (part.to_owned(), json!([null, null]))));
    });
    succeed(&mut sd3(&place, "run", &[]));
}

#[cfg(unix)]
#[test]
fn the_hubs_cache_trains_by_its_snapshot_and_names_what_is_missing() {
    use std::os::unix::fs::symlink;
    let (place, cache) = (small("sd1"), tempfile::tempdir().unwrap());
    let hub = cache.path().join("models--a--b");
    let snapshot = hub.join("snapshots/abc");
    fs::create_dir_all(hub.join("blobs")).unwrap();
    for (i, name) in files(place.model.path()).keys().enumerate() {
        let (blob, link) = (hub.join(format!("blobs/{i:040}")), snapshot.join(name));
        fs::copy(place.model.path().join(name), &blob).unwrap();
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        symlink(blob, link).unwrap();
    }
    let train = |model: &Path, run: &str| place.train_on(model, "sd1.5-ddpo-compressibility", run, &[]);
    succeed(&mut train(&snapshot, "links"));
    let network = snapshot.join("unet/diffusion_pytorch_model.safetensors");
    let blob = fs::read_link(&network).unwrap();
    fs::remove_file(&blob).unwrap();
    let parts = [&*network.display().to_string(), "is a link to", &blob.display().to_string(), "finish the download"];
    refused(&mut train(&snapshot, "dangling"), place.room.path(), &parts);
    let commit = format!("give the snapshot in it, {}", snapshot.display());
    refused(&mut train(&hub, "cache"), place.room.path(), &["models--a--b has none of: model_index.json", &commit]);
}

#[test]
fn one_file_is_no_model_and_the_way_out_is_told() {
    let place = small("sd3");
    let names = ["model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"];
    let zeros = [0; 16];
    let view = || TensorView::new(Dtype::F32, vec![4], &zeros).unwrap();
    let file = safetensors::serialize(names.map(|name| (name, view())), None).unwrap();
    let path = place.run("sd3.5_medium.safetensors");
    fs::write(&path, file).unwrap();
    let parts = ["sd3.5_medium.safetensors: this is SD3 or SD3.5", "from_single_file", "save_pretrained"];
    refused(&mut place.train_on(&path, "sd3.5-geneval", "run", &[]), place.room.path(), &parts);
}

/// Pictures of 24 x 40 pixels through training, evaluation, samples and sheets, and a plan of them.
#[test]
fn pictures_need_not_be_square() {
    for (pipeline, recipe) in
        [("sd3", "sd3.5-geneval"), ("flux", "flux-dance-grpo"), ("sd1", "sd1.5-ddpo-compressibility")]
    {
        let place = small(pipeline);
        let changes = ["model.resolution=[24, 40]", "keep.pictures=true"];
        succeed(&mut place.train(recipe, "run", &changes));
        let pictures = files(&place.run("run/samples"));
        let sizes: Vec<(u32, u32)> = pictures
            .iter()
            .filter(|(name, _)| name.extension().is_some_and(|end| end == "png"))
            .map(|(_, bytes)| image::load_from_memory(bytes).unwrap().to_rgb8().dimensions())
            .collect();
        assert!(sizes.len() == 4 && sizes.iter().all(|size| *size == (40, 24)), "{pipeline}: {sizes:?}");
        assert!(place.run("run/images/before-after.png").is_file());
        let config = fs::read_to_string(place.run("run/config.toml")).unwrap();
        let resolution = config.lines().find(|line| line.starts_with("resolution")).unwrap();
        assert!(resolution.contains("[24, 40]") || resolution.ends_with('['), "{resolution}");
        succeed(
            elbow(["sample", "a cat", "--images", "1", "--out", "cat.png", "--run", "run"])
                .current_dir(place.room.path()),
        );
        succeed(elbow(["train", "--resume", "run"]).args(sets(&["epochs=2"])).current_dir(place.room.path()));
    }
    let place = small("sd3");
    let told = sd3(&place, "run", &["model.resolution=[24, 42]"]).output().unwrap();
    assert!(text(&told).contains("resolution 24 x 42: a latent stands for 4 x 4 pixels"), "{}", text(&told));
}

#[test]
fn doctor_looks_at_a_model_at_its_own_size_and_takes_changes() {
    let place = small("sd3");
    let doctor = |changes: &[&str]| {
        let mut command = elbow(["doctor", "--model"]);
        command.arg(place.model.path()).args(sets(changes)).current_dir(place.room.path());
        command
    };
    let told = succeed(&mut doctor(&[]));
    assert!(
        told.contains("pictures of 32 × 32, latents of 16 × 8 × 8") && told.contains("weights        all are finite"),
        "{told}"
    );
    let told =
        succeed(&mut doctor(&["model.resolution=[24, 40]", "model.text_length=7", "optimizer.learning_rate=1e-3"]));
    assert!(told.contains("pictures of 24 × 40, latents of 16 × 6 × 10"), "{told}");
    for pipeline in ["sd1", "flux"] {
        let model = whole(pipeline);
        let told = succeed(elbow(["doctor", "--set", "model.text_length=9", "--model"]).arg(model.path()));
        assert!(told.contains("pictures of ") && !told.contains("FAIL"), "{told}");
    }
    let told = text(&doctor(&["model.txt_length=7"]).output().unwrap());
    assert!(told.contains("FAIL  recipe") && told.contains("unknown field `model.txt_length`"), "{told}");
    let told = text(&doctor(&["model.resolution=30"]).output().unwrap());
    assert!(told.contains("FAIL  model") && told.contains("resolution 30"), "{told}");
    // Weights that are no numbers, of a text encoder too.
    let path = place.model.path().join("text_encoder/model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let end = bytes.len();
    bytes[end - 4..].fill(0xff);
    fs::write(&path, bytes).unwrap();
    let told = text(&doctor(&[]).output().unwrap());
    assert!(told.contains("FAIL  weights") && told.contains("holds NaN or an infinite number"), "{told}");
}

/// Prompts that an encoder cuts are told once, with their number.
#[test]
fn prompts_that_are_cut_are_told_once() {
    let place = small("sd3");
    let long = "and on ".repeat(60);
    fs::write(place.run("prompts.txt"), format!("a red cat\na {long}\nhorse\n")).unwrap();
    let printed = succeed(&mut sd3(&place, "run", &["epochs=2"]));
    let told: Vec<&str> = printed.lines().filter(|line| line.starts_with("warning: ")).collect();
    assert_eq!(told.len(), 2, "{printed}");
    assert!(
        told[0].starts_with("warning: 1 of 3 prompts is longer than the 77 tokens of CLIP and is cut; it has "),
        "{printed}"
    );
    assert!(told[1].starts_with("warning: 1 of 3 prompts is longer than the 24 tokens of T5"), "{printed}");
    let printed = succeed(&mut sd3(&place, "enough", &["model.text_length=400"]));
    assert!(printed.contains("tokens of CLIP") && !printed.contains("tokens of T5"), "{printed}");
}

/// A recipe and prompts as Notepad, PowerShell and old editors save them: the same run, and a place where they are no text.
#[test]
fn recipes_and_prompts_are_read_as_all_editors_write_them() {
    let place = small("sd1");
    let recipe = "extends = \"base.toml\"\nseed = 7\n# ä\n";
    let base =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes/sd1.5-ddpo-compressibility.toml"))
            .unwrap();
    let utf16 = |text: &str, unit: fn(u16) -> [u8; 2]| -> Vec<u8> {
        [0xfeff].into_iter().chain(text.encode_utf16()).flat_map(unit).collect()
    };
    let ways = |text: &str| {
        [
            ("plain", text.into()),
            ("marked", ["\u{feff}", text].concat().into_bytes()),
            ("windows", text.replace('\n', "\r\n").into_bytes()),
            ("mac", text.replace('\n', "\r").into_bytes()),
            ("little", utf16(text, u16::to_le_bytes)),
            ("big", utf16(text, u16::to_be_bytes)),
        ]
    };
    let files_of = ways(recipe).into_iter().zip(ways(&base)).zip(ways("a red cat\nhorse\n"));
    for (((name, recipe), (_, base)), (_, prompts)) in files_of {
        for (file, bytes) in [("mine.toml", recipe), ("base.toml", base), ("prompts.txt", prompts)] {
            fs::write(place.run(file), bytes).unwrap();
        }
        succeed(&mut place.train("mine.toml", name, &[]));
        assert_same(&place.run("plain"), &place.run(name));
    }
    // One embedding a prompt, and that of the empty one.
    assert_eq!(files(&place.run("cache")).len(), 3);
    fs::write(place.run("mine.toml"), b"seed = 7\n# caf\xe9\n").unwrap();
    let parts = [
        "cannot read recipe mine.toml: line 2, column 6: the byte 0xe9 is not UTF-8",
        "hint: save the recipe as UTF-8",
    ];
    refused(&mut place.train("mine.toml", "run", &[]), place.room.path(), &parts);
}

/// Makes all weights of the last convolution of a folder's decoder one number.
fn fill_last_convolution(model: &Path, value: f32) {
    let path = model.join("vae/diffusion_pytorch_model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let shape = tensors.tensor("decoder.conv_out.weight").unwrap().shape().to_vec();
    let data: Vec<u8> = (0..shape.iter().product::<usize>()).flat_map(|_| value.to_le_bytes()).collect();
    let changed = tensors.iter().map(|(name, view)| match name {
        "decoder.conv_out.weight" => (name, TensorView::new(Dtype::F32, shape.clone(), &data).unwrap()),
        _ => (name, view),
    });
    fs::write(&path, safetensors::serialize(changed, None).unwrap()).unwrap();
}

/// Weights of the autoencoder that are finite numbers, and a picture that is not: nothing is scored, and the run says why.
#[test]
fn pictures_that_overflow_in_the_decoder_have_no_reward() {
    let place = small("sd1");
    fill_last_convolution(place.model.path(), f32::MAX);
    let told = text(&sd1(&place, "run", &[]).output().unwrap());
    let parts = ["4 of 4 rewards `jpeg` are missing in epoch 0", "its picture is not finite: the decoder overflows"];
    assert!(parts.iter().all(|part| told.contains(part)), "{told}");
    let printed = succeed(&mut sd1(&place, "on", &["on_missing=go-on", "epochs=3"]));
    assert!(printed.contains("no group has a reward"), "{printed}");
    for record in &records(&place.run("on"))[1..] {
        assert!(record["reward_missing"] == 4 && record["trained_samples"] == 0, "{record:?}");
    }
    let result: Value = serde_json::from_slice(&fs::read(place.run("on/result.json")).unwrap()).unwrap();
    assert_eq!(result["epochs_that_trained_nothing"], 3);
}

/// A policy that diverged has no rewards from there on, and the run stops in the epoch after.
#[test]
fn a_policy_that_diverged_is_not_reported_as_the_best() {
    let place = small("sd3");
    let changes = ["epochs=4", "optimizer.learning_rate=1e30", "optimizer.max_grad_norm=1e9"];
    let told = text(&sd3(&place, "run", &changes).output().unwrap());
    assert!(told.starts_with("error: ") || told.contains("\nerror: "), "{told}");
    assert!(told.contains("is not finite"), "{told}");
    assert!(!place.run("run/result.json").exists());
}

/// A decoder that draws the same for everything: rewards agree within every group, which is told after some epochs.
#[test]
fn groups_that_all_agree_are_told() {
    let place = small("sd1");
    fill_last_convolution(place.model.path(), 0.0);
    let printed = succeed(&mut sd1(&place, "run", &["epochs=4"]));
    let told: Vec<&str> = printed.lines().filter(|line| line.starts_with("warning: ")).collect();
    assert!(
        told.len() == 1
            && told[0].contains("epoch 3: in 3 epochs")
            && told[0].contains("next to nothing to learn from"),
        "{printed}"
    );
    for record in &records(&place.run("run"))[1..] {
        assert!(record["zero_std_ratio"] == 1.0 && record["reward_jpeg_std"] == 0.0, "{record:?}");
    }
}
