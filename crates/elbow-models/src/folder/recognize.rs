//! Files that are not what they are taken for: told by their first bytes, or by the names of their tensors.

use super::{checkpoint::Checkpoint, error::FolderError};
use std::{
    fs::{self, File},
    io::Read,
    path::{Component, Path, PathBuf},
};

/// What a file is in place of what was expected, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// For a sentence that begins "this is …".
    pub what: String,
    /// What to do.
    pub hint: String,
}

impl Foreign {
    fn new(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { what: what.into(), hint: hint.into() }
    }

    /// The error that says so of a file.
    pub fn at(self, path: &Path) -> FolderError {
        FolderError::Foreign { path: path.into(), what: self.what, hint: self.hint }
    }
}

/// Bytes at the start of a file that tell what it is.
pub(crate) const HEAD: usize = 512;

/// What the file at `path` is, if it is no safetensors file, no JSON and none of the texts of a model folder. `None` too of one that cannot be
/// read.
pub fn file(path: &Path) -> Option<Foreign> {
    let mut head = Vec::new();
    File::open(path).ok()?.take(HEAD as u64).read_to_end(&mut head).ok()?;
    bytes(&head)
}

/// What a file is that begins with these bytes, if it is no safetensors file, no JSON and none of the texts of a model folder.
pub fn bytes(head: &[u8]) -> Option<Foreign> {
    let again = "download the file again, whole";
    let head = &head[..head.len().min(HEAD)];
    if begins_as_safetensors(head) {
        return None;
    }
    let text = String::from_utf8_lossy(head);
    let words = text.trim_start_matches(|c: char| c.is_whitespace() || c == '\u{feff}').to_ascii_lowercase();
    Some(match head {
        [] => Foreign::new("an empty file", again),
        head if head.iter().all(|byte| *byte == 0) && head.len() >= 16 => {
            Foreign::new("a file of zeros, as a download leaves it that was not finished", again)
        }
        _ if words.starts_with("version https://git-lfs") => Foreign::new(
            "a pointer of git-lfs, which stands for the file: the repository was cloned without git-lfs",
            "install git-lfs, and run `git lfs pull` in the cloned repository",
        ),
        _ if ["<!doctype html", "<html", "<head", "<?xml", "<!--"].iter().any(|start| words.starts_with(start)) => {
            Foreign::new(
                "a web page, such as one that asks to log in or says that something went wrong",
                "open the model's page in a browser, accept its license and log in if it asks for that, and download the file itself",
            )
        }
        head if head.starts_with(ZIP) => {
            Foreign::new("a zip archive: PyTorch's own format, which holds pickled Python objects", SAVE_AGAIN)
        }
        [0x80, 2..=5, ..] => Foreign::new("a file of pickled Python objects, PyTorch's old format", SAVE_AGAIN),
        [b'G', b'G', b'U', b'F', ..] => Foreign::new(
            "a GGUF file, whose weights are quantized",
            "take the model that it was made from, in f32, f16 or bf16",
        ),
        [0x89, b'H', b'D', b'F', ..] => Foreign::new("an HDF5 file, as Keras writes it", SAVE_AGAIN),
        [0x93, b'N', b'U', b'M', b'P', b'Y', ..] => Foreign::new("an array of NumPy", SAVE_AGAIN),
        [0x1f, 0x8b, ..]
        | [0x28, 0xb5, 0x2f, 0xfd, ..]
        | [b'7', b'z', 0xbc, 0xaf, ..]
        | [b'R', b'a', b'r', b'!', ..] => Foreign::new("a packed archive", "unpack it first"),
        _ => return None,
    })
}

/// Whether these are the first bytes of a safetensors file: a length in eight bytes, of which the upper four are 0, and JSON. The lower ones may
/// look like anything: a header of 640 bytes begins as a pickle does.
fn begins_as_safetensors(head: &[u8]) -> bool {
    matches!(head, [_, _, _, _, 0, 0, 0, 0, b'{', ..])
}

const ZIP: &[u8] = b"PK\x03\x04";

/// Whether a file that begins so is pickled, in PyTorch's old format or in its new one.
pub(crate) fn is_pickled(head: &[u8]) -> bool {
    !begins_as_safetensors(head) && (head.starts_with(ZIP) || matches!(head, [0x80, 2..=5, ..]))
}

