//! A server on this machine that answers as the Hub does: a listing by revision, small files at once, large ones elsewhere.

use super::*;
use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const TINY: Wanted<'static> = Wanted { name: "owner/tiny", revision: "main", variant: None };

/// What a model of SD3's parts has, and what else lies beside it.
fn repository() -> BTreeMap<String, Vec<u8>> {
    let index = r#"{"_class_name": "StableDiffusion3Pipeline", "transformer": ["diffusers", "SD3Transformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"], "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "T5TokenizerFast"], "scheduler": ["diffusers", "X"], "safety_checker": [null, null]}"#;
    let map = r#"{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}"#;
    let mut files = BTreeMap::from([
        (INDEX.to_owned(), index.as_bytes().to_vec()),
        ("text_encoder/model.safetensors.index.json".to_owned(), map.as_bytes().to_vec()),
    ]);
    for name in NEEDED.iter().chain(&OTHERS) {
        files.entry((*name).to_owned()).or_insert_with(|| name.repeat(50).into_bytes());
    }
    files
}

const NEEDED: [&str; 12] = [
    INDEX,
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model-00001-of-00002.safetensors",
    "text_encoder/model-00002-of-00002.safetensors",
    "text_encoder/model.safetensors.index.json",
    "tokenizer/spiece.model",
    "tokenizer/tokenizer_config.json",
    "transformer/config.json",
    "transformer/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
];
const OTHERS: [&str; 8] = [
    "README.md",
    "sd3_medium.safetensors",
    "safety_checker/model.safetensors",
    "text_encoder/pytorch_model.bin",
    "transformer/diffusion_pytorch_model.fp16.safetensors",
    "transformer/flax_model.msgpack",
    "vae/diffusion_pytorch_model.bin",
    "vae/model.onnx",
];

/// A server, and the paths it was asked for.
struct Server {
    endpoint: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Server {
    /// `status` answers for files, but for 401 where a token is given; a listing is always given, but for 404.
    fn new(files: BTreeMap<String, Vec<u8>>, status: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (log, url) = (asked.clone(), endpoint.clone());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                answer(stream, &files, status, &url, &log);
            }
        });
        Self { endpoint, asked }
    }

    /// The paths since the last call, without repetitions.
    fn asked(&self) -> Vec<String> {
        let mut paths = std::mem::take(&mut *self.asked.lock().expect("unpoisoned"));
        paths.sort();
        paths.dedup();
        paths
    }
}

fn answer(
    stream: TcpStream,
    files: &BTreeMap<String, Vec<u8>>,
    status: u16,
    url: &str,
    log: &Mutex<Vec<String>>,
) -> Option<()> {
    let mut lines = BufReader::new(stream.try_clone().ok()?).lines().map_while(Result::ok);
    let path = lines.next()?.split(' ').nth(1)?.to_owned();
    let head: Vec<String> = lines.take_while(|line| !line.is_empty()).map(|line| line.to_lowercase()).collect();
    log.lock().ok()?.push(path.clone());
    let reply = |status: u16, headers: &str, body: &[u8]| {
        let length = body.len();
        let head = format!("HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n");
        (&stream).write_all(&[head.as_bytes(), body].concat()).ok()
    };
    let listing = ["main", COMMIT].map(|revision| format!("/api/models/owner/tiny/revision/{revision}"));
    if listing.contains(&path) && status != 404 {
        let siblings: Vec<Value> = files.keys().map(|name| serde_json::json!({ "rfilename": name })).collect();
        return reply(200, "", serde_json::json!({ "sha": COMMIT, "siblings": siblings }).to_string().as_bytes());
    }
    if status != 200 && !(status == 401 && head.iter().any(|line| line == "authorization: bearer secret")) {
        return reply(status, "", b"");
    }
    let file = path.strip_prefix("/cdn/").or_else(|| path.strip_prefix(&format!("/owner/tiny/resolve/{COMMIT}/")));
    let Some((name, bytes)) = file.and_then(|file| files.get_key_value(file)) else { return reply(404, "", b"") };
    let mut headers = format!("ETag: \"{}\"\r\nX-Repo-Commit: {COMMIT}\r\n", name.replace('/', "-"));
    if name.ends_with(".safetensors") && !path.starts_with("/cdn/") {
        let _ = write!(headers, "X-Linked-ETag: \"{}\"\r\nLocation: {url}/cdn/{name}\r\n", name.replace('/', "-"));
        return reply(302, &headers, b"");
    }
    let range = head.iter().find_map(|line| line.strip_prefix("range: bytes="))?;
    let (start, end) = range.split_once('-')?;
    let start: usize = start.parse().ok()?;
    let end = end.parse().map_or(bytes.len(), |last: usize| (last + 1).min(bytes.len()));
    let _ = write!(headers, "Content-Range: bytes {start}-{}/{}\r\n", end - 1, bytes.len());
    reply(206, &headers, &bytes[start..end])
}

fn hub(endpoint: &str, cache: &Path, offline: bool) -> Hub {
    with_token(endpoint, cache, None, offline)
}

fn with_token(endpoint: &str, cache: &Path, token: Option<&str>, offline: bool) -> Hub {
    let cache = Cache::new(cache.join("hub"));
    Hub::new(endpoint.to_owned(), cache, token.map(str::to_owned), offline).expect("a client")
}

#[expect(clippy::unnecessary_wraps, reason = "what looks at a folder can fail")]
fn any(_: &Path) -> Result<()> {
    Ok(())
}

