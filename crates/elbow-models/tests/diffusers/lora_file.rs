//! Adapters in and out: files of `peft` and `diffusers` are read, and what is written is read back the same
//! (`fixtures/README.md` says how the files were made; `fixtures/check/lora.py` loads what is written here there).

use crate::model_folder::fixtures;
use elbow::noise::{Key, Purpose};
use elbow::params::Params;
use elbow_models::{
    folder::{Checkpoint, Shapes},
    lora::LoraConfig,
    lora_file::{
        Adapter, Family, LoraFileError, Merge, Network, Provenance, Trained, read, write_comfyui, write_diffusers,
        write_kohya, write_merged, write_merged_file, write_peft,
    },
    mmdit::MmditConfig,
};
use safetensors::tensor::Dtype;
use std::{fs, path::Path};

/// The model the fixtures' adapter is for.
fn base() -> Checkpoint {
    Checkpoint::open_file(&fixtures().join("mmdit/plain.weights.safetensors")).expect("a fixture")
}

fn shapes(checkpoint: &Checkpoint) -> Shapes {
    checkpoint.shapes().map(|(name, shape)| (name.to_owned(), shape.to_vec())).collect()
}

/// The adapter of the fixtures, from the file that also holds what it computes.
fn golden() -> Adapter {
    let reference = Checkpoint::open_file(&fixtures().join("mmdit/plain.reference.safetensors")).expect("a fixture");
    let usual = MmditConfig::default().layout().usual_targets();
    let config = LoraConfig { rank: 2, alpha: 4.0, ..LoraConfig::default() }.with_usual(&usual);
    let weights = base();
    let tensors = shapes(&weights);
    let tensors = tensors.iter().map(|(name, shape)| (&**name, &**shape));
    let fresh = config.initial(tensors, Key::new(0, Purpose::Initialization, 0));
    let from =
        |e: &elbow::params::Entry| (e.name.clone(), e.shape.clone(), reference.values(&format!("factor.{}", e.name)));
    Adapter { factors: Params::new(fresh.entries().iter().map(from)), config }
}

fn about() -> Provenance {
    Provenance {
        run: "0123abcd".into(),
        step: 40,
        ema: true,
        base: "stabilityai/stable-diffusion-3.5-medium".into(),
        revision: "9f2c1d".into(),
        base_sha256: "c0ffee".into(),
        architecture: "stable-diffusion-v3-medium".into(),
    }
}

fn sorted(mut names: Vec<String>) -> Vec<String> {
    names.sort();
    names
}

/// Equal factors in equal order, equal scale, and the same set of targets.
fn same(got: &Adapter, expected: &Adapter) {
    assert_eq!(got.factors, expected.factors);
    assert_eq!((got.config.rank, got.config.alpha.to_bits()), (expected.config.rank, expected.config.alpha.to_bits()));
    let names = |a: &Adapter| sorted(a.config.target_modules.clone());
    assert_eq!(names(got), names(expected));
}

#[test]
fn files_of_peft_and_diffusers_are_read() {
    let (files, shapes) = (fixtures().join("lora"), shapes(&base()));
    let expected = golden();
    same(&read(&files.join("peft"), &shapes).expect("peft"), &expected);
    same(&read(&files.join("pytorch_lora_weights.safetensors"), &shapes).expect("diffusers"), &expected);
}

/// The trap: a file that does not say alpha means alpha = rank, half of what was trained here.
#[test]
fn without_metadata_alpha_is_the_rank() {
    let (files, shapes, mut expected) = (fixtures().join("lora"), shapes(&base()), golden());
    expected.config.alpha = 2.0;
    same(&read(&files.join("bare.safetensors"), &shapes).expect("bare"), &expected);
    same(&read(&files.join("kohya.safetensors"), &shapes).expect("kohya"), &expected);
}

#[test]
fn every_format_is_read_back_the_same() {
    let (folder, shapes, adapter) = (tempfile::tempdir().expect("a folder"), shapes(&base()), golden());
    let path = |name: &str| folder.path().join(name);
    write_peft(&adapter, &about(), &path("peft")).expect("written");
    write_peft(&adapter, &about(), &path("peft")).expect("an older export is replaced");
    write_diffusers(&adapter, Network::Transformer, &about(), &path("d.safetensors")).expect("written");
    write_kohya(&adapter, Network::Unet, &about(), &path("k.safetensors")).expect("written");
    write_kohya(&adapter, Network::Transformer, &about(), &path("c.safetensors")).expect("written");
    for name in ["peft", "d.safetensors", "k.safetensors", "c.safetensors"] {
        same(&read(&path(name), &shapes).unwrap_or_else(|e| panic!("{name}: {e}")), &adapter);
    }
    let mut left: Vec<_> =
        fs::read_dir(folder.path()).expect("a folder").map(|e| e.expect("entry").file_name()).collect();
    left.sort();
    assert_eq!(left, ["c.safetensors", "d.safetensors", "k.safetensors", "peft"]);
}

