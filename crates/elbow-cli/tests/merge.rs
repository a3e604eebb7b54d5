//! `elbow merge` with adapters as people have them: of every program, for more than the network, in folders, and damaged.

#![expect(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

mod common;
#[path = "../../elbow-models/tests/diffusers/model_folder.rs"]
mod model_folder;

use common::{copy, elbow, files, refused, succeed};
use elbow::params::Params;
use elbow_models::folder::Checkpoint;
use model_folder::{fixtures, whole};
use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
    process::Command,
};
use tempfile::TempDir;

/// Shape and values by name.
type File = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// A model folder and room beside it.
struct Place {
    model: TempDir,
    room: TempDir,
    component: &'static str,
}

impl Place {
    fn new(pipeline: &str) -> Self {
        let component = if pipeline == "sd1" { "unet" } else { "transformer" };
        Self { model: whole(pipeline), room: tempfile::tempdir().unwrap(), component }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.room.path().join(name)
    }

    fn base(&self) -> Checkpoint {
        Checkpoint::open(&self.model.path().join(self.component), "diffusion_pytorch_model", None).unwrap()
    }

    /// `elbow merge <name> --base <model> --out merged --dtype f32`.
    fn merge(&self, name: &str) -> Command {
        let mut command = elbow(["merge", name, "--out", "merged", "--force", "--dtype", "f32", "--base"]);
        command.arg(self.model.path()).current_dir(self.room.path());
        command
    }

    /// What it prints, and whether the merged weights are W + `changes`; others must be the base's.
    fn merged(&self, name: &str, changes: &BTreeMap<String, Vec<f64>>) -> String {
        let said = succeed(&mut self.merge(name));
        let merged = Checkpoint::open(&self.path("merged"), "diffusion_pytorch_model", None).unwrap();
        let base = self.base();
        assert!(changes.keys().all(|name| base.contains(name)), "{:?}", changes.keys());
        for (name, _) in base.shapes() {
            let (own, got) = (base.values(name), merged.values(name));
            for (i, (own, got)) in own.iter().zip(&got).enumerate() {
                let want = f64::from(*own) + changes.get(name).map_or(0.0, |change| change[i]);
                assert!((want - f64::from(*got)).abs() < 1e-6, "{name}: {got} for {want}");
            }
        }
        said
    }

    /// The dense layers and kernels whose names pass.
    fn layers(&self, pick: impl Fn(&str) -> bool) -> Vec<(String, Vec<usize>)> {
        let base = self.base();
        let layer = |(name, shape): (&str, &[usize])| Some((name.strip_suffix(".weight")?.to_owned(), shape.to_vec()));
        base.shapes().filter_map(layer).filter(|(name, shape)| shape.len() > 1 && pick(name)).collect()
    }
}

/// Numbers that are not the same anywhere.
fn numbers(shape: &[usize], seed: usize) -> (Vec<usize>, Vec<f32>) {
    let count = shape.iter().product();
    (shape.to_vec(), (0..count).map(|i| (((i * 37 + seed * 101) % 89) as f32 - 44.0) / 200.0).collect())
}

/// A of `[rank, in, …]` and B of `[out, rank, 1, …]`.
fn factors(shape: &[usize], rank: usize, seed: usize) -> [(Vec<usize>, Vec<f32>); 2] {
    let ones = vec![1; shape.len() - 2];
    [numbers(&[&[rank], &shape[1..]].concat(), seed), numbers(&[&[shape[0], rank], &ones[..]].concat(), seed + 1)]
}

/// s B A
fn product([a, b]: &[(Vec<usize>, Vec<f32>); 2], scale: f64) -> Vec<f64> {
    let (rank, input) = (a.0[0], a.1.len() / a.0[0]);
    let value = |i: usize| {
        let (row, column) = (i / input, i % input);
        (0..rank).map(|r| f64::from(b.1[row * rank + r]) * f64::from(a.1[r * input + column])).sum::<f64>() * scale
    };
    (0..b.0[0] * input).map(value).collect()
}

