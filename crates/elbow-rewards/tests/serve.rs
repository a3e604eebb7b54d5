//! The server of rewards, asked by Python's `requests` and by our own client.

#![expect(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

mod common;

use elbow::{Prompt, Request, Reward, RewardError, RgbImage, Score, reward::Part};
use elbow_rewards::{
    Log, Served,
    serve::{Offer, serve},
};
use serde_json::{Value, json};
use std::{
    io::Write,
    net::{SocketAddr, TcpListener},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// The red of a picture's first pixel, in parts; none for a black picture, NaN for a white one.
struct Red;

impl Reward for Red {
    fn name(&self) -> &'static str {
        "red"
    }

    fn score(&self, request: &Request<'_>) -> Vec<Result<Score, RewardError>> {
        let score = |(image, prompt): (&RgbImage, &Arc<Prompt>)| {
            let part = |name: &str, value| Part { name: name.into(), weight: 1.0, value };
            match image.get_pixel(0, 0).0 {
                [0, 0, 0] => Err(RewardError::Failed(format!("{} is black", prompt.text))),
                [255, 255, 255] => Ok(f64::NAN.into()),
                [red, ..] => Ok(Score::sum(vec![part("red", f64::from(red)), part("long", prompt.text.len() as f64)])),
            }
        };
        request.images.iter().zip(request.prompts).map(score).collect()
    }
}

/// Takes two seconds.
struct Slow;

impl Reward for Slow {
    fn name(&self) -> &'static str {
        "slow"
    }

    fn score(&self, request: &Request<'_>) -> Vec<Result<Score, RewardError>> {
        thread::sleep(Duration::from_secs(2));
        vec![Ok(1.0.into()); request.images.len()]
    }
}

/// Runs `ask` against a server of both rewards, which ends after it.
fn served(token: Option<&str>, ask: impl FnOnce(SocketAddr)) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, stop) = (listener.local_addr().unwrap(), Arc::new(AtomicBool::new(false)));
    let rewards: Vec<(String, Arc<dyn Reward>)> = vec![("red".into(), Arc::new(Red)), ("slow".into(), Arc::new(Slow))];
    let token = token.map(str::to_owned);
    let offer = Offer { rewards, token, timeout: Duration::from_millis(300), body_limit: 1 << 20 };
    let stopped = Arc::clone(&stop);
    let server = thread::spawn(move || serve(listener, offer, stopped));
    ask(address);
    stop.store(true, Ordering::SeqCst);
    let start = Instant::now();
    server.join().unwrap().unwrap();
    assert!(start.elapsed() < Duration::from_secs(10), "it ends");
}

const CLIENT: &str = r#"
import base64, io, json, sys
import requests
from PIL import Image

url, token = sys.argv[1], sys.argv[2]
session = requests.Session()
session.trust_env = False
head = {"Authorization": "Bearer " + token}

def picture(color, kind="PNG"):
    out = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(out, kind)
    return base64.b64encode(out.getvalue()).decode()

def one(color, text="a cat", kind="PNG", **more):
    return {"history": [{"text": text, "image_b64": picture(color, kind)}], **more}

def score(body, **more):
    answer = session.post(url + "/score", headers=head, **({"json": body} | more))
    return [answer.status_code, answer.json() if answer.headers.get("content-type", "").startswith("application/json") else answer.text]

said = {
    "health": session.get(url + "/health").json(),
    "rewards": session.get(url + "/rewards", headers=head).json(),
    "without": session.get(url + "/rewards").status_code,
    "wrong": session.post(url + "/score", headers={"Authorization": "Bearer no"}, json={"requests": []}).status_code,
    "scored": score({"requests": [
        one((200, 10, 10), required_rewards=["red"]),
        one((0, 0, 0), required_rewards=["red", "blue"]),
        one((255, 255, 255), required_rewards=["red"]),
        one((128, 128, 128), "äpfel", "JPEG", required_rewards=["red"], metadata={"tag": "x"}),
    ]}),
    "all": score({"requests": [one((7, 0, 0))]}),
    "none": score({"requests": []}),
    "garbage": score(None, data="{\"requests\": [", json=None),
    "other": score({"images": []}),
    "base64": score({"requests": [{"history": [{"image_b64": "***"}]}]}),
    "picture": score({"requests": [{"history": [{"image_b64": base64.b64encode(b"GIF89a").decode()}]}]}),
    "blind": score({"requests": [{"history": [{"text": "a cat"}]}]}),
    "large": score(None, data="x" * (2 << 20), json=None)[0],
    "get": session.get(url + "/score", headers=head).status_code,
    "absent": session.get(url + "/nothing", headers=head).status_code,
    "metrics": session.get(url + "/metrics", headers=head).text,
}
print(json.dumps(said))
"#;

