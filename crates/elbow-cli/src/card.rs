//! The README beside an export: the card that the Hugging Face Hub shows, how to load the files, and what was measured.

use crate::{commands::export::Format, failure};
use anyhow::Result;
use elbow::sampler::SamplerKind;
use elbow_models::lora_file::{Adapter, Family};
use elbow_run::{Recipe, model::Model};
use elbow_runlog::{RunFolder, write_atomic};
use serde_json::Value;
use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

/// Where card and picture of an export go.
pub struct Place {
    card: PathBuf,
    picture: PathBuf,
    /// A line that only the card of this export has.
    mark: String,
}

/// What every card says of itself, so that no other README is taken for one.
const MARK: &str = "<!-- written by elbow export";

impl Place {
    /// In the folder that is the export.
    pub fn inside(folder: &Path) -> Self {
        let mark = format!("{MARK} -->");
        Self { card: folder.join("README.md"), picture: folder.join("before-after.png"), mark }
    }

    /// Beside the file that is the export: `README.md`, or if there is one that is not its card, a file of its own name in `.md`; the
    /// picture has its name too. Nothing that stands there is replaced without `force`, and a README of somebody else's never.
    pub fn beside(file: &Path, force: bool) -> Result<Self> {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let mark = format!("{MARK}: {name} -->");
        let ours = |path: &Path| fs::read_to_string(path).is_ok_and(|text| text.contains(&mark));
        let readme = file.with_file_name("README.md");
        let own = file.with_extension("md");
        let card = if readme.exists() && !ours(&readme) { own } else { readme };
        let picture = file.with_extension("png");
        for path in [&card, &picture] {
            if path.exists() && !ours(path) && !force {
                let message = format!("{} is there already: the card of {name} goes there", path.display());
                return Err(failure::error(message, "choose another --out, or replace it with --force"));
            }
        }
        Ok(Self { card, picture, mark })
    }
}

/// Whether a README is a card of ours, which an export may replace.
pub fn is_card(path: &Path) -> bool {
    fs::read_to_string(path).is_ok_and(|text| text.contains(MARK))
}

/// What a base is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// Its name on the Hub if that is known, else its folder.
    pub name: String,
    /// Its commit there; empty if unknown.
    pub revision: String,
    /// Whether it is on the Hub.
    pub hub: bool,
}

impl Base {
    /// As the recipe names it, or as the user does. A folder of the Hub's cache says by its path which model it is.
    pub fn of(model: &Model, given: Option<&str>) -> Result<Self> {
        let (name, revision) = match (given, model) {
            (Some(name), _) => {
                let plain = |part: &str| {
                    !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
                };
                if name.split('/').count() != 2 || !name.split('/').all(plain) {
                    let message = format!("--base-model {name}: not of the form owner/name");
                    return Err(failure::error(
                        message,
                        "for example --base-model stabilityai/stable-diffusion-3.5-medium",
                    ));
                }
                (name.to_owned(), String::new())
            }
            (None, Model::Diffusers(folder)) => match (&folder.hub, folder.path.as_deref().and_then(cached)) {
                (Some(name), _) => (name.clone(), folder.revision.clone().unwrap_or_default()),
                (None, Some(found)) => found,
                (None, None) => return Ok(Self { name: model.name(), revision: String::new(), hub: false }),
            },
            (None, Model::Nano { .. }) => return Ok(Self { name: model.name(), revision: String::new(), hub: false }),
        };
        Ok(Self { name, revision, hub: true })
    }
}

/// Name and commit of a folder `…/models--owner--name/snapshots/commit`.
fn cached(path: &Path) -> Option<(String, String)> {
    let mut parts = path.components().rev().map(|part| part.as_os_str().to_string_lossy());
    let (commit, snapshots, model) = (parts.next()?, parts.next()?, parts.next()?);
    let (owner, name) = model.strip_prefix("models--")?.split_once("--")?;
    (snapshots == "snapshots").then(|| (format!("{owner}/{name}"), commit.into_owned()))
}

