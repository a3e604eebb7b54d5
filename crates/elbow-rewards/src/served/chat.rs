//! A vision model as judge, behind the chat completions of OpenAI's interface, as vLLM, SGLang, llama.cpp and others serve it.
//!
//! The judge sees one picture and a text with the prompt, and its answer holds a score. Or it sees two pictures of a group and
//! says which is better: a sample's score is then its share of wins (Pref-GRPO, arXiv 2508.20751).

use super::{Sample, base64, encoded, failed, http::Http, json, side_by_side, template::Template};
use crate::jpeg;
use elbow::{Prompt, Request, RewardError, RgbImage, Score};
use image::imageops::{self, FilterType};
use regex::Regex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::{collections::BTreeMap, io::Cursor};

/// Any judge.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Chat {
    /// The model's name on the server.
    pub model: String,
    /// What it is asked. `{prompt}` stands for the prompt and `{metadata.KEY}` for a key of its line in the prompt file. Without
    /// it the judge is asked for a `Score:` from 0 to 10, or which of two pictures is `Better:`, 1, 2 or tie.
    #[serde(default)]
    pub template: Option<String>,
    /// The longest answer, in tokens.
    #[serde(default = "max_tokens")]
    pub max_tokens: u32,
    /// Where the score stands in the answer: the one group of a regular expression, at its first match. Of two pictures the group
    /// is `1`, `2` or `tie`.
    #[serde(default)]
    pub pattern: Option<String>,
    /// The place of the score in an answer that is JSON, as `/score`, in place of `pattern`. The server is told to answer so.
    #[serde(default)]
    pub field: Option<String>,
    /// What the score is divided by.
    #[serde(default = "one")]
    pub divide_by: f64,
    /// Pixels of each side of the picture that is shown; it is resized to a square. Without it, it is shown as it is.
    #[serde(default)]
    pub size: Option<u32>,
    /// How the picture is sent.
    #[serde(default)]
    pub image_format: ImageFormat,
    /// Whether the judge compares the pictures of a group, two at a time.
    #[serde(default)]
    pub compare: bool,
}

/// A format of pictures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ImageFormat {
    /// As it is.
    #[default]
    Png,
    /// At quality 95: a fifth of the size.
    Jpeg,
}

/// UnifiedReward (arXiv 2503.05236) as Flow-GRPO and DiffusionNFT ask it: pictures of 512 × 512, temperature 0, and a
/// `Final Score:` from 1 to 5, divided by 5. An answer without one is no score here; there it counts 0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct UnifiedReward {
    /// The model's name on the server.
    pub model: String,
    /// What it is asked, with places as those of `chat`. The text that comes with Elbow says the same as Flow-GRPO's in other
    /// words; to compare scores with its runs, put its text here.
    pub template: Option<String>,
    /// The longest answer, in tokens.
    pub max_tokens: u32,
}

impl Default for UnifiedReward {
    fn default() -> Self {
        Self { model: "UnifiedReward-7b-v1.5".into(), template: None, max_tokens: 4096 }
    }
}

const SCORE_TEMPLATE: &str = "This picture was made for the text below. Judge how well it shows what the text asks for \
(objects, their number, their attributes and how they relate), and how good it looks. Give your reasons in a few words. Then \
end with a line \"Score: N\", where N is a number from 0 (nothing is right) to 10 (everything is).\nText: {prompt}";
const SCORE_PATTERN: &str = r"Score:\s*(-?\d+(?:\.\d+)?)";
const COMPARE_TEMPLATE: &str = "Both pictures were made for the text below. Judge which of them shows better what the text \
asks for and, where they are equal in that, which looks better. Give your reasons in a few words. Then end with a line \
\"Better: 1\" for the first picture, \"Better: 2\" for the second or \"Better: tie\".\nText: {prompt}";
const COMPARE_PATTERN: &str = r"(?i)Better:\s*(1|2|tie)";
/// The model expects the marks `<image>`, `Final Score:` and `Text Caption: […]`.
const UNIFIED_TEMPLATE: &str = "<image>\nHere are a text caption and an image that was generated for it. Evaluate the image by \
two criteria:\n1. Alignment with the caption: are the objects, their attributes and their relationships as the caption \
describes them?\n2. Overall image quality: is the image clear, detailed, right in its colors and pleasing to look at?\nBy these \
criteria, assign a score from 1 to 5 after 'Final Score:'.\nText Caption: [{prompt}]";
const UNIFIED_PATTERN: &str = r"Final Score:\s*([1-5](?:\.\d+)?)";

