//! Folders whose files are something else, are links to nowhere or lie elsewhere: the error says what there is and what to do.

use crate::{
    drawing::OPTIONS,
    model_folder::{assemble, fixtures, whole},
};
use burn::tensor::Device;
use elbow::{Prompt, policy::TextEncoder};
use elbow_models::{
    folder::{Checkpoint, Folder, FolderError, FrozenWeights, recognize},
    pipeline::{Source, SourceError},
    text::TextParts,
};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

const POINTER: &str = "version https://git-lfs.github.com/spec/v1\noid sha256:aaaa\nsize 3438167536\n";
const NETWORK: &str = "transformer/diffusion_pytorch_model.safetensors";

/// Why a folder is refused.
#[track_caller]
fn refusal(folder: &Path) -> SourceError {
    Source::open(folder, &OPTIONS).map(drop).expect_err("refused")
}

/// `parts` must all be in the error.
#[track_caller]
fn says(error: &SourceError, parts: &[&str]) {
    let text = error.to_string();
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

#[track_caller]
fn advises(error: &SourceError, part: &str) {
    let FolderError::Foreign { hint, .. } = &error.faults[0] else { panic!("{error:?}") };
    assert!(hint.contains(part), "{hint}");
}

/// A safetensors file of zeros with tensors of these names and shapes.
fn weights(tensors: &[(&str, &[usize])]) -> Vec<u8> {
    let zeros = vec![0; 4 * 4096 * 16];
    let view = |shape: &[usize]| {
        TensorView::new(Dtype::F32, shape.to_vec(), &zeros[..4 * shape.iter().product::<usize>()]).expect("a view")
    };
    safetensors::serialize(tensors.iter().map(|(name, shape)| (*name, view(shape))), None).expect("a file")
}

#[test]
fn a_file_that_is_something_else_is_told_in_every_place() {
    let folder = whole("sd3");
    for file in [
        NETWORK,
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "vae/config.json",
        "text_encoder_3/model-00001-of-00003.safetensors",
        "text_encoder_3/model.safetensors.index.json",
        "model_index.json",
        "tokenizer/vocab.json",
        "tokenizer/merges.txt",
        "tokenizer_2/tokenizer.json",
        "scheduler/scheduler_config.json",
    ] {
        let path = folder.path().join(file);
        let whole = fs::read(&path).unwrap_or_else(|_| panic!("{file}"));
        for (bytes, what, hint) in [
            (POINTER.as_bytes(), "a pointer of git-lfs", "git lfs pull"),
            (b"<!DOCTYPE html><html><body>Log in</body></html>", "a web page", "accept its license"),
            (b"", "an empty file", "whole"),
            (b"PK\x03\x04\x00\x00\x08\x08", "a zip archive", "safe_serialization=True"),
            (b"\x80\x02}q\x00X\x01\x00", "pickled Python objects", "safe_serialization=True"),
            (b"GGUF\x03\x00\x00\x00", "a GGUF file", "f16"),
        ] {
            fs::write(&path, bytes).expect("written");
            let error = refusal(folder.path());
            says(&error, &[file, what]);
            advises(&error, hint);
        }
        fs::write(&path, whole).expect("written");
    }
    Source::open(folder.path(), &OPTIONS).expect("whole again");
    // What a server said in place of weights.
    fs::write(folder.path().join(NETWORK), r#"{"error": "Access to model is restricted"}"#).expect("written");
    says(&refusal(folder.path()), &[NETWORK, "text that begins", "restricted"]);
    // A SentencePiece model, which is no text.
    fs::remove_file(folder.path().join("tokenizer_3/tokenizer.json")).expect("gone");
    fs::write(folder.path().join("tokenizer_3/spiece.model"), POINTER).expect("written");
    says(&refusal(folder.path()), &["tokenizer_3/spiece.model", "a pointer of git-lfs"]);
}

#[test]
fn shards_without_an_index_are_read_or_named() {
    let folder = whole("sd3");
    let part = folder.path().join("text_encoder_3");
    fs::remove_file(part.join("model.safetensors.index.json")).expect("gone");
    Source::open(folder.path(), &OPTIONS).expect("all shards are there");
    fs::rename(part.join("model-00002-of-00003.safetensors"), part.join("x.safetensors.incomplete")).expect("renamed");
    says(&refusal(folder.path()), &["model-00002-of-00003.safetensors: this shard is missing"]);
    for number in [1, 3] {
        fs::remove_file(part.join(format!("model-0000{number}-of-00003.safetensors"))).expect("gone");
    }
    says(&refusal(folder.path()), &["x.safetensors.incomplete shows that a download was not finished"]);
    fs::rename(part.join("x.safetensors.incomplete"), part.join("model.bf16.safetensors")).expect("renamed");
    says(&refusal(folder.path()), &["there is model.bf16.safetensors; if that is a variant"]);
}

/// A folder as the hub's cache has it: links to blobs.
fn cached(model: &Path, hub: &Path) -> PathBuf {
    let (root, commit) = (hub.join("models--owner--name"), "0123abcd");
    let snapshot = root.join("snapshots").join(commit);
    for folder in [root.join("blobs"), root.join("refs"), snapshot.clone()] {
        fs::create_dir_all(folder).expect("made");
    }
    fs::write(root.join("refs/main"), commit).expect("written");
    let (mut number, mut folders) = (0, vec![model.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let (blob, link) = (format!("{number:040}"), snapshot.join(path.strip_prefix(model).expect("inside")));
            fs::copy(&path, root.join("blobs").join(&blob)).expect("copied");
            fs::create_dir_all(link.parent().expect("a folder")).expect("made");
            let up = if link.parent() == Some(&snapshot) { "../.." } else { "../../.." };
            symlink(Path::new(up).join("blobs").join(blob), link).expect("linked");
            number += 1;
        }
    }
    root
}

#[test]
fn the_cache_of_the_hub_leads_to_its_snapshot_and_to_what_is_missing() {
    let (model, hub) = (whole("sd3"), tempfile::tempdir().expect("a folder"));
    let root = cached(model.path(), hub.path());
    let snapshot = root.join("snapshots/0123abcd");
    Source::open(&snapshot, &OPTIONS).expect("links are followed");
    says(
        &refusal(&root),
        &["models--owner--name has none of: model_index.json", "give the snapshot in it", "snapshots/0123abcd"],
    );
    says(&refusal(&root.join("snapshots")), &["give the model in it", "snapshots/0123abcd"]);
    says(&refusal(&snapshot.join("vae")), &["a part of a model, give the folder above it", "0123abcd"]);
    for file in [
        NETWORK,
        "vae/config.json",
        "tokenizer/merges.txt",
        "tokenizer_2/tokenizer.json",
        "scheduler/scheduler_config.json",
        "text_encoder_3/model-00002-of-00003.safetensors",
        "model_index.json",
    ] {
        let link = snapshot.join(file);
        let target = fs::read_link(&link).expect("a link");
        let blob = link.canonicalize().expect("there");
        fs::rename(&blob, hub.path().join("aside")).expect("moved");
        let error = refusal(&snapshot);
        says(&error, &[file, "is a link to", &target.display().to_string(), "which does not exist"]);
        assert!(matches!(error.faults[0], FolderError::Dangling { .. }), "{error:?}");
        fs::rename(hub.path().join("aside"), &blob).expect("moved back");
    }
    // A whole part as a link.
    fs::rename(snapshot.join("vae"), hub.path().join("vae")).expect("moved");
    symlink("/nowhere/vae", snapshot.join("vae")).expect("linked");
    says(&refusal(&snapshot), &["vae is a link to /nowhere/vae"]);
}

#[test]
fn a_file_in_place_of_a_folder_is_named_with_the_way_out() {
    let room = tempfile::tempdir().expect("a folder");
    let given = |name: &str, bytes: &[u8]| {
        let file = room.path().join(name);
        fs::write(&file, bytes).expect("written");
        (refusal(&file), fs::remove_file(&file).expect("gone")).0
    };
    let joint = "model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight";
    let error = given("sd3.5_medium.safetensors", &weights(&[(joint, &[4])]));
    says(&error, &["sd3.5_medium.safetensors: this is SD3 or SD3.5 as Stability AI published it"]);
    advises(&error, "StableDiffusion3Pipeline.from_single_file");
    let flux = weights(&[("double_blocks.0.img_attn.qkv.weight", &[4]), ("img_in.weight", &[2, 64])]);
    let error = given("flux1-dev.safetensors", &flux);
    says(&error, &["FLUX.1 as Black Forest Labs"]);
    advises(&error, "FluxPipeline.from_single_file");
    let input = "model.diffusion_model.input_blocks.0.0.weight";
    let error = given("v1-5-pruned-emaonly.safetensors", &weights(&[(input, &[8, 4, 3, 3])]));
    says(&error, &["Stable Diffusion 1 or 2"]);
    says(&given("inpainting.safetensors", &weights(&[(input, &[8, 9, 3, 3])])), &["9 input channels"]);
    let xl = weights(&[(input, &[8, 4, 3, 3]), ("conditioner.embedders.0.x", &[1])]);
    says(&given("sd_xl_base_1.0.safetensors", &xl), &["Stable Diffusion XL"]);
    says(&given("lora.safetensors", &weights(&[("lora_unet_x.lora_down.weight", &[4])])), &["an adapter (LoRA)"]);
    says(&given("v1-5-pruned.ckpt", b"PK\x03\x04\0\0"), &["a zip archive"]);
    says(&given("flux1-dev-Q4_0.gguf", b"GGUF\x03\0\0\0"), &["a GGUF file"]);
    says(&given("x.safetensors", &weights(&[("x", &[4])])), &["weights that are not known here"]);
    says(&given("notes.txt", b"hello, this is a note and no model at all"), &["notes.txt", "a model is a folder"]);
    let model = whole("sd3");
    let error = refusal(&model.path().join("model_index.json"));
    says(&error, &["one file of a model folder"]);
    advises(&error, &model.path().display().to_string());
    advises(&refusal(&model.path().join(NETWORK)), &model.path().display().to_string());
    // The folder that holds such a file.
    fs::write(room.path().join("sd3.5_medium.safetensors"), weights(&[(joint, &[4])])).expect("written");
    says(
        &refusal(room.path()),
        &["has none of: model_index.json", "sd3.5_medium.safetensors in it is SD3", "from_single_file"],
    );
    // Such weights where a network's should be.
    fs::write(model.path().join(NETWORK), weights(&[(joint, &[4])])).expect("written");
    says(&refusal(model.path()), &[NETWORK, "SD3 or SD3.5 as Stability AI published it"]);
}

#[test]
fn a_folder_of_many_models_is_none() {
    says(
        &refusal(Path::new("/nowhere/model")),
        &["/nowhere/model has none of: model_index.json: there is no such folder"],
    );
    let name = refusal(Path::new("stabilityai/stable-diffusion-3.5-medium"));
    says(&name, &["there is no such folder", "give it as model.hub"]);
    assert!(!refusal(Path::new("model")).to_string().contains("model.hub"));
    let room = tempfile::tempdir().expect("a folder");
    let model = whole("sd1");
    symlink(model.path(), room.path().join("mine")).expect("linked");
    says(&refusal(room.path()), &["give the model in it", "/mine"]);
}

/// The text encoder as a part of the whole of CLIP, as OpenAI published it, and T5 with its decoder: the same embeddings.
#[test]
fn encoders_are_found_in_larger_models() {
    let prompts: [Prompt; 2] = ["a photo of a red cat left of 3 dogs!".into(), "".into()];
    let embedded = |folder: &Path| -> Vec<f32> {
        let parts = TextParts::open(&Folder::open(folder, None).expect("a model folder"), 24).expect("text encoders");
        let model = parts.load(FrozenWeights::Stored, &Device::flex()).expect("weights");
        let cond = model.encode(&prompts).expect("embeddings");
        cond.tokens.into_data().try_to_vec().expect("f32")
    };
    for pipeline in ["sd3", "flux", "sd1"] {
        let folder = assemble(pipeline);
        let expected = embedded(folder.path());
        let clip = folder.path().join("text_encoder");
        let text: serde_json::Value =
            serde_json::from_slice(&fs::read(clip.join("config.json")).expect("read")).expect("JSON");
        let mut text = text.as_object().expect("fields").clone();
        text["architectures"] = serde_json::Value::Null;
        let width = text["hidden_size"].as_u64().expect("a number") as usize;
        let whole = serde_json::json!({
            "architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": text["projection_dim"], "logit_scale_init_value": 2.6,
            "text_config": text, "vision_config": {"image_size": 224, "patch_size": 14}, "initializer_factor": 1.0,
        });
        fs::write(clip.join("config.json"), whole.to_string()).expect("written");
        let projection: &[(&str, &[usize])] =
            if pipeline == "sd3" { &[] } else { &[("text_projection.weight", &[3, width])] };
        let more = [
            &[
                ("vision_model.embeddings.class_embedding", &[4][..]),
                ("visual_projection.weight", &[2, 2]),
                ("logit_scale", &[1]),
                ("vision_model.embeddings.position_ids", &[1, 5]),
            ],
            projection,
        ]
        .concat();
        add(&clip.join("model.safetensors"), &more, None);
        if pipeline == "flux" {
            let t5 = folder.path().join("text_encoder_2");
            let first = t5.join("model-00001-of-00003.safetensors");
            fs::remove_file(t5.join("model.safetensors.index.json")).expect("gone");
            add(
                &first,
                &[("decoder.block.0.layer.0.SelfAttention.q.weight", &[2, 2]), ("lm_head.weight", &[2, 2])],
                Some(("shared.weight", "encoder.embed_tokens.weight")),
            );
        }
        assert_eq!(embedded(folder.path()), expected, "{pipeline}");
    }
}

/// Adds tensors of zeros to a file, and gives one of its tensors another name.
fn add(file: &Path, more: &[(&str, &[usize])], renamed: Option<(&str, &str)>) {
    let (bytes, zeros) = (fs::read(file).expect("read"), weights(more));
    let (old, new) =
        (SafeTensors::deserialize(&bytes).expect("tensors"), SafeTensors::deserialize(&zeros).expect("tensors"));
    let name = |name: &str| renamed.filter(|(from, _)| *from == name).map_or(name, |(_, to)| to).to_owned();
    let all = old.iter().chain(new.iter()).map(|(own, view)| (name(own), view));
    let written = safetensors::serialize(all, None).expect("a file");
    fs::write(file, written).expect("written");
}

/// Whoever reads a file that should be safetensors hears the same, whichever way.
#[test]
fn any_file_of_weights_is_recognized() {
    let room = tempfile::tempdir().expect("a folder");
    let file = room.path().join("adapter_model.safetensors");
    fs::write(&file, POINTER).expect("written");
    let error = Checkpoint::open_file(&file).map(drop).expect_err("no weights").to_string();
    assert!(error.contains("adapter_model.safetensors: this is a pointer of git-lfs"), "{error}");
    assert!(recognize::file(&file).is_some_and(|foreign| foreign.hint.contains("git lfs pull")));
    assert_eq!(recognize::file(&fixtures().join("pipeline/sd3.lora.safetensors")), None);
    assert_eq!(recognize::file(&room.path().join("absent")), None);
}

/// SD3 without its T5: a folder that was left out of a download, and the way to say so.
#[test]
fn sd3_says_how_to_go_without_t5() {
    let folder = whole("sd3");
    for part in ["text_encoder_3", "tokenizer_3"] {
        fs::remove_dir_all(folder.path().join(part)).expect("gone");
    }
    let error = refusal(folder.path());
    says(
        &error,
        &["has none of: text_encoder_3/", "put [null, null] for text_encoder_3 and tokenizer_3 into model_index.json"],
    );
    let folder = whole("flux");
    fs::remove_dir_all(folder.path().join("text_encoder_2")).expect("gone");
    assert!(!refusal(folder.path()).to_string().contains("[null, null]"), "FLUX needs it");
}

#[test]
fn pipelines_of_other_kinds_are_named_with_what_they_are() {
    for (class, kind) in [
        ("StableDiffusionXLPipeline", "Stable Diffusion XL"),
        ("StableDiffusionInpaintPipeline", "inpainting"),
        ("FluxFillPipeline", "inpainting"),
        ("FluxKontextPipeline", "edits pictures"),
        ("WanPipeline", "`_class_name` is WanPipeline:"),
    ] {
        let folder = whole("sd1");
        let index = folder.path().join("model_index.json");
        let text = fs::read_to_string(&index).expect("read");
        fs::write(&index, text.replace("StableDiffusionPipeline", class)).expect("written");
        says(&refusal(folder.path()), &[class, kind, "FluxPipeline and StableDiffusionPipeline"]);
    }
    let folder = whole("sd1");
    let index = folder.path().join("model_index.json");
    let text = fs::read_to_string(&index).expect("read");
    fs::write(&index, text.replace("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline")).expect("written");
    Source::open(folder.path(), &OPTIONS).expect("the same parts");
}

/// Values of weights are looked at where that is asked for, those of text encoders too.
#[test]
fn weights_that_are_no_numbers_are_named_in_every_part() {
    for (file, part) in [
        (NETWORK, "transformer"),
        ("vae/diffusion_pytorch_model.safetensors", "vae"),
        ("text_encoder/model.safetensors", "text_encoder"),
        ("text_encoder_3/model-00003-of-00003.safetensors", "text_encoder_3"),
    ] {
        let folder = whole("sd3");
        let path = folder.path().join(file);
        let mut bytes = fs::read(&path).expect("read");
        let end = bytes.len();
        bytes[end - 4..].fill(0xff);
        let source = || Source::open(folder.path(), &OPTIONS).expect("headers are fine");
        source().check_values().expect("numbers");
        fs::write(&path, bytes).expect("written");
        let error = source().check_values().expect_err("no numbers").to_string();
        assert!(error.contains(&format!("/{part} do not fit")) && error.contains("holds NaN"), "{error}");
    }
}
