//! Adapters of all kinds and under all names, merged: compared with what `peft` and diffusers make of the same files, and with
//! the published formulas (`fixtures/make/adapters.py`).

use crate::model_folder::fixtures;
use elbow_models::{
    folder::{Checkpoint, Shapes},
    lora_file::{AdapterFile, LoraFileError, Merge, Provenance, Trained, read, write_merged, write_merged_file},
};
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize_to_file};
use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
};
use tempfile::TempDir;

/// Type, shape and bytes by name.
type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn tensors(file: &Path) -> Tensors {
    let bytes = fs::read(file).expect("a file");
    let read = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    read.iter().map(|(name, t)| (name.to_owned(), (t.dtype(), t.shape().to_vec(), t.data().to_vec()))).collect()
}

fn save(tensors: &Tensors, header: &[(&str, &str)], file: &Path) {
    let views: Vec<(&String, TensorView<'_>)> = tensors
        .iter()
        .map(|(name, (dtype, shape, bytes))| (name, TensorView::new(*dtype, shape.clone(), bytes).expect("a tensor")))
        .collect();
    let header: HashMap<String, String> = header.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    serialize_to_file(views, Some(header), file).expect("written");
}

fn floats(shape: &[usize], value: impl Fn(usize) -> f32) -> (Dtype, Vec<usize>, Vec<u8>) {
    let count = shape.iter().product();
    (Dtype::F32, shape.to_vec(), (0..count).flat_map(|i| value(i).to_le_bytes()).collect())
}

fn adapters(name: &str) -> PathBuf {
    fixtures().join("adapters").join(name)
}

fn base(name: &str) -> Checkpoint {
    Checkpoint::open_file(&fixtures().join(format!("pipeline/{name}.network.safetensors"))).expect("a fixture")
}

fn shapes(base: &Checkpoint) -> Shapes {
    base.shapes().map(|(name, shape)| (name.to_owned(), shape.to_vec())).collect()
}

fn open(adapter: &Path, base: &Checkpoint) -> Result<AdapterFile, LoraFileError> {
    AdapterFile::read(adapter, &shapes(base))
}

/// All weights after a merge, in f32.
fn merged(base: &Checkpoint, trained: Trained<'_>) -> BTreeMap<String, Vec<f32>> {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("merged.safetensors");
    let merge = Merge { base, trained, dtype: Some(Dtype::F32), about: &Provenance::default() };
    write_merged_file(&merge, &file).expect("written");
    let merged = Checkpoint::open_file(&file).expect("a file");
    merged.shapes().map(|(name, _)| (name.to_owned(), merged.values(name))).collect()
}

fn merged_file(adapter: &Path, base: &Checkpoint) -> BTreeMap<String, Vec<f32>> {
    let file = open(adapter, base).unwrap_or_else(|e| panic!("{}: {e}", adapter.display()));
    merged(base, Trained::File(&file))
}

/// Compares with the tensors of `<case>.merged.safetensors`; all others are those of the base.
fn compare(what: &str, got: &BTreeMap<String, Vec<f32>>, base: &Checkpoint, expected: &Tensors) {
    for (name, _) in base.shapes() {
        let own = base.values(name);
        let expected: Vec<f32> = match expected.get(name) {
            None => own,
            // Differences that are whole numbers.
            Some((Dtype::I8, _, bytes)) => own.iter().zip(bytes).map(|(w, d)| w + f32::from(*d as i8)).collect(),
            Some((_, _, bytes)) => {
                bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("four"))).collect()
            }
        };
        let size = expected.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
        let off = got[name].iter().zip(&expected).fold(0.0_f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(got[name].len() == expected.len() && off <= 1e-6 * size, "{what}: {name} is off by {off:e} of {size}");
    }
}

/// The base that a case is for, and what becomes of it.
fn expected(case: &str) -> (Checkpoint, Tensors) {
    let file = adapters(&format!("{case}.merged.safetensors"));
    let header = Checkpoint::open_file(&file).expect("a fixture").metadata().clone();
    (base(&header["base"]), tensors(&file))
}

