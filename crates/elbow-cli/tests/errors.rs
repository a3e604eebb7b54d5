//! Every mistake has a message that names the place, a hint, and no effect.

#![expect(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

mod common;

use common::{SMALL, copy, elbow, files, finished, refused, resume, sets, text};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::{fs, path::Path, process::Command};

/// `elbow train` with these changes must fail.
#[track_caller]
fn refused_changes(changes: &[&str], parts: &[&str]) {
    let root = tempfile::tempdir().unwrap();
    refused(elbow(["train", "--run", "run"]).args(sets(changes)), root.path(), parts);
}

/// `elbow train` with a recipe must fail.
#[track_caller]
fn refused_recipe(recipe: &str, parts: &[&str]) {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("recipe.toml"), recipe).unwrap();
    let parts: Vec<&str> = parts.iter().copied().chain(["recipe.toml"]).collect();
    refused(&mut elbow(["train", "recipe.toml", "--run", "run"]), root.path(), &parts);
}

#[test]
fn an_unknown_path_of_the_cpu_is_named_with_those_there_are() {
    let root = tempfile::tempdir().unwrap();
    let parts = ["ELBOW_CPU=mmx: this CPU can take composite, portable", "unset ELBOW_CPU"];
    refused(elbow(["train", "--run", "run"]).env("ELBOW_CPU", "mmx"), root.path(), &parts);
}

#[test]
fn an_unknown_field_is_named_with_those_there_are() {
    refused_changes(&["sed=1"], &["unknown field `sed`; a recipe has seed,"]);
    refused_changes(&["batch.group=1"], &["unknown field `batch.group`; [batch] has groups, group_size"]);
    refused_changes(&["eval.measure.sampler.x.y=1"], &["unknown field `eval.measure.sampler.x`"]);
    refused_changes(
        &["objective.kind=grpo", "objective.clp=1"],
        &["`objective.clp`; [objective] of kind \"grpo\" has kind, clip"],
    );
    refused_changes(&["objective.clip=1e-4"], &["`clip` belongs to kind \"grpo\": set objective.kind too"]);
    refused_changes(&["model.tuning.rank=4"], &["[model.tuning] of kind \"full\"", "belongs to kind \"lora\""]);
    refused_changes(&["schedule.kind=rectified-flow"], &["`schedule` is now `model.schedule`"]);
    refused_changes(&["batch.rows=4"], &["`batch.rows` is now `batch.micro_batch`"]);
    refused_recipe("[objective]\nkind = \"grpo\"\nclp = 1", &["unknown field `objective.clp`"]);
    refused_recipe("extends = \"recipe.toml\"", &["circle"]);
    refused_recipe("extends = \"absent.toml\"", &["absent.toml", "No such file"]);
    refused_recipe("extends = 1", &["extends = 1: expected a text"]);
}

#[test]
fn a_wrong_kind_type_or_form_is_named_with_what_is_expected() {
    refused_changes(&["objective.kind=npo"], &["`objective.kind` = \"npo\": expected one of epg, pepg, par, grpo"]);
    refused_changes(&["kl.kind=k9"], &["`kl.kind` = \"k9\": expected one of girsanov, path, step"]);
    refused_changes(&["epochs=many"], &["`epochs` = \"many\": expected an integer"]);
    refused_changes(&["epochs=-1"], &["`epochs` = -1: expected an integer of at least 0"]);
    let range = "expected an integer from 0 to 9223372036854775807";
    for seed in ["-1", "9223372036854775808", "1e30", "1.5"] {
        refused_changes(&[&format!("seed={seed}")], &["`seed` = ", range]);
        refused_changes(&[&format!("eval.measure.seed={seed}")], &["`eval.measure.seed` = ", range]);
    }
    refused_recipe("seed = -1", &["`seed` = -1", range]);
    refused_recipe("epochs = 3\nseed = 9223372036854775808", &["is not valid TOML", "line 2", "9223372036854775807"]);
    refused_changes(&["optimizer.learning_rate=true"], &["`optimizer.learning_rate` = true: expected a number"]);
    refused_changes(&["objective.ratio=1"], &["`objective.ratio` = 1: expected true or false"]);
    refused_changes(&["objective=grpo"], &["`objective` = \"grpo\": this is a section", "objective.kind ="]);
    refused_changes(&["seed.x=1"], &["`seed` = "]);
    refused_changes(&["seed"], &["--set seed: not of the form key=value"]);
    refused_changes(&["seed=1", "seed.x=1"], &["another --set gives `seed` a value"]);
    refused_recipe(
        "seed = 1\nepochs = \"many\"\nbatch.micro_batch = 0.5",
        &["2 problems", "`epochs` =", "`batch.micro_batch` = 0.5: expected an integer"],
    );
    refused_changes(
        &["likelihood.kind=elbo", "likelihood.timesteps.kind=3"],
        &["`likelihood.timesteps.kind` = 3: expected one of"],
    );
    refused_changes(
        &["batch=[]"],
        &["`batch` = []: this is a section; give one of its fields, for example batch.groups"],
    );
}