fn max_tokens() -> u32 {
    1024
}

fn one() -> f64 {
    1.0
}

impl Chat {
    /// What is wrong with it, one sentence each.
    pub(super) fn validate(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.max_tokens == 0 {
            problems.push("reward.protocol.max_tokens = 0: must be above 0".into());
        }
        if self.size == Some(0) {
            problems.push("reward.protocol.size = 0: must be above 0".into());
        }
        if !self.divide_by.is_finite() || self.divide_by == 0.0 {
            problems.push(format!("reward.protocol.divide_by = {}: must be a number other than 0", self.divide_by));
        }
        if let Some(Err(error)) = self.template.as_deref().map(Template::parse) {
            problems.push(format!("reward.protocol.template: {error}"));
        }
        match self.pattern.as_deref().map(Regex::new) {
            Some(Err(error)) => problems.push(format!("reward.protocol.pattern: {error}")),
            Some(Ok(pattern)) if pattern.captures_len() != 2 => problems.push(format!(
                "reward.protocol.pattern = {:?}: must have one group, around the score; write the others as `(?:…)`",
                pattern.as_str()
            )),
            _ => {}
        }
        if let Some(field) = &self.field {
            if !field.starts_with('/') || field.ends_with('/') {
                problems.push(format!(
                    "reward.protocol.field = {field:?}: must be the path of a field, such as \"/score\""
                ));
            }
            if self.pattern.is_some() {
                problems.push("reward.protocol.field and .pattern are both given: keep one".into());
            }
            if self.compare {
                problems.push("reward.protocol.field does not go with `compare`: use `pattern`".into());
            } else if self.template.is_none() {
                problems
                    .push("reward.protocol.template is missing: with `field`, say what the field shall hold".into());
            }
        }
        if self.compare && (self.divide_by - 1.0).abs() > 0.0 {
            problems.push("reward.protocol.divide_by does not go with `compare`: a share of wins is in [0, 1]".into());
        }
        problems
    }

    /// The judge; the error says what is wrong.
    pub(super) fn judge(&self) -> Result<Judge, String> {
        let (template, pattern) =
            if self.compare { (COMPARE_TEMPLATE, COMPARE_PATTERN) } else { (SCORE_TEMPLATE, SCORE_PATTERN) };
        let pattern = Regex::new(self.pattern.as_deref().unwrap_or(pattern)).map_err(|error| error.to_string())?;
        Ok(Judge {
            model: self.model.clone(),
            template: Template::parse(self.template.as_deref().unwrap_or(template))?,
            max_tokens: self.max_tokens,
            place: self.field.clone().map_or(Place::Pattern(pattern), Place::Field),
            divide_by: self.divide_by,
            size: self.size,
            format: self.image_format,
            prefix: match self.image_format {
                ImageFormat::Png => "data:image/png;base64,",
                ImageFormat::Jpeg => "data:image/jpeg;base64,",
            },
            compare: self.compare,
        })
    }
}

impl UnifiedReward {
    /// What is wrong with it, one sentence each.
    pub(super) fn validate(&self) -> Vec<String> {
        let Err(error) = self.judge() else { return Vec::new() };
        vec![format!("reward.protocol.template: {error}")]
    }

    /// The judge; the error says what is wrong.
    pub(super) fn judge(&self) -> Result<Judge, String> {
        Ok(Judge {
            model: self.model.clone(),
            template: Template::parse(self.template.as_deref().unwrap_or(UNIFIED_TEMPLATE))?,
            max_tokens: self.max_tokens,
            place: Place::Pattern(Regex::new(UNIFIED_PATTERN).map_err(|error| error.to_string())?),
            divide_by: 5.0,
            size: Some(512),
            format: ImageFormat::Png,
            prefix: "data:image;base64,",
            compare: false,
        })
    }
}

/// How a judge is asked and read.
pub(super) struct Judge {
    model: String,
    template: Template,
    max_tokens: u32,
    place: Place,
    divide_by: f64,
    size: Option<u32>,
    format: ImageFormat,
    /// What the data URL of a picture begins with.
    prefix: &'static str,
    /// Whether it is shown two pictures.
    pub(super) compare: bool,
}