fn adapter(case: &str) -> PathBuf {
    let (folder, file) = (adapters(case), adapters(&format!("{case}.safetensors")));
    if folder.is_dir() { folder } else { file }
}

#[test]
fn every_kind_merges_to_the_weights_of_the_reference() {
    let mut cases: Vec<String> = fs::read_dir(adapters("")).expect("fixtures").filter_map(case).collect();
    cases.sort();
    assert_eq!(cases.len(), 30, "{cases:?}");
    for case in &cases {
        let (base, expected) = expected(case);
        compare(case, &merged_file(&adapter(case), &base), &base, &expected);
    }
}

fn case(entry: std::io::Result<fs::DirEntry>) -> Option<String> {
    entry.expect("an entry").file_name().to_str()?.strip_suffix(".merged.safetensors").map(str::to_owned)
}

/// A copy of a case's file under other names.
fn renamed(case: &str, name: &dyn Fn(&str) -> String) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("renamed.safetensors");
    let tensors = tensors(&adapters(&format!("{case}.safetensors")));
    let count = tensors.len();
    let tensors: Tensors = tensors.into_iter().map(|(old, tensor)| (name(&old), tensor)).collect();
    assert_eq!(tensors.len(), count, "no two have one name");
    save(&tensors, &[], &file);
    (folder, file)
}

/// kohya's name of a dotted one.
fn flat(prefix: &str, dotted: &str) -> String {
    let (layer, side) = dotted.rsplit_once(".lora_").expect("a factor");
    let side = if side.starts_with('A') { "lora_down" } else { "lora_up" };
    format!("{prefix}{}.{side}.weight", layer.replace('.', "_"))
}

#[test]
fn names_of_trainers_and_wrappers_mean_the_same_layers() {
    let bare = |name: &str| name.strip_prefix("diffusion_model.").expect("a ComfyUI name").to_owned();
    let spellings: [&dyn Fn(&str) -> String; 13] = [
        &bare,
        &|n| format!("base_model.model.{}", bare(n)),
        &|n| format!("transformer.{}", bare(n)),
        &|n| format!("unet.{}", bare(n)),
        &|n| format!("model.diffusion_model.{}", bare(n)),
        &|n| format!("module.{n}"),
        &|n| format!("base_model.model._orig_mod.{}", bare(n)),
        &|n| {
            format!(
                "_fsdp_wrapped_module.{}",
                bare(n).replacen('.', "._fsdp_wrapped_module._checkpoint_wrapped_module.", 1)
            )
        },
        &|n| n.replace(".weight", ".default.weight"),
        &|n| n.replace("lora_A", "lora_down").replace("lora_B", "lora_up"),
        &|n| n.trim_end_matches(".weight").to_owned(),
        &|n| flat("lora_unet_", &bare(n)),
        &|n| flat("lycoris__orig_mod_", &bare(n)),
    ];
    for case in ["original-sd1", "original-sd3", "original-flux"] {
        let (base, expected) = expected(case);
        for (i, spelling) in spellings.iter().enumerate() {
            let (_folder, file) = renamed(case, spelling);
            compare(&format!("{case}, spelling {i}"), &merged_file(&file, &base), &base, &expected);
        }
    }
    let (base, expected) = expected("diffusers-bf16");
    let bare = |name: &str| name.strip_prefix("transformer.").expect("diffusers' name").to_owned();
    let spellings: [&dyn Fn(&str) -> String; 4] = [
        &|n| format!("diffusion_model.{}", bare(n)),
        &|n| format!("base_model.model.transformer.{}", bare(n)),
        &|n| flat("lora_transformer_", &bare(n)),
        &|n| flat("lycoris_", &bare(n)),
    ];
    for (i, spelling) in spellings.iter().enumerate() {
        let (_folder, file) = renamed("diffusers-bf16", spelling);
        compare(&format!("ai-toolkit, spelling {i}"), &merged_file(&file, &base), &base, &expected);
    }
}