fn write(file: &File, header: &[(&str, &str)], path: &Path) {
    let header: HashMap<String, String> = header.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let tensors = file.iter().map(|(name, (shape, values))| (name.clone(), shape.clone(), values.clone()));
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, Params::new(tensors).to_safetensors(Some(header))).unwrap();
}

/// kohya's file for the picked layers, each with the rank and alpha of its number; without an alpha it is the rank.
fn kohya(
    layers: &[(String, Vec<usize>)],
    rank: impl Fn(usize) -> usize,
    alpha: impl Fn(usize) -> Option<f32>,
) -> (File, BTreeMap<String, Vec<f64>>) {
    let (mut file, mut changes) = (File::new(), BTreeMap::new());
    for (i, (layer, shape)) in layers.iter().enumerate() {
        let key = format!("lora_unet_{}", layer.replace('.', "_"));
        let (both, rank) = (factors(shape, rank(i), i), rank(i));
        let scale = alpha(i).map_or(1.0, |alpha| f64::from(alpha) / rank as f64);
        changes.insert(format!("{layer}.weight"), product(&both, scale));
        let [a, b] = both;
        file.insert(format!("{key}.lora_down.weight"), a);
        file.insert(format!("{key}.lora_up.weight"), b);
        file.extend(alpha(i).map(|alpha| (format!("{key}.alpha"), (vec![], vec![alpha]))));
    }
    (file, changes)
}

fn mid(name: &str) -> bool {
    name.contains("mid_block") && name.contains(".attn")
}

#[test]
fn layers_of_text_encoders_are_left_out_and_counted() {
    let place = Place::new("sd1");
    let (mut file, changes) = kohya(&place.layers(mid), |_| 2, |_| Some(1.0));
    for prefix in ["lora_te_text_model_encoder_layers_0", "lora_te_text_model_encoder_layers_1"] {
        let [a, b] = factors(&[16, 16], 2, 7);
        file.insert(format!("{prefix}_self_attn_q_proj.lora_down.weight"), a);
        file.insert(format!("{prefix}_self_attn_q_proj.lora_up.weight"), b);
        file.insert(format!("{prefix}_self_attn_q_proj.alpha"), (vec![], vec![1.0]));
    }
    write(&file, &[], &place.path("kohya.safetensors"));
    let said = place.merged("kohya.safetensors", &changes);
    assert_eq!(
        said,
        "8 layers changed, rank 2, scale 0.5: merged\nleft out, as it is not of the network: 2 layers of `lora_te` (a text encoder)\n"
    );
}

#[test]
fn kernels_of_convolutions_are_merged() {
    let place = Place::new("sd1");
    let pick =
        |n: &str| n.contains("mid_block") && ["proj_in", "proj_out", ".ff.", "conv1"].iter().any(|p| n.contains(p));
    let (file, changes) = kohya(&place.layers(pick), |_| 2, |_| Some(1.0));
    write(&file, &[], &place.path("conv.safetensors"));
    let said = place.merged("conv.safetensors", &changes);
    assert!(said.starts_with("6 layers changed, rank 2, scale 0.5: "), "{said}");
}

#[test]
fn ranks_and_alphas_may_differ_from_layer_to_layer() {
    let place = Place::new("sd1");
    let (file, changes) = kohya(&place.layers(mid), |i| 2 + i % 3, |i| (i % 4 != 1).then_some(3.0));
    write(&file, &[], &place.path("mixed.safetensors"));
    let said = place.merged("mixed.safetensors", &changes);
    let parts =
        ["8 layers changed, rank 2 to 4, scale 0.75 to 1.5: merged\n", "where it is not, it is taken for the rank"];
    assert!(parts.iter().all(|part| said.contains(part)), "{said}");
}