#[test]
fn python_clients_are_answered() {
    let Some(python) = common::python() else { return };
    served(Some("secret"), |address| {
        let mut client = Command::new(&python)
            .args(["-", &format!("http://{address}"), "secret"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        client.stdin.take().unwrap().write_all(CLIENT.as_bytes()).unwrap();
        let output = client.wait_with_output().unwrap();
        assert!(output.status.success());
        let said: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(said["health"], json!({ "status": "ok" }));
        assert_eq!(said["rewards"], json!({ "rewards": ["red", "slow"] }));
        assert_eq!((&said["without"], &said["wrong"]), (&json!(401), &json!(401)));

        let scored = &said["scored"][1];
        assert_eq!(said["scored"][0], 200);
        assert_eq!(scored["results"][0], json!({ "red": { "score": 205.0 } }));
        assert_eq!(scored["parts"][0], json!({ "red": { "red": 200.0, "long": 5.0 } }));
        assert_eq!(scored["results"][1], json!({}));
        assert_eq!(scored["errors"][1]["red"], "a cat is black");
        assert_eq!(scored["errors"][1]["blue"], "there is no such reward; there are: red, slow");
        assert_eq!(scored["errors"][2], json!({ "red": "the score is NaN" }));
        assert_eq!(scored["results"][3], json!({ "red": { "score": 134.0 } }), "a JPEG, and a text of six bytes");

        // One reward that hangs takes nothing from the other.
        let all = &said["all"][1];
        assert_eq!(all["results"][0], json!({ "red": { "score": 12.0 } }));
        assert_eq!(all["errors"][0], json!({ "slow": "no answer within 0.3 s" }));

        assert_eq!(said["none"], json!([200, { "results": [], "errors": [], "parts": [] }]));
        for (case, word) in [
            ("garbage", "EOF while parsing"),
            ("other", "missing field `requests`"),
            ("base64", "requests[0].history: image_b64 is not base64"),
            ("picture", "requests[0].history: image_b64 is no PNG or JPEG"),
            ("blind", "requests[0].history has no image_b64"),
        ] {
            assert_eq!(said[case][0], 400, "{case}");
            assert!(
                said[case][1]["error"].as_str().is_some_and(|error| error.contains(word)),
                "{case}: {}",
                said[case]
            );
        }
        assert_eq!([&said["large"], &said["get"], &said["absent"]], [413, 405, 404]);
        let metrics = said["metrics"].as_str().unwrap();
        for line in ["elbow_reward_requests_total{reward=\"red\"} 2", "elbow_reward_pictures_total{reward=\"red\"} 5"] {
            assert!(metrics.contains(line), "{metrics}");
        }
        assert!(metrics.contains("elbow_reward_failures_total{reward=\"red\"} 2"), "{metrics}");
    });
}

#[test]
fn our_own_client_gets_what_the_reward_says() {
    served(None, |address| {
        let config = json!({
            "url": format!("http://{address}"),
            "protocol": { "kind": "score", "reward": "red" },
            "retries": 0,
        });
        let served: Served = serde_json::from_value(config).unwrap();
        let client = served.connect("red", Log::default()).unwrap();
        client.health().unwrap();
        let images: Vec<RgbImage> =
            [[9, 1, 1], [0, 0, 0]].map(|color| RgbImage::from_pixel(3, 5, image::Rgb(color))).into();
        let prompts = [Arc::new(Prompt::from("a dog")), Arc::new(Prompt::from("a cat"))];
        let request = Request { images: &images, prompts: &prompts, latents: None, groups: &[0, 1] };
        let scores = client.score(&request);
        assert_eq!(scores[0], Ok(14.0.into()));
        assert!(matches!(&scores[1], Err(RewardError::Failed(text)) if text.contains("a cat is black")), "{scores:?}");
    });
}
