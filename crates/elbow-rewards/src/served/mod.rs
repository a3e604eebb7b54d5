//! Rewards that a server gives, by the protocols that servers of the field speak.
//!
//! [`Served`] says where a server is and how it is asked, [`Served::connect`] makes a reward of it. Pictures go out in pieces of
//! [`batch`](Served::batch), a limited number of pieces side by side. What an answer means is the same for all protocols:
//!
//! | answer | becomes |
//! |---|---|
//! | a number | the score |
//! | null, NaN, a text or an error in a number's place; too few or too many numbers | [`RewardError::Failed`] |
//! | none, a status other than 200, or something that is not of the protocol | [`RewardError::Unavailable`] |
//!
//! Nothing but a number ever becomes a score.

mod chat;
mod compute;
mod deqa;
mod geneval;
mod http;
mod json;
mod llava;
mod pickled;
mod score;
mod scorer;
mod template;

pub use chat::{Chat, ImageFormat, UnifiedReward};
pub use geneval::Geneval;
pub use llava::Llava;
pub use score::Service;

use crate::{Log, jpeg, side_by_side::side_by_side};
use ::base64::{Engine, engine::general_purpose::STANDARD};
use chat::Judge;
use elbow::{Prompt, Request, Reward, RewardError, RgbImage, Score, reward::Needs};
use http::Http;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A reward that a server gives.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Served {
    /// Where the server is, as `http://127.0.0.1:18085`; for `chat` and `unified-reward` up to and including `/v1`.
    pub url: String,
    /// What it speaks.
    pub protocol: Protocol,
    /// Seconds that one request may take.
    #[serde(default = "timeout")]
    pub timeout: f64,
    /// How often a request is tried again where the connection breaks, time runs out or the server is busy or broken. Pauses
    /// between tries double from half a second on.
    #[serde(default = "retries")]
    pub retries: u32,
    /// Requests side by side.
    #[serde(default = "in_flight")]
    pub in_flight: usize,
    /// Pictures a request. Without it as the protocol's users do: 64 for `geneval`, `deqa` and `scorer`, 16 for `llava`,
    /// `compute` and `score`. A judge sees one.
    #[serde(default)]
    pub batch: Option<usize>,
    /// The environment variable that holds the bearer token, if the server wants one.
    #[serde(default)]
    pub key_env: Option<String>,
}

/// What a server speaks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Protocol {
    /// Flow-GRPO's GenEval server.
    Geneval(Geneval),
    /// Flow-GRPO's DeQA server.
    Deqa {},
    /// verl-omni's scorer.
    Scorer {},
    /// DDPO's LLaVA server.
    Llava(Llava),
    /// A vision model as judge, behind OpenAI's chat completions.
    Chat(Chat),
    /// UnifiedReward, with the settings of Flow-GRPO.
    UnifiedReward(UnifiedReward),
    /// Flow-Factory's reward server.
    Compute {},
    /// UniRL's reward service.
    Score(Service),
}

impl Protocol {
    /// A name for metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Geneval(_) => "geneval_server",
            Self::Deqa {} => "deqa",
            Self::Scorer {} => "scorer",
            Self::Llava(_) => "llava",
            Self::Chat(_) => "chat",
            Self::UnifiedReward(_) => "unified_reward",
            Self::Compute {} => "compute",
            Self::Score(_) => "service",
        }
    }
}

fn timeout() -> f64 {
    120.0
}

fn retries() -> u32 {
    3
}

fn in_flight() -> usize {
    4
}

/// Why a server's reward cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// The recipe is wrong.
    #[error("{}", .0.join("; "))]
    Config(Vec<String>),
    /// There is no token.
    #[error("the environment variable {variable} does not hold a bearer token for {url}: {reason}")]
    Key {
        /// The variable.
        variable: String,
        /// The server.
        url: String,
        /// What is wrong with it.
        reason: &'static str,
    },
}

impl Served {
    /// What is wrong with it, one sentence each.
    pub fn validate(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if let Err(reason) = check_url(&self.url) {
            // What may be a password or a key is not repeated.
            let shown = if self.url.contains(['@', '?']) { "…" } else { self.url.as_str() };
            problems.push(format!("reward.url = {shown:?}: {reason}"));
        }
        if !(self.timeout > 0.0 && self.timeout <= 86400.0) {
            problems.push(format!("reward.timeout = {}: must be above 0 and at most 86400", self.timeout));
        }
        if self.in_flight == 0 {
            problems.push("reward.in_flight = 0: must be at least 1".into());
        }
        match (self.batch, &self.protocol) {
            (Some(0), _) => problems.push("reward.batch = 0: must be at least 1".into()),
            (Some(batch @ 2..), Protocol::Chat(_) | Protocol::UnifiedReward(_)) => {
                problems.push(format!(
                    "reward.batch = {batch}: a judge sees one picture a request, or the two it compares"
                ));
            }
            _ => {}
        }
        // A key that is written here by mistake has other letters, most of the time, and is not repeated either.
        let letter = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if self.key_env.as_deref().is_some_and(|name| name.is_empty() || !name.chars().all(letter)) {
            problems.push("reward.key_env: must be the name of an environment variable, never the key itself".into());
        }
        problems.extend(match &self.protocol {
            Protocol::Chat(chat) => chat.validate(),
            Protocol::UnifiedReward(unified) => unified.validate(),
            Protocol::Score(service) => service.validate(),
            Protocol::Llava(llava) => llava.validate(),
            Protocol::Geneval(_) | Protocol::Deqa {} | Protocol::Scorer {} | Protocol::Compute {} => Vec::new(),
        });
        problems
    }