#[test]
fn a_recipe_that_cannot_be_read_is_named_with_the_line() {
    let root = tempfile::tempdir().unwrap();
    refused(&mut elbow(["train", "absent.toml"]), root.path(), &["cannot read recipe absent.toml", "No such file"]);
    refused_recipe("seed = 1\nepochs = = 3\n", &["is not valid TOML", "line 2"]);
    refused_recipe("seed = 1\nseed = 2\n", &["is not valid TOML", "line 2", "duplicate key"]);
}

#[test]
fn values_that_cannot_run_are_told_with_their_numbers_all_at_once() {
    refused_changes(
        &["batch.groups=5", "batch.updates=2", "max_missing=1.5", "sampler.steps=0", "optimizer.learning_rate=0"],
        &[
            "batch.groups = 5",
            "batch.updates = 2",
            "120 samples",
            "max_missing = 1.5",
            "sampler.steps = 0",
            "learning_rate = 0",
        ],
    );
    refused_changes(
        &[
            "sed=1",
            "objective.clip=1",
            "prompts.kind=files",
            "prompts.train=a.txt",
            "batch.groups=5",
            "batch.updates=2",
        ],
        &[
            "cannot use --set",
            "4 problems",
            "unknown field `sed`",
            "`clip` belongs to kind \"grpo\"",
            "[prompts] of kind \"files\" needs `test`",
            "batch.groups = 5 cannot be split",
        ],
    );
    refused_changes(&["batch.group_size=1"], &["batch.group_size = 1", "at least 2"]);
    refused_changes(&["likelihood.kind=trajectory"], &["needs a stochastic sampler", "flow-sde"]);
    refused_changes(&["sampler.rule={kind='ddim', eta=2}"], &["`ddim`", "eta = 2", "between 0 and 1"]);
    refused_changes(&["sampler.rule={kind='window', size=10}"], &["size = 10", "10 steps"]);
    refused_changes(&["likelihood.timesteps={kind='stratified', count=20}"], &["count = 20", "steps = 10"]);
    refused_changes(
        &[
            "eval.prompts_per_task=0",
            "eval.measure.images_per_prompt=0",
            "eval.measure.sampler.steps=0",
            "keep.checkpoints=0",
        ],
        &[
            "eval.prompts_per_task = 0",
            "images_per_prompt = 0",
            "eval.measure.sampler.steps = 0",
            "keep.checkpoints = 0",
        ],
    );
    refused_changes(&["prompts.weights.colors=-1"], &["prompts.weights"]);
    refused_changes(&["model.tuning.kind=lora", "model.tuning.rank=0"], &["rank of LoRA is 0"]);
    let size = ["model.kind=diffusers", "model.path=x", "reward.kind=jpeg"];
    refused_changes(&size, &["cannot use model x", "x has none of: model_index.json"]);
    refused_changes(
        &[&size[..], &["model.resolution=[0, 512]"]].concat(),
        &["model.resolution = [0, 512]: must be at least 1"],
    );
    let sides = "expected a number of pixels for both sides, or [height, width]";
    refused_changes(&[&size[..], &["model.resolution=[512]"]].concat(), &["`model.resolution` = [512]: ", sides]);
    refused_changes(&[&size[..], &["model.resolution=0.5"]].concat(), &["`model.resolution` = 0.5: ", sides]);
    refused_changes(&size[..2], &["32 × 32 pixels", "model.resolution = 512"]);
    let wide = [&size[..2], &["model.resolution=[32, 64]"]].concat();
    refused_changes(&wide, &["32 × 32 pixels", "model.resolution = [32, 64]"]);
    refused_changes(&[&size[..], &["model.decode_slice=0"]].concat(), &["model.decode_slice = 0: must be at least 1"]);
    refused_changes(&["model.kind=diffusers"], &["model.path is missing"]);
    let named = ["model.kind=diffusers", "model.hub=owner/name"];
    let twice = [&named[..], &["model.path=x"]].concat();
    refused_changes(&twice, &["model.path and model.hub: give one of the two"]);
    if !cfg!(feature = "hub") {
        refused_changes(&named, &["built without downloads", "--features elbow-cli/hub", "model.path"]);
    }
}