/// The keys that other programs look for, and where the file came from.
#[test]
fn keys_and_provenance_are_in_the_files() {
    let (folder, adapter) = (tempfile::tempdir().expect("a folder"), golden());
    let file = folder.path().join("x.safetensors");
    write_kohya(&adapter, Network::Transformer, &about(), &file).expect("written");
    let kohya = Checkpoint::open_file(&file).expect("read");
    let layer = "lora_transformer_transformer_blocks_0_attn_to_out_0";
    for end in ["lora_down.weight", "lora_up.weight", "alpha"] {
        assert!(kohya.contains(&format!("{layer}.{end}")), "{end}");
    }
    assert_eq!(kohya.values(&format!("{layer}.alpha")), [4.0]);
    write_diffusers(&adapter, Network::Transformer, &about(), &file).expect("written");
    let diffusers = Checkpoint::open_file(&file).expect("read");
    assert!(diffusers.contains("transformer.transformer_blocks.0.attn.to_out.0.lora_A.weight"));
    let keys = ["run", "step", "weights", "base_model", "base_revision", "base_sha256"];
    let said: Vec<_> = keys.map(|key| diffusers.metadata()[&format!("elbow.{key}")].as_str()).into();
    let base = "stabilityai/stable-diffusion-3.5-medium";
    assert_eq!(said, ["0123abcd", "40", "ema", base, "9f2c1d", "c0ffee"]);
    assert_eq!(diffusers.metadata()["modelspec.architecture"], "stable-diffusion-v3-medium/lora");
    assert_eq!(Provenance::of(diffusers.metadata()), about());
    let config: serde_json::Value = serde_json::from_str(&diffusers.metadata()["lora_adapter_metadata"]).expect("JSON");
    assert_eq!((&config["transformer.lora_alpha"], &config["transformer.r"]), (&4.into(), &2.into()));

    // A name or a path and nothing else is what PEFT and the Hub take for a base.
    write_peft(&adapter, &about(), &folder.path().join("peft")).expect("written");
    let config = fs::read(folder.path().join("peft/adapter_config.json")).expect("read");
    let config: serde_json::Value = serde_json::from_slice(&config).expect("JSON");
    assert_eq!((&config["base_model_name_or_path"], &config["revision"]), (&base.into(), &"9f2c1d".into()));
    assert!(config["task_type"].is_null());
}

#[test]
fn merged_weights_are_the_base_plus_the_product() {
    let (folder, base, adapter) = (tempfile::tempdir().expect("a folder"), base(), golden());
    let out = folder.path().join("transformer");
    let merge = |trained, shard| {
        let merge = Merge { base: &base, trained, dtype: None, about: &about() };
        write_merged(&merge, "diffusion_pytorch_model", shard, &out)
    };
    for shard in [usize::MAX, 20_000] {
        merge(Trained::Adapter(&adapter), shard).expect("written");
        let merged = Checkpoint::open(&out, "diffusion_pytorch_model", None).expect("read");
        merged.check(&shapes(&base), &[]).expect("the tensors of the base");
        let factor = |layer: &str, side: &str| {
            let name = format!("{layer}.lora_{side}.weight");
            let entry = adapter.factors.entries().iter().find(|e| e.name == name)?;
            Some(&adapter.factors.values()[entry.range.clone()])
        };
        let mut changed = 0;
        for (name, shape) in base.shapes() {
            let mut expected = base.values(name);
            let layer = name.strip_suffix(".weight").unwrap_or(name);
            if let (Some(a), Some(b)) = (factor(layer, "A"), factor(layer, "B")) {
                changed += 1;
                for (i, value) in expected.iter_mut().enumerate() {
                    let (row, column) = (i / shape[1], i % shape[1]);
                    *value += 2.0 * (0..2).map(|r| b[row * 2 + r] * a[r * shape[1] + column]).sum::<f32>();
                }
            }
            for (got, want) in merged.values(name).iter().zip(&expected) {
                assert!((got - want).abs() < 1e-6, "{name}: {got} {want}");
            }
        }
        assert_eq!(2 * changed, adapter.factors.entries().len());
    }
    let shards = fs::read_dir(&out).expect("a folder").count();
    assert!(shards > 3, "shards and an index, {shards} files");
    let trained = Params::new([("proj_out.bias".to_owned(), vec![16], vec![0.5; 16])]);
    merge(Trained::Full(&trained), usize::MAX).expect("written");
    let merged = Checkpoint::open(&out, "diffusion_pytorch_model", None).expect("read");
    assert_eq!(merged.values("proj_out.bias"), [0.5; 16]);
    assert_eq!(merged.values("proj_out.weight"), base.values("proj_out.weight"));
}

