//! In which order a model is read.

#[path = "../../../elbow-models/tests/diffusers/model_folder.rs"]
mod model_folder;

use super::*;
use safetensors::SafeTensors;
use std::{fs, io::Write};

#[test]
fn a_folders_network_is_read_after_its_prompts_were_prepared() {
    let folder = model_folder::whole("sd3");
    let weights = folder.path().join("transformer/diffusion_pytorch_model.safetensors");
    let cache = Some(folder.path().join("cache"));
    let model = Model::Diffusers(Diffusers {
        resolution: Resolution::square(32),
        cache,
        ..Diffusers::at(folder.path().to_owned())
    });
    // The file is mapped before: what is written into it is seen by who reads later.
    let ruin = |_: &dyn TextEncoder, _: &[String]| {
        let mut bytes = fs::read(&weights)?;
        let (header, _) = SafeTensors::read_metadata(&bytes)?;
        bytes[8 + header..].fill(0xff);
        Ok(fs::OpenOptions::new().write(true).open(&weights)?.write_all(&bytes)?)
    };
    let error = model.policy(0, &Device::flex(), ruin).err().expect("weights of no use");
    assert!(error.chain().contains("holds NaN or an infinite number"), "{}", error.chain());
}

/// What a recipe leaves to the model: SD3's shift, FLUX's by the number of tokens, none of Stable Diffusion 1 and of the nano model.
#[test]
fn the_shift_is_the_models_own() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::create_dir(folder.path().join("scheduler")).expect("a folder");
    let write = |json: &str| fs::write(folder.path().join("scheduler/scheduler_config.json"), json).expect("a file");
    let loaded = |changes: &[String]| {
        let path = format!("model.path={:?}", folder.path().display().to_string());
        let model = ["model.kind=diffusers".to_owned(), path, "model.resolution=512".to_owned()];
        let changes: Vec<String> = model.iter().chain(changes).cloned().collect();
        crate::recipe::load(None, &changes).expect("a recipe").1
    };
    let shift = |recipe: &crate::recipe::Recipe| recipe.method.sampler.shift.expect("filled in");
    // The default recipe says 1; without that the model is asked.
    let text =
        include_str!("../../../../recipes/nano-geneval.toml").replace("shift = 1.0\n", "").replace(", shift = 1.0", "");
    let base = folder.path().join("base.toml");
    fs::write(&base, text.replace("tuning = { kind = \"full\" }", "")).expect("a file");
    let open = |changes: &[&str]| {
        let path = format!("model.path={:?}", folder.path().display().to_string());
        let mut all = vec!["model.kind=diffusers".to_owned(), path, "model.resolution=512".to_owned()];
        all.extend(changes.iter().map(|change| (*change).to_owned()));
        crate::recipe::load(Some(&base), &all).expect("a recipe").1
    };
    write(r#"{"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}"#);
    assert!((shift(&open(&[])) - 3.0).abs() < 1e-12 && (shift(&loaded(&[])) - 1.0).abs() < 1e-12);
    assert!((shift(&open(&["sampler.shift=5"])) - 5.0).abs() < 1e-12, "what the recipe says goes first");
    let evaluated = open(&[]).setting.eval.measure.sampler.shift;
    assert_eq!(evaluated, Some(3.0));
    write(r#"{"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0, "use_dynamic_shifting": true}"#);
    // 32 × 32 tokens lie a fifth of the way from 256 to 4096: μ = 0.5 + 0.65 (1024 − 256)/3840.
    let expected = (0.5f64 + 0.65 * 768.0 / 3840.0).exp();
    assert!((shift(&open(&[])) - expected).abs() < 1e-12, "{} {expected}", shift(&open(&[])));
    // 32 × 64 tokens.
    let expected = (0.5f64 + 0.65 * (2048.0 - 256.0) / 3840.0).exp();
    let wide = shift(&open(&["model.resolution=[512, 1024]"]));
    assert!((wide - expected).abs() < 1e-12, "{wide} {expected}");
    let (_, nano) = crate::recipe::load(Some(&base), &["model.kind=nano".to_owned()]).expect("a recipe");
    assert!((shift(&nano) - 1.0).abs() < 1e-12);
}