/// FLUX by the original code's names, of ComfyUI and of kohya: q, k and v are one layer there.
#[test]
fn fused_layers_of_the_original_code_are_split() {
    let place = Place::new("flux");
    let (mut comfy, mut kohya, mut changes) = (File::new(), File::new(), BTreeMap::new());
    let attention = |names: [&str; 3]| names.map(|name| (format!("transformer_blocks.0.attn.{name}"), 16)).to_vec();
    let single = |name: &str, rows: usize| (format!("single_transformer_blocks.0.{name}"), rows);
    for (i, (original, input, layers)) in [
        ("double_blocks.0.img_attn.qkv", 16, attention(["to_q", "to_k", "to_v"])),
        ("double_blocks.0.txt_attn.qkv", 16, attention(["add_q_proj", "add_k_proj", "add_v_proj"])),
        ("double_blocks.0.img_attn.proj", 16, vec![("transformer_blocks.0.attn.to_out.0".to_owned(), 16)]),
        (
            "single_blocks.0.linear1",
            16,
            vec![single("attn.to_q", 16), single("attn.to_k", 16), single("attn.to_v", 16), single("proj_mlp", 64)],
        ),
        ("single_blocks.0.linear2", 80, vec![single("proj_out", 16)]),
    ]
    .into_iter()
    .enumerate()
    {
        let rows: usize = layers.iter().map(|(_, rows)| rows).sum();
        let both = factors(&[rows, input], 2, i);
        let mut all = product(&both, 1.0);
        for (layer, rows) in layers {
            let rest = all.split_off(rows * input);
            changes.insert(format!("{layer}.weight"), all);
            all = rest;
        }
        let [a, b] = both;
        let flat = format!("lora_unet_{}", original.replace('.', "_"));
        comfy.insert(format!("diffusion_model.{original}.lora_A.weight"), a.clone());
        comfy.insert(format!("diffusion_model.{original}.lora_B.weight"), b.clone());
        kohya.insert(format!("{flat}.lora_down.weight"), a);
        kohya.insert(format!("{flat}.lora_up.weight"), b);
        kohya.insert(format!("{flat}.alpha"), (vec![1], vec![2.0]));
    }
    for (name, file) in [("comfyui.safetensors", &comfy), ("kohya.safetensors", &kohya)] {
        write(file, &[], &place.path(name));
        let said = place.merged(name, &changes);
        assert!(said.starts_with("12 layers changed, rank 2, scale 1: "), "{said}");
    }
}

#[test]
fn names_of_old_versions_of_diffusers_mean_the_same_layers() {
    let place = Place::new("sd1");
    let (mut file, mut changes) = (File::new(), BTreeMap::new());
    for (i, (layer, shape)) in place.layers(mid).iter().enumerate() {
        let (block, name) = layer.rsplit_once(".to_").unwrap();
        let both = factors(shape, 2, i);
        changes.insert(format!("{layer}.weight"), product(&both, 1.0));
        let [a, b] = both;
        let key = format!("unet.{block}.processor.to_{}_lora", name.trim_end_matches(".0"));
        file.insert(format!("{key}.down.weight"), a);
        file.insert(format!("{key}.up.weight"), b);
    }
    write(&file, &[], &place.path("out/pytorch_lora_weights.safetensors"));
    fs::create_dir(place.path("out/checkpoint-500")).unwrap();
    // The output folder of a trainer stands for the file in it.
    for name in ["out/pytorch_lora_weights.safetensors", "out"] {
        let said = place.merged(name, &changes);
        assert!(said.starts_with("8 layers changed, rank 2, scale 1: "), "{said}");
    }
}

