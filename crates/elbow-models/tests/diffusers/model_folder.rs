//! Tiny model folders, put together from `fixtures/text`, `fixtures/vae` and `fixtures/pipeline`.

use std::{
    fs,
    path::{Path, PathBuf},
};
use tempfile::TempDir;

pub(crate) fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

/// The same with network, autoencoder and scheduler.
pub(crate) fn whole(pipeline: &str) -> TempDir {
    let folder = assemble(pipeline);
    let (network, vae) = if pipeline == "sd1" { ("unet", "sd1") } else { ("transformer", "sd3") };
    for (from, to) in [
        (format!("pipeline/{pipeline}.network.json"), format!("{network}/config.json")),
        (format!("pipeline/{pipeline}.network.safetensors"), format!("{network}/diffusion_pytorch_model.safetensors")),
        (format!("vae/{vae}.json"), "vae/config.json".to_owned()),
        (format!("vae/{vae}.weights.safetensors"), "vae/diffusion_pytorch_model.safetensors".to_owned()),
        (format!("pipeline/{pipeline}.scheduler.json"), "scheduler/scheduler_config.json".to_owned()),
    ] {
        let to = folder.path().join(to);
        fs::create_dir_all(to.parent().expect("a folder")).expect("made");
        fs::copy(fixtures().join(from), to).expect("copied");
    }
    folder
}

/// A folder of `sd3`, `flux` or `sd1` with its text encoders.
pub(crate) fn assemble(pipeline: &str) -> TempDir {
    let parts: &[(&str, &str)] = match pipeline {
        "sd3" => &[
            ("tokenizer", "clip-words"),
            ("tokenizer_2", "clip-words-bang"),
            ("tokenizer_3", "t5-words"),
            ("text_encoder", "clip-l-projected"),
            ("text_encoder_2", "clip-g"),
            ("text_encoder_3", "t5"),
        ],
        "flux" => &[
            ("tokenizer", "clip-words"),
            ("tokenizer_2", "t5-words"),
            ("text_encoder", "clip-l"),
            ("text_encoder_2", "t5"),
        ],
        _ => &[("tokenizer", "clip-words"), ("text_encoder", "clip-l")],
    };
    let folder = tempfile::tempdir().expect("a folder");
    let source = fixtures().join("text");
    fs::copy(source.join(format!("{pipeline}.json")), folder.path().join("model_index.json")).expect("copied");
    for (name, from) in parts {
        let to = folder.path().join(name);
        fs::create_dir(&to).expect("made");
        for entry in fs::read_dir(source.join(from)).expect("a fixture") {
            let path = entry.expect("an entry").path();
            fs::copy(&path, to.join(path.file_name().expect("a name"))).expect("copied");
        }
    }
    folder
}
