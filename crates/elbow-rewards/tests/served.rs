//! Rewards of servers, against servers written with Python's own tools, which check and decode what they are sent.

#![allow(clippy::print_stdout, reason = "a skipped test says so")]

mod common;

use elbow::{Prompt, Request, Reward, RewardError, RgbImage, Score};
use elbow_rewards::{
    Log, Served,
    served::{Client, ConnectError},
};
use serde_json::{Value, json};
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

/// A running server, stopped when dropped.
struct Server {
    process: Child,
    port: u16,
}

impl Server {
    /// Starts a script of `tests/servers`, which prints its port; none without Python.
    fn start(script: &str) -> Option<Self> {
        let mut process = Command::new(common::python()?)
            .arg(format!("{}/tests/servers/{script}.py", env!("CARGO_MANIFEST_DIR")))
            .env("EXPECTED_KEY", env!("CARGO_PKG_NAME"))
            .stdout(Stdio::piped())
            .spawn()
            .expect("Python starts");
        let mut line = String::new();
        BufReader::new(process.stdout.as_mut().expect("piped")).read_line(&mut line).expect("a line");
        let port = line.trim().parse().unwrap_or_else(|_| panic!("{script}.py prints its port, not {line:?}"));
        Some(Self { process, port })
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// How often a name of the nasty server was asked.
    fn count(&self, name: &str) -> u32 {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("a server");
        write!(stream, "GET /count/{name} HTTP/1.1\r\n\r\n").expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer.rsplit("\r\n").next().and_then(|count| count.parse().ok()).expect("a count")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.process.kill().expect("it runs");
        self.process.wait().expect("it ends");
    }
}

/// The reward of a server; `more` are fields of the recipe.
fn connect(url: &str, protocol: Value, more: Value) -> Client {
    let mut config = json!({"url": url, "protocol": protocol});
    for (field, value) in more.as_object().expect("fields") {
        config[field] = value.clone();
    }
    let served: Served = serde_json::from_value(config).expect("a config");
    served.connect("judge", Log::default()).expect("it connects")
}

fn plain(rgb: [u8; 3]) -> RgbImage {
    RgbImage::from_pixel(24, 16, image::Rgb(rgb))
}

fn prompts(lines: &[Value]) -> Vec<Arc<Prompt>> {
    lines.iter().map(|line| Arc::new(serde_json::from_value(line.clone()).expect("a prompt"))).collect()
}

/// One prompt for all.
fn same(text: &str, n: usize) -> Vec<Arc<Prompt>> {
    (0..n).map(|_| Arc::new(Prompt::from(text))).collect()
}

/// Scores of pictures, all of one group.
fn score(reward: &Client, images: &[RgbImage], prompts: &[Arc<Prompt>]) -> Vec<Result<Score, RewardError>> {
    score_groups(reward, images, prompts, &vec![0; images.len()])
}

fn score_groups(
    reward: &Client,
    images: &[RgbImage],
    prompts: &[Arc<Prompt>],
    groups: &[usize],
) -> Vec<Result<Score, RewardError>> {
    let scores = reward.score(&Request { images, prompts, latents: None, groups });
    assert_eq!(scores.len(), images.len());
    scores
}

fn value(score: &Result<Score, RewardError>) -> f64 {
    score.as_ref().unwrap_or_else(|error| panic!("no score: {error}")).value
}

/// That a score is a number, up to what JPEG or rounding loses.
#[track_caller]
fn near(score: &Result<Score, RewardError>, expected: f64, tolerance: f64) {
    assert!((value(score) - expected).abs() <= tolerance, "{score:?} {expected}");
}

#[track_caller]
fn fails(score: &Result<Score, RewardError>, words: &str) {
    assert!(matches!(score, Err(RewardError::Failed(text)) if text.contains(words)), "{score:?} {words:?}");
}

#[track_caller]
fn unavailable(score: &Result<Score, RewardError>, words: &str) {
    assert!(matches!(score, Err(RewardError::Unavailable(text)) if text.contains(words)), "{score:?} {words:?}");
}

/// A level of 8-bit color, in [0, 1], and a bit for rounding.
const LEVEL: f64 = 1.5 / 255.0;

fn record(tag: &str, count: u32) -> Value {
    json!({"prompt": "a photo of a cat", "tag": tag, "include": [{"class": "cat", "count": count}]})
}

#[test]
fn geneval_sends_records_and_takes_the_score_of_its_mode() {
    let Some(server) = Server::start("pickled") else { return };
    let images = [plain([200, 0, 0]), plain([51, 9, 9]), plain([0; 3]), plain([255, 0, 0])];
    let prompts = prompts(&[
        record("counting", 2),
        record("single_object", 1),
        json!({"prompt": "no record"}),
        record("colors", 1),
    ]);
    let ask = |mode: &str, batch: usize| {
        let reward = connect(&server.url(""), json!({"kind": "geneval", "mode": mode}), json!({"batch": batch}));
        let scores = score(&reward, &images, &prompts);
        assert!(
            matches!(&scores[2], Err(RewardError::Prompt { reason, .. }) if reason.contains("tag")),
            "{:?}",
            scores[2]
        );
        scores
    };
    for batch in [64, 2, 1] {
        let dense = ask("dense", batch);
        near(&dense[0], 200.0 / 255.0 - 1.0, LEVEL);
        near(&dense[1], 0.2 - 1.0, LEVEL);
        near(&dense[3], -3.0, 0.0);
    }
    let lenient = ask("lenient", 64);
    assert_eq!([0, 1, 3].map(|k| &lenient[k]), [&Ok(1.0.into()); 3]);
    let strict = ask("strict", 64);
    assert_eq!([0, 1, 3].map(|k| &strict[k]), [&Ok(0.0.into()), &Ok(1.0.into()), &Ok(1.0.into())]);

    let reward = connect(&server.url("/"), json!({"kind": "geneval"}), json!({}));
    assert_eq!(reward.health(), Ok(()));
    let own: Vec<Prompt> = prompts.iter().map(|prompt| Prompt::clone(prompt)).collect();
    assert!(matches!(reward.check(&own), Err(RewardError::Prompt { .. })));
    assert_eq!(reward.check(&own[..2]), Ok(()));
    // By default, partial credit.
    near(&score(&reward, &images[..1], &prompts[..1])[0], 200.0 / 255.0 - 1.0, LEVEL);
}

#[test]
fn deqa_scorer_and_llava_give_their_numbers() {
    let Some(server) = Server::start("pickled") else { return };
    let images = [plain([100, 200, 50]), plain([10, 20, 30]), plain([0, 255, 128])];
    let prompts = prompts(&[json!({"prompt": "a"}), json!({"prompt": "été"}), json!({"prompt": "four"})]);

    let deqa = connect(&server.url("/deqa"), json!({"kind": "deqa"}), json!({}));
    let scores = score(&deqa, &images, &prompts);
    for (score, green) in scores.iter().zip([200.0, 20.0, 255.0]) {
        near(score, green / 255.0, LEVEL);
    }

    let scorer = connect(&server.url("/scorer"), json!({"kind": "scorer"}), json!({}));
    let scores = score(&scorer, &images, &prompts);
    for (score, expected) in scores.iter().zip([50.0 / 255.0 + 1.0, 30.0 / 255.0 + 3.0, 128.0 / 255.0 + 4.0]) {
        near(score, expected, LEVEL);
    }
    let failing = self::prompts(&[json!({"prompt": "fail"})]);
    fails(&score(&scorer, &images[..1], &failing)[0], "out of memory");

    let protocol = json!({"kind": "llava", "question": "What is there?", "answer": "There is {prompt}"});
    let llava = connect(&server.url("/llava"), protocol, json!({"batch": 1}));
    let scores = score(&llava, &images, &prompts);
    for (score, expected) in scores.iter().zip([100.0 / 255.0 + 10.0, 10.0 / 255.0 + 12.0, 13.0]) {
        near(score, expected, LEVEL);
    }
    // This server gives the second of two pictures two numbers.
    let llava =
        connect(&server.url("/llava"), json!({"kind": "llava", "question": "What is there?"}), json!({"batch": 2}));
    let scores = score(&llava, &images, &prompts);
    near(&scores[0], 100.0 / 255.0 + 1.0, LEVEL);
    fails(&scores[1], "not a list of one number");
    near(&scores[2], 4.0, LEVEL);
    // What it does not understand is its own failure.
    let llava = connect(&server.url("/llava"), json!({"kind": "llava", "question": "Why?"}), json!({"retries": 0}));
    unavailable(&score(&llava, &images, &prompts)[0], "status 500");
}

#[test]
fn pictures_go_out_in_batches() {
    let Some(server) = Server::start("pickled") else { return };
    let images = vec![plain([0; 3]); 7];
    let prompts = same("a", 7);
    let sizes = |batch: Value| -> Vec<f64> {
        let reward = connect(&server.url("/sizes"), json!({"kind": "deqa"}), batch);
        score(&reward, &images, &prompts).iter().map(value).collect()
    };
    assert_eq!(sizes(json!({})), [7.0; 7]);
    assert_eq!(sizes(json!({"batch": 3})), [3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 1.0]);
    let reward = connect(&server.url("/sizes"), json!({"kind": "deqa"}), json!({}));
    assert!(score(&reward, &[], &[]).is_empty());
}

#[test]
fn a_judge_is_asked_and_read() {
    let Some(server) = Server::start("judge") else { return };
    let images = [plain([51, 0, 0]), plain([255, 0, 0]), plain([0; 3]), plain([0; 3]), plain([0; 3])];
    let line = |text: &str| json!({"prompt": text, "n": 3});
    let texts = prompts(&[line("cat"), line("dog"), line("unsure"), line("silent"), json!({"prompt": "no n"})]);
    let protocol = json!({
        "kind": "chat", "model": "judge", "template": "{metadata.n} of a {prompt}, braces {}", "max_tokens": 99,
        "pattern": r"Rating: ([\d.]+)", "divide_by": 10, "size": 20, "image_format": "jpeg",
    });
    let reward = connect(&server.url("/score/v1"), protocol, json!({}));
    assert_eq!(reward.health(), Ok(()));
    let scores = score(&reward, &images, &texts);
    near(&scores[0], 0.2, LEVEL + 0.001);
    near(&scores[1], 1.0, LEVEL + 0.001);
    fails(&scores[2], "no score in the answer: I cannot tell.");
    fails(&scores[3], "the answer has no text");
    assert!(matches!(&scores[4], Err(RewardError::Prompt { reason, .. }) if reason.contains("`n`")), "{:?}", scores[4]);
    assert!(reward.check(&[Prompt::from("no n")]).is_err());

    let protocol = json!({"kind": "chat", "model": "judge", "template": "{prompt}", "field": "/score"});
    let reward = connect(&server.url("/field/v1/"), protocol, json!({}));
    let scores = score(&reward, &images[..2], &texts[..2]);
    near(&scores[0], 51.0, 0.0);
    fails(&scores[1], "no score in the answer: {\"score\": \"high\"}");
}

#[test]
fn unified_reward_is_asked_as_flow_grpo_asks_it() {
    let Some(server) = Server::start("judge") else { return };
    let image = RgbImage::from_fn(24, 16, |x, _| image::Rgb([10 * x as u8, 0, 0]));
    let texts = [Arc::new(Prompt::from("a cat"))];
    let url = server.url("/unified/v1");
    let reward = connect(&url, json!({"kind": "unified-reward"}), json!({"key_env": "CARGO_PKG_NAME"}));
    near(&score(&reward, std::slice::from_ref(&image), &texts)[0], (1.0 + 115.0 / 255.0) / 5.0, 0.002);
    let reward = connect(&url, json!({"kind": "unified-reward"}), json!({"key_env": "CARGO_PKG_VERSION"}));
    unavailable(&score(&reward, &[image], &texts)[0], "the key");
}

#[test]
fn a_judge_compares_the_pictures_of_a_group() {
    let Some(server) = Server::start("judge") else { return };
    let protocol = json!({"kind": "chat", "model": "judge", "compare": true});
    let reward = connect(&server.url("/compare/v1"), protocol.clone(), json!({}));
    assert!(reward.needs().whole_groups && reward.needs().in_flight == 4);
    // A group of four, one of three with a tie, a lone picture, and three of which one cannot be judged.
    let red = [90, 30, 120, 60, 5, 5, 200, 1, 8, 9, 0];
    let groups = [7, 7, 7, 7, 2, 2, 2, 5, 0, 0, 0];
    let mut images = red.map(|red| plain([red, 0, 0]));
    images[10] = plain([0, 0, 255]);
    let texts = same("a cat", 11);
    let scores = score_groups(&reward, &images, &texts, &groups);
    let expected = [2.0 / 3.0, 0.0, 1.0, 1.0 / 3.0, 0.25, 0.25, 1.0];
    for (k, expected) in expected.into_iter().enumerate() {
        near(&scores[k], expected, 1e-12);
    }
    fails(&scores[7], "no other picture");
    near(&scores[8], 0.0, 0.0);
    near(&scores[9], 1.0, 0.0);
    fails(&scores[10], "neither 1 nor 2 nor tie in the answer: Neither shows anything.");

    // A judge that always prefers the first place: every picture of 16 is there sometimes, and never always.
    let reward = connect(&server.url("/first/v1"), protocol, json!({"in_flight": 8}));
    let images: Vec<_> = (0..16).map(|k| plain([k, 0, 0])).collect();
    let scores = score(&reward, &images, &same("a cat", 16));
    let shares: Vec<f64> = scores.iter().map(value).collect();
    assert!((shares.iter().sum::<f64>() - 8.0).abs() < 1e-9, "{shares:?}");
    assert!(shares.iter().all(|share| (0.1..0.9).contains(share)), "{shares:?}");
}

#[test]
fn a_judge_that_cannot_be_reached_compares_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/v1", listener.local_addr().expect("an address"));
    drop(listener);
    let protocol = json!({"kind": "chat", "model": "judge", "compare": true});
    let reward = connect(&url, protocol, json!({"retries": 0}));
    let texts = same("a cat", 2);
    for score in score(&reward, &[plain([0; 3]), plain([1; 3])], &texts) {
        unavailable(&score, &url);
    }
    assert!(matches!(reward.health(), Err(RewardError::Unavailable(text)) if text.contains(&url)));
}

