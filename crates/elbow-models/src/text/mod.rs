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
use std::{collections::BTreeSet, path::PathBuf};
use t5::{T5, T5Config};

/// CLIP sees 77 tokens.
pub(crate) const CLIP_LENGTH: usize = 77;
/// Prompts that go through an encoder together.
const BATCH: usize = 8;
/// Text encoders are saved by `transformers`.
const STEM: &str = "model";
/// Fields that `transformers` writes into the configuration of any model, about training and about writing text.
const TRANSFORMERS: &[&str] = &[
    "add_cross_attention",
    "attn_implementation",
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "chunk_size_feed_forward",
    "cross_attention_hidden_size",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "dtype",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "gradient_checkpointing",
    "id2label",
    "is_decoder",
    "is_encoder_decoder",
    "label2id",
    "length_penalty",
    "max_length",
    "min_length",
    "model_type",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "pad_token_id",
    "prefix",
    "problem_type",
    "pruned_heads",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict",
    "return_dict_in_generate",
    "sep_token_id",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tie_encoder_decoder",
    "tie_word_embeddings",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "typical_p",
    "use_bfloat16",
    "use_cache",
];

/// One text encoder: its tokenizer, configuration and weights, checked and not yet read.
#[derive(Debug)]
struct Part<C> {
    /// What of its configuration is worth a warning.
    warnings: Vec<String>,
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
    /// Tokens of T5, also where it is left out.
    length: usize,
}

impl TextParts {
    /// The text encoders of a folder. `length` is the number of T5 tokens: 256 for SD3 and 512 for FLUX by default in the
    /// pipelines, 128 where the field trains SD3.5. Without T5 (SD3 allows it) its tokens are that many zeros, as in the pipeline since
    /// diffusers 0.36.
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
        Ok(Self { pipeline, clips, t5, width, length })
    }

    /// What of the encoders' configurations is worth a warning, a sentence each.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let clips = self.clips.iter().map(|part| (&part.folders[1], &part.warnings));
        let all = clips.chain(self.t5.iter().map(|part| (&part.folders[1], &part.warnings)));
        let told = |(folder, warnings): (&PathBuf, &Vec<String>)| {
            let file = folder.join("config.json");
            warnings.iter().map(move |warning| format!("{}: {warning}", file.display())).collect::<Vec<_>>()
        };
        all.flat_map(told).collect()
    }

    /// Whether all weights are finite numbers.
    pub(crate) fn check_values(&self) -> Result<(), FolderError> {
        for part in &self.clips {
            part.checkpoint.check_values(&part.config.shapes(clip::prefix(&part.checkpoint)))?;
        }
        self.t5.as_ref().map_or(Ok(()), |part| part.checkpoint.check_values(&part.config.shapes()))
    }

    /// Says of which encoder how many of these prompts are too long, a sentence an encoder.
    pub fn cut(&self, prompts: &[Prompt]) -> Vec<String> {
        let texts: BTreeSet<&str> = prompts.iter().map(|prompt| prompt.text.as_str()).collect();
        let lengths = |tokenizer: &TextTokenizer| tokenizer.lengths(texts.iter().copied()).unwrap_or_default();
        let mut told = Vec::new();
        // Both encoders of SD3 have one vocabulary.
        if let Some(tokenizer) =
            self.clips.iter().map(|part| &part.tokenizer).min_by_key(|tokenizer| tokenizer.length())
        {
            told.extend(cut_at(tokenizer.length(), "CLIP", &lengths(tokenizer)));
        }
        if let Some(part) = &self.t5 {
            told.extend(cut_at(part.tokenizer.length(), "T5 (text_length)", &lengths(&part.tokenizer)));
        }
        told
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

/// A sentence of the texts that are longer than `most` tokens.
fn cut_at(most: usize, encoder: &str, lengths: &[usize]) -> Option<String> {
    let longer = lengths.iter().filter(|length| **length > most).count();
    let longest = lengths.iter().max().filter(|_| longer > 0)?;
    let (total, many) = (lengths.len(), longer != 1);
    let (are, they) = if many { ("are", "are cut; the longest has") } else { ("is", "is cut; it has") };
    Some(format!("{longer} of {total} prompts {are} longer than the {most} tokens of {encoder} and {they} {longest}"))
}

fn open_clip(
    folder: &Folder,
    encoder: &'static str,
    tokenizer: &'static str,
    classes: &[&str],
) -> Result<Part<ClipConfig>, FolderError> {
    let place = folder.component(encoder, classes)?;
    let words = folder.component(tokenizer, &["CLIPTokenizer", "CLIPTokenizerFast"])?;
    let (mut config, warnings) = ClipConfig::told(&place.join("config.json"))?;
    if config.architectures.first().is_some_and(|class| class == "CLIPModel") {
        config.architectures = classes.iter().map(|class| (*class).to_owned()).collect();
    }
    if config.projects() != (classes == ["CLIPTextModelWithProjection"]) {
        let (file, class) = (place.join("config.json"), config.architectures[0].clone());
        return Err(FolderError::unsupported(&file, "architectures", class, &classes.join(" and ")));
    }
    let projects = config.projects();
    let beside = |name: &str| clip::is_beside_text(name) || !projects && name.starts_with("text_projection.");
    let checkpoint = folder.checkpoint(encoder, STEM)?.without(beside);
    Clip::check(&config, &checkpoint)?;
    let tokenizer = TextTokenizer::clip(&words, CLIP_LENGTH.min(config.max_position_embeddings))?;
    Ok(Part { warnings, tokenizer, config, checkpoint, folders: [words, place] })
}

fn open_t5(
    folder: &Folder,
    encoder: &'static str,
    tokenizer: &'static str,
    length: usize,
) -> Result<Part<T5Config>, FolderError> {
    let place = folder.component(encoder, &["T5EncoderModel"])?;
    let words = folder.component(tokenizer, &["T5TokenizerFast", "T5Tokenizer"])?;
    let (config, warnings) = T5Config::told(&place.join("config.json"))?;
    let checkpoint = folder.checkpoint(encoder, STEM)?.without(t5::is_beside_encoder);
    let usual = t5::usual_name(&checkpoint);
    let checkpoint = checkpoint.renamed(usual);
    T5::check(&config, &checkpoint)?;
    let tokenizer = TextTokenizer::t5(&words, length)?;
    Ok(Part { warnings, tokenizer, config, checkpoint, folders: [words, place] })
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
                let t5 = t5.unwrap_or_else(|| zeros(self.parts.length, self.parts.width));
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

    fn cut(&self, prompts: &[Prompt]) -> Vec<String> {
        self.parts.cut(prompts)
    }
}