/// Where the score stands.
enum Place {
    Pattern(Regex),
    Field(String),
}

/// Which of two pictures is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Better {
    First,
    Second,
    Tie,
}

impl Judge {
    /// Whether the prompt has what the template asks for.
    pub(super) fn check(&self, prompt: &Prompt) -> Result<(), RewardError> {
        self.template.fill(prompt).map(drop)
    }

    /// The picture as it is sent.
    pub(super) fn encode(&self, image: &RgbImage) -> Result<Vec<u8>, RewardError> {
        // Pillow's default filter for resizing, with the same coefficients.
        let resized = self.size.map(|side| imageops::resize(image, side, side, FilterType::CatmullRom));
        let image = resized.as_ref().unwrap_or(image);
        match self.format {
            ImageFormat::Png => png(image),
            ImageFormat::Jpeg => encoded("JPEG", jpeg::encode(image, 95)),
        }
    }

    /// The score of one picture.
    pub(super) fn ask(&self, http: &Http, sample: &Sample<'_>) -> Result<Score, RewardError> {
        let answer = self.say(http, &[&sample.picture], sample.prompt)?;
        match self.read(&answer) {
            Some(score) => Ok((score / self.divide_by).into()),
            None => Err(failed(http, &format!("no score in the answer: {answer}"))),
        }
    }

    /// The shares of wins within each group.
    pub(super) fn compare(
        &self,
        http: &Http,
        in_flight: usize,
        request: &Request<'_>,
    ) -> Vec<Result<Score, RewardError>> {
        let samples: Vec<_> = request.images.iter().zip(request.prompts).collect();
        let pictures = side_by_side(samples.len(), in_flight, |k| -> Result<_, RewardError> {
            self.check(samples[k].1)?;
            let picture = self.encode(samples[k].0)?;
            let hash: [u8; 32] = Sha256::digest(&picture).into();
            Ok((picture, hash))
        });
        let mut groups: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (k, &group) in request.groups.iter().enumerate().take(samples.len()) {
            groups.entry(group).or_default().push(k);
        }
        let mut pairs = Vec::new();
        for group in groups.values() {
            for (at, &a) in group.iter().enumerate() {
                for &b in &group[at + 1..] {
                    if let (Ok(one), Ok(other)) = (&pictures[a], &pictures[b]) {
                        // Judges tend to prefer one of the two places: chance decides who has it, the same chance in every run.
                        let swap = swapped(&one.1, &other.1);
                        pairs.push(if swap { (b, a, &other.0, &one.0) } else { (a, b, &one.0, &other.0) });
                    }
                }
            }
        }
        let answers = side_by_side(pairs.len(), in_flight, |k| {
            let (first, _, one, other) = pairs[k];
            self.better(http, one, other, samples[first].1)
        });

        let mut tally = vec![Tally::default(); samples.len()];
        for (&(first, second, ..), answer) in pairs.iter().zip(&answers) {
            for (sample, win) in [(first, Better::First), (second, Better::Second)] {
                tally[sample].add(answer, win);
            }
        }
        pictures.into_iter().zip(tally).map(|(picture, tally)| picture.and_then(|_| tally.score())).collect()
    }

    /// Which of two pictures is better.
    fn better(&self, http: &Http, first: &[u8], second: &[u8], prompt: &Prompt) -> Result<Better, RewardError> {
        let answer = self.say(http, &[first, second], prompt)?;
        match self.captured(&answer) {
            Some("1") => Ok(Better::First),
            Some("2") => Ok(Better::Second),
            Some(tie) if tie.eq_ignore_ascii_case("tie") => Ok(Better::Tie),
            _ => Err(failed(http, &format!("neither 1 nor 2 nor tie in the answer: {answer}"))),
        }
    }

    /// The judge's answer to pictures and the template's text.
    fn say(&self, http: &Http, pictures: &[&[u8]], prompt: &Prompt) -> Result<String, RewardError> {
        let image = |picture: &&[u8]| json!({"type": "image_url", "image_url": {"url": format!("{}{}", self.prefix, base64(picture))}});
        let mut content: Vec<Value> = pictures.iter().map(image).collect();
        content.push(json!({"type": "text", "text": self.template.fill(prompt)?}));
        let mut body = json!({
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "max_tokens": self.max_tokens,
        });
        if let Place::Field(field) = &self.place {
            let schema = json!({"name": "score", "strict": true, "schema": schema(field)});
            body["response_format"] = json!({"type": "json_schema", "json_schema": schema});
        }
        let answer = http.post("/chat/completions", "application/json", body.to_string().as_bytes(), content_of)?;
        answer.ok_or_else(|| failed(http, "the answer has no text"))
    }