/// diffusers' `save_lora_adapter`: no component before names and fields.
#[test]
fn headers_without_a_component_give_the_scale() {
    let place = Place::new("sd1");
    let (mut file, mut changes) = (File::new(), BTreeMap::new());
    for (i, (layer, shape)) in place.layers(mid).iter().enumerate() {
        let both = factors(shape, 2, i);
        changes.insert(format!("{layer}.weight"), product(&both, 2.5));
        let [a, b] = both;
        file.insert(format!("{layer}.lora_A.weight"), a);
        file.insert(format!("{layer}.lora_B.weight"), b);
    }
    let header = r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 5, "rank_pattern": {}, "alpha_pattern": {}}"#;
    write(&file, &[("lora_adapter_metadata", header)], &place.path("pytorch_lora_weights.safetensors"));
    let said = place.merged("pytorch_lora_weights.safetensors", &changes);
    assert_eq!(said, "8 layers changed, rank 2, scale 2.5: merged\n");
}

/// W' = m (W + s B A) / ‖W + s B A‖, row by row.
#[test]
fn a_dora_is_merged_by_its_magnitudes() {
    let place = Place::new("sd1");
    let (mut file, changes) = kohya(&place.layers(mid), |_| 2, |_| Some(1.0));
    let base = place.base();
    let mut expected = BTreeMap::new();
    for (name, change) in &changes {
        let own = base.values(name);
        let columns = base.shapes().find(|(n, _)| n == name).unwrap().1[1];
        let sum: Vec<f64> = own.iter().zip(change).map(|(w, d)| f64::from(*w) + d).collect();
        let (mut magnitudes, mut difference) = (Vec::new(), Vec::new());
        for (i, row) in sum.chunks(columns).enumerate() {
            let magnitude = 1.0 + 0.125 * i as f32;
            let length = row.iter().map(|v| v * v).sum::<f64>().sqrt();
            magnitudes.push(magnitude);
            let at = i * columns;
            difference
                .extend(row.iter().zip(&own[at..]).map(|(v, w)| f64::from(magnitude) * v / length - f64::from(*w)));
        }
        let layer = name.trim_end_matches(".weight").replace('.', "_");
        file.insert(format!("lora_unet_{layer}.dora_scale"), (vec![magnitudes.len(), 1], magnitudes));
        expected.insert(name.clone(), difference);
    }
    write(&file, &[], &place.path("dora.safetensors"));
    let said = place.merged("dora.safetensors", &expected);
    assert!(said.starts_with("8 layers changed by DoRA, rank 2, scale 0.5: "), "{said}");
}

