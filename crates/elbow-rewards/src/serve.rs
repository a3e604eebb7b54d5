//! A server that offers rewards to trainers of any kind, by the protocol of UniRL's reward service.
//!
//! | request | answer |
//! |---|---|
//! | `POST /score` `{"requests": [{"history": [{"text", "image_b64"}], "required_rewards": [name], "metadata": {}}]}` | `{"results": [{name: {"score": number}}], "errors": [{name: text}], "parts": [{name: {part: number}}]}` |
//! | `GET /health` | `{"status": "ok"}` |
//! | `GET /rewards` | `{"rewards": [name]}` |
//! | `GET /metrics` | counters in Prometheus' text format |
//!
//! A picture is PNG or JPEG in base64, with or without the head of a data URL. Without `required_rewards` all are asked. A picture without a
//! score has an entry among the errors and none among the results. Requests of one text are one group, for rewards that compare pictures.

use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Request as HttpRequest, State, rejection::BytesRejection},
    http::{StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use elbow::{
    Prompt, Reward, RewardError, RgbImage, Score,
    reward::{self, Pictures},
};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::{
    fmt::Write,
    io,
    net::TcpListener,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::task::JoinHandle;

/// How long requests under way may take when the server is to end.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// What is served, and to whom.
pub struct Offer {
    /// Rewards by their names.
    pub rewards: Vec<(String, Arc<dyn Reward>)>,
    /// The bearer token that every request must bring, if one is wanted.
    pub token: Option<String>,
    /// The longest that a reward may take for a request; the others of the request are answered all the same.
    pub timeout: Duration,
    /// Largest body, in bytes.
    pub body_limit: usize,
}

/// One reward, and what was asked of it.
struct Desk {
    name: String,
    reward: Arc<dyn Reward>,
    counts: Mutex<Counts>,
}

#[derive(Clone, Copy, Default)]
struct Counts {
    requests: u64,
    pictures: u64,
    failures: u64,
    seconds: f64,
}

struct Shop {
    desks: Vec<Arc<Desk>>,
    token: Option<[u8; 32]>,
    timeout: Duration,
}

/// Serves until `stop` is set; requests under way are answered first, if they take no longer than [`PATIENCE`]. Returns an error if the
/// system refuses to.
pub fn serve(listener: TcpListener, offer: Offer, stop: Arc<AtomicBool>) -> io::Result<()> {
    let desk = |(name, reward)| Arc::new(Desk { name, reward, counts: Mutex::default() });
    let shop = Arc::new(Shop {
        desks: offer.rewards.into_iter().map(desk).collect(),
        token: offer.token.map(|token| digest(&token)),
        timeout: offer.timeout,
    });
    let router = Router::new()
        .route("/score", post(score))
        .route("/rewards", get(rewards))
        .route("/metrics", get(metrics))
        .route_layer(middleware::from_fn_with_state(Arc::clone(&shop), admit))
        .route("/health", get(|| async { Json(json!({ "status": "ok" })) }))
        .layer(DefaultBodyLimit::max(offer.body_limit))
        .with_state(shop);
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let served = axum::serve(listener, router).with_graceful_shutdown(set(Arc::clone(&stop)));
        tokio::select! {
            served = served => served,
            () = async { set(stop).await; tokio::time::sleep(PATIENCE).await } => Ok(()),
        }
    })?;
    // What hangs in a reward does not keep the server alive.
    runtime.shutdown_background();
    Ok(())
}