    /// The score in an answer.
    fn read(&self, answer: &str) -> Option<f64> {
        let score = match &self.place {
            Place::Pattern(_) => self.captured(answer)?.parse().ok()?,
            Place::Field(field) => json::parse(answer.as_bytes()).ok()?.pointer(field)?.as_f64()?,
        };
        Some(score).filter(|score: &f64| score.is_finite())
    }

    /// What the group of the pattern captures.
    fn captured<'a>(&self, answer: &'a str) -> Option<&'a str> {
        let Place::Pattern(pattern) = &self.place else { return None };
        Some(pattern.captures(answer)?.get(1)?.as_str())
    }
}

/// What one sample's comparisons came to.
#[derive(Clone, Default)]
struct Tally {
    wins: f64,
    answers: u32,
    error: Option<RewardError>,
}

impl Tally {
    /// Counts an answer; `win` is the one by which this sample wins.
    fn add(&mut self, answer: &Result<Better, RewardError>, win: Better) {
        match answer {
            Ok(better) => {
                self.answers += 1;
                self.wins += if *better == Better::Tie { 0.5 } else { f64::from(u8::from(*better == win)) };
            }
            // What may be better later says more than what will not.
            Err(error @ RewardError::Unavailable(_)) => self.error = Some(error.clone()),
            Err(error) => self.error = self.error.take().or_else(|| Some(error.clone())),
        }
    }

    fn score(self) -> Result<Score, RewardError> {
        let alone = || RewardError::Failed("the group has no other picture to compare this one with".into());
        if self.answers == 0 {
            Err(self.error.unwrap_or_else(alone))
        } else {
            Ok((self.wins / f64::from(self.answers)).into())
        }
    }
}

/// Whether the second of two pictures is shown first. It is the same picture that is, whichever is called the second.
fn swapped(one: &[u8; 32], other: &[u8; 32]) -> bool {
    let (least, largest) = (one.min(other), one.max(other));
    let first =
        if Sha256::new().chain_update(least).chain_update(largest).finalize()[0] % 2 == 0 { least } else { largest };
    first != one
}

/// The text of an answer, if it has one.
fn content_of(bytes: &[u8]) -> Result<Option<String>, String> {
    let answer = json::parse(bytes)?;
    let message = answer.pointer("/choices/0/message").ok_or("there is no `choices[0].message`")?;
    Ok(message["content"].as_str().map(str::to_owned))
}

/// The schema of an object with a number at a path.
fn schema(field: &str) -> Value {
    field.rsplit('/').filter(|key| !key.is_empty()).fold(json!({"type": "number"}), |inner, key| {
        let key = key.replace("~1", "/").replace("~0", "~");
        json!({"type": "object", "properties": {&key: inner}, "required": [&key], "additionalProperties": false})
    })
}

