//! Prompts to token ids, as the `transformers` tokenizers that are built on the `tokenizers` library do it.

use super::spiece::{Kind, SentencePieces};
use crate::folder::{FolderError, read_json, read_text, recognize};
use serde_json::{Map, Value, json};
use std::{fs, path::Path};
use tokenizers::{
    AddedToken, NormalizerWrapper, PreTokenizerWrapper, SplitDelimiterBehavior, Tokenizer, TruncationParams,
    models::{bpe::BPE, unigram::Unigram},
    normalizers::{Lowercase, NFC, Precompiled, Replace, Sequence, replace::ReplacePattern},
    pre_tokenizers::{
        byte_level::ByteLevel,
        metaspace::{Metaspace, PrependScheme},
        sequence::Sequence as PreSequence,
        split::{Split, SplitPattern},
        whitespace::WhitespaceSplit,
    },
    processors::{roberta::RobertaProcessing, template::TemplateProcessing},
};

/// How CLIP cuts a text into words before it looks for pairs to merge.
const CLIP_WORDS: &str = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// A tokenizer that cuts and pads to one length.
///
/// Two properties of the reference are kept. A token that `tokenizer_config.json` names special is found inside words
/// too: where SD3 pads with `!`, a `!` in the prompt becomes the padding token. And Chinese characters of one run are
/// merged, as OpenAI's CLIP does; the tokenizer in pure Python of `transformers` 4 puts spaces around each.
#[derive(Clone, Debug)]
pub struct TextTokenizer {
    inner: Tokenizer,
    length: usize,
    pad: u32,
}

type Reason = Box<dyn std::error::Error + Send + Sync>;

impl TextTokenizer {
    /// From `tokenizer.json`, or `vocab.json` and `merges.txt`. Rows have the model's length, at most `longest` tokens.
    pub fn clip(folder: &Path, longest: usize) -> Result<Self, FolderError> {
        let settings = Settings::read(folder)?;
        let (json, vocabulary, merges) = ("tokenizer.json", folder.join("vocab.json"), folder.join("merges.txt"));
        let inner = if folder.join(json).is_file() {
            from_json(&folder.join(json))?
        } else {
            recognize::check_links([&folder.join(json), &vocabulary, &merges])?;
            let absent = [&vocabulary, &merges].into_iter().filter(|p| !p.is_file());
            let absent: Vec<String> =
                absent.filter_map(|p| Some(p.file_name()?.to_string_lossy().into_owned())).collect();
            if !absent.is_empty() {
                let hint = " (nor tokenizer.json): a CLIP tokenizer is vocab.json and merges.txt".into();
                return Err(FolderError::Missing { folder: folder.into(), files: absent, hint });
            }
            settings.clip(&read_json(&vocabulary)?, &read_text(&merges)?).map_err(tokenizer_error(&vocabulary))?
        };
        let length = settings.length.map_or(longest, |own| own.min(longest));
        Self::new(folder, inner, settings.token("pad_token", "<|endoftext|>"), length)
    }

    /// From `tokenizer.json` or `spiece.model`. Rows have `length` tokens.
    pub fn t5(folder: &Path, length: usize) -> Result<Self, FolderError> {
        let settings = Settings::read(folder)?;
        let (json, pieces) = (folder.join("tokenizer.json"), folder.join("spiece.model"));
        let inner = match (json.is_file(), pieces.is_file()) {
            (true, _) => from_json(&json)?,
            (false, true) => {
                let file = fs::read(&pieces).map_err(FolderError::read(&pieces))?;
                if let Some(foreign) = recognize::bytes(&file) {
                    return Err(foreign.at(&pieces));
                }
                settings.t5(&file).map_err(tokenizer_error(&pieces))?
            }
            (false, false) => {
                recognize::check_links([&json, &pieces])?;
                let files = vec!["tokenizer.json".into(), "spiece.model".into()];
                let hint = ": a T5 tokenizer is one of them".into();
                return Err(FolderError::Missing { folder: folder.into(), files, hint });
            }
        };
        Self::new(folder, inner, settings.token("pad_token", "<pad>"), length)
    }