    /// The reward, under a name for the metrics and the log. Asks nothing yet: see [`Client::health`].
    pub fn connect(&self, name: &str, log: Log) -> Result<Client, ConnectError> {
        let problems = self.validate();
        if !problems.is_empty() {
            return Err(ConnectError::Config(problems));
        }
        let config = |error| ConnectError::Config(vec![error]);
        let (dialect, batch) = match &self.protocol {
            Protocol::Geneval(geneval) => (Dialect::Geneval(*geneval), 64),
            Protocol::Deqa {} => (Dialect::Deqa, 64),
            Protocol::Scorer {} => (Dialect::Scorer, 64),
            Protocol::Llava(llava) => (Dialect::Llava(llava.asker().map_err(config)?), 16),
            Protocol::Chat(chat) => (Dialect::Judge(Box::new(chat.judge().map_err(config)?)), 1),
            Protocol::UnifiedReward(unified) => (Dialect::Judge(Box::new(unified.judge().map_err(config)?)), 1),
            Protocol::Compute {} => (Dialect::Compute, 16),
            Protocol::Score(service) => (Dialect::Service(service.clone()), 16),
        };
        let token = self.key_env.as_deref().map(|variable| self.token(variable)).transpose()?;
        let http = Http::new(name, self, token, log);
        Ok(Client { http, dialect, in_flight: self.in_flight, batch: self.batch.unwrap_or(batch) })
    }

    /// The token that a variable holds.
    fn token(&self, variable: &str) -> Result<String, ConnectError> {
        let wrong = |reason| ConnectError::Key { variable: variable.to_owned(), url: self.url.clone(), reason };
        let token = std::env::var(variable).map_err(|_| wrong("it is not set"))?;
        match token.trim() {
            "" => Err(wrong("it is empty")),
            token if token.bytes().all(|byte| byte.is_ascii_graphic()) => Ok(token.to_owned()),
            _ => Err(wrong("a token has no spaces and no letters beyond ASCII")),
        }
    }
}

/// What is wrong with an address.
fn check_url(url: &str) -> Result<(), &'static str> {
    let uri = url.parse::<ureq::http::Uri>().map_err(|_| "is not an address; write http://HOST:PORT")?;
    if uri.query().is_some() {
        return Err("must end with the path, without `?`");
    }
    match (uri.scheme_str(), uri.authority()) {
        (_, Some(authority)) if authority.as_str().contains('@') => Err("holds a name or password; use `key_env`"),
        (Some("http"), Some(_)) => Ok(()),
        (Some("https"), Some(_)) if cfg!(feature = "https") => Ok(()),
        (Some("https"), Some(_)) => Err("this build has no https; build with `--features elbow-cli/https`"),
        _ => Err("must begin with http:// or https:// and a host"),
    }
}

/// A server's reward.
pub struct Client {
    http: Http,
    dialect: Dialect,
    in_flight: usize,
    batch: usize,
}

/// A protocol, ready to be spoken.
enum Dialect {
    Geneval(Geneval),
    Deqa,
    Scorer,
    Llava(llava::Asker),
    Judge(Box<Judge>),
    Compute,
    Service(Service),
}

/// A picture as it is sent, and its prompt.
struct Sample<'a> {
    picture: Vec<u8>,
    prompt: &'a Prompt,
}

/// One score a picture.
type Scores = Vec<Result<Score, RewardError>>;

impl Client {
    /// Whether the server is there: by `GET /health` where the protocol has it, else by a connection. Asks once.
    pub fn health(&self) -> Result<(), RewardError> {
        match self.dialect {
            Dialect::Compute | Dialect::Service(_) => self.http.get("/health"),
            _ => self.http.reach(),
        }
    }

    /// Whether the prompt has what the protocol needs.
    fn check_one(&self, prompt: &Prompt) -> Result<(), RewardError> {
        match &self.dialect {
            Dialect::Geneval(_) => crate::geneval::record(prompt).map(drop),
            Dialect::Llava(asker) => asker.check(prompt),
            Dialect::Judge(judge) => judge.check(prompt),
            Dialect::Deqa | Dialect::Scorer | Dialect::Compute | Dialect::Service(_) => Ok(()),
        }
    }