/// Whatever the numbers are stored as, in factors and in alphas.
#[test]
fn types_of_numbers_do_not_matter() {
    let (base, expected) = expected("kohya-conv");
    let original = tensors(&adapters("kohya-conv.safetensors"));
    let half = |bytes: &[u8]| half::f16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
    for dtype in [Dtype::F32, Dtype::F64] {
        let wide = |(name, (_, shape, bytes)): (&String, &(Dtype, Vec<usize>, Vec<u8>))| {
            let values = bytes.chunks_exact(2).map(half);
            let bytes = match dtype {
                Dtype::F32 => values.flat_map(|v| v.to_le_bytes().to_vec()).collect(),
                _ => values.flat_map(|v| f64::from(v).to_le_bytes().to_vec()).collect(),
            };
            let shape = if name.ends_with("alpha") { vec![1] } else { shape.clone() };
            (name.clone(), (dtype, shape, bytes))
        };
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("wide.safetensors");
        save(&original.iter().map(wide).collect(), &[], &file);
        compare(&format!("{dtype:?}"), &merged_file(&file, &base), &base, &expected);
    }
    let integer = |(name, tensor): (&String, &(Dtype, Vec<usize>, Vec<u8>))| {
        let alpha = name.ends_with("alpha");
        (name.clone(), if alpha { (Dtype::I64, vec![1, 1], 1_i64.to_le_bytes().to_vec()) } else { tensor.clone() })
    };
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("integer.safetensors");
    save(&original.iter().map(integer).collect(), &[], &file);
    compare("whole alphas", &merged_file(&file, &base), &base, &expected);
}

/// A LoRA of one attention layer of SD1.x, as kohya writes it.
fn small() -> Tensors {
    let layer = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q";
    [
        (format!("{layer}.lora_down.weight"), floats(&[2, 16], |i| 0.01 * i as f32)),
        (format!("{layer}.lora_up.weight"), floats(&[16, 2], |i| 0.1 - 0.01 * i as f32)),
        (format!("{layer}.alpha"), floats(&[], |_| 1.0)),
    ]
    .into()
}

const LAYER: &str = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q";

/// What is said of `tensors` in a file for SD1.x.
fn said(tensors: &Tensors, header: &[(&str, &str)]) -> Result<AdapterFile, LoraFileError> {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("a.safetensors");
    save(tensors, header, &file);
    open(&file, &base("sd1"))
}

#[test]
fn other_components_are_left_out_and_counted() {
    for (prefix, told) in [
        ("lora_te_text_model_encoder_layers_", "3 layers of `lora_te` (a text encoder)"),
        ("lora_te1_text_model_encoder_layers_", "3 layers of `lora_te1` (a text encoder)"),
        ("lora_te2_text_model_encoder_layers_", "3 layers of `lora_te2` (a text encoder)"),
        ("lora_te3_encoder_block_", "3 layers of `lora_te3` (a text encoder)"),
        ("text_encoder.text_model.encoder.layers.", "3 layers of `text_encoder` (a text encoder)"),
        ("text_encoder_2.text_model.encoder.layers.", "3 layers of `text_encoder_2` (a text encoder)"),
        ("te2.text_model.encoder.layers.", "3 layers of `te2` (a text encoder)"),
        (
            "conditioner.embedders.1.model.transformer.resblocks.",
            "3 layers of `conditioner.embedders.1` (a text encoder)",
        ),
        (
            "text_encoders.clip_l.transformer.text_model.encoder.layers.",
            "3 layers of `text_encoders.clip_l` (a text encoder)",
        ),
        ("module.text_encoder.text_model.encoder.layers.", "3 layers of `text_encoder` (a text encoder)"),
        ("cond_stage_model.transformer.text_model.encoder.layers.", "3 layers of `cond_stage_model` (a text encoder)"),
        ("vae.encoder.", "3 layers of `vae` (the autoencoder)"),
    ] {
        let mut all = small();
        for i in 0..3 {
            for (end, shape) in [("lora_down.weight", vec![2, 16]), ("lora_up.weight", vec![16, 2]), ("alpha", vec![])]
            {
                all.insert(format!("{prefix}{i}_q_proj.{end}"), floats(&shape, |_| 1.0));
            }
        }
        let file = said(&all, &[]).unwrap_or_else(|e| panic!("{prefix}: {e}"));
        assert_eq!((file.layers(), file.left_out().as_deref()), (1, Some(told)));
        assert_eq!((file.ranks(), file.scales(), file.alpha_is_written()), (Some((2, 2)), Some((0.5, 0.5)), true));
        all.retain(|name, _| !name.starts_with(LAYER));
        let error = said(&all, &[]).expect_err("nothing for the network").to_string();
        assert!(error.contains(&format!("no adapter of the network in it: it holds {told}")), "{error}");
    }
}