/// Every file of a snapshot, as a model folder has them.
fn snapshot(folder: &Path) -> Vec<String> {
    let names =
        |path: &Path| -> Vec<PathBuf> { fs::read_dir(path).expect("read").map(|e| e.expect("e").path()).collect() };
    let below = |path: PathBuf| if path.is_dir() { names(&path) } else { vec![path] };
    let relative = |path: PathBuf| path.strip_prefix(folder).expect("below").to_str().expect("text").to_owned();
    let mut all: Vec<String> = names(folder).into_iter().flat_map(below).map(relative).collect();
    all.sort();
    all
}

#[test]
fn what_a_pipeline_needs_is_downloaded_once() {
    let (server, cache) = (Server::new(repository(), 200), tempfile::tempdir().expect("a folder"));
    let online = hub(&server.endpoint, cache.path(), false);
    let folder = online.fetch(TINY, any).expect("a model");
    assert_eq!(folder.file_name().expect("a name"), COMMIT);
    assert_eq!(snapshot(&folder), NEEDED);
    for (name, bytes) in repository().iter().filter(|(name, _)| NEEDED.contains(&&***name)) {
        assert!(fs::read(folder.join(name)).expect("read") == *bytes, "{name}");
    }
    assert_eq!(server.asked().len(), 1 + NEEDED.len() + 4, "the listing, each file, and large ones elsewhere");

    // Python's programs keep no reference of a commit.
    fs::remove_file(cache.path().join("hub/models--owner--tiny/refs").join(COMMIT)).expect("removed");
    // Again: the branch is looked up and nothing comes; a commit or a machine without network needs no look.
    assert_eq!(online.fetch(TINY, any).expect("a model"), folder);
    assert_eq!(server.asked(), ["/api/models/owner/tiny/revision/main"]);
    assert_eq!(online.fetch(Wanted { revision: COMMIT, ..TINY }, any).expect("a model"), folder);
    assert_eq!(hub(&server.endpoint, cache.path(), true).fetch(TINY, any).expect("a model"), folder);
    assert_eq!(server.asked(), [""; 0]);
    // A port that nobody listens on.
    assert_eq!(hub("http://127.0.0.1:1", cache.path(), false).fetch(TINY, any).expect("a model"), folder);

    // A model that is there no more is not taken from the cache in silence.
    let gone = Server::new(repository(), 404);
    hub(&gone.endpoint, cache.path(), false).fetch(TINY, any).expect_err("a branch that is gone");

    // What is gone comes again, and nothing else.
    fs::remove_file(folder.join("vae/config.json")).expect("removed");
    fs::remove_file(folder.join("text_encoder/model-00002-of-00002.safetensors")).expect("removed");
    online.fetch(TINY, any).expect("a model");
    assert_eq!(snapshot(&folder), NEEDED);
    assert_eq!(server.asked().len(), 4, "the listing, a small file, a large one and its other place");
}

#[test]
fn a_variant_is_taken_where_there_is_one() {
    let (server, cache) = (Server::new(repository(), 200), tempfile::tempdir().expect("a folder"));
    let half = Wanted { variant: Some("fp16"), ..TINY };
    let online = hub(&server.endpoint, cache.path(), false);
    let folder = online.fetch(half, any).expect("a model");
    let expected = NEEDED.map(|name| match name {
        "transformer/diffusion_pytorch_model.safetensors" => "transformer/diffusion_pytorch_model.fp16.safetensors",
        name => name,
    });
    assert_eq!(snapshot(&folder), expected);
    // Not every part has one: whether more are there now, the Hub knows. Without the network, what is there is whole.
    assert!(whole(&folder, Some("fp16"), false) && !whole(&folder, Some("fp16"), true));
    server.asked();
    online.fetch(Wanted { revision: COMMIT, ..half }, any).expect("a model");
    assert_eq!(server.asked(), [format!("/api/models/owner/tiny/revision/{COMMIT}")]);
}

#[track_caller]
fn refused(hub: &Hub, known: impl Fn(&Path) -> Result<()>, parts: &[&str]) {
    let error = hub.fetch(TINY, known).expect_err("refused");
    let told = format!("{}\nhint: {}", error.chain(), error.hint().unwrap_or_default());
    for part in parts {
        assert!(told.contains(part), "{part:?} is not in\n{told}");
    }
}

#[test]
fn what_cannot_be_downloaded_is_refused_with_what_to_do() {
    let cache = tempfile::tempdir().expect("a folder");
    let at = |server: &Server| hub(&server.endpoint, cache.path(), false);
    let gated = Server::new(repository(), 401);
    refused(&at(&gated), any, &["owner/tiny cannot", "(HTTP 401)", "accept its licence at http", "HF_TOKEN"]);
    refused(&at(&Server::new(repository(), 404)), any, &["no model owner/tiny with revision main", "model.revision"]);
    refused(&at(&Server::new(repository(), 503)), any, &["answers 503", "try again"]);
    refused(&hub("http://127.0.0.1:1", cache.path(), false), any, &["cannot get owner/tiny from http", "the network"]);
    refused(&hub(&gated.endpoint, cache.path(), true), any, &["is not whole in", "HF_HUB_OFFLINE"]);
    with_token(&gated.endpoint, cache.path(), Some("secret"), false).fetch(TINY, any).expect("a model");
    let cache = tempfile::tempdir().expect("a folder");
    let at = |server: &Server| hub(&server.endpoint, cache.path(), false);
    let mut files = repository();
    files.remove("vae/diffusion_pytorch_model.safetensors");
    refused(&at(&Server::new(files, 200)), any, &["owner/tiny has no files of vae/", "safetensors"]);
    let server = Server::new(repository(), 200);
    let cache = tempfile::tempdir().expect("a folder");
    let other = |_: &Path| Err(Error::new("another pipeline", "choose"));
    refused(&hub(&server.endpoint, cache.path(), false), other, &["another pipeline"]);
    assert_eq!(server.asked().len(), 2, "no more than the listing and model_index.json");
}