    /// The picture as the protocol sends it.
    fn encode(&self, image: &RgbImage) -> Result<Vec<u8>, RewardError> {
        match &self.dialect {
            // Pillow's quality where none is named.
            Dialect::Geneval(_) | Dialect::Deqa | Dialect::Scorer => encoded("JPEG", jpeg::encode(image, 75)),
            Dialect::Llava(_) => encoded("JPEG", jpeg::encode(image, 80)),
            Dialect::Judge(judge) => judge.encode(image),
            Dialect::Compute | Dialect::Service(_) => chat::png(image),
        }
    }

    /// The scores of the pictures of one request.
    fn ask(&self, samples: &[Sample<'_>]) -> Result<Scores, RewardError> {
        match &self.dialect {
            Dialect::Judge(judge) => Ok(samples.iter().map(|sample| judge.ask(&self.http, sample)).collect()),
            Dialect::Geneval(geneval) => geneval.ask(&self.http, samples),
            Dialect::Deqa => deqa::ask(&self.http, samples),
            Dialect::Scorer => scorer::ask(&self.http, samples),
            Dialect::Llava(asker) => asker.ask(&self.http, samples),
            Dialect::Compute => compute::ask(&self.http, samples),
            Dialect::Service(service) => service.ask(&self.http, samples),
        }
    }

    /// The scores of a piece: what cannot be sent fails by itself, the rest goes in one request.
    fn piece(&self, images: &[RgbImage], prompts: &[Arc<Prompt>]) -> Scores {
        let prepare = |(image, prompt): (&RgbImage, &'_ Arc<Prompt>)| {
            self.check_one(prompt)?;
            self.encode(image)
        };
        let pictures: Vec<Result<Vec<u8>, RewardError>> = images.iter().zip(prompts).map(prepare).collect();
        let (mut samples, mut scores) = (Vec::new(), Vec::new());
        for (picture, prompt) in pictures.into_iter().zip(prompts) {
            scores.push(picture.map(|picture| samples.push(Sample { picture, prompt })));
        }
        let n = samples.len();
        let answer = if n == 0 { Ok(Vec::new()) } else { self.ask(&samples) };
        let answer = answer.and_then(|answer| match answer.len() {
            len if len == n => Ok(answer),
            len => Err(failed(&self.http, &format!("the server gave {len} scores for {n} pictures"))),
        });
        let mut answer = answer.unwrap_or_else(|error| vec![Err(error); n]).into_iter();
        let lost = || RewardError::Failed("the server gave too few scores".into());
        scores.into_iter().map(|sent| sent.and_then(|()| answer.next().unwrap_or_else(|| Err(lost())))).collect()
    }
}

impl Reward for Client {
    fn name(&self) -> &str {
        &self.http.name
    }

    fn check(&self, prompts: &[Prompt]) -> Result<(), RewardError> {
        prompts.iter().try_for_each(|prompt| self.check_one(prompt))
    }

    fn needs(&self) -> Needs {
        let whole_groups = matches!(&self.dialect, Dialect::Judge(judge) if judge.compare);
        Needs { whole_groups, in_flight: self.in_flight, ..Needs::default() }
    }

    fn score(&self, request: &Request<'_>) -> Scores {
        if let Dialect::Judge(judge) = &self.dialect
            && judge.compare
        {
            return judge.compare(&self.http, self.in_flight, request);
        }
        let pieces: Vec<_> = request.images.chunks(self.batch).zip(request.prompts.chunks(self.batch)).collect();
        let scores = side_by_side(pieces.len(), self.in_flight, |k| self.piece(pieces[k].0, pieces[k].1));
        scores.into_iter().flatten().collect()
    }
}

/// No score, for what the server says.
fn failed(http: &Http, text: &str) -> RewardError {
    RewardError::Failed(format!("{}: {}", http.url, http.quote(text)))
}

/// A number of an answer.
fn number(http: &Http, value: &serde_json::Value) -> Result<f64, RewardError> {
    let number = value.as_f64().filter(|number| number.is_finite());
    number.ok_or_else(|| failed(http, &format!("the score is not a number but {value}")))
}

/// Numbers of an answer.
fn numbers(http: &Http, values: &[serde_json::Value]) -> Scores {
    values.iter().map(|value| number(http, value).map(Score::from)).collect()
}

/// A picture, or why there is no file of it.
fn encoded<T, E: std::fmt::Display>(format: &str, file: Result<T, E>) -> Result<T, RewardError> {
    file.map_err(|error| RewardError::Failed(format!("cannot encode a {format}: {error}")))
}

/// Bytes in base 64.
fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}