#[test]
fn flow_factorys_server_gives_rewards() {
    let Some(server) = Server::start("services") else { return };
    let reward = connect(&server.url("/"), json!({"kind": "compute"}), json!({"batch": 2}));
    assert_eq!(reward.health(), Ok(()));
    let images = [plain([1, 200, 3]), plain([1, 17, 3]), plain([0; 3])];
    let texts = prompts(&[json!({"prompt": "abc"}), json!({"prompt": ""}), json!({"prompt": "fail"})]);
    let scores = score(&reward, &images, &texts);
    near(&scores[0], 203.0, 0.0);
    near(&scores[1], 17.0, 0.0);
    fails(&scores[2], "CUDA out of memory");
    let loading = connect(&server.url("/loading"), json!({"kind": "compute"}), json!({}));
    assert!(
        matches!(loading.health(), Err(RewardError::Unavailable(text)) if text.contains("503") && text.contains("loading the model"))
    );
}

#[test]
fn unirls_service_gives_one_number_or_several() {
    let Some(server) = Server::start("services") else { return };
    let images = vec![plain([40, 0, 0]); 4];
    let texts = prompts(&[
        json!({"prompt": "a", "bonus": 2.5}),
        json!({"prompt": "slow"}),
        json!({"prompt": "nothing"}),
        json!({"prompt": "b"}),
    ]);
    let ask = |reward: Value| {
        let reward = connect(&server.url(""), reward, json!({}));
        assert_eq!(reward.health(), Ok(()));
        let scores = score(&reward, &images, &texts);
        fails(&scores[1], "timed out after 30 s");
        fails(&scores[2], "no score of");
        scores
    };
    // The last prompt has no bonus: the server gives null.
    let both = ask(json!({"kind": "score", "reward": "both"}));
    let parts: Vec<_> =
        both[0].as_ref().unwrap().parts.iter().map(|part| (part.name.to_string(), part.weight, part.value)).collect();
    assert_eq!(parts, [("red".into(), 1.0, 40.0), ("bonus".into(), 1.0, 2.5)]);
    near(&both[0], 42.5, 0.0);
    fails(&both[3], "not a number but null");

    let red = ask(json!({"kind": "score", "reward": "both", "sub": "red"}));
    assert_eq!((&red[0], &red[3]), (&Ok(40.0.into()), &Ok(40.0.into())));
    let one = ask(json!({"kind": "score", "reward": "one"}));
    assert_eq!((&one[0], &one[3]), (&Ok(40.0.into()), &Ok(40.0.into())));
    let wrong = ask(json!({"kind": "score", "reward": "one", "sub": "blue"}));
    fails(&wrong[0], "\"one\" has no \"blue\" but red");
}