/// A base of half the precision: one file in its type, or in the one that is asked for, and the base's own header entry.
#[test]
fn one_file_in_any_type_from_a_base_in_memory() {
    let (folder, adapter, whole) = (tempfile::tempdir().expect("a folder"), golden(), base());
    let tensors = whole.params(&shapes(&whole), &[]).expect("the tensors");
    let header = [("elbow".to_owned(), "{}".to_owned()), ("other".to_owned(), "x".to_owned())];
    let half = tensors.to_safetensors_f16(Some(header.into()));
    let half = Checkpoint::from_bytes(Path::new("the base"), &half).expect("reads");
    let file = folder.path().join("merged.safetensors");
    let read = |dtype| {
        let merge = Merge { base: &half, trained: Trained::Adapter(&adapter), dtype, about: &about() };
        write_merged_file(&merge, &file).expect("written");
        let bytes = fs::read(&file).expect("read").len();
        (Checkpoint::open_file(&file).expect("a file"), bytes)
    };
    let (same, bytes) = read(None);
    assert_eq!(same.metadata()["elbow"], "{}");
    assert_eq!(same.metadata().get("other"), None);
    let about = Provenance::of(same.metadata());
    assert_eq!((about.run.as_str(), about.step, about.ema), ("0123abcd", 40, true));
    let (single, twice) = read(Some(Dtype::F32));
    assert!(2 * bytes - twice < 10_000 && twice > bytes, "{bytes} and {twice} bytes");
    for (name, _) in half.shapes() {
        let changed = adapter
            .factors
            .entries()
            .iter()
            .any(|e| name.strip_suffix("weight").is_some_and(|l| e.name.starts_with(l)));
        let (base, same, single) = (half.values(name), same.values(name), single.values(name));
        assert_eq!(base == single, !changed, "{name}");
        let rounded: Vec<f32> = single.iter().map(|&v| half::f16::from_f32(v).to_f32()).collect();
        assert_eq!(same, rounded, "{name}");
    }
    let error = Checkpoint::from_bytes(Path::new("the base"), b"PK").expect_err("no file").to_string();
    assert!(error.contains("the base"), "{error}");
}

/// What reading `adapter` is refused with, after `damage` to its PEFT folder.
fn refusal(damage: impl FnOnce(&Path)) -> LoraFileError {
    let folder = tempfile::tempdir().expect("a folder");
    let peft = folder.path().join("peft");
    write_peft(&golden(), &about(), &peft).expect("written");
    damage(&peft);
    read(&peft, &shapes(&base())).expect_err("damaged")
}

#[test]
fn an_adapter_for_another_model_is_refused() {
    let (files, base) = (fixtures().join("lora"), shapes(&base()));
    let wider: Shapes = base.iter().map(|(n, s)| (n.clone(), s.iter().map(|d| d * 2).collect())).collect();
    let other: Shapes = base.iter().map(|(n, s)| (n.replace("transformer_blocks", "blocks"), s.clone())).collect();
    for (shapes, part) in [(wider, "the layer's weight is [32, 32]"), (other, "no such layer in the model")] {
        let error = read(&files.join("peft"), &shapes).expect_err("another model").to_string();
        for part in ["adapter_model.safetensors", "another model", part, "transformer_blocks.0.attn", "more"] {
            assert!(error.contains(part), "{part:?} is not in: {error}");
        }
    }
}