#[test]
fn headers_are_read_with_and_without_the_component() {
    let file = tensors(&adapters("diffusers-old.safetensors"));
    let scales = |json: &str| said(&file, &[("lora_adapter_metadata", json)]).expect("reads").scales();
    assert_eq!(
        scales(r#"{"unet.r": 2, "unet.lora_alpha": 5, "text_encoder.r": 9, "text_encoder.lora_alpha": 1}"#),
        Some((2.5, 2.5))
    );
    assert_eq!(scales(r#"{"r": 2, "lora_alpha": 5}"#), Some((2.5, 2.5)));
    assert_eq!(scales(r#"{"r": 2, "lora_alpha": 5, "alpha_pattern": {"attn1.to_q": 1}}"#), Some((0.5, 2.5)));
    // One for the text encoder alone says nothing of the network.
    let file = said(&file, &[("lora_adapter_metadata", r#"{"text_encoder.r": 9, "text_encoder.lora_alpha": 1}"#)])
        .expect("reads");
    assert_eq!((file.scales(), file.alpha_is_written()), (Some((1.0, 1.0)), false));
}

/// Copies what a folder holds.
fn copied(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("made");
    for entry in fs::read_dir(from).expect("a folder") {
        let path = entry.expect("an entry").path();
        fs::copy(&path, to.join(path.file_name().expect("a name"))).expect("copied");
    }
}

#[test]
fn folders_of_trainers_are_opened_by_what_is_in_them() {
    let room = tempfile::tempdir().expect("a folder");
    let path = |name: &str| room.path().join(name);
    let (base, adapted) = (base("sd3"), |path: &Path| merged_file(path, &self::base("sd3")));
    let (_, patterns) = expected("peft-patterns");

    // The file in a folder of PEFT means what the folder means, also beside others and under another name.
    copied(&adapters("peft-patterns"), &path("peft"));
    compare("the file", &adapted(&path("peft/adapter_model.safetensors")), &base, &patterns);
    fs::write(path("peft/optimizer.bin"), "x").expect("written");
    fs::write(path("peft/training_args.safetensors.txt"), "x").expect("written");
    compare("beside others", &adapted(&path("peft")), &base, &patterns);
    fs::rename(path("peft/adapter_model.safetensors"), path("peft/my-lora.safetensors")).expect("renamed");
    compare("another name", &adapted(&path("peft")), &base, &patterns);

    // A trainer's output: its own file, or the only one.
    fs::create_dir_all(path("out/checkpoint-500")).expect("made");
    let (_, expected) = expected("original-sd3");
    for name in ["pytorch_lora_weights.safetensors", "step-500.safetensors"] {
        fs::copy(adapters("original-sd3.safetensors"), path("out").join(name)).expect("copied");
        compare(name, &adapted(&path("out")), &base, &expected);
        fs::remove_file(path("out").join(name)).expect("removed");
    }
    let refused = |name: &str, parts: &[&str]| {
        let error = open(&path(name), &base).expect_err("no adapter").to_string();
        assert!(parts.iter().all(|part| error.contains(part)), "{parts:?} are not in: {error}");
    };
    for name in ["a.safetensors", "b.safetensors"] {
        fs::copy(adapters("original-sd3.safetensors"), path("out").join(name)).expect("copied");
    }
    refused("out", &["out has several files of weights: a.safetensors, b.safetensors"]);
    fs::create_dir(path("empty")).expect("made");
    refused("empty", &["empty has no adapter: neither adapter_model.safetensors nor pytorch_lora_weights.safetensors"]);
    copied(&adapters("peft-patterns"), &path("run/checkpoints/checkpoint-60"));
    copied(&adapters("peft-patterns"), &path("run/lora"));
    fs::write(path("run/optimizer.pt"), "x").expect("written");
    refused("run", &["has no adapter of its own", "in checkpoints/checkpoint-60/, in lora/"]);
    refused("absent", &["cannot read", "absent"]);

    for (name, bytes) in [
        ("adapter_model.bin", &b"PK\x03\x04rest"[..]),
        ("adapter_model.bin", b"\x80\x02}q"),
        ("lora.ckpt", b"\x80\x04}"),
    ] {
        fs::create_dir_all(path("pickled")).expect("made");
        fs::write(path("pickled").join(name), bytes).expect("written");
        refused("pickled", &[name, "pickled by Python"]);
        refused(&format!("pickled/{name}"), &[name, "pickled by Python"]);
        fs::remove_dir_all(path("pickled")).expect("removed");
    }
    fs::write(path("pointer.safetensors"), "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
        .expect("written");
    refused("pointer.safetensors", &["a pointer of git-lfs"]);
    fs::write(path("page.safetensors"), "<!DOCTYPE html><html>").expect("written");
    refused("page.safetensors", &["a web page"]);
    fs::write(path("short.safetensors"), b"\x10\x01\0").expect("written");
    refused("short.safetensors", &["not a complete safetensors file"]);
    fs::write(path("none.safetensors"), b"\x02\0\0\0\0\0\0\0{}").expect("written");
    refused("none.safetensors", &["no adapter of the network in it"]);
    // Safetensors by content, whatever the name.
    fs::copy(adapters("original-sd3.safetensors"), path("lora.pt")).expect("copied");
    compare("lora.pt", &adapted(&path("lora.pt")), &base, &expected);
}

#[test]
fn what_is_damaged_or_another_kind_is_named() {
    let refused = |change: &dyn Fn(&mut Tensors), parts: &[&str]| {
        let mut all = small();
        change(&mut all);
        let error = said(&all, &[]).expect_err(parts[0]).to_string();
        assert!(parts.iter().all(|part| error.contains(part)), "{parts:?} are not in: {error}");
    };
    // A tensor of the layer gets another shape, or a value.
    let shaped = |name: &str, shape: &[usize], parts: &[&str]| {
        refused(&|all| drop(all.insert(format!("{LAYER}.{name}"), floats(shape, |i| i as f32))), parts);
    };
    let valued = |name: &str, value: f32, parts: &[&str]| {
        let change = |all: &mut Tensors| {
            let name = format!("{LAYER}.{name}");
            let shape = all[&name].1.clone();
            all.insert(name, floats(&shape, |i| if i == 0 { value } else { 0.5 }));
        };
        refused(&change, parts);
    };
    valued("lora_up.weight", f32::NAN, &["cannot be used", "attn1_to_q.lora_up.weight: holds NaN"]);
    valued("lora_down.weight", f32::INFINITY, &["lora_down.weight: holds NaN or an infinite number"]);
    valued("alpha", f32::NAN, &["attn1_to_q.alpha: it is NaN"]);
    valued("alpha", f32::NEG_INFINITY, &["attn1_to_q.alpha: it is -inf"]);
    shaped("alpha", &[2], &["alpha: [2] of F32, one number is expected"]);
    shaped("lora_down.weight", &[0, 16], &["lora_down.weight: [0, 16] in the file, of rank 0"]);
    shaped("lora_up.weight", &[16, 0], &["lora_up.weight: [16, 0] in the file, of rank 0"]);
    let weight = "in the file, the layer's weight is [16, 16]";
    shaped("lora_up.weight", &[2, 16], &["another model", &format!("lora_up.weight: [2, 16] {weight}")]);
    shaped("lora_down.weight", &[2, 8], &[&format!("lora_down.weight: [2, 8] {weight}")]);
    shaped("lora_down.weight", &[3, 16], &["lora_up.weight: of rank 2, and ", "lora_down.weight of rank 3"]);
    shaped("lora_mid.weight", &[3, 2, 1, 1], &["lora_mid.weight: [3, 2, 1, 1] in the file"]);
    shaped("dora_scale", &[3, 1], &["dora_scale: [3, 1] in the file"]);
    shaped("diff_b", &[16], &["has no mid_block.attentions.0.transformer_blocks.0.attn1.to_q.bias"]);
    shaped("lora.up.weight", &[16, 2], &["the layer has", "already"]);
    shaped("diff", &[16, 16], &["the layer is changed in two ways"]);
    shaped("hada_w1_a", &[16, 2], &["the layer is changed in two ways"]);
    shaped("dora_scale", &[], &["dora_scale: [] in the file"]);
    shaped("oft_blocks", &[2, 8, 8], &["an OFT", "oft_blocks", "LoRA, DoRA, LoHa, LoKr"]);
    shaped("a1.weight", &[2, 16], &["a GLoRA"]);
    shaped("on_input", &[16], &["an IA3"]);
    shaped("lora_E", &[2, 1], &["an AdaLoRA"]);
    let missing = ["attn1_to_q", "one of its two factors is missing"];
    refused(&|all| drop(all.remove(&format!("{LAYER}.lora_up.weight"))), &missing);
    refused(&|all| drop(all.remove(&format!("{LAYER}.lora_down.weight"))), &missing);
    refused(&|all| all.retain(|name, _| name.ends_with("alpha")), &["attn1.to_q: has an alpha and no factors"]);
    let unknown = |all: &mut Tensors| drop(all.insert("lora_unet_nowhere.alpha".into(), floats(&[], |_| 1.0)));
    refused(&unknown, &["another model", "lora_unet_nowhere.alpha", "no such layer"]);
    let eighth = (Dtype::F8_E4M3, vec![16, 2], vec![0; 32]);
    refused(
        &|all| drop(all.insert(format!("{LAYER}.lora_up.weight"), eighth.clone())),
        &["lora_up.weight: stored as F8_E4M3; f32, f16, bf16 and f64 can be read"],
    );

    // Two adapters in one file, and one layer under two names.
    let layer = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q";
    let pair = |middle: &str| {
        [
            (format!("{layer}.lora_A{middle}.weight"), floats(&[2, 16], |_| 1.0)),
            (format!("{layer}.lora_B{middle}.weight"), floats(&[16, 2], |_| 1.0)),
        ]
    };
    let one: Tensors = pair(".new").into();
    assert_eq!(said(&one, &[]).expect("one adapter").layers(), 1);
    let other = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_k";
    let both: Tensors =
        pair(".new").into_iter().chain(pair(".old").map(|(name, t)| (name.replace(layer, other), t))).collect();
    let error = said(&both, &[]).expect_err("two adapters").to_string();
    assert!(error.contains("several adapters: new, old"), "{error}");
    let original = "diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q";
    let twice: Tensors =
        pair("").into_iter().chain(pair("").map(|(name, t)| (name.replace(layer, original), t))).collect();
    let error = said(&twice, &[]).expect_err("twice").to_string();
    assert!(error.contains("attn1.to_q.weight is changed twice"), "{error}");
}

/// PEFT's configuration, changed.
fn peft(case: &str, change: &dyn Fn(&mut serde_json::Value)) -> Result<AdapterFile, LoraFileError> {
    let folder = tempfile::tempdir().expect("a folder");
    copied(&adapters(case), folder.path());
    let file = folder.path().join("adapter_config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&file).expect("read")).expect("JSON");
    change(&mut config);
    fs::write(&file, config.to_string()).expect("written");
    open(
        folder.path(),
        &base(
            &Checkpoint::open_file(&adapters(&format!("{case}.merged.safetensors"))).expect("a fixture").metadata()["base"],
        ),
    )
}

#[test]
fn configurations_that_mean_something_else_are_refused_by_field() {
    let refused = |case: &str, field: &str, value: &str, parts: &[&str]| {
        let value: serde_json::Value = serde_json::from_str(value).expect("JSON");
        let error = peft(case, &|config| config[field] = value.clone()).expect_err(field).to_string();
        assert!(parts.iter().all(|part| error.contains(part)), "{parts:?} are not in: {error}");
    };
    refused("peft-patterns", "peft_type", "\"OFT\"", &["`peft_type` is \"OFT\"", "adapter_config.json"]);
    refused("peft-patterns", "use_qalora", "true", &["`use_qalora` is true"]);
    refused("peft-patterns", "layer_replication", "[[0, 2]]", &["`layer_replication`"]);
    refused("peft-patterns", "use_dora", "true", &["has no magnitudes, and use_dora is true"]);
    refused("peft-patterns", "r", "0", &["`r` is 0", "above 0"]);
    refused("peft-patterns", "r", "7", &["`r` is 7", "have rank 2"]);
    refused("peft-patterns", "rank_pattern", "{\"to_q\": 9}", &["`r` is 9", "to_q have rank"]);
    refused("peft-patterns", "rank_pattern", "{\"(to_q\": 9}", &["`rank_pattern`", "regular expression"]);
    refused("peft-patterns", "lora_alpha", "null", &["`lora_alpha` is null", "number"]);
    refused("peft-loha", "alpha", "\"x\"", &["`alpha` is \"x\""]);
    refused("peft-pissa", "init_lora_weights", "\"pissa_niter_16\"", &["is \"pissa_niter_16\"", "changing the base"]);
    refused("peft-olora", "init_lora_weights", "\"olora\"", &["`init_lora_weights` is \"olora\""]);
    refused("peft-olora", "init_lora_weights", "\"loftq\"", &["`init_lora_weights` is \"loftq\""]);
    let undeclared = |config: &mut serde_json::Value| {
        config["bias"] = "none".into();
        config["modules_to_save"] = serde_json::Value::Null;
    };
    let error = peft("peft-biases", &undeclared).expect_err("biases").to_string();
    assert!(error.contains("no such layer in the model") && error.contains("bias"), "{error}");
    let error = open(&adapters("peft-pissa-raw"), &base("sd3")).expect_err("not converted").to_string();
    assert!(error.contains("\"pissa\""), "{error}");
    // These change nothing.
    for (case, field, value) in [
        ("peft-patterns", "fan_in_fan_out", serde_json::Value::Bool(true)),
        ("peft-patterns", "init_lora_weights", "gaussian".into()),
        ("peft-patterns", "init_lora_weights", "eva".into()),
        ("peft-pissa", "rank_pattern", serde_json::Value::Null),
    ] {
        peft(case, &|config| config[field] = value.clone()).unwrap_or_else(|e| panic!("{field}: {e}"));
    }
}

#[test]
fn results_that_are_not_finite_leave_nothing_behind() {
    let room = tempfile::tempdir().expect("a folder");
    let (base, mut all) = (base("sd1"), small());
    all.insert(format!("{LAYER}.alpha"), floats(&[], |_| 1e7));
    let file = room.path().join("a.safetensors");
    save(&all, &[], &file);
    let adapter = open(&file, &base).expect("finite factors");
    let merge = |dtype| Merge { base: &base, trained: Trained::File(&adapter), dtype, about: &ABOUT };
    let left = || {
        let mut names: Vec<_> =
            fs::read_dir(room.path()).expect("a folder").map(|e| e.expect("entry").file_name()).collect();
        names.sort();
        names
    };
    for dtype in [None, Some(Dtype::F16)] {
        let out = room.path().join("m.safetensors");
        let one = write_merged_file(&merge(dtype), &out).expect_err("beyond f16");
        let many = write_merged(&merge(dtype), "weights", 20_000, &room.path().join("m")).expect_err("beyond f16");
        for error in [one.to_string(), many.to_string()] {
            let part = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight: it has values beyond 65504, the largest of f16";
            assert!(error.contains(part), "{error}");
        }
        assert_eq!(left(), ["a.safetensors"]);
    }
    for dtype in [Dtype::BF16, Dtype::F32] {
        write_merged_file(&merge(Some(dtype)), &room.path().join("m.safetensors")).expect("room enough");
    }
    all.insert(format!("{LAYER}.alpha"), floats(&[], |_| 3e38));
    all.insert(format!("{LAYER}.lora_up.weight"), floats(&[16, 2], |_| 3e38));
    let all = open(
        {
            save(&all, &[], &file);
            &file
        },
        &base,
    )
    .expect("finite factors");
    let merge = Merge { base: &base, trained: Trained::File(&all), dtype: Some(Dtype::F32), about: &ABOUT };
    let error = write_merged_file(&merge, &room.path().join("m.safetensors")).expect_err("beyond f32").to_string();
    assert!(error.contains("beyond the largest of F32"), "{error}");

    // A base that is broken is told apart.
    let broken = room.path().join("base.safetensors");
    save(&[("x.weight".to_owned(), floats(&[2], |_| f32::NAN))].into(), &[], &broken);
    let broken = Checkpoint::open_file(&broken).expect("a file");
    let none = elbow::params::Params::new([]);
    let merge = Merge { base: &broken, trained: Trained::Full(&none), dtype: None, about: &ABOUT };
    let error = write_merged_file(&merge, &room.path().join("n.safetensors")).expect_err("NaN").to_string();
    assert!(
        error.contains("x.weight: it is not finite in the base") && !left().iter().any(|n| n == "n.safetensors"),
        "{error}"
    );
}

static ABOUT: Provenance = Provenance {
    run: String::new(),
    step: 0,
    ema: false,
    base: String::new(),
    revision: String::new(),
    base_sha256: String::new(),
    architecture: String::new(),
};

/// Files of any ranks and scales as one adapter, which merges to the same weights.
#[test]
fn plain_files_become_adapters_of_one_rank_and_one_scale() {
    for (case, rank, scale) in [
        ("peft-patterns", 4, 1.5),
        ("peft-rslora", 5, 2.0 / 3.0_f64.sqrt()),
        ("diffusers-adapter", 4, 2.5),
        ("original-flux", 1, 1.0),
        ("kohya-flux", 2, f64::NAN),
    ] {
        let (base, expected) = expected(case);
        let adapter = read(&adapter(case), &shapes(&base)).unwrap_or_else(|e| panic!("{case}: {e}"));
        assert_eq!(adapter.config.rank, rank, "{case}");
        assert!(scale.is_nan() || (adapter.config.scale() - scale).abs() < 1e-12, "{case}: {}", adapter.config.scale());
        assert_eq!(adapter.config.validate(base.shapes()), Vec::<String>::new());
        compare(case, &merged(&base, Trained::Adapter(&adapter)), &base, &expected);
        // What training makes for these targets: every row of A can learn, also where the file had fewer.
        for entry in adapter.factors.entries().iter().filter(|e| e.name.ends_with("lora_A.weight")) {
            let values = &adapter.factors.values()[entry.range.clone()];
            assert!(
                entry.shape[0] == rank && values.chunks(entry.shape[1]).all(|row| row.iter().any(|&v| v != 0.0)),
                "{}",
                entry.name
            );
        }
    }
    // No name selects FLUX's last layer alone: that of the single blocks is fresh beside it, and changes nothing.
    let (base, _) = expected("original-flux");
    let [last, block] = ["proj_out", "single_transformer_blocks.0.proj_out"];
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("a.safetensors");
    let factors = [("lora_A", floats(&[2, 16], |i| i as f32)), ("lora_B", floats(&[64, 2], |i| i as f32))];
    save(&factors.map(|(side, t)| (format!("transformer.{last}.{side}.weight"), t)).into(), &[], &file);
    let fresh = read(&file, &shapes(&base)).expect("reads");
    assert_eq!(fresh.config.target_modules, [last]);
    let (whole, own) = (merged(&base, Trained::Adapter(&fresh)), merged_file(&file, &base));
    assert!(whole == own && own[&format!("{last}.weight")] != base.values(&format!("{last}.weight")));
    assert_eq!(own[&format!("{block}.weight")], base.values(&format!("{block}.weight")));
    assert_eq!(fresh.factors.entries().len(), 4);

    for (case, parts) in [
        ("peft-dora", ["changed by a DoRA", "plain LoRA"]),
        ("lycoris-loha", ["changed by a LoHa", "plain LoRA"]),
        ("peft-conv", ["the kernel of a convolution", "dense layers"]),
        ("peft-lora-bias", ["a bias that was trained", "plain LoRA"]),
        ("peft-biases", ["that was trained", "plain LoRA"]),
    ] {
        let (base, _) = expected(case);
        let error = read(&adapter(case), &shapes(&base)).expect_err(case).to_string();
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    }
}