/// A picture as PNG.
pub(super) fn png(image: &RgbImage) -> Result<Vec<u8>, RewardError> {
    let mut file = Cursor::new(Vec::new());
    encoded("PNG", image.write_to(&mut file, image::ImageFormat::Png))?;
    Ok(file.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat(config: &str) -> Chat {
        serde_json::from_str(config).unwrap()
    }

    #[test]
    fn answers_are_read_by_pattern_or_field() {
        let judge = chat(r#"{"model": "m"}"#).judge().unwrap();
        assert_eq!(judge.read("A cat.\nScore: 7.5"), Some(7.5));
        assert_eq!(judge.read("Score: -1 then Score: 3"), Some(-1.0));
        for nothing in ["", "7", "Score: high", "score: 3"] {
            assert_eq!(judge.read(nothing), None, "{nothing}");
        }
        let judge = chat(r#"{"model": "m", "template": "{prompt}", "field": "/a/b"}"#).judge().unwrap();
        assert_eq!(judge.read(r#"{"a": {"b": 3}}"#), Some(3.0));
        for nothing in [r#"{"a": {"b": "3"}}"#, r#"{"a": 3}"#, r#"{"a": {"b": NaN}}"#, "3", "{"] {
            assert_eq!(judge.read(nothing), None, "{nothing}");
        }
        let unified = UnifiedReward::default().judge().unwrap();
        assert_eq!(unified.read("Final Score: 4.25/5"), Some(4.25));
        assert_eq!(unified.read("Final Score: 6"), None);
    }

    #[test]
    fn the_schema_asks_for_the_field_alone() {
        let number = json!({"type": "number"});
        let b = json!({"type": "object", "properties": {"b/c": number}, "required": ["b/c"], "additionalProperties": false});
        let a = json!({"type": "object", "properties": {"a": b}, "required": ["a"], "additionalProperties": false});
        assert_eq!(schema("/a/b~1c"), a);
    }

    #[test]
    fn mistakes_are_named() {
        for (config, words) in [
            (r#"{"model": "m", "pattern": "("}"#, "reward.protocol.pattern: "),
            (r#"{"model": "m", "pattern": "(a)(b)"}"#, "must have one group"),
            (r#"{"model": "m", "pattern": "ab"}"#, "must have one group"),
            (r#"{"model": "m", "field": "score", "template": ""}"#, "reward.protocol.field = \"score\": "),
            (r#"{"model": "m", "field": "/score"}"#, "template is missing"),
            (r#"{"model": "m", "field": "/score", "template": "", "pattern": "(a)"}"#, "keep one"),
            (r#"{"model": "m", "field": "/score", "compare": true}"#, "use `pattern`"),
            (r#"{"model": "m", "divide_by": 0}"#, "divide_by = 0"),
            (r#"{"model": "m", "divide_by": 2, "compare": true}"#, "divide_by does not go with `compare`"),
            (r#"{"model": "m", "max_tokens": 0}"#, "max_tokens = 0"),
            (r#"{"model": "m", "size": 0}"#, "size = 0"),
            (r#"{"model": "m", "template": "{metadata.a"}"#, "reward.protocol.template: "),
        ] {
            let problems = chat(config).validate();
            assert!(problems.len() == 1 && problems[0].contains(words), "{config}: {problems:?}");
        }
        for fine in [r#"{"model": "m"}"#, r#"{"model": "m", "compare": true}"#] {
            assert_eq!(chat(fine).validate(), Vec::<String>::new());
        }
        assert_eq!(UnifiedReward::default().validate(), Vec::<String>::new());
        let unknown = serde_json::from_str::<Chat>(r#"{"model": "m", "temperature": 1}"#);
        assert!(unknown.expect_err("unknown").to_string().contains("temperature"));
    }

    #[test]
    fn the_place_of_a_picture_depends_on_the_pair_alone_and_is_fair() {
        let hash = |k: u32| -> [u8; 32] { Sha256::digest(k.to_le_bytes()).into() };
        let mut swaps = 0;
        for a in 0..40 {
            for b in a + 1..40 {
                let swap = swapped(&hash(a), &hash(b));
                assert_eq!(swap, !swapped(&hash(b), &hash(a)));
                swaps += u32::from(swap);
            }
        }
        // 780 pairs: 390 ± 14 by chance.
        assert!((320..460).contains(&swaps), "{swaps}");
        assert!(!swapped(&hash(1), &hash(1)));
    }

    #[test]
    fn a_tally_counts_what_was_answered() {
        let tally = |answers: &[Result<Better, RewardError>]| {
            let mut tally = Tally::default();
            for answer in answers {
                tally.add(answer, Better::First);
            }
            tally.score()
        };
        let (failed, away) = (RewardError::Failed("f".into()), RewardError::Unavailable("u".into()));
        let (win, loss, tie) = (Ok(Better::First), Ok(Better::Second), Ok(Better::Tie));
        assert_eq!(tally(&[win.clone(), loss, tie, Err(failed.clone())]), Ok(0.5.into()));
        assert_eq!(tally(&[win, Err(away.clone())]), Ok(1.0.into()));
        assert_eq!(tally(&[Err(failed.clone()), Err(away.clone()), Err(failed.clone())]), Err(away));
        assert_eq!(tally(&[Err(failed.clone())]), Err(failed));
        assert!(tally(&[]).expect_err("alone").to_string().contains("no other picture"));
    }
}