#[test]
fn what_means_something_else_is_refused_by_field_and_value() {
    for (from, to, parts) in [
        ("\"bias\": \"none\"", "\"use_qalora\": true", ["`use_qalora`", "true"]),
        ("\"alpha_pattern\": {}", "\"alpha_pattern\": {\"to_q\": \"8\"}", ["`alpha_pattern`", "to_q"]),
        ("\"gaussian\"", "\"pissa\"", ["`init_lora_weights`", "pissa"]),
        ("\"LORA\"", "\"OFT\"", ["`peft_type`", "OFT"]),
        ("\"r\": 2", "\"r\": 8", ["`r`", "rank 2"]),
        ("\"lora_alpha\": 4", "\"lora_alpha\": \"4\"", ["`lora_alpha`", "number"]),
    ] {
        let error = refusal(|folder| {
            let file = folder.join("adapter_config.json");
            let text = fs::read_to_string(&file).expect("read");
            assert!(text.contains(from), "{from} is in {text}");
            fs::write(&file, text.replace(from, to)).expect("written");
        });
        for part in parts.iter().chain(&["adapter_config.json"]) {
            assert!(error.to_string().contains(part), "{part:?} is not in: {error}");
        }
    }
    let error = refusal(|folder| {
        let file = folder.join("adapter_model.safetensors");
        let bytes = fs::read(&file).expect("read");
        fs::write(&file, &bytes[..bytes.len() - 1]).expect("cut");
    });
    assert!(error.to_string().contains("not a complete safetensors file"), "{error}");
}

/// Random factors for layers of a FLUX.1 as wide as the published one, whose width diffusers takes for granted; in the second single
/// block for a part of the fused weight.
fn flux_of_full_width() -> Adapter {
    let (double, single) = ("transformer_blocks.0", "single_transformer_blocks");
    let attention = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"];
    let mut layers: Vec<(String, [usize; 2])> =
        attention.iter().map(|end| (format!("{double}.attn.{end}"), [3072, 3072])).collect();
    for norm in ["norm1", "norm1_context"] {
        layers.push((format!("{double}.{norm}.linear"), [18432, 3072]));
    }
    for mlp in ["ff", "ff_context"] {
        layers.push((format!("{double}.{mlp}.net.0.proj"), [12288, 3072]));
        layers.push((format!("{double}.{mlp}.net.2"), [3072, 12288]));
    }
    for (block, end) in [0, 1].into_iter().flat_map(|block| attention[..3].iter().map(move |end| (block, end))) {
        layers.push((format!("{single}.{block}.attn.{end}"), [3072, 3072]));
    }
    layers.push((format!("{single}.0.proj_mlp"), [12288, 3072]));
    layers.push((format!("{single}.0.proj_out"), [3072, 15360]));
    layers.push((format!("{single}.0.norm.linear"), [9216, 3072]));
    let config =
        LoraConfig { rank: 2, alpha: 5.0, target_modules: layers.iter().map(|(layer, _)| layer.clone()).collect() };
    let tensors: Vec<_> = layers.iter().map(|(layer, shape)| (format!("{layer}.weight"), shape)).collect();
    let key = |stream| Key::new(stream, Purpose::Initialization, 0);
    let mut factors = config.initial(tensors.iter().map(|(name, shape)| (&**name, &shape[..])), key(0));
    let mut values = Vec::new();
    key(1).extend_normals(factors.values().len(), &mut values);
    factors.values_mut().copy_from_slice(&values);
    Adapter { config, factors }
}

/// For `fixtures/check/lora.py`, which loads these files in `peft` and `diffusers`.
#[test]
#[ignore = "writes files for the reference packages to ELBOW_CHECK"]
fn exports_for_the_reference_packages() {
    let folder = std::path::PathBuf::from(std::env::var_os("ELBOW_CHECK").expect("ELBOW_CHECK names a folder"));
    let adapter = golden();
    fs::create_dir_all(folder.join("diffusers")).expect("made");
    write_peft(&adapter, &about(), &folder.join("peft")).expect("written");
    let file = folder.join("diffusers/pytorch_lora_weights.safetensors");
    write_diffusers(&adapter, Network::Transformer, &about(), &file).expect("written");
    write_kohya(&adapter, Network::Unet, &about(), &folder.join("kohya.safetensors")).expect("written");
    let flux = flux_of_full_width();
    write_peft(&flux, &about(), &folder.join("flux.peft")).expect("written");
    write_comfyui(&flux, Family::Flux, &about(), &folder.join("flux.safetensors")).expect("written");
    let merged = folder.join("transformer");
    let merge = Merge { base: &base(), trained: Trained::Adapter(&adapter), dtype: None, about: &about() };
    write_merged(&merge, "diffusion_pytorch_model", 20_000, &merged).expect("written");
}