    fn new(folder: &Path, mut inner: Tokenizer, pad: String, length: usize) -> Result<Self, FolderError> {
        let wrong = |reason: String| FolderError::Tokenizer { path: folder.into(), reason };
        let pad = inner
            .token_to_id(&pad)
            .ok_or_else(|| wrong(format!("the padding token {pad:?} is not in the vocabulary")))?;
        inner.with_padding(None);
        let truncation = TruncationParams { max_length: length, ..TruncationParams::default() };
        if length < 3 {
            return Err(wrong(format!("rows of {length} tokens have no room for a word")));
        }
        inner.with_truncation(Some(truncation)).map_err(|error| wrong(error.to_string()))?;
        Ok(Self { inner, length, pad })
    }

    /// Tokens in a row.
    pub fn length(&self) -> usize {
        self.length
    }

    /// One row of ids for each text, cut and padded to [`Self::length`].
    pub fn ids<'a>(&self, texts: impl IntoIterator<Item = &'a str>) -> Result<Vec<Vec<u32>>, Reason> {
        let row = |text: &str| -> Result<Vec<u32>, Reason> {
            let mut ids = self.inner.encode_fast(text, true)?.get_ids().to_vec();
            ids.resize(self.length, self.pad);
            Ok(ids)
        };
        texts.into_iter().map(row).collect()
    }

    /// The tokens that each text has before it is cut, those that begin and end it included.
    pub fn lengths<'a>(&self, texts: impl IntoIterator<Item = &'a str>) -> Result<Vec<usize>, Reason> {
        let mut whole = self.inner.clone();
        whole.with_truncation(None)?;
        texts.into_iter().map(|text| Ok(whole.encode_fast(text, true)?.len())).collect()
    }
}

fn from_json(path: &Path) -> Result<Tokenizer, FolderError> {
    read_text(path)?.parse().map_err(tokenizer_error(path))
}

fn tokenizer_error(path: &Path) -> impl FnOnce(Reason) -> FolderError {
    move |error| FolderError::Tokenizer { path: path.into(), reason: error.to_string() }
}

/// What `tokenizer_config.json` and `special_tokens_map.json` say; both may be absent.
struct Settings {
    tokens: Map<String, Value>,
    length: Option<usize>,
    extra_ids: usize,
}

impl Settings {
    fn read(folder: &Path) -> Result<Self, FolderError> {
        let mut tokens = Map::new();
        for name in ["special_tokens_map.json", "tokenizer_config.json"] {
            let path = folder.join(name);
            if path.is_file() {
                tokens.extend(read_json::<Map<String, Value>>(&path)?);
            } else if !folder.is_dir() {
                let files = vec![folder.file_name().unwrap_or_default().to_string_lossy().into_owned() + "/"];
                let folder = folder.parent().unwrap_or(folder).into();
                return Err(FolderError::Missing { folder, files, hint: ": download the whole model".into() });
            }
        }
        let number = |name: &str| tokens.get(name).and_then(Value::as_u64).map(|n| n as usize);
        // `transformers` writes 10³⁰ for "no limit", which is no integer here.
        Ok(Self { length: number("model_max_length"), extra_ids: number("extra_ids").unwrap_or(100), tokens })
    }

    /// The text of a special token, which is written as a string or as an object with `content`.
    fn token(&self, role: &str, default: &str) -> String {
        let value = self.tokens.get(role).unwrap_or(&Value::Null);
        value.as_str().or_else(|| value.get("content")?.as_str()).unwrap_or(default).to_owned()
    }

