//! Model folders with something wrong in them: the error says what and where.

use crate::model_folder::{assemble, fixtures};
use burn::tensor::{DType, Device};
use elbow_models::{
    folder::{Checkpoint, Folder, FrozenWeights},
    text::TextParts,
};
use safetensors::{
    Dtype, SafeTensors,
    tensor::{TensorView, serialize_to_file},
};
use std::{fs, path::Path};

/// What a damaged folder of SD3 is refused with.
fn refusal(damage: impl FnOnce(&Path)) -> String {
    let folder = assemble("sd3");
    damage(folder.path());
    let open = || TextParts::open(&Folder::open(folder.path(), None)?, 24);
    open().map(drop).expect_err("damaged").to_string()
}

/// `parts` must all be in the error.
fn says(error: &str, parts: &[&str]) {
    for part in parts {
        assert!(error.contains(part), "{part:?} is not in: {error}");
    }
}

fn replace(file: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(file).expect("read");
    assert!(text.contains(from), "{from} is in {}", file.display());
    fs::write(file, text.replace(from, to)).expect("written");
}

/// Writes a safetensors file again with its tensors as `change` gives them.
fn rewrite(file: &Path, change: impl Fn(&str) -> Option<(String, Dtype, usize)>) {
    let bytes = fs::read(file).expect("read");
    let tensors = SafeTensors::deserialize(&bytes).expect("tensors");
    let changed: Vec<(String, TensorView<'_>)> = tensors
        .iter()
        .filter_map(|(name, view)| {
            let (name, dtype, rows) = change(name)?;
            let size = if matches!(dtype, Dtype::F8_E4M3) { 1 } else { 2 };
            let mut shape = view.shape().to_vec();
            shape[0] -= rows;
            let len = shape.iter().product::<usize>() * size;
            Some((name, TensorView::new(dtype, shape, &view.data()[..len]).expect("a view")))
        })
        .collect();
    let changed: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> =
        changed.into_iter().map(|(n, v)| (n, v.dtype(), v.shape().to_vec(), v.data().to_vec())).collect();
    drop(tensors);
    let views = changed.iter().map(|(n, d, s, b)| (n.as_str(), TensorView::new(*d, s.clone(), b).expect("a view")));
    serialize_to_file(views, None, file).expect("written");
}

#[test]
fn every_wrong_tensor_is_named_at_once() {
    let error = refusal(|folder| {
        rewrite(&folder.join("text_encoder/model.safetensors"), |name| match name {
            "text_model.final_layer_norm.bias" => None,
            "text_model.encoder.layers.1.mlp.fc1.bias" => Some((name.into(), Dtype::F16, 1)),
            "text_model.encoder.layers.0.mlp.fc1.weight" => Some((name.into(), Dtype::F8_E4M3, 0)),
            "text_projection.weight" => Some(("text_projection.wait".into(), Dtype::F16, 0)),
            _ => Some((name.into(), Dtype::F16, 0)),
        });
    });
    says(&error, &["text_encoder", "model.safetensors", "text_model.final_layer_norm.bias: missing, [16] expected"]);
    says(&error, &["text_model.encoder.layers.1.mlp.fc1.bias: [35] in the file, [36] expected"]);
    says(&error, &["text_model.encoder.layers.0.mlp.fc1.weight: stored as F8_E4M3"]);
    says(&error, &["text_projection.wait: not in the network", "text_projection.weight: missing"]);
}

#[test]
fn a_cut_shard_is_named_with_its_tensor() {
    let error = refusal(|folder| {
        let shard = folder.join("text_encoder_3/model-00002-of-00003.safetensors");
        let bytes = fs::read(&shard).expect("read");
        fs::write(&shard, &bytes[..bytes.len() - 3]).expect("cut");
    });
    says(&error, &["model-00002-of-00003.safetensors", "not a complete safetensors file", "bytes, in tensor `encoder"]);
}

#[test]
fn shards_must_be_there_and_hold_what_the_index_says() {
    let error = refusal(|f| fs::remove_file(f.join("text_encoder_3/model-00003-of-00003.safetensors")).expect("gone"));
    says(&error, &["model-00003-of-00003.safetensors: this shard is missing"]);
    let error = refusal(|folder| {
        let index = folder.join("text_encoder_3/model.safetensors.index.json");
        replace(&index, "\"shared.weight\": \"model-00001-of-00003", "\"shared.weight\": \"model-00002-of-00003");
        replace(&index, "\"encoder.final_layer_norm.weight\"", "\"encoder.final.weight\"");
    });
    says(&error, &["shared.weight: it is in another shard", "encoder.final.weight: listed in model.safetensors.index"]);
}

#[test]
fn files_that_are_missing_are_named() {
    let error = refusal(|folder| fs::remove_file(folder.join("tokenizer/merges.txt")).expect("gone"));
    says(&error, &["tokenizer", "merges.txt"]);
    assert!(!error.contains("vocab.json,"), "only what is missing: {error}");
    let error = refusal(|folder| fs::remove_file(folder.join("tokenizer_3/tokenizer.json")).expect("gone"));
    says(&error, &["tokenizer_3", "tokenizer.json, spiece.model"]);
    let error = refusal(|folder| fs::remove_dir_all(folder.join("tokenizer_2")).expect("gone"));
    says(&error, &["tokenizer_2/", "model_index.json lists"]);
    let error = refusal(|folder| fs::remove_file(folder.join("model_index.json")).expect("gone"));
    says(&error, &["model_index.json", "diffusers"]);
    let error = refusal(|folder| {
        let old = folder.join("text_encoder/model.safetensors");
        fs::rename(&old, folder.join("text_encoder/pytorch_model.bin")).expect("renamed");
    });
    says(&error, &["text_encoder", "model.safetensors", "model.fp16.safetensors", "pickled"]);
}

#[test]
fn another_architecture_is_refused_by_field_and_value() {
    let index = |from: &'static str, to: &'static str| {
        refusal(move |folder| replace(&folder.join("model_index.json"), from, to))
    };
    let error = index("StableDiffusion3Pipeline", "StableDiffusionXLPipeline");
    says(&error, &["model_index.json", "_class_name", "StableDiffusionXLPipeline", "FluxPipeline"]);
    says(&index("T5EncoderModel", "UMT5EncoderModel"), &["text_encoder_3", "UMT5EncoderModel", "T5EncoderModel"]);
    let config = |part: &'static str, from: &'static str, to: &'static str| {
        refusal(move |folder| replace(&folder.join(part).join("config.json"), from, to))
    };
    says(&config("text_encoder_2", "\"gelu\"", "\"gelu_new\""), &["config.json", "hidden_act: ", "gelu_new"]);
    says(&config("text_encoder_3", "\"gated-gelu\"", "\"relu\""), &["feed_forward_proj", "relu", "gated-gelu"]);
    says(&config("text_encoder", "\"num_attention_heads\": 2", "\"num_attention_heads\": 3"), &["num_attention_heads"]);
    says(&config("text_encoder", "CLIPTextModelWithProjection", "CLIPTextModel"), &["architectures", "WithProjection"]);
    says(
        &config("text_encoder", "\"hidden_size\": 16", "\"hidden_size\": \"16\""),
        &["config.json", "hidden_size: invalid type"],
    );
}