/// Returns once the flag is set.
async fn set(flag: Arc<AtomicBool>) {
    while !flag.load(Ordering::SeqCst) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// SHA-256 of a token: comparing digests leaks nothing about the token by its timing.
fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

/// Lets requests pass that bring the token.
async fn admit(State(shop): State<Arc<Shop>>, request: HttpRequest, next: Next) -> Response {
    let brought = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = brought.and_then(|value| value.strip_prefix("Bearer ")).map(digest);
    if shop.token.is_some() && shop.token != token {
        return refuse_unread(
            StatusCode::UNAUTHORIZED,
            "send the token of this server as `Authorization: Bearer TOKEN`",
        );
    }
    next.run(request).await
}

/// Refuses a request whose body is not read. The connection closes, and says so, or its next request would be lost.
fn refuse_unread(status: StatusCode, error: &str) -> Response {
    (status, [(header::CONNECTION, "close")], Json(json!({ "error": error }))).into_response()
}

async fn rewards(State(shop): State<Arc<Shop>>) -> Json<Value> {
    Json(json!({ "rewards": shop.desks.iter().map(|desk| &*desk.name).collect::<Vec<_>>() }))
}

async fn metrics(State(shop): State<Arc<Shop>>) -> String {
    let counts: Vec<(&str, Counts)> = shop.desks.iter().map(|desk| (&*desk.name, *desk.counts())).collect();
    let mut text = String::new();
    let mut table = |name: &str, help: &str, number: fn(&Counts) -> f64| {
        let _ = writeln!(text, "# HELP elbow_reward_{name} {help}\n# TYPE elbow_reward_{name} counter");
        for (reward, counts) in &counts {
            let _ = writeln!(text, "elbow_reward_{name}{{reward=\"{reward}\"}} {}", number(counts));
        }
    };
    table("requests_total", "Requests that asked this reward.", |c| c.requests as f64);
    table("pictures_total", "Pictures it was asked about.", |c| c.pictures as f64);
    table("failures_total", "Pictures without a score.", |c| c.failures as f64);
    table("seconds_total", "Seconds that it took.", |c| c.seconds);
    text
}

impl Desk {
    fn counts(&self) -> std::sync::MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A body of `/score`.
#[derive(Deserialize)]
struct Asked {
    requests: Vec<One>,
}

#[derive(Deserialize)]
struct One {
    history: Vec<Turn>,
    required_rewards: Option<Vec<String>>,
    #[serde(default)]
    metadata: Option<Map<String, Value>>,
}

#[derive(Deserialize)]
struct Turn {
    #[serde(default)]
    text: String,
    image_b64: Option<String>,
}

async fn score(State(shop): State<Arc<Shop>>, body: Result<Bytes, BytesRejection>) -> Response {
    let body = match body {
        Ok(body) => body,
        Err(rejection) => return refuse_unread(rejection.status(), &rejection.body_text()),
    };
    let refused = |text: String| (StatusCode::BAD_REQUEST, Json(json!({ "error": text }))).into_response();
    let asked: Asked = match serde_json::from_slice(&body) {
        Ok(asked) => asked,
        Err(error) => return refused(format!("the body is no request of /score: {error}")),
    };
    drop(body);
    let wanted: Vec<Option<Vec<String>>> = asked.requests.iter().map(|one| one.required_rewards.clone()).collect();
    let pictures = match tokio::task::spawn_blocking(|| pictures(asked)).await {
        Ok(Ok(pictures)) => Arc::new(pictures),
        Ok(Err(text)) => return refused(text),
        Err(_) => return refused("the pictures cannot be read".into()),
    };
    let mut reply = Reply::new(wanted.len());
    reply.refuse_unknown(&wanted, &shop.desks);
    let asked: Vec<_> = shop.desks.iter().filter_map(|desk| ask(desk, &pictures, &wanted)).collect();
    for Asking { desk, rows, answer } in asked {
        let scores = match tokio::time::timeout(shop.timeout, answer).await {
            Ok(Ok(scores)) => scores,
            Ok(Err(_)) => vec![Err(RewardError::Failed("the reward broke down".into())); rows.len()],
            Err(_) => {
                desk.counts().failures += rows.len() as u64;
                let error = format!("no answer within {} s", shop.timeout.as_secs_f64());
                vec![Err(RewardError::Unavailable(error)); rows.len()]
            }
        };
        rows.into_iter().zip(scores).for_each(|(row, score)| reply.add(row, &desk.name, score));
    }
    let Reply { results, errors, parts } = reply;
    Json(json!({ "results": results, "errors": errors, "parts": parts })).into_response()
}

/// A reward that is being asked about some rows of a request.
struct Asking {
    desk: Arc<Desk>,
    rows: Vec<usize>,
    answer: JoinHandle<Vec<Result<Score, RewardError>>>,
}

/// Asks a reward about the rows that want it, on a thread of its own; nothing if none does.
fn ask(desk: &Arc<Desk>, pictures: &Arc<Pictures>, wanted: &[Option<Vec<String>>]) -> Option<Asking> {
    let wants = |row: &usize| wanted[*row].as_ref().is_none_or(|names| names.contains(&desk.name));
    let rows: Vec<usize> = (0..wanted.len()).filter(wants).collect();
    if rows.is_empty() {
        return None;
    }
    let (asked, pictures, all) = (Arc::clone(desk), Arc::clone(pictures), rows.clone());
    let answer = tokio::task::spawn_blocking(move || asked.ask(&pictures, &all));
    Some(Asking { desk: Arc::clone(desk), rows, answer })
}

/// What is said of each picture, by reward.
struct Reply {
    results: Vec<Map<String, Value>>,
    errors: Vec<Map<String, Value>>,
    parts: Vec<Map<String, Value>>,
}

impl Reply {
    /// Of so many pictures, nothing yet.
    fn new(pictures: usize) -> Self {
        let empty = vec![Map::new(); pictures];
        Self { results: empty.clone(), errors: empty.clone(), parts: empty }
    }

    /// Says of rewards that are wanted and not there that there are none.
    fn refuse_unknown(&mut self, wanted: &[Option<Vec<String>>], desks: &[Arc<Desk>]) {
        let names: Vec<&str> = desks.iter().map(|desk| &*desk.name).collect();
        for (errors, wanted) in self.errors.iter_mut().zip(wanted) {
            for unknown in wanted.iter().flatten().filter(|name| !names.contains(&name.as_str())) {
                let error = format!("there is no such reward; there are: {}", names.join(", "));
                errors.insert(unknown.clone(), error.into());
            }
        }
    }

    /// Adds a reward's answer for one picture.
    fn add(&mut self, row: usize, name: &str, score: Result<Score, RewardError>) {
        match score {
            Ok(score) => {
                self.results[row].insert(name.to_owned(), json!({ "score": score.value }));
                if !score.parts.is_empty() {
                    let all = score.parts.iter().map(|part| (part.name.to_string(), Value::from(part.value)));
                    self.parts[row].insert(name.to_owned(), Value::Object(all.collect()));
                }
            }
            Err(error) => drop(self.errors[row].insert(name.to_owned(), error.to_string().into())),
        }
    }
}

impl Desk {
    /// The scores of some of the pictures.
    fn ask(&self, pictures: &Pictures, rows: &[usize]) -> Vec<Result<Score, RewardError>> {
        let started = Instant::now();
        let scores = reward::ask(&*self.reward, &pictures.request().select(rows).request());
        let mut counts = self.counts();
        counts.requests += 1;
        counts.pictures += rows.len() as u64;
        counts.failures += scores.iter().filter(|score| score.is_err()).count() as u64;
        counts.seconds += started.elapsed().as_secs_f64();
        scores
    }
}

/// Reads the pictures of a request, or says which one cannot be read.
fn pictures(asked: Asked) -> Result<Pictures, String> {
    let mut pictures = Pictures::default();
    for (row, one) in asked.requests.into_iter().enumerate() {
        let image = one.history.iter().rev().find_map(|turn| turn.image_b64.as_deref());
        let image = image.ok_or_else(|| format!("requests[{row}].history has no image_b64"))?;
        pictures.images.push(picture(image).map_err(|error| format!("requests[{row}].history: {error}"))?);
        let texts: Vec<&str> =
            one.history.iter().map(|turn| turn.text.trim()).filter(|text| !text.is_empty()).collect();
        let prompt = Prompt { text: texts.join("\n"), metadata: one.metadata.unwrap_or_default() };
        let group = pictures.prompts.iter().position(|other| other.text == prompt.text).unwrap_or(row);
        pictures.prompts.push(Arc::new(prompt));
        pictures.groups.push(group);
    }
    Ok(pictures)
}

fn picture(text: &str) -> Result<RgbImage, String> {
    let text = text.split_once(";base64,").map_or(text, |(_, data)| data);
    let bytes = BASE64_STANDARD.decode(text.trim()).map_err(|error| format!("image_b64 is not base64: {error}"))?;
    let image = image::load_from_memory(&bytes).map_err(|error| format!("image_b64 is no PNG or JPEG: {error}"))?;
    Ok(image.to_rgb8())
}