    /// NFC, one space for any white space, lower case; words; bytes; merges; start and end token.
    fn clip(&self, vocabulary: &Map<String, Value>, merges: &str) -> Result<Tokenizer, Reason> {
        let end = self.token("eos_token", "<|endoftext|>");
        let [unknown, pad] = ["unk_token", "pad_token"].map(|role| self.token(role, &end));
        let start = self.token("bos_token", "<|startoftext|>");
        let merges: Vec<&str> = merges.lines().filter(|line| !line.is_empty()).collect();
        let model: BPE = serde_json::from_value(json!({
            "vocab": vocabulary, "merges": merges, "unk_token": unknown, "end_of_word_suffix": "</w>"
        }))?;
        let mut tokenizer = Tokenizer::new(model);
        let spaces = Replace::new(ReplacePattern::Regex(r"\s+".into()), " ")?;
        let steps: Vec<NormalizerWrapper> = vec![NFC.into(), spaces.into(), Lowercase.into()];
        tokenizer.with_normalizer(Some(Sequence::new(steps)));
        let words = Split::new(SplitPattern::Regex(CLIP_WORDS.into()), SplitDelimiterBehavior::Removed, true)?;
        let bytes = ByteLevel::default().add_prefix_space(false);
        tokenizer.with_pre_tokenizer(Some(PreSequence::new(vec![words.into(), bytes.into()])));
        let id =
            |token: &str| tokenizer.token_to_id(token).ok_or_else(|| format!("{token:?} is not in the vocabulary"));
        let ends = RobertaProcessing::new((end.clone(), id(&end)?), (start.clone(), id(&start)?));
        id(&pad)?;
        tokenizer.with_post_processor(Some(ends.trim_offsets(false).add_prefix_space(false)));
        tokenizer.add_special_tokens(&[start, end, unknown, pad].map(|token| AddedToken::from(token, true)));
        Ok(tokenizer)
    }

    /// The file's normalization; words by white space, each with ▁ before it; the likeliest pieces; end token.
    fn t5(&self, file: &[u8]) -> Result<Tokenizer, Reason> {
        let SentencePieces { pieces, charsmap, unknown } = SentencePieces::read(file)?;
        let sentinels: Vec<String> = (0..self.extra_ids).rev().map(|i| format!("<extra_id_{i}>")).collect();
        let control = pieces.iter().filter(|p| matches!(p.kind, Kind::Control | Kind::UserDefined));
        let [end, none, pad] =
            [("eos_token", "</s>"), ("unk_token", "<unk>"), ("pad_token", "<pad>")].map(|(r, d)| self.token(r, d));
        let special = control.map(|p| p.text.clone()).chain(sentinels.clone()).chain([end.clone(), none, pad]);
        let special: Vec<AddedToken> = special.map(|token| AddedToken::from(token, true)).collect();
        let scored = pieces.into_iter().map(|p| (p.text, f64::from(p.score)));
        let scored = scored.chain(sentinels.into_iter().map(|s| (s, 0.0))).collect();
        let mut tokenizer = Tokenizer::new(Unigram::from(scored, Some(unknown), false)?);
        if !charsmap.is_empty() {
            let normalizer = Precompiled::from(&charsmap).map_err(|error| format!("its charsmap: {error}"))?;
            tokenizer.with_normalizer(Some(normalizer));
        }
        let words: Vec<PreTokenizerWrapper> =
            vec![WhitespaceSplit.into(), Metaspace::new('▁', PrependScheme::Always, true).into()];
        tokenizer.with_pre_tokenizer(Some(PreSequence::new(words)));
        let id = tokenizer.token_to_id(&end).ok_or_else(|| format!("{end:?} is not in the vocabulary"))?;
        let template = TemplateProcessing::builder()
            .try_single(vec!["$A".to_owned(), end.clone()])?
            .special_tokens(vec![(end, id)])
            .build()?;
        tokenizer.with_post_processor(Some(template));
        tokenizer.add_special_tokens(&special);
        Ok(tokenizer)
    }
}
