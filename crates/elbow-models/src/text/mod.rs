//! Prompts to embeddings, as the pipelines of `diffusers` make them from a model folder.
//!
//! | pipeline | tokens | pooled |
//! |---|---|---|
//! | SD3, SD3.5 | CLIP-L ‖ CLIP-G, states before the last layer, zeros up to T5's width; below them T5 | both projections |
//! | FLUX.1 | T5 | CLIP-L at the end of the text |
//! | SD1.x, SD2.x | CLIP's last states | CLIP at the end of the text; the network does not use it |
//!
//! [`TextParts::open`] checks everything and reads no weights, [`TextParts::load`] reads them, and [`Cached`] loads only
//! for prompts it has not seen.

mod cache;
pub mod clip;
mod layers;
mod spiece;
pub mod t5;
mod tokenizer;

pub use cache::Cached;
pub use layers::Ids;
pub use tokenizer::TextTokenizer;

use crate::folder::{Checkpoint, Folder, FolderError, FrozenWeights, Pipeline};
use burn::tensor::{Device, Tensor};
use clip::{Clip, ClipConfig};
use elbow::{
    Prompt,
    policy::{Conditioning, EncodeError, TextEncoder},
};
use std::path::PathBuf;
use t5::{T5, T5Config};

/// CLIP sees 77 tokens.
pub(crate) const CLIP_LENGTH: usize = 77;
/// Prompts that go through an encoder together.
const BATCH: usize = 8;
/// Text encoders are saved by `transformers`.
const STEM: &str = "model";

/// One text encoder: its tokenizer, configuration and weights, checked and not yet read.
#[derive(Debug)]
struct Part<C> {
    tokenizer: TextTokenizer,
    config: C,
    checkpoint: Checkpoint,
    /// The folders of tokenizer and weights.
    folders: [PathBuf; 2],
}

/// The text encoders of a model folder, checked: what is wrong with them is known, and no weight was read.
#[derive(Debug)]
pub struct TextParts {
    pipeline: Pipeline,
    clips: Vec<Part<ClipConfig>>,
    t5: Option<Part<T5Config>>,
    /// Width of a text token.
    width: usize,
}

impl TextParts {
    /// The text encoders of a folder. `length` is the number of T5 tokens: 256 for SD3 and 512 for FLUX by default in the
    /// pipelines, 128 where the field trains SD3.5. Without T5 (SD3 allows it) its tokens are zeros, as in the pipeline.
    pub fn open(folder: &Folder, length: usize) -> Result<Self, FolderError> {
        let pipeline = folder.pipeline();
        let (clip, projected): (&[&str], &[&str]) = (&["CLIPTextModel"], &["CLIPTextModelWithProjection"]);
        let (clips, t5) = match pipeline {
            Pipeline::StableDiffusion3 => {
                let clips = vec![
                    open_clip(folder, "text_encoder", "tokenizer", projected)?,
                    open_clip(folder, "text_encoder_2", "tokenizer_2", projected)?,
                ];
                let present = folder.class("text_encoder_3").is_some();
                let t5 = present.then(|| open_t5(folder, "text_encoder_3", "tokenizer_3", length)).transpose()?;
                (clips, t5)
            }
            Pipeline::Flux => {
                let clips = vec![open_clip(folder, "text_encoder", "tokenizer", clip)?];
                (clips, Some(open_t5(folder, "text_encoder_2", "tokenizer_2", length)?))
            }
            Pipeline::StableDiffusion => (vec![open_clip(folder, "text_encoder", "tokenizer", clip)?], None),
        };
        let widths: usize = clips.iter().map(|part| part.config.hidden_size).sum();
        let width = match (pipeline, &t5) {
            (Pipeline::StableDiffusion, _) => widths,
            (_, Some(t5)) => t5.config.d_model,
            (_, None) => joint_width(folder)?,
        };
        if pipeline == Pipeline::StableDiffusion3 && widths > width {
            let (file, accepted) =
                (clips[1].folders[1].join("config.json"), format!("together at most {width} beside a text token"));
            return Err(FolderError::unsupported(&file, "hidden_size", clips[1].config.hidden_size, &accepted));
        }
        Ok(Self { pipeline, clips, t5, width })
    }

    /// Width of a text token, and of the pooled text.
    pub fn widths(&self) -> (usize, usize) {
        (self.width, self.clips.iter().map(|part| part.config.pooled_width()).sum())
    }

    /// Reads the weights.
    pub fn load(&self, weights: FrozenWeights, device: &Device) -> Result<TextModel<'_>, FolderError> {
        let clips = self.clips.iter().map(|part| Clip::load(part.config.clone(), &part.checkpoint, weights, device));
        let t5 = self.t5.as_ref().map(|part| T5::load(part.config.clone(), &part.checkpoint, weights, device));
        Ok(TextModel { parts: self, clips: clips.collect::<Result<_, _>>()?, t5: t5.transpose()? })
    }
}