/// What cannot be merged is named, with what to do, and leaves no file behind: not even a hidden one.
#[test]
fn damaged_and_pickled_adapters_are_refused_and_leave_nothing() {
    let place = Place::new("sd1");
    let layers = place.layers(mid);
    let refused = |name: &str, parts: &[&str]| refused(&mut place.merge(name), place.room.path(), parts);
    let (good, _) = kohya(&layers, |_| 2, |_| Some(1.0));
    let key = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_k";

    let mut file = good.clone();
    file.get_mut(&format!("{key}.lora_up.weight")).unwrap().1[3] = f32::NAN;
    write(&file, &[], &place.path("nan.safetensors"));
    refused("nan.safetensors", &["attn1_to_k.lora_up.weight: holds NaN", "hint: a training that diverged"]);

    let empty = |i: usize| if i == 0 { 0 } else { 2 };
    let mut file = File::new();
    for (i, (layer, shape)) in layers.iter().enumerate() {
        let key = format!("lora_unet_{}", layer.replace('.', "_"));
        file.insert(format!("{key}.lora_down.weight"), numbers(&[empty(i), shape[1]], i));
        file.insert(format!("{key}.lora_up.weight"), numbers(&[shape[0], empty(i)], i));
        file.insert(format!("{key}.alpha"), (vec![], vec![1.0]));
    }
    write(&file, &[], &place.path("rank0.safetensors"));
    refused("rank0.safetensors", &["attn1_to_k.lora_up.weight: [16, 0] in the file, of rank 0"]);

    // Finite, and beyond f16.
    let mut file = good.clone();
    file.insert(format!("{key}.alpha"), (vec![], vec![1e8]));
    write(&file, &[], &place.path("large.safetensors"));
    let parts = ["attn1.to_k.weight: it has values beyond 65504, the largest of f16", "hint: ", "--dtype bf16 or f32"];
    for out in ["merged", "merged.safetensors"] {
        let base =
            place.model.path().join(if out == "merged" { "" } else { "unet/diffusion_pytorch_model.safetensors" });
        let mut half = elbow(["merge", "large.safetensors", "--out", out, "--base"]);
        common::refused(half.arg(base), place.room.path(), &parts);
    }
    succeed(&mut place.merge("large.safetensors"));
    fs::remove_dir_all(place.path("merged")).unwrap();

    copy(&fixtures().join("adapters/peft-dora"), &place.path("peft"));
    fs::rename(place.path("peft/adapter_model.safetensors"), place.path("peft/adapter_model.bin")).unwrap();
    let parts = ["adapter_model.bin: pickled by Python", "hint: have Python write it as safetensors"];
    refused("peft", &parts);
    fs::write(place.path("lora.safetensors"), b"\x80\x02}q\0.").unwrap();
    refused("lora.safetensors", &["lora.safetensors: pickled by Python"]);
    fs::write(place.path("pointer.safetensors"), "version https://git-lfs.github.com/spec/v1\n").unwrap();
    refused("pointer.safetensors", &["a pointer of git-lfs", "hint: install git-lfs, and run `git lfs pull`"]);

    copy(&fixtures().join("adapters/peft-pissa-raw"), &place.path("pissa"));
    refused("pissa", &["`init_lora_weights` is \"pissa\"", "hint: have peft make plain LoRA of it"]);
    let mut file = good;
    file.insert(format!("{key}.oft_blocks"), numbers(&[2, 8, 8], 1));
    write(&file, &[], &place.path("oft.safetensors"));
    refused("oft.safetensors", &["an OFT", "oft_blocks", "hint: merge it with the program that made it"]);
    fs::create_dir(place.path("nothing")).unwrap();
    refused("nothing", &["nothing has no adapter", "hint: give the file itself"]);
    assert!(!files(place.room.path()).keys().any(|name| name.to_string_lossy().contains("tmp")));
}

/// What `--help` says is read is what is read: one fixture of each kind and program.
#[test]
fn every_kind_that_the_help_names_is_merged() {
    let help = succeed(&mut elbow(["merge", "--help"]));
    for word in [
        "PEFT",
        "diffusers",
        "kohya",
        "LyCORIS",
        "ComfyUI",
        "ai-toolkit",
        "XLabs",
        "convolutions",
        "DoRA",
        "LoHa",
        "LoKr",
        "differences",
    ] {
        assert!(help.contains(word), "{word}");
    }
    for (pipeline, adapter, said) in [
        ("sd1", "peft-dora", "4 layers changed by DoRA, rank 2, scale 1.5"),
        ("sd1", "lycoris-loha.safetensors", "3 layers changed by LoHa, rank 3, scale 0.6666666666666666"),
        ("sd1", "lycoris-lokr.safetensors", "4 layers changed by LoKr, scale 0.5 to 1"),
        ("sd1", "lycoris-differences.safetensors", "2 layers changed by differences, scale 1"),
        ("sd1", "original-sd1.safetensors", "83 layers changed, rank 1, scale 1"),
        ("sd3", "original-sd3.safetensors", "55 layers changed, rank 1, scale 1"),
        ("sd3", "peft-patterns", "11 layers changed, rank 2 to 4, scale 0.25 to 3"),
        ("flux", "original-flux.safetensors", "30 layers changed, rank 1, scale 1"),
        ("flux", "kohya-xlabs.safetensors", "12 layers changed, rank 2, scale 1"),
        ("flux", "diffusers-bf16.safetensors", "11 layers changed, rank 2, scale 1"),
    ] {
        let place = Place::new(pipeline);
        let path = fixtures().join("adapters").join(adapter);
        let printed = succeed(&mut place.merge(path.to_str().unwrap()));
        assert!(printed.starts_with(&format!("{said}: merged\n")), "{adapter}: {printed}");
    }
}