/// A pickle may run any code when it is read.
const SAVE_AGAIN: &str = "reading it could run any program, so that it is not read here: load the model in Python, and save it with \
                          `save_pretrained(folder, safe_serialization=True)`, or take a repository that has safetensors files";

/// What a file is in place of weights: as [`bytes`], and any text, JSON included.
pub(crate) fn in_place_of_weights(head: &[u8]) -> Option<Foreign> {
    let text = |head: &[u8]| head.iter().all(|byte| matches!(byte, b'\t' | b'\n' | b'\r' | 0x20..=0x7e));
    bytes(head).or_else(|| {
        // The first eight bytes of a safetensors file are a number of at most a hundred million.
        let start = &head[..head.len().min(64)];
        let begins = || String::from_utf8_lossy(start).trim().replace(['\r', '\n', '\t'], " ");
        text(start).then(|| Foreign::new(format!("text that begins {:?}", begins()), "download the file again, whole"))
    })
}

/// What the weights of these names and shapes are, if they are a model, or a part of one, that is laid out in another way than diffusers
/// lays out the parts of a model folder. What is a part of such a folder is none of it.
pub fn layout<'a>(tensors: impl IntoIterator<Item = (&'a str, &'a [usize])>) -> Option<Foreign> {
    let mut names: Vec<(&str, &[usize])> = tensors.into_iter().collect();
    names.sort_unstable();
    let begins = |start: &str| names.iter().any(|(name, _)| name.starts_with(start));
    let has = |part: &str| names.iter().any(|(name, _)| name.contains(part));
    let shape = |end: &str| names.iter().find(|(name, _)| name.ends_with(end)).map(|(_, shape)| *shape);
    let quantized = ["scaled_fp8", ".scale_weight", ".weight_scale", ".quant_state", ".absmax", ".qweight", ".qzeros"];
    if quantized.iter().any(|part| has(part)) {
        return Some(Foreign::new("quantized weights", "take the model that they were made from, in f32, f16 or bf16"));
    }
    if has("lora_A") || has("lora_down") || has(".lora.down") || begins("lora_") || has("hada_w1") || has("lokr_w1") {
        return Some(Foreign::new(
            "an adapter (LoRA), which is no model",
            "give the folder of the model that it was trained on; `elbow merge` puts an adapter into a model",
        ));
    }
    if has("double_blocks.0.img_attn") {
        let input = shape("img_in.weight").and_then(|shape| shape.get(1).copied());
        return Some(match input {
            Some(64) | None => {
                single("FLUX.1 as Black Forest Labs published it", "FluxPipeline", "black-forest-labs/FLUX.1-dev")
            }
            Some(_) => unsupported("FLUX.1 Fill, Depth or Canny, or FLUX.2"),
        });
    }
    if has("joint_blocks.0.x_block") {
        return Some(single(
            "SD3 or SD3.5 as Stability AI published it",
            "StableDiffusion3Pipeline",
            "stabilityai/stable-diffusion-3.5-medium",
        ));
    }
    if begins("conditioner.embedders") || has("label_emb.0.0.weight") || has("add_embedding.linear_1") {
        return Some(unsupported("Stable Diffusion XL"));
    }
    if let Some(shape) = shape("input_blocks.0.0.weight") {
        let channels = shape.get(1).copied().unwrap_or(4);
        if channels != 4 {
            return Some(unsupported(&format!(
                "Stable Diffusion with {channels} input channels, for inpainting or the like"
            )));
        }
        let name = "stable-diffusion-v1-5/stable-diffusion-v1-5";
        return Some(single("Stable Diffusion 1 or 2 as it was published first", "StableDiffusionPipeline", name));
    }
    let others = [
        ("model.diffusion_model.", "a model in one file, of a kind that is not known here"),
        ("transformer_blocks.0.audio", "a model of sound or video"),
        ("noise_refiner.", "Lumina or Z-Image"),
        ("patch_embedding.", "Wan or another model of video"),
    ];
    others.into_iter().find(|(start, _)| begins(start)).map(|(_, what)| unsupported(what))
}