#[test]
fn requests_go_side_by_side_up_to_the_limit() {
    let Some(server) = Server::start("services") else { return };
    let reward = connect(&server.url("/slow"), json!({"kind": "compute"}), json!({"batch": 1, "in_flight": 4}));
    let images = vec![plain([0; 3]); 4];
    let texts = same("a", 4);
    // The limit is one for all calls. Each request takes 0.2 s and is answered by the most there were at a time.
    let peaks: Vec<f64> = std::thread::scope(|scope| {
        let calls: Vec<_> = (0..3).map(|_| scope.spawn(|| score(&reward, &images, &texts))).collect();
        calls.into_iter().flat_map(|call| call.join().expect("scored")).map(|score| value(&score)).collect()
    });
    assert!(peaks.len() == 12 && peaks.iter().all(|&peak| peak <= 4.0) && peaks.contains(&4.0), "{peaks:?}");
}

/// What becomes of a misbehaviour: the words of the error, whether it is for ever, and how often the server was asked.
struct Nasty {
    name: &'static str,
    words: &'static str,
    failed: bool,
    asked: u32,
}

#[test]
fn misbehaviour_is_never_a_score() {
    let Some(server) = Server::start("nasty") else { return };
    let nasty = |name, words, failed, asked| Nasty { name, words, failed, asked };
    let cases = [
        nasty("broken", "status 500 Internal Server Error: Traceback: xxx", false, 2),
        nasty("missing", "status 404 Not Found: nothing here", false, 1),
        nasty("busy", "status 429 Too Many Requests: later (tried 2 times)", false, 2),
        nasty("moved", "status 307", false, 1),
        nasty("half", "", false, 2),
        nasty("long", "timeout", false, 2),
        nasty("short", "not an answer of this protocol", false, 1),
        nasty("slow", "timeout", false, 2),
        nasty("drip", "timeout", false, 2),
        nasty("endless", "larger", false, 1),
        nasty("banana", "", false, 2),
        nasty("hangup", "", false, 2),
        nasty("malformed", "{\"rewards\": [1.0, 2", false, 1),
        nasty("html", "<html>Welcome to nginx!</html>", false, 1),
        nasty("empty", "not an answer of this protocol", false, 1),
        nasty("other", "there is no list `rewards`", false, 1),
        nasty("binary", "not an answer of this protocol", false, 1),
        nasty("few", "the server gave 1 scores for 2 pictures", true, 1),
        nasty("many", "the server gave 3 scores for 2 pictures", true, 1),
        nasty("odd", "not a number but null", true, 1),
        nasty("odder", "not a number but", true, 1),
        nasty("pickle-truncated", "not an answer of this protocol (pickle, byte", false, 1),
        nasty("pickle-call", "GLOBAL is refused", false, 1),
        nasty("pickle-other", "there is no `outputs`", false, 1),
        nasty("pickle-no-dict", "there is no `outputs`", false, 1),
        nasty("pickle-no-list", "`outputs` is not a list", true, 1),
        nasty("pickle-few", "the server gave 1 scores for 2 pictures", true, 1),
        nasty("pickle-many", "the server gave 3 scores for 2 pictures", true, 1),
        nasty("pickle-odd", "not a number but", true, 1),
        nasty("pickle-odder", "not a number but", true, 1),
    ];
    let images = [plain([0; 3]), plain([1; 3])];
    let texts = same("a", 2);
    let ask = |name: &str, more: Value| {
        let kind = if name.starts_with("pickle") { "deqa" } else { "compute" };
        let reward = connect(&server.url(&format!("/{name}")), json!({"kind": kind}), more);
        score(&reward, &images, &texts)
    };
    let start = Instant::now();
    std::thread::scope(|scope| {
        for Nasty { name, words, failed, asked } in cases {
            let (ask, server) = (&ask, &server);
            scope.spawn(move || {
                let timeout = if matches!(name, "long" | "slow" | "drip") { 1.0 } else { 30.0 };
                for score in ask(name, json!({"retries": 1, "timeout": timeout})) {
                    let error = score.expect_err(name);
                    assert_eq!(matches!(error, RewardError::Failed(_)), failed, "{name}: {error:?}");
                    let text = error.to_string();
                    assert!(
                        text.contains(words) && text.starts_with(&server.url(&format!("/{name}"))),
                        "{name}: {text}"
                    );
                    assert!(text.chars().count() < 800, "{name}: {text}");
                }
                assert_eq!(server.count(name), asked, "{name}");
            });
        }
    });
    assert!(start.elapsed() < Duration::from_secs(40), "{:?}", start.elapsed());

    // One number among others is a score, and so are those that come late.
    for name in ["good-and-bad", "pickle-good-and-bad"] {
        let scores = ask(name, json!({}));
        assert_eq!(scores[0], Ok(0.25.into()));
        fails(&scores[1], "not a number but");
    }
    assert_eq!(ask("flaky", json!({})), [Ok(1.5.into()), Ok(2.5.into())]);
    assert_eq!(server.count("flaky"), 3);
    // Nobody there.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    drop(listener);
    let reward = connect(&url, json!({"kind": "geneval"}), json!({"retries": 1}));
    let record = prompts(&[record("colors", 1), record("colors", 1)]);
    for score in score(&reward, &images, &record) {
        unavailable(&score, "(tried 2 times)");
    }
}