#[test]
fn weights_that_do_not_fit_are_refused_with_the_reason() {
    let root = tempfile::tempdir().unwrap();
    let train = || elbow(["train", "--run", "run", "--set", "model.weights=w.safetensors"]);
    let place = "weights w.safetensors";
    refused(&mut train(), root.path(), &["cannot read weights w.safetensors", "No such file"]);

    let whole = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/nano.safetensors")).unwrap();
    fs::write(root.path().join("w.safetensors"), &whole[..whole.len() - 7]).unwrap();
    refused(&mut train(), root.path(), &[place, "not a complete safetensors file"]);

    fs::write(root.path().join("w.safetensors"), b"PK\x03\x04").unwrap();
    refused(&mut train(), root.path(), &[place, "this is a zip archive", "safe_serialization=True"]);

    let tensors = SafeTensors::deserialize(&whole).unwrap();
    let zeros = [0; 24];
    let changed = tensors.iter().map(|(name, view)| {
        let wrong = || TensorView::new(Dtype::F32, vec![2, 3], &zeros).unwrap();
        (name.to_owned(), if name.ends_with("proj_out.bias") { wrong() } else { view })
    });
    fs::write(root.path().join("w.safetensors"), safetensors::serialize(changed, None).unwrap()).unwrap();
    refused(&mut train(), root.path(), &[place, "proj_out.bias: [2, 3] in the file, ["]);
}

#[test]
fn prompt_files_that_cannot_be_used_are_refused_with_the_line_or_prompt() {
    let cat = r#"{"prompt": "a photo of a cat", "tag": "single_object", "include": [{"class": "cat", "count": 1}]}"#;
    for (name, content, part) in [
        ("p.jsonl", "\n \n".to_owned(), "p.jsonl: no prompt in the file"),
        ("p.jsonl", format!("{cat}\n\n{{\"prompt\": 3}}\n"), "p.jsonl:3: "),
        ("p.jsonl", format!("{cat}\n{{\"prompt\": \"a"), "p.jsonl:2: "),
        ("p.jsonl", "{\"prompt\": \"a photo of a cat\"}\n".into(), "missing field `tag`"),
        ("p.txt", "a photo of a cat\n".into(), "reward `geneval` wants a .jsonl file"),
        ("p.jsonl", cat.replace("of a cat", "of a unicorn"), "unknown word `unicorn`"),
        ("p.jsonl", cat.replace("\"cat\"", "\"Cat\""), "the detector knows no class \"Cat\"; it knows airplane, "),
        (
            "p.jsonl",
            cat.replace("\"cat\"", "\"toothbrush\""),
            "the detector knows no class \"toothbrush\"; it knows airplane, ",
        ),
        (
            "p.jsonl",
            cat.replace("\"count\": 1", "\"count\": 1, \"color\": \"chartreuse\""),
            "the detector knows no color \"chartreuse\"",
        ),
        ("p.csv", "a photo of a cat\n".into(), "p.csv: a prompt file ends in .txt"),
    ] {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join(name), content).unwrap();
        fs::write(root.path().join("good.jsonl"), cat).unwrap();
        for (train, test) in [(name, "good.jsonl"), ("good.jsonl", name)] {
            let changes = [format!("prompts.train={train}"), format!("prompts.test={test}")];
            let changes = ["prompts.kind=files", &changes[0], &changes[1]];
            refused(elbow(["train", "--run", "run"]).args(sets(&changes)), root.path(), &[part, name]);
        }
    }
    let changes = ["prompts.kind=files", "prompts.train=absent.txt", "prompts.test=absent.txt"];
    refused_changes(&changes, &["cannot read prompt file absent.txt", "No such file"]);
}

#[test]
fn a_run_folder_is_never_overwritten_and_must_be_writable() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("file"), "mine").unwrap();
    fs::create_dir(root.path().join("used")).unwrap();
    fs::write(root.path().join("used/letter.txt"), "mine").unwrap();
    let train = |folder: &str| {
        let mut command = elbow(["train", "--run", folder]);
        command.args(sets(&SMALL));
        command
    };
    refused(&mut train("file/run"), root.path(), &["file/run", "choose another `--run`"]);
    refused(&mut train("file"), root.path(), &["file", "choose another `--run`"]);
    refused(&mut train("/dev/null/x"), root.path(), &["/dev/null/x"]);
    refused(&mut train("used"), root.path(), &["the run folder used exists and is not empty", "--resume"]);
    refused(
        &mut elbow(["train", "--resume", "used"]),
        root.path(),
        &["used is not a run folder: it has no config.toml"],
    );
    refused(&mut elbow(["train", "--resume", "absent"]), root.path(), &["cannot open the run folder absent"]);
    refused(&mut elbow(["eval", "--run", "used"]), root.path(), &["used is not a run folder"]);
    refused(&mut elbow(["sample", "--run", "used", "a photo of a cat"]), root.path(), &["used is not a run folder"]);
}