fn single(what: &str, class: &str, name: &str) -> Foreign {
    Foreign::new(
        format!("{what}: one file with names of its own"),
        format!(
            "download the folder that diffusers has of it, such as {name}; or make one in Python: `from diffusers import {class}`, \
             `{class}.from_single_file(\"…\").save_pretrained(\"folder\")`"
        ),
    )
}

fn unsupported(what: &str) -> Foreign {
    Foreign::new(what, "take SD3, SD3.5, FLUX.1, or Stable Diffusion 1 or 2, as a folder of diffusers")
}

/// What to say of a file that was given where a model folder is expected.
pub(crate) fn given_as_model(path: &Path) -> FolderError {
    if let Some(foreign) = file(path) {
        return foreign.at(path);
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let above = path.ancestors().skip(1).take(2).find(|folder| folder.join("model_index.json").is_file());
    if let Some(above) = above {
        let hint = format!("give the folder: {}", above.display());
        return Foreign::new("one file of a model folder", hint).at(path);
    }
    let folder = "give the folder that holds model_index.json";
    let Ok(checkpoint) = Checkpoint::open_file(path) else {
        return Foreign::new("a file, and a model is a folder as diffusers saves it", folder).at(path);
    };
    let known = layout(checkpoint.shapes()).unwrap_or_else(|| {
        let part =
            ["transformer_blocks.0.attn.to_q.weight", "conv_in.weight", "decoder.conv_in.weight", "shared.weight"];
        let part = part.iter().any(|name| checkpoint.contains(name)) || name.starts_with("model");
        let what = if part {
            "one part of a model, and a model is a folder of parts"
        } else {
            "weights that are not known here"
        };
        Foreign::new(what, folder)
    });
    known.at(path)
}

/// Why a folder has no model_index.json: what it is instead, and where the model may be.
pub(crate) fn elsewhere(folder: &Path) -> String {
    let model = |place: &Path| place.join("model_index.json").exists();
    let listed = |place: &Path| {
        let mut all: Vec<PathBuf> =
            fs::read_dir(place).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        all.sort();
        all
    };
    if !folder.exists() {
        let mut parts = folder.components();
        let hub = parts.by_ref().take(2).filter(|part| matches!(part, Component::Normal(_))).count() == 2
            && parts.next().is_none();
        let hub =
            if hub { "; if that is the name of a model of the hub, download it, or give it as model.hub" } else { "" };
        return format!(": there is no such folder, and a model is a local folder as `diffusers` saves it{hub}");
    }
    let snapshots = folder.join("snapshots");
    if snapshots.is_dir() {
        // The hub's cache names the commit of a branch.
        let main = fs::read_to_string(folder.join("refs/main")).ok().map(|commit| snapshots.join(commit.trim()));
        let all = listed(&snapshots);
        let found =
            main.into_iter().chain(all.iter().cloned()).find(|place| model(place)).or_else(|| all.first().cloned());
        return match found {
            Some(found) => {
                format!(": it is the cache of a model of the hub, give the snapshot in it, {}", found.display())
            }
            None => ": it is the cache of a model of the hub, and holds no snapshot".into(),
        };
    }
    if let Some(above) = folder.parent().filter(|above| model(above)) {
        return format!(": it is a part of a model, give the folder above it, {}", above.display());
    }
    let inside: Vec<String> =
        listed(folder).into_iter().filter(|place| model(place)).map(|place| place.display().to_string()).collect();
    if !inside.is_empty() {
        return format!(": give the model in it, {}", inside.join(" or "));
    }
    let file = |place: &PathBuf| {
        place.extension().is_some_and(|end| ["safetensors", "ckpt", "gguf", "pt"].iter().any(|e| end == *e))
    };
    if let Some(single) = listed(folder).iter().find(|place| file(place)) {
        let Foreign { what, hint } = match given_as_model(single) {
            FolderError::Foreign { what, hint, .. } => Foreign { what, hint },
            _ => Foreign::new("a file", "give a folder"),
        };
        let name = single.file_name().unwrap_or_default().to_string_lossy();
        return format!(": a model is a local folder as `diffusers` saves it. {name} in it is {what}; {hint}");
    }
    ": a model is a local folder as `diffusers` saves it".into()
}

/// A link at `path`, or a folder of it, that leads nowhere, with where it leads.
pub(crate) fn dangling(path: &Path) -> Option<(PathBuf, PathBuf)> {
    let mut places: Vec<&Path> = path.ancestors().take(3).collect();
    places.reverse();
    let broken = |place: &&Path| place.is_symlink() && !place.exists();
    let link = places.into_iter().find(broken)?;
    Some((link.to_path_buf(), fs::read_link(link).ok()?))
}

/// An error if one of these paths is a link that leads nowhere.
pub(crate) fn check_links(paths: impl IntoIterator<Item = impl AsRef<Path>>) -> Result<(), FolderError> {
    match paths.into_iter().find_map(|path| dangling(path.as_ref())) {
        Some((link, target)) => Err(FolderError::Dangling { link, target }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bytes_tell_what_a_file_is() {
        let zip = [b"PK\x03\x04".as_slice(), &[0; 60]].concat();
        for (head, what) in [
            (&b""[..], "empty"),
            (&[0; 64], "zeros"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:a\nsize 3438167536\n", "git-lfs"),
            (b"\xef\xbb\xbf\r\n <!DOCTYPE html><html>", "web page"),
            (b"<HTML><body>login", "web page"),
            (&zip, "zip archive"),
            (b"\x80\x02}q\x00", "pickled"),
            (b"\x80\x04\x95", "pickled"),
            (b"GGUF\x03\0\0\0", "GGUF"),
            (b"\x1f\x8b\x08", "packed"),
        ] {
            let told = bytes(head).unwrap_or_else(|| panic!("{what}"));
            assert!(told.what.contains(what) && !told.hint.is_empty(), "{told:?}");
            assert_eq!(in_place_of_weights(head), Some(told));
        }
        let header = br#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
        let weights = [&(header.len() as u64).to_le_bytes()[..], header, &[0; 4]].concat();
        let json = br#"{"error": "Access to this model is restricted"}"#;
        for fine in [&weights[..], json, b"#version: 0.2\nt h\n", "{\"ä\": 1}".as_bytes()] {
            assert_eq!(bytes(fine), None);
        }
        // Lengths of headers whose bytes are those of a pickle, of gzip and of a zip archive.
        for length in [0x0280_u64, 0x0580, 0x8b1f, 0x0403_4b50] {
            let weights = [&length.to_le_bytes()[..], header, &[0; 4]].concat();
            assert_eq!(in_place_of_weights(&weights), None);
            assert!(!is_pickled(&weights));
        }
        assert!(is_pickled(&zip) && is_pickled(b"\x80\x04\x95"));
        assert_eq!(in_place_of_weights(&weights), None);
        assert!(in_place_of_weights(json).expect("text").what.contains("Access to this model"));
    }

    #[test]
    fn names_of_tensors_tell_what_weights_are() {
        let none: &[usize] = &[];
        for (names, part) in [
            (vec![("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight", none)], "SD3 or SD3.5"),
            (vec![("double_blocks.0.img_attn.qkv.weight", none), ("img_in.weight", &[3072, 64])], "FLUX.1 as"),
            (vec![("double_blocks.0.img_attn.qkv.weight", none), ("img_in.weight", &[3072, 384])], "FLUX.1 Fill"),
            (vec![("model.diffusion_model.input_blocks.0.0.weight", &[320, 4, 3, 3])], "Stable Diffusion 1 or 2"),
            (vec![("model.diffusion_model.input_blocks.0.0.weight", &[320, 9, 3, 3])], "9 input channels"),
            (vec![("conditioner.embedders.0.x", none), ("model.diffusion_model.input_blocks.0.0.weight", none)], "XL"),
            (vec![("transformer.a.lora_A.weight", none)], "adapter"),
            (vec![("lora_unet_a.lora_down.weight", none)], "adapter"),
            (vec![("double_blocks.0.img_attn.qkv.scale_weight", none)], "quantized"),
            (vec![("a.weight.absmax", none)], "quantized"),
        ] {
            let told = layout(names.iter().copied()).unwrap_or_else(|| panic!("{part}"));
            assert!(told.what.contains(part), "{told:?}");
        }
        for diffusers in
            ["transformer_blocks.0.attn.to_q.weight", "down_blocks.0.resnets.0.conv1.weight", "shared.weight"]
        {
            assert_eq!(layout([(diffusers, none)]), None);
        }
    }
}