#[test]
fn the_token_is_sent_and_never_shown() {
    let Some(server) = Server::start("nasty") else { return };
    let token = env!("CARGO_PKG_NAME");
    let texts = [Arc::new(Prompt::from("a"))];
    for (name, words) in [("key", "status 401"), ("key-echo", "{url}")] {
        let url = server.url(&format!("/{name}"));
        let log = Log::default();
        let config = json!({"url": url, "protocol": {"kind": "compute"}, "key_env": "CARGO_PKG_NAME"});
        let served: Served = serde_json::from_value(config).expect("a config");
        let reward = served.connect("judge", log.clone()).expect("it connects");
        let error = score(&reward, &[plain([0; 3])], &texts)[0].clone().expect_err("no score").to_string();
        assert!(
            error.contains(&words.replace("{url}", &url)) && error.to_lowercase().contains("authorization: bearer ***"),
            "{error}"
        );
        let said = log.take().concat();
        assert!(!error.contains(token) && !said.contains(token), "{error} {said}");
    }
}

#[test]
fn a_config_has_defaults_and_its_mistakes_are_named() {
    let parse = |config: Value| serde_json::from_value::<Served>(config);
    let served = parse(json!({"url": "http://127.0.0.1:18085", "protocol": {"kind": "geneval"}})).expect("a config");
    assert_eq!((served.timeout, served.retries, served.in_flight, served.batch), (120.0, 3, 4, None));
    assert_eq!(served.validate(), Vec::<String>::new());
    assert_eq!(parse(serde_json::to_value(&served).expect("JSON")).expect("a config"), served);

    // The manual is made of the schema: every protocol is in it.
    let schema = serde_json::to_value(schemars::schema_for!(Served)).expect("JSON");
    let kinds = schema["$defs"]["Protocol"]["oneOf"].as_array().expect("variants").iter();
    let kinds: Vec<_> = kinds.map(|kind| kind["properties"]["kind"]["const"].as_str().expect("a kind")).collect();
    assert_eq!(kinds, ["geneval", "deqa", "scorer", "llava", "chat", "unified-reward", "compute", "score"]);

    for (protocol, fine) in [
        (json!({"kind": "deqa"}), true),
        (json!({"kind": "unified-reward"}), true),
        (json!({"kind": "score", "reward": "clip"}), true),
        (json!({"kind": "score"}), false),
        (json!({"kind": "deqa", "mode": "dense"}), false),
        (json!({"kind": "geneval", "strict": true}), false),
        (json!({"kind": "magic"}), false),
    ] {
        assert_eq!(parse(json!({"url": "http://a", "protocol": protocol})).is_ok(), fine, "{protocol}");
    }

    for (more, words) in [
        (json!({"url": "127.0.0.1:18085"}), "reward.url = \"127.0.0.1:18085\": "),
        (json!({"url": "/score"}), "must begin with http"),
        (json!({"url": "http://me:secret@host"}), "reward.url = \"…\": holds a name or password; use `key_env`"),
        (json!({"url": "http://host/?key=1"}), "without `?`"),
        (json!({"url": ""}), "write http://HOST:PORT"),
        (json!({"timeout": 0}), "reward.timeout = 0: must be above 0"),
        (json!({"timeout": 1e300}), "at most 86400"),
        (json!({"in_flight": 0}), "reward.in_flight = 0: must be at least 1"),
        (json!({"batch": 0}), "reward.batch = 0: must be at least 1"),
        (json!({"batch": 2, "protocol": {"kind": "unified-reward"}}), "reward.batch = 2: "),
        (
            json!({"key_env": "sk-12"}),
            "reward.key_env: must be the name of an environment variable, never the key itself",
        ),
        (json!({"protocol": {"kind": "score", "reward": ""}}), "reward.protocol.reward = \"\""),
        (json!({"protocol": {"kind": "llava", "question": ""}}), "reward.protocol.question = \"\""),
        (json!({"protocol": {"kind": "llava", "answer": "{metadata.a"}}), "reward.protocol.answer: "),
        (json!({"protocol": {"kind": "chat", "model": "m", "max_tokens": 0}}), "reward.protocol.max_tokens = 0"),
    ] {
        let mut config = json!({"url": "http://a", "protocol": {"kind": "deqa"}});
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let served = parse(config).expect("a config");
        let problems = served.validate();
        assert!(problems.len() == 1 && problems[0].contains(words), "{more}: {problems:?}");
        let refused = served.connect("judge", Log::default()).err();
        assert_eq!(refused, Some(ConnectError::Config(problems)));
    }
    if !cfg!(feature = "https") {
        let served = Served { url: "https://api.example/v1".into(), ..served.clone() };
        assert!(served.validate()[0].contains("build with `--features elbow-cli/https`"));
    }

    for (variable, words) in [("ELBOW_NO_SUCH_KEY", "it is not set"), ("CARGO_PKG_DESCRIPTION", "no spaces")] {
        let served = Served { key_env: Some(variable.into()), ..served.clone() };
        let error = served.connect("judge", Log::default()).err().expect("no token").to_string();
        assert!(error.contains(variable) && error.contains(words) && error.contains(&served.url), "{error}");
        assert!(!error.contains("Reinforcement"), "{error}");
    }
}