#[test]
fn a_damaged_run_is_refused_with_the_file() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("run");
    copy(finished(), &folder);
    let checkpoint = folder.join("checkpoints/checkpoint-4");
    let damage = |file: &Path, change: &dyn Fn(&mut Vec<u8>), parts: &[&str], commands: &mut [Command]| {
        let whole = fs::read(file).unwrap();
        let mut bytes = whole.clone();
        change(&mut bytes);
        fs::write(file, bytes).unwrap();
        for command in commands {
            refused(command, root.path(), parts);
        }
        fs::write(file, whole).unwrap();
    };
    let flip = |bytes: &mut Vec<u8>| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
    };
    let ema = checkpoint.join("ema.safetensors");
    let part = ["ema.safetensors is corrupt", "delete this checkpoint folder"];
    let mut all =
        [resume(&folder), elbow(["eval", "--run", "run"]), elbow(["sample", "--run", "run", "a photo of a cat"])];
    damage(&ema, &flip, &part, &mut all);
    damage(&ema, &|b| b.truncate(100), &["ema.safetensors has 100 bytes"], &mut all);
    damage(&checkpoint.join("manifest.json"), &|b| b.truncate(100), &["checkpoint-4/manifest.json"], &mut all);
    damage(&folder.join("manifest.json"), &|b| b.truncate(9), &["manifest.json is damaged"], &mut [resume(&folder)]);
    damage(&folder.join("config.toml"), &|b| b.extend(b"\n="), &["config.toml is not valid TOML"], &mut all);
    let other = |b: &mut Vec<u8>| {
        *b = String::from_utf8(b.clone()).unwrap().replace("base_sha256\": \"", "base_sha256\": \"0").into();
    };
    damage(&folder.join("manifest.json"), &other, &["the base weights differ"], &mut [resume(&folder)]);
}

#[test]
fn a_prompt_that_the_model_cannot_read_is_refused() {
    let root = tempfile::tempdir().unwrap();
    refused(&mut elbow(["sample", "a photo of a unicorn"]), root.path(), &["unknown word `unicorn`"]);
    refused(&mut elbow(["sample", "a photo of a cat", "--images", "0"]), root.path(), &["--images 0"]);
    let absent = [
        "sample",
        "a photo of a cat",
        "--out",
        "absent/cat.png",
        "--images",
        "1",
        "--set",
        "eval.measure.sampler.steps=1",
    ];
    refused(&mut elbow(absent), root.path(), &["absent", "No such file"]);
    let output = elbow(["sample"]).current_dir(&root).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output).contains("<PROMPTS>..."), "{}", text(&output));
    assert!(files(root.path()).is_empty());
}

#[test]
fn pre_training_that_cannot_go_on_is_refused() {
    let root = tempfile::tempdir().unwrap();
    refused(&mut elbow(["pretrain", "--steps", "0"]), root.path(), &["nothing to do"]);
    let pretrain = |more: &[&str]| {
        let mut command = elbow(["pretrain", "--batch", "1", "--out", "base.safetensors"]);
        command.args(more).current_dir(&root);
        command
    };
    refused(&mut pretrain(&["--caption-noise", "1.5"]), root.path(), &["--caption-noise is a probability"]);
    refused(&mut pretrain(&["--from", "none.safetensors"]), root.path(), &["cannot read weights none.safetensors"]);
    std::fs::write(root.path().join("torn.safetensors"), [8, 0, 0]).unwrap();
    refused(&mut pretrain(&["--from", "torn.safetensors"]), root.path(), &["cannot use weights torn.safetensors"]);
    common::succeed(&mut pretrain(&["--steps", "3", "--until", "2"]));
    refused(&mut pretrain(&["--steps", "3", "--until", "1"]), root.path(), &["past step 1", "stands at step 2"]);
    refused(
        &mut pretrain(&["--steps", "4"]),
        root.path(),
        &["base.progress belongs to a pre-training with other settings"],
    );
}

#[test]
fn a_device_that_is_not_there_is_refused() {
    let root = tempfile::tempdir().unwrap();
    if cfg!(not(feature = "cuda")) {
        refused(
            &mut elbow(["train", "--run", "run", "--device", "cuda:1"]),
            root.path(),
            &["--device cuda:1: this build reaches cpu", "--features cuda"],
        );
    }
    let output = elbow(["train", "--device", "gpu"]).current_dir(root.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output).contains("no device is called \"gpu\"; there are cpu, cuda, wgpu"), "{}", text(&output));
    assert!(files(root.path()).is_empty());
}