#[test]
fn a_variant_comes_first_if_asked_for_and_last_if_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let (plain, varied) = (fixtures().join("text/clip-l"), fixtures().join("text/clip-g"));
    fs::copy(plain.join("model.safetensors"), folder.path().join("model.safetensors")).expect("copied");
    fs::copy(varied.join("model.fp16.safetensors"), folder.path().join("model.fp16.safetensors")).expect("copied");
    let open = |variant| Checkpoint::open(folder.path(), "model", variant).expect("weights");
    assert!(open(Some("fp16")).contains("text_projection.weight"));
    assert!(!open(None).contains("text_projection.weight"));
    assert!(!open(Some("bf16")).contains("text_projection.weight"), "an absent variant: the plain file");
}

#[test]
fn values_are_read_in_three_types_and_matrices_stay_in_theirs() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("x.safetensors");
    let (f16, bf16) = ([0x00, 0x3e, 0x00, 0xc0], [0xc0, 0x3f, 0x00, 0xc0]);
    let f32 = [0, 0, 0xc0, 0x3f, 0, 0, 0, 0xc0];
    let types: [(Dtype, DType, &[u8]); 3] =
        [(Dtype::F16, DType::F16, &f16), (Dtype::BF16, DType::BF16, &bf16), (Dtype::F32, DType::F32, &f32)];
    for (stored, narrow, bytes) in types {
        let view = |shape: &[usize]| TensorView::new(stored, shape.to_vec(), bytes).expect("a view");
        serialize_to_file([("vector", view(&[2])), ("matrix", view(&[1, 2]))], None, &file).expect("written");
        let shapes = vec![("vector".to_owned(), vec![2]), ("matrix".to_owned(), vec![1, 2])];
        for (weights, held) in [(FrozenWeights::Stored, narrow), (FrozenWeights::F32, DType::F32)] {
            let file = Checkpoint::open_file(&file).expect("weights");
            let tensors = file.tensors(&shapes, &[], weights, &Device::flex()).expect("all");
            let (vector, matrix) = (tensors.tensor::<1>("vector"), tensors.tensor::<2>("matrix"));
            assert_eq!((vector.dtype(), matrix.dtype()), (DType::F32, held), "{stored:?}");
            let names = [("matrix", &[1, 2][..]), ("vector", &[2])];
            assert_eq!(tensors.params(names).values(), [1.5, -2.0, 1.5, -2.0], "{stored:?}");
        }
    }
}
