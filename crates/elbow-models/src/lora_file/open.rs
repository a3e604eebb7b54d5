//! Which file an adapter is in, and the configuration that belongs to it.

use super::{LoraFileError, config::Config, names::component};
use crate::folder::{Checkpoint, FolderError, read_json, recognize};
use serde_json::{Map, Value};
use std::{
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
};

/// The names of files of adapters, by `peft` and by diffusers.
const PEFT: &str = "adapter_model.safetensors";
const DIFFUSERS: &str = "pytorch_lora_weights.safetensors";
/// PEFT's configuration, beside its file.
const CONFIG: &str = "adapter_config.json";

const PICKLED: &str = "pickled by Python: such a file can run any program when it is read";
const UNPICKLE: &str = "have Python write it as safetensors: safetensors.torch.save_file(torch.load(FILE, weights_only=True), \"adapter_model.safetensors\")";

/// An open file.
pub(super) struct Opened {
    pub(super) checkpoint: Checkpoint,
    pub(super) file: PathBuf,
    pub(super) config: Option<Config>,
}

/// Opens the file, or that of the folder.
pub(super) fn open(path: &Path) -> Result<Opened, LoraFileError> {
    let file = if path.is_dir() { in_folder(path)? } else { path.to_path_buf() };
    refuse_pickled(&file)?;
    let checkpoint = Checkpoint::open_file(&file)?;
    // PEFT's file means nothing without the configuration beside it, whether the folder was given or the file.
    let beside = file.with_file_name(CONFIG);
    let config = if (path.is_dir() || file.ends_with(PEFT)) && beside.is_file() {
        let config: Map<String, Value> = read_json(&beside)?;
        Some(Config::new(&beside, &config)?)
    } else {
        header(&checkpoint, &file)?.map(|config| Config::new(&file, &config)).transpose()?
    };
    Ok(Opened { checkpoint, file, config })
}

/// The adapter's file in a folder of `peft`, of diffusers or of a trainer: by its name, or the only one.
fn in_folder(folder: &Path) -> Result<PathBuf, LoraFileError> {
    if let Some(file) = [PEFT, DIFFUSERS].map(|name| folder.join(name)).into_iter().find(|file| file.is_file()) {
        return Ok(file);
    }
    let files = names(folder, Path::is_file)?;
    let weights: Vec<&String> = files.iter().filter(|name| name.ends_with(".safetensors")).collect();
    let problem = match weights[..] {
        [only] => return Ok(folder.join(only)),
        [] => {
            let below = below(folder, 2)?;
            let pickled = |name: &&String| [".bin", ".pt", ".pth", ".ckpt"].iter().any(|end| name.ends_with(end));
            match (&below[..], files.iter().find(pickled)) {
                // By its name: whoever reads a folder of this kind unpickles such a file, whatever is in it.
                ([], Some(name)) => {
                    return Err(LoraFileError::Format { path: folder.join(name), what: PICKLED, hint: UNPICKLE });
                }
                ([], None) => format!("has no adapter: neither {PEFT} nor {DIFFUSERS}"),
                (some, _) => format!("has no adapter of its own; there is one in {}", some.join(", in ")),
            }
        }
        _ => format!("has several files of weights: {}", join(&weights)),
    };
    Err(LoraFileError::NoAdapter { folder: folder.into(), problem })
}

fn join(names: &[&String]) -> String {
    names.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", ")
}

/// Folders below this one with an adapter in them, `depth` levels down.
fn below(folder: &Path, depth: usize) -> Result<Vec<String>, LoraFileError> {
    let mut found = Vec::new();
    for name in names(folder, Path::is_dir)? {
        let inner = folder.join(&name);
        if [PEFT, DIFFUSERS].iter().any(|file| inner.join(file).is_file()) {
            found.push(format!("{name}/"));
        } else if depth > 1 {
            found.extend(below(&inner, depth - 1)?.into_iter().map(|inner| format!("{name}/{inner}")));
        }
    }
    Ok(found)
}

/// The names in a folder that pass, in order.
fn names(folder: &Path, keep: impl Fn(&Path) -> bool) -> Result<Vec<String>, LoraFileError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(FolderError::read(folder))? {
        let entry = entry.map_err(FolderError::read(folder))?;
        if keep(&entry.path()) {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Names a pickled file. Whatever else is no safetensors file is named where it is opened.
fn refuse_pickled(path: &Path) -> Result<(), LoraFileError> {
    let mut start = Vec::new();
    let file = File::open(path).map_err(FolderError::read(path))?;
    file.take(9).read_to_end(&mut start).map_err(FolderError::read(path))?;
    if recognize::is_pickled(&start) {
        return Err(LoraFileError::Format { path: path.into(), what: PICKLED, hint: UNPICKLE });
    }
    Ok(())
}

/// The configuration that diffusers writes into the header, of the network: a pipeline has the component before each field,
/// the network by itself (`save_lora_adapter`) has not.
fn header(checkpoint: &Checkpoint, file: &Path) -> Result<Option<Map<String, Value>>, LoraFileError> {
    let Some(text) = checkpoint.metadata().get("lora_adapter_metadata") else { return Ok(None) };
    let json: Map<String, Value> = serde_json::from_str(text).map_err(|error| LoraFileError::Unsupported {
        path: file.into(),
        field: "lora_adapter_metadata".into(),
        value: error.to_string(),
        accepted: "it must be JSON".into(),
    })?;
    let (mut own, mut bare) = (Map::new(), Map::new());
    for (key, value) in json {
        match component(&key) {
            Some((true, field)) => own.insert(field.to_owned(), value),
            Some((false, _)) => None,
            None => bare.insert(key, value),
        };
    }
    Ok([own, bare].into_iter().find(|config| !config.is_empty()))
}