/// Licenses of models on the Hub, as their own cards give them: the model, `license`, `license_name`, and the file of `license_link`.
const LICENSES: [(&str, &str, &str, &str); 8] = [
    ("stabilityai/stable-diffusion-3.5-medium", "other", "stabilityai-ai-community", "LICENSE.md"),
    ("stabilityai/stable-diffusion-3.5-large", "other", "stabilityai-ai-community", "LICENSE.md"),
    ("black-forest-labs/FLUX.1-dev", "other", "flux-1-dev-non-commercial-license", "LICENSE.md"),
    ("black-forest-labs/FLUX.1-schnell", "apache-2.0", "", ""),
    ("stable-diffusion-v1-5/stable-diffusion-v1-5", "creativeml-openrail-m", "", ""),
    ("CompVis/stable-diffusion-v1-4", "creativeml-openrail-m", "", ""),
    ("stabilityai/stable-diffusion-2-1", "openrail++", "", ""),
    ("stabilityai/stable-diffusion-2-1-base", "openrail++", "", ""),
];

/// `license`, `license_name` and `license_link` of the base: from the card in its folder, or of a model whose license is known; empty
/// if neither says it.
fn license(base: &Base, folder: Option<&Path>) -> [String; 3] {
    let text = folder.and_then(|folder| fs::read_to_string(folder.join("README.md")).ok()).unwrap_or_default();
    let header = text.strip_prefix("---\n").and_then(|rest| rest.split_once("\n---")).map_or("", |(header, _)| header);
    let field = |key: &str| {
        let value = header.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).unwrap_or_default();
        let value = value.trim().trim_matches(['"', '\'']);
        // A list, a block or anything else that is no plain word.
        let plain = value.chars().all(|c| c.is_ascii_alphanumeric() || "-_.+/:".contains(c));
        if plain { value.to_owned() } else { String::new() }
    };
    let mut found = ["license", "license_name", "license_link"].map(field);
    if found[0].is_empty() {
        let known = LICENSES.iter().find(|(model, ..)| base.hub && *model == base.name);
        let Some((_, license, name, link)) = known else { return Default::default() };
        found = [license, name, link].map(|text| (*text).to_owned());
    }
    let link = &found[2];
    if !link.is_empty() && !link.starts_with("https://") {
        // A file of the base's own repository.
        found[2] =
            if base.hub { format!("https://huggingface.co/{}/blob/main/{link}", base.name) } else { String::new() };
    }
    found
}

/// A card.
pub struct Card<'a> {
    /// What was written.
    pub format: Format,
    /// Where to.
    pub out: &'a Path,
    /// Of which run.
    pub run: &'a RunFolder,
    /// What that was made of.
    pub recipe: &'a Recipe,
    /// What it was trained on.
    pub base: &'a Base,
    /// Whose layers it has, if that is known.
    pub family: Option<Family>,
    /// `None` of whole weights.
    pub adapter: Option<&'a Adapter>,
    /// Epochs that it was trained for.
    pub epoch: u64,
    /// Whether these are the averaged weights.
    pub ema: bool,
}

