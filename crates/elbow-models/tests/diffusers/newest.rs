//! What the newest diffusers writes and does (`fixtures/make/newest.py`).

use crate::{
    drawing::{OPTIONS, Reference, draw, loaded},
    model_folder::{fixtures, whole},
};
use elbow_models::{
    flux::FluxConfig,
    mmdit::MmditConfig,
    pipeline::{Options, Source},
    policy::Tuning,
    unet::UnetConfig,
    vae::VaeConfig,
};
use serde_json::{Map, Value, json};
use std::{fs, path::Path};

fn text(name: &str) -> String {
    fs::read_to_string(fixtures().join("newest").join(name)).expect("a fixture")
}

#[test]
fn configurations_are_read() {
    let sd3 = MmditConfig::from_json(&text("sd3.json")).expect("reads");
    assert_eq!((sd3.width(), sd3.dual_attention_layers), (16, vec![0]));
    let flux = FluxConfig::from_json(&text("flux.json")).expect("reads");
    assert_eq!((flux.width(), flux.latent_channels(), flux.guidance_embeds), (16, 16, false));
    let unet = UnetConfig::from_json(&text("unet.json")).expect("reads");
    assert_eq!((unet.block_out_channels, unet.cross_attention_dim), (vec![8, 16], 16));
    let vae = VaeConfig::from_json(&text("vae.json")).expect("reads");
    assert_eq!((vae.reduction(), vae.latent_channels, vae.use_quant_conv), (2, 16, false));
    assert!((vae.scaling_factor - 1.5305).abs() < 1e-12 && vae.shift_factor == Some(0.0609));
}

/// Writes a JSON file of a folder again.
fn edit(file: &Path, change: impl FnOnce(&mut Map<String, Value>)) {
    let mut fields = serde_json::from_slice(&fs::read(file).expect("read")).expect("JSON");
    change(&mut fields);
    fs::write(file, serde_json::to_vec(&fields).expect("JSON")).expect("written");
}

/// Zeros in place of T5's tokens, as many as the text length says.
#[test]
fn sd3_without_t5_draws_what_diffusers_draws() {
    let golden = Reference::open(&fixtures().join("newest/sd3-without-t5.safetensors"));
    let start = Reference::open(&fixtures().join("pipeline/sd3.reference.safetensors"));
    let mut latents = Vec::new();
    for text_length in [20, 77, 256] {
        let folder = whole("sd3");
        edit(&folder.path().join("model_index.json"), |index| {
            for part in ["text_encoder_3", "tokenizer_3"] {
                index.insert(part.to_owned(), json!([null, null]));
            }
        });
        for part in ["text_encoder_3", "tokenizer_3"] {
            fs::remove_dir_all(folder.path().join(part)).expect("gone");
        }
        let source = Source::open(folder.path(), &Options { text_length, ..OPTIONS }).expect("a model");
        let policy = loaded(folder.path(), source, Tuning::default(), 1);
        let x = draw("sd3", &policy, None, start.tensor("start"), &start.times());
        let (off, size) = golden.off(&format!("latent.{text_length}"), x.clone());
        assert!(off <= 1e-4 * size, "{text_length}: off by {off:e} of {size:e}");
        latents.push(x.into_data().try_to_vec::<f32>().expect("f32"));
    }
    let apart = |a: &[f32], b: &[f32]| a.iter().zip(b).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
    assert!(apart(&latents[0], &latents[1]) > 0.01 && apart(&latents[1], &latents[2]) > 0.01, "the length matters");
}

/// Fields that nobody here knows, in each configuration of a folder: switched off they are warnings of that file, and else refused by name.
#[test]
fn unknown_fields_warn_or_are_refused_in_every_configuration() {
    for file in [
        "transformer/config.json",
        "vae/config.json",
        "text_encoder/config.json",
        "text_encoder_3/config.json",
        "scheduler/scheduler_config.json",
    ] {
        let folder = whole("sd3");
        let path = folder.path().join(file);
        let open = || Source::open(folder.path(), &OPTIONS);
        assert_eq!(open().expect("a model").warnings, [""; 0]);
        edit(&path, |fields| {
            fields.extend([("new_option".to_owned(), Value::Null), ("new_flag".to_owned(), json!(false))]);
        });
        let warnings = open().expect("a model").warnings;
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        for field in ["new_option = null", "new_flag = false"] {
            assert!(warnings.iter().any(|w| w.contains(file) && w.contains(field)), "{warnings:?}");
        }
        edit(&path, |fields| drop(fields.insert("new_flag".to_owned(), json!("on"))));
        let error = open().expect_err("refused").to_string();
        assert!(error.contains(file) && error.contains("does not know: new_flag = \"on\""), "{error}");
    }
}

/// Byte order marks, UTF-16, line ends of Windows, and Python's numbers, in every small file that is text.
#[test]
fn small_files_are_read_as_editors_and_python_write_them() {
    let folder = whole("sd3");
    let expected = Source::open(folder.path(), &OPTIONS).expect("a model");
    let mut changed = 0;
    let mut folders = vec![folder.path().to_owned()];
    while let Some(place) = folders.pop() {
        for entry in fs::read_dir(place).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "json" || end == "txt") {
                let text = fs::read_to_string(&path).expect("text").replace('\n', "\r\n");
                let marked = if changed % 2 == 0 {
                    ["\u{feff}", &text].concat().into_bytes()
                } else {
                    [0xfeff].into_iter().chain(text.encode_utf16()).flat_map(u16::to_le_bytes).collect()
                };
                fs::write(&path, marked).expect("written");
                changed += 1;
            }
        }
    }
    assert!(changed > 12, "{changed}");
    let source = Source::open(folder.path(), &OPTIONS).expect("the same model");
    assert_eq!(
        (format!("{:?}", source.network), source.scheduler),
        (format!("{:?}", expected.network), expected.scheduler)
    );
    // As words of Windows-1252: a place, and what to do.
    fs::write(folder.path().join("vae/config.json"), b"{\n\"note\": \"\xe9\"}").expect("written");
    let error = Source::open(folder.path(), &OPTIONS).expect_err("no text").to_string();
    assert!(error.contains("vae/config.json: line 2, column 10: the byte 0xe9") && error.contains("UTF-8"), "{error}");
}