fn open_clip(
    folder: &Folder,
    encoder: &'static str,
    tokenizer: &'static str,
    classes: &[&str],
) -> Result<Part<ClipConfig>, FolderError> {
    let place = folder.component(encoder, classes)?;
    let words = folder.component(tokenizer, &["CLIPTokenizer", "CLIPTokenizerFast"])?;
    let config = ClipConfig::read(&place.join("config.json"))?;
    if config.projects() != (classes == ["CLIPTextModelWithProjection"]) {
        let (file, class) = (place.join("config.json"), config.architectures[0].clone());
        return Err(FolderError::unsupported(&file, "architectures", class, &classes.join(" and ")));
    }
    let checkpoint = folder.checkpoint(encoder, STEM)?;
    Clip::check(&config, &checkpoint)?;
    let tokenizer = TextTokenizer::clip(&words, CLIP_LENGTH.min(config.max_position_embeddings))?;
    Ok(Part { tokenizer, config, checkpoint, folders: [words, place] })
}

fn open_t5(
    folder: &Folder,
    encoder: &'static str,
    tokenizer: &'static str,
    length: usize,
) -> Result<Part<T5Config>, FolderError> {
    let place = folder.component(encoder, &["T5EncoderModel"])?;
    let words = folder.component(tokenizer, &["T5TokenizerFast", "T5Tokenizer"])?;
    let config = T5Config::read(&place.join("config.json"))?;
    let checkpoint = folder.checkpoint(encoder, STEM)?;
    T5::check(&config, &checkpoint)?;
    let tokenizer = TextTokenizer::t5(&words, length)?;
    Ok(Part { tokenizer, config, checkpoint, folders: [words, place] })
}

/// Width of a text token where no T5 says it.
fn joint_width(folder: &Folder) -> Result<usize, FolderError> {
    #[derive(serde::Deserialize)]
    struct Transformer {
        joint_attention_dim: usize,
    }
    Ok(folder.config::<Transformer>("transformer")?.joint_attention_dim)
}

/// The text encoders of a pipeline with their weights.
#[derive(Debug)]
pub struct TextModel<'a> {
    parts: &'a TextParts,
    clips: Vec<Clip>,
    t5: Option<T5>,
}

impl TextModel<'_> {
    fn batch(&self, prompts: &[Prompt]) -> Result<Conditioning, EncodeError> {
        let texts = || prompts.iter().map(|p| p.text.as_str());
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| EncodeError {
            prompt: prompts[0].text.clone(),
            reason: format!("the tokenizer fails: {error}"),
        };
        let mut clips = Vec::new();
        for (clip, part) in self.clips.iter().zip(&self.parts.clips) {
            clips.push(clip.forward(&part.tokenizer.ids(texts()).map_err(failed)?));
        }
        let t5 = match (&self.t5, &self.parts.t5) {
            (Some(t5), Some(part)) => Some(t5.forward(&part.tokenizer.ids(texts()).map_err(failed)?)),
            _ => None,
        };
        Ok(match self.parts.pipeline {
            Pipeline::StableDiffusion3 => {
                let pooled = Tensor::cat(clips.iter().map(|c| c.pooled.clone()).collect(), 1);
                let tokens = Tensor::cat(clips.into_iter().map(|c| c.penultimate).collect(), 2);
                let [n, length, width] = tokens.dims();
                let zeros = |l, w| Tensor::<3>::zeros([n, l, w], &tokens.device());
                let t5 = t5.unwrap_or_else(|| zeros(length, self.parts.width));
                let right = zeros(length, self.parts.width - width);
                let tokens = if width < self.parts.width { Tensor::cat(vec![tokens, right], 2) } else { tokens };
                Conditioning { tokens: Tensor::cat(vec![tokens, t5], 1), mask: None, pooled: Some(pooled) }
            }
            Pipeline::Flux => {
                let pooled = clips.remove(0).pooled;
                Conditioning { tokens: t5.expect("invariant: FLUX has T5"), mask: None, pooled: Some(pooled) }
            }
            Pipeline::StableDiffusion => {
                let clip = clips.remove(0);
                Conditioning { tokens: clip.last, mask: None, pooled: Some(clip.pooled) }
            }
        })
    }
}

impl TextEncoder for TextModel<'_> {
    fn encode(&self, prompts: &[Prompt]) -> Result<Conditioning, EncodeError> {
        let parts = prompts.chunks(BATCH).map(|chunk| self.batch(chunk)).collect::<Result<Vec<_>, _>>()?;
        Ok(Conditioning::cat(&parts.iter().collect::<Vec<_>>()))
    }
}