impl Card<'_> {
    /// Writes it, and beside it the run's picture of before and after if that shows these weights.
    pub fn write(&self, place: &Place) -> Result<()> {
        let result = self.result();
        let picture = self.run.images().join("before-after.png");
        let shown = result.is_some() && picture.is_file();
        if shown {
            write_atomic(&place.picture, &fs::read(&picture)?)?;
        }
        let name = place.picture.file_name().unwrap_or_default().to_string_lossy();
        let text = self.text(&place.mark, result.as_ref(), shown.then_some(&*name));
        Ok(write_atomic(&place.card, text.as_bytes())?)
    }

    fn text(&self, mark: &str, result: Option<&Value>, picture: Option<&str>) -> String {
        let mut text = format!("---\n{}---\n{mark}\n\n", self.header());
        let name = self.out.file_stem().unwrap_or_default().to_string_lossy();
        let run = self.run.path().file_name().unwrap_or_default().to_string_lossy();
        let what = match self.adapter {
            Some(Adapter { config, .. }) => {
                format!("A low-rank adapter (rank {}, alpha {}) for", config.rank, config.alpha)
            }
            None => "The weights of".into(),
        };
        let base = if self.base.hub {
            format!("[{0}](https://huggingface.co/{0})", self.base.name)
        } else {
            format!("`{}`", self.base.name)
        };
        let weights = if self.ema { "averaged" } else { "last" };
        let _ = writeln!(
            text,
            "# {name}\n\n{what} {base}, trained by reinforcement learning with elbow: the {weights} weights of epoch {} of run \
             `{run}`.\n\n## How to load it\n\n{}",
            self.epoch,
            self.loading()
        );
        if let Some(result) = result {
            let _ = writeln!(text, "## What was measured\n\n{}", self.scores(result));
        }
        if let Some(picture) = picture {
            let _ = writeln!(
                text,
                "Images of the same prompts and the same noise before and after:\n\n![Before and after]({picture})"
            );
        }
        text
    }

    /// The fields that the Hub reads.
    fn header(&self) -> String {
        let mut header = String::new();
        if self.base.hub {
            let _ = writeln!(header, "base_model: {}", self.base.name);
        }
        let folder = match &self.recipe.setting.model {
            Model::Diffusers(model) => model.path.as_deref(),
            Model::Nano { .. } => None,
        };
        for (key, value) in ["license", "license_name", "license_link"].iter().zip(license(self.base, folder)) {
            if !value.is_empty() {
                let _ = writeln!(header, "{key}: {value}");
            }
        }
        if self.python().is_some() {
            let library = if self.format == Format::Peft { "peft" } else { "diffusers" };
            let _ = writeln!(header, "library_name: {library}");
        }
        header += "pipeline_tag: text-to-image\ntags:\n";
        let kind = self.adapter.map(|_| "lora");
        let program = (self.format == Format::Comfyui).then_some("comfyui");
        for tag in [kind, program, Some("diffusers-training"), Some("reinforcement-learning"), Some("elbow")] {
            header.extend(tag.map(|tag| format!("- {tag}\n")));
        }
        header
    }

    /// How to use the files.
    fn loading(&self) -> String {
        let file = self.out.file_name().unwrap_or_default().to_string_lossy();
        if matches!(self.recipe.setting.model, Model::Nano { .. }) {
            return match self.adapter {
                None => format!("```sh\nelbow sample \"a photo of a cat\" --set model.weights={file}\n```\n"),
                Some(_) => {
                    "The base is the small model that elbow carries with it. `elbow export RUN --format merged` writes \
                            weights that `elbow sample --set model.weights=FILE` draws with.\n"
                        .into()
                }
            };
        }
        match self.python() {
            Some(python) => format!("From the folder of this file:\n\n```python\n{python}```\n"),
            None => format!(
                "In ComfyUI: put `{file}` into `models/loras`, and load it at strength 1. `diffusers` does not read it: `elbow export \
                 RUN --format diffusers` writes what it reads.\n"
            ),
        }
    }

    /// Python that draws with the files, where a package reads them, as the run evaluates.
    fn python(&self) -> Option<String> {
        let Model::Diffusers(model) = &self.recipe.setting.model else { return None };
        let component = if self.family == Some(Family::Unet) { "unet" } else { "transformer" };
        let file = self.out.file_name().unwrap_or_default().to_string_lossy();
        let layers = |part: &str| {
            self.adapter.is_some_and(|adapter| adapter.factors.entries().iter().all(|entry| entry.name.contains(part)))
        };
        let class = match self.family {
            Some(Family::Sd3) | None => "SD3Transformer2DModel",
            Some(Family::Flux) => "FluxTransformer2DModel",
            Some(Family::Unet) => "UNet2DConditionModel",
        };
        // What diffusers reads of kohya's names, for FLUX over either program's layers (`fixtures/check/`).
        let read = match (self.format, self.family) {
            (Format::Kohya, Some(Family::Flux)) => layers(".attn."),
            (Format::Comfyui, Some(Family::Flux)) => layers("transformer_blocks."),
            (Format::Kohya | Format::Comfyui, family) => family == Some(Family::Unet),
            (Format::Peft | Format::Diffusers | Format::Merged, _) => true,
        };
        if !read {
            return None;
        }
        let load = match self.format {
            Format::Peft => format!("pipe.{component} = PeftModel.from_pretrained(pipe.{component}, \".\")\n"),
            Format::Merged => String::new(),
            Format::Diffusers | Format::Kohya | Format::Comfyui => {
                format!("pipe.load_lora_weights(\".\", weight_name=\"{file}\")\n")
            }
        };
        let sampler = &self.recipe.setting.eval.measure.sampler;
        let ddim = matches!(sampler.rule, SamplerKind::Ddim(_));
        let mut imports = vec!["DiffusionPipeline"];
        imports.extend(ddim.then_some("DDIMScheduler"));
        imports.extend((self.format == Format::Merged).then_some(class));
        imports.sort_unstable();
        let mut text = format!("import torch\nfrom diffusers import {}\n", imports.join(", "));
        if self.format == Format::Peft {
            text += "from peft import PeftModel\n";
        }
        text += "\ndevice = \"cuda\" if torch.cuda.is_available() else \"cpu\"\n";
        let mut given = String::new();
        if !self.base.revision.is_empty() {
            let _ = write!(given, ", revision=\"{}\"", self.base.revision);
        }
        if let Some(variant) = &model.variant {
            let _ = write!(given, ", variant=\"{variant}\"");
        }
        if self.format == Format::Merged {
            let _ = writeln!(text, "{component} = {class}.from_pretrained(\".\", torch_dtype=torch.bfloat16)");
            let _ = write!(given, ", {component}={component}");
        }
        let base = Value::from(self.base.name.as_str());
        let _ = writeln!(text, "pipe = DiffusionPipeline.from_pretrained({base}{given}, torch_dtype=torch.bfloat16)");
        text += &load;
        if ddim {
            text += "pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)\n";
        }
        let size = model.resolution;
        let _ = write!(
            text,
            "image = pipe.to(device)(\n    \"a photo of a cat\",\n    num_inference_steps={},\n",
            sampler.steps
        );
        if self.family == Some(Family::Flux) {
            // A distilled model is told the strength; schnell, which is not, has no use for it.
            let _ = writeln!(text, "    guidance_scale={},", model.guidance);
            if sampler.guidance > 1.0 {
                let _ = writeln!(text, "    true_cfg_scale={},\n    negative_prompt=\"\",", sampler.guidance);
            }
        } else {
            let _ = writeln!(text, "    guidance_scale={},", sampler.guidance);
        }
        let _ = writeln!(text, "    height={size},\n    width={size},");
        if component == "transformer" {
            let _ = writeln!(text, "    max_sequence_length={},", model.text_length);
        }
        text += ").images[0]\nimage.save(\"image.png\")\n";
        Some(text)
    }

    /// What the run measured at its end, if it was of these weights.
    fn result(&self) -> Option<Value> {
        let text = fs::read(self.run.path().join("result.json")).ok()?;
        let result: Value = serde_json::from_slice(&text).ok()?;
        // Earlier versions say no epoch; they measured when all were trained.
        let epoch = result["protocol"]["epoch"].as_u64().unwrap_or(self.recipe.method.epochs);
        (self.ema && epoch == self.epoch).then_some(result)
    }

    /// A table of the scores before and after, and how they came about.
    fn scores(&self, result: &Value) -> String {
        let mut text = "| reward | base | tuned |\n|---|---|---|\n".to_owned();
        let number = |value: &Value| value.as_f64().map_or_else(|| "missing".into(), |number| format!("{number:.4}"));
        for (name, tuned) in result["tuned"].as_object().into_iter().flatten() {
            let base = &result["base"][name];
            let _ = writeln!(
                text,
                "| {} | {} | {} |",
                name.trim_start_matches("eval_reward_"),
                number(base),
                number(tuned)
            );
        }
        let measure = &self.recipe.setting.eval.measure;
        let (sampler, size) = (&measure.sampler, self.recipe.setting.model.resolution());
        let prompts = result["protocol"]["prompts"].as_u64().map_or_else(String::new, |prompts| format!("{prompts} "));
        let rule = serde_json::to_value(&sampler.rule).unwrap_or_default();
        let images = if measure.images_per_prompt == 1 { "image" } else { "images" };
        let _ = write!(
            text,
            "\nMeans over {prompts}held-out prompts, {} {images} each, of {size} × {size} pixels from the noise of seed {}: sampler \
             `{}`, {} steps, guidance {}",
            measure.images_per_prompt,
            measure.seed,
            rule["kind"].as_str().unwrap_or_default(),
            sampler.steps,
            sampler.guidance
        );
        if let (Model::Diffusers(model), Some(Family::Flux)) = (&self.recipe.setting.model, self.family) {
            let _ = write!(text, " (told to the network: {})", model.guidance);
        }
        text += ".\n";
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use elbow_run::model::Diffusers;

    #[test]
    fn a_base_has_its_name_on_the_hub_where_that_is_known() {
        let at = |path: &str| Model::Diffusers(Diffusers::at(path.into()));
        let cache = at("/home/me/.cache/huggingface/hub/models--o--n-1.5/snapshots/0123abc");
        let base = Base::of(&cache, None).expect("a name");
        assert_eq!((&*base.name, &*base.revision, base.hub), ("o/n-1.5", "0123abc", true));
        let base = Base::of(&at("models/n"), None).expect("a folder");
        assert_eq!((&*base.name, &*base.revision, base.hub), ("models/n", "", false));
        let base = Base::of(&at("models/n"), Some("o/n")).expect("a name");
        assert_eq!((&*base.name, base.hub), ("o/n", true));
        let error = Base::of(&at("models/n"), Some("/models/n")).expect_err("no name").to_string();
        assert!(error.contains("--base-model /models/n"), "{error}");
    }

    #[test]
    fn a_license_is_read_or_known_and_never_guessed() {
        let folder = tempfile::tempdir().expect("a folder");
        let hub = |name: &str| Base { name: name.into(), revision: String::new(), hub: true };
        let write = |text: &str| fs::write(folder.path().join("README.md"), text).expect("written");
        let dev = hub("black-forest-labs/FLUX.1-dev");
        let link = "https://huggingface.co/black-forest-labs/FLUX.1-dev/blob/main/LICENSE.md";
        assert_eq!(license(&dev, None), ["other", "flux-1-dev-non-commercial-license", link]);
        assert_eq!(license(&hub("o/n"), Some(folder.path())), ["", "", ""]);
        write("---\ntags:\n- a\nlicense: other\nlicense_name: \"mine-1\"\nlicense_link: LICENSE\n---\nlicense: mit\n");
        let own = license(&hub("o/n"), Some(folder.path()));
        assert_eq!(own, ["other", "mine-1", "https://huggingface.co/o/n/blob/main/LICENSE"]);
        let elsewhere = Base { name: "models/n".into(), revision: String::new(), hub: false };
        assert_eq!(license(&elsewhere, Some(folder.path())), ["other", "mine-1", ""]);
        write("---\nlicense:\n- mit\n---\n");
        assert_eq!(license(&elsewhere, Some(folder.path())), ["", "", ""]);
        assert_eq!(license(&Base { hub: false, ..dev }, None), ["", "", ""]);
    }
}
