//! Model folders as `diffusers` writes them.
//!
//! ```text
//! <folder>/model_index.json                   which pipeline, and the class of each component
//! <folder>/transformer/config.json            (or unet/)
//! <folder>/transformer/diffusion_pytorch_model.safetensors
//! <folder>/text_encoder/model.safetensors     or shards, mostly listed in model.safetensors.index.json
//! <folder>/text_encoder/model.fp16.safetensors    a variant
//! <folder>/tokenizer/vocab.json, merges.txt
//! <folder>/vae/, scheduler/, …
//! ```
//!
//! Opening a folder reads the small files and the headers of the large ones, so that everything that is wrong is known
//! before any weight is read.

mod checkpoint;
mod error;
mod json;
pub mod recognize;

pub use checkpoint::{Checkpoint, FrozenWeights, Shapes};
pub(crate) use checkpoint::{finite, unreadable};
pub use error::FolderError;
pub use json::{read_json, read_text};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// The pipelines whose parts are known here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pipeline {
    /// SD3 and SD3.5.
    StableDiffusion3,
    /// FLUX.1.
    Flux,
    /// SD1.x and SD2.x.
    StableDiffusion,
}

impl Pipeline {
    /// The component that is its network, and the class of that.
    pub fn network(self) -> (&'static str, &'static str) {
        match self {
            Self::StableDiffusion3 => ("transformer", "SD3Transformer2DModel"),
            Self::Flux => ("transformer", "FluxTransformer2DModel"),
            Self::StableDiffusion => ("unet", "UNet2DConditionModel"),
        }
    }
}

/// An open model folder.
#[derive(Clone, Debug)]
pub struct Folder {
    path: PathBuf,
    pipeline: Pipeline,
    variant: Option<String>,
    index: Map<String, Value>,
}

impl Folder {
    /// Reads `model_index.json`. Of weights that exist in the given variant (`fp16`), that one is used; others as they are.
    pub fn open(path: &Path, variant: Option<&str>) -> Result<Self, FolderError> {
        let file = path.join("model_index.json");
        if path.is_file() {
            return Err(recognize::given_as_model(path));
        }
        if !file.is_file() {
            return Err(missing(path, "model_index.json", || recognize::elsewhere(path)));
        }
        let index: Map<String, Value> = read_json(&file)?;
        let class = index.get("_class_name").and_then(Value::as_str).unwrap_or("absent");
        let pipeline = match class {
            // Those that start from a picture are made of the same parts.
            "StableDiffusion3Pipeline" | "StableDiffusion3Img2ImgPipeline" => Pipeline::StableDiffusion3,
            "FluxPipeline" | "FluxImg2ImgPipeline" => Pipeline::Flux,
            "StableDiffusionPipeline" | "StableDiffusionImg2ImgPipeline" => Pipeline::StableDiffusion,
            other => {
                let accepted = "StableDiffusion3Pipeline, FluxPipeline and StableDiffusionPipeline";
                let what = kind(other).map_or_else(|| other.to_owned(), |kind| format!("{other} ({kind})"));
                return Err(FolderError::unsupported(&file, "_class_name", what, accepted));
            }
        };
        Ok(Self { path: path.into(), pipeline, variant: variant.map(String::from), index })
    }

    /// The pipeline the folder says it is.
    pub fn pipeline(&self) -> Pipeline {
        self.pipeline
    }

    /// The class of a component, such as `T5EncoderModel`; `None` if the pipeline goes without it.
    pub fn class(&self, component: &str) -> Option<&str> {
        self.index.get(component)?.get(1)?.as_str()
    }

    /// The folder of a component, which must be of the given class.
    pub fn component(&self, component: &'static str, classes: &[&str]) -> Result<PathBuf, FolderError> {
        let file = self.path.join("model_index.json");
        let class = self.class(component).unwrap_or("absent");
        if !classes.contains(&class) {
            return Err(FolderError::unsupported(&file, component, class, &classes.join(" and ")));
        }
        let folder = self.path.join(component);
        if folder.is_dir() {
            return Ok(folder);
        }
        Err(missing(&self.path, &format!("{component}/"), || {
            let t5 = self.pipeline == Pipeline::StableDiffusion3 && component.ends_with("_3");
            let way_out =
                "; to go without T5, put [null, null] for text_encoder_3 and tokenizer_3 into model_index.json";
            format!(", which model_index.json lists: download the whole model{}", if t5 { way_out } else { "" })
        }))
    }

    /// The configuration of a component.
    pub fn config<T: DeserializeOwned>(&self, component: &str) -> Result<T, FolderError> {
        read_json(&self.path.join(component).join("config.json"))
    }

    /// The weights of a component; `stem` is `diffusion_pytorch_model` or, for text encoders, `model`.
    pub fn checkpoint(&self, component: &str, stem: &str) -> Result<Checkpoint, FolderError> {
        Checkpoint::open(&self.path.join(component), stem, self.variant.as_deref())
    }
}

/// The error for a missing file or folder: a dangling link, or nothing by that name, with a hint.
fn missing(folder: &Path, file: &str, hint: impl FnOnce() -> String) -> FolderError {
    let lost = recognize::check_links([folder.join(file.trim_end_matches('/'))]).err();
    lost.unwrap_or_else(|| FolderError::Missing { folder: folder.into(), files: vec![file.into()], hint: hint() })
}

/// What a pipeline of another kind does, in a few words.
fn kind(class: &str) -> Option<&'static str> {
    let kinds = [
        ("StableDiffusionXL", "Stable Diffusion XL"),
        ("Inpaint", "a model for inpainting"),
        ("FluxFill", "a model for inpainting"),
        ("ControlNet", "a model that is told shapes by a picture"),
        ("FluxControl", "a model that is told shapes by a picture"),
        ("FluxKontext", "a model that edits pictures"),
        ("InstructPix2Pix", "a model that edits pictures"),
        ("Upscale", "a model that enlarges pictures"),
        ("Flux2", "FLUX.2"),
        ("LatentConsistency", "a model that was distilled to a few steps"),
        ("Video", "a model of video"),
    ];
    kinds.into_iter().find(|(part, _)| class.contains(part)).map(|(_, kind)| kind)
}
