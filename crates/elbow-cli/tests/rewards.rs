//! Rewards of users in whole runs: a Python function, a server that goes away and comes back, and what a run makes of each.

#![expect(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

mod common;
#[path = "../../elbow-rewards/tests/common/mod.rs"]
mod interpreter;

use common::{SMALL, assert_same, elbow, files, records, resume, sets, signal, succeed, text, wait_for};
use interpreter::python;
use serde_json::Value;
use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

/// The lines of the sample logs of a run.
fn samples(run: &Path) -> Vec<Value> {
    let mut logs = files(&run.join("samples"));
    logs.retain(|name, _| name.extension().is_some_and(|end| end == "jsonl"));
    let lines = logs
        .values()
        .flat_map(|bytes| String::from_utf8(bytes.clone()).unwrap().lines().map(str::to_owned).collect::<Vec<_>>());
    lines.map(|line| serde_json::from_str(&line).unwrap()).collect()
}

/// The block of a kind in the README after a heading.
fn block(heading: &str, kind: &str) -> String {
    let readme = include_str!("../../../README.md");
    let section = readme.split_once(heading).expect("the heading").1;
    let (_, block) = section.split_once(&format!("```{kind}\n")).expect("the block");
    block.split_once("```").expect("its end").0.to_owned()
}

const HEADING: &str = "## Bring your reward";

#[test]
fn the_reward_of_the_readme_trains_the_nano_model() {
    let Some(python) = python() else { return };
    let root = tempfile::tempdir().unwrap();
    let code = block(HEADING, "python");
    assert!(code.lines().filter(|line| !line.trim().is_empty()).count() <= 10, "ten lines:\n{code}");
    fs::write(root.path().join("my_reward.py"), code).unwrap();
    let shell = block(HEADING, "sh");
    let line = shell.lines().find(|line| line.contains("-- train")).expect("a command");
    let arguments = line.split_once("-- ").unwrap().1.split('#').next().unwrap().split_whitespace();
    let change = format!("reward.python={python}");
    let more = [
        "epochs=4",
        "batch.groups=6",
        "batch.group_size=8",
        "batch.micro_batch=16",
        "eval.prompts_per_task=4",
        &change,
    ];
    let run = root.path().join("run");
    succeed(elbow(arguments).args(sets(&more)).arg("--run").arg(&run).current_dir(root.path()));
    let result: Value = serde_json::from_str(&fs::read_to_string(run.join("result.json")).unwrap()).unwrap();
    let score = |when: &str| result[when]["eval_reward_my_reward"].as_f64().unwrap();
    assert!(score("tuned") > score("base") + 0.005, "{result}");
    let printed = succeed(resume(&run).args(sets(&["epochs=5"])).current_dir(root.path()));
    assert!(printed.contains("5 epochs from 4"), "{printed}");
}

/// A reward that does everything wrong that can be done, by turns, and is right about the rest.
const MOODY: &str = r#"
import os, signal, time
from PIL import ImageStat
calls = 0

def score(images, prompts, metadata):
    global calls
    calls += 1
    print("call", calls, "of", len(images))
    scores = [ImageStat.Stat(image).mean[0] + 1 for image in images]
    turn = os.path.join(os.path.dirname(__file__), "turn")
    number = int(open(turn).read()) if os.path.exists(turn) else 0
    open(turn, "w").write(str(number + 1))
    match number % 9:
        case 3: raise ValueError("nothing to see")
        case 4: os.kill(os.getpid(), signal.SIGKILL)
        case 5: time.sleep(60)
        case 6: return scores[:-1]
        case 7: return [float("nan"), *scores[1:]]
        case 8: return [None, *scores[1:]]
    return scores
"#;

#[test]
fn whatever_goes_wrong_in_a_reward_is_missing_and_never_zero() {
    let Some(python) = python() else { return };
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("moody.py"), MOODY).unwrap();
    let run = root.path().join("run");
    let change = format!("reward={{ kind = \"python\", file = \"moody.py\", python = \"{python}\", timeout = 1.0 }}");
    let more = [&change, "epochs=6", "on_missing=\"go-on\"", "eval.measure.every=0"];
    let mut command = elbow(["train", "--run"]);
    succeed(command.arg(&run).args(sets(&SMALL)).args(sets(&more)).current_dir(root.path()));

    let samples = samples(&run);
    let status = |status: &str| -> Vec<&Value> { samples.iter().filter(|line| line["status"] == status).collect() };
    let (scored, failed, unavailable) = (status("scored"), status("failed"), status("unavailable"));
    assert_eq!(scored.len() + failed.len() + unavailable.len(), samples.len());
    // A red mean is at least 0, so that 1 is the least that any picture scores.
    assert!(scored.iter().all(|line| line["reward"].as_f64().unwrap() >= 1.0));
    let lost = [&failed[..], &unavailable[..]].concat();
    assert!(
        lost.iter().all(|line| line["trained"] == false && line["advantage"].is_null() && line["reward"].is_null())
    );
    let reasons: BTreeSet<&str> = lost.iter().map(|line| line["reason"].as_str().unwrap()).collect();
    for word in ["nothing to see", "SIGKILL", "1 s", "NaN", "no score"] {
        assert!(reasons.iter().any(|reason| reason.contains(word)), "{word}: {reasons:#?}");
    }
    let log = fs::read_to_string(run.join("rewards.log")).unwrap();
    assert!(log.contains("moody: call 1 of") && log.contains("SIGKILL"), "{log}");
}

#[test]
fn a_reward_that_cannot_score_stops_a_run_before_it_starts() {
    let Some(python) = python() else { return };
    let root = tempfile::tempdir().unwrap();
    let write = |name: &str, code: &str| fs::write(root.path().join(name), code).unwrap();
    write("none.py", "def score(images, prompts, metadata):\n    return [None] * len(images)\n");
    write(
        "dark.py",
        "from PIL import ImageStat\ndef score(images, prompts, metadata):\n    return [-ImageStat.Stat(i).mean[0] for i in images]\n",
    );
    for (name, value) in [("white.png", 255), ("black.png", 0)] {
        image::RgbImage::from_pixel(8, 8, image::Rgb([value; 3])).save(root.path().join(name)).unwrap();
    }
    let train = |file: &str, more: &[&str]| {
        let reward = format!("reward={{ kind = \"python\", file = \"{file}\", python = \"{python}\" }}");
        let mut command = elbow(["train", "--run", "run"]);
        command.args(sets(&SMALL)).args(sets(&["epochs=1", &reward])).args(sets(more)).current_dir(root.path());
        command
    };
    let refused = |command: &mut Command, words: &[&str]| {
        let output = command.output().unwrap();
        let told = text(&output);
        assert!(!output.status.success() && words.iter().all(|word| told.contains(word)), "{told}");
        assert!(!root.path().join("run").exists(), "nothing is written before");
    };
    refused(&mut train("none.py", &[]), &["`none` gave no score for a test picture", "[[self_test]]"]);
    refused(&mut train("absent.py", &[]), &["absent.py"]);
    let order = "self_test=[{ better = \"white.png\", worse = \"black.png\" }]";
    refused(&mut train("dark.py", &[order]), &["-255", "white.png", "which should score less"]);
    let order = "self_test=[{ better = \"black.png\", worse = \"white.png\" }]";
    succeed(&mut train("dark.py", &[order]));
}

/// A reward server by Flow-Factory's protocol, of Python's standard library alone. It writes down every picture that it is asked about.
const SERVER: &str = r#"
import hashlib, json, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    def answer(self, value):
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.answer({"status": "ok"})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        marks = [hashlib.sha256((p + i).encode()).hexdigest() for p, i in zip(asked["prompt"], asked["image"])]
        with open(sys.argv[2], "a") as book:
            book.write("".join(mark + "\n" for mark in marks))
        self.answer({"rewards": [int(mark[:8], 16) / 2**32 for mark in marks]})

    def log_message(self, *_):
        pass

ThreadingHTTPServer.allow_reuse_address = True
server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
print("ready", flush=True)
server.serve_forever()
"#;

/// A server that ends with its test.
struct Server(Child);

impl Server {
    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// A directory with a server's program, and the port that it listens on.
struct Desk {
    root: tempfile::TempDir,
    python: String,
    port: u16,
}

impl Desk {
    fn new() -> Option<Self> {
        let (python, root) = (python()?, tempfile::tempdir().unwrap());
        fs::write(root.path().join("server.py"), SERVER).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        Some(Self { root, python, port })
    }

    fn server(&self) -> Server {
        let mut command = Command::new(&self.python);
        command
            .args(["server.py", &self.port.to_string(), "book"])
            .current_dir(self.root.path())
            .stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Server(child)
    }

    /// What the server was asked about so far.
    fn book(&self) -> Vec<String> {
        fs::read_to_string(self.root.path().join("book")).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    fn forget(&self) {
        drop(fs::remove_file(self.root.path().join("book")));
    }

    fn run(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// A run on two weighted rewards, one of them the server's.
    fn train(&self, name: &str, on_missing: &str) -> Command {
        let served = format!(
            "{{ kind = \"served\", url = \"http://127.0.0.1:{}\", protocol = {{ kind = \"compute\" }}, retries = 0, timeout = 5.0 }}",
            self.port
        );
        let parts = format!(
            "reward={{ kind = \"sum\", parts = [{{ name = \"scene\", reward = {{ kind = \"geneval\" }} }}, {{ name = \"look\", weight = \
             0.5, reward = {served} }}] }}"
        );
        let on_missing = format!("on_missing=\"{on_missing}\"");
        let more = [&parts, &on_missing, "max_missing=0.0", "epochs=4", "batch.groups=4", "batch.group_size=6"];
        let mut command = elbow(["train", "--run"]);
        command.arg(self.run(name)).args(sets(&SMALL)).args(sets(&more)).current_dir(self.root.path());
        command
    }
}

/// Waits until a run has trained so many epochs.
fn trained(run: &Path, epochs: usize) {
    wait_for("an epoch", || {
        fs::read_to_string(run.join("metrics.jsonl")).map_or(0, |text| text.lines().count()) > epochs
    });
}

/// Output lines of a process, until one says that it waits.
fn waits(process: &mut Child) -> impl Iterator<Item = String> + use<> {
    let mut lines = BufReader::new(process.stdout.take().unwrap()).lines().map_while(Result::ok);
    let line = lines.find(|line| line.starts_with("waiting: ")).expect("it waits");
    assert!(line.contains("`sum`") && line.contains("look: "), "{line}");
    lines
}

#[test]
fn a_run_that_waits_for_its_server_is_the_run_that_never_lost_it() {
    let Some(desk) = Desk::new() else { return };
    let mut server = desk.server();
    succeed(&mut desk.train("straight", "wait"));
    let asked: BTreeSet<String> = desk.book().into_iter().collect();
    assert_eq!(desk.book().len(), asked.len(), "nobody is asked twice");
    desk.forget();

    // The server goes and comes back.
    let mut process = desk.train("patient", "wait").spawn().unwrap();
    trained(&desk.run("patient"), 1);
    server.kill();
    let rest = waits(&mut process);
    server = desk.server();
    rest.for_each(drop);
    assert!(process.wait().unwrap().success());
    assert_same(&desk.run("straight"), &desk.run("patient"));
    assert_eq!(samples(&desk.run("straight")), samples(&desk.run("patient")));
    assert_eq!(desk.book().into_iter().collect::<BTreeSet<_>>(), asked);
    desk.forget();

    // The run is killed too, while it waits.
    let mut process = desk.train("killed", "wait").spawn().unwrap();
    trained(&desk.run("killed"), 1);
    server.kill();
    drop(waits(&mut process));
    process.kill().unwrap();
    process.wait().unwrap();
    let before = desk.book().len();
    server = desk.server();
    succeed(resume(&desk.run("killed")).current_dir(desk.root.path()));
    assert_same(&desk.run("straight"), &desk.run("killed"));
    assert_eq!(samples(&desk.run("straight")), samples(&desk.run("killed")));
    // The two pictures of the self-test are asked again, and no other that was answered.
    let book = desk.book();
    let again: BTreeSet<&String> = book[before..].iter().filter(|mark| book[..before].contains(mark)).collect();
    assert!(again.len() <= 2, "{} of {} were asked twice", again.len(), book.len());
    server.kill();
}

/// An epoch whose evaluation waits for a judge is not finished; those before it are, and none of them has a checkpoint yet.
#[test]
fn a_run_that_is_told_to_stop_while_a_judge_is_away_keeps_its_epochs() {
    let Some(desk) = Desk::new() else { return };
    let mut server = desk.server();
    let judge = format!(
        "eval.rewards=[{{ name = \"look\", reward = {{ kind = \"served\", url = \"http://127.0.0.1:{}\", protocol = {{ kind = \"compute\" }}, \
         retries = 0, timeout = 5.0 }} }}]",
        desk.port
    );
    let more = [&judge, "reward.kind=jpeg", "on_missing=\"wait\"", "epochs=4", "keep.checkpoint_every=100"];
    let train = |name: &str| {
        let mut command = elbow(["train", "--run"]);
        command.arg(desk.run(name)).args(sets(&SMALL)).args(sets(&more)).current_dir(desk.root.path());
        command
    };
    succeed(&mut train("straight"));
    let mut process = train("stopped").spawn().unwrap();
    let run = desk.run("stopped");
    trained(&run, 1);
    server.kill();
    let mut lines = BufReader::new(process.stdout.take().unwrap()).lines().map_while(Result::ok);
    lines.find(|line| line.starts_with("waiting: ") && line.contains("`look`")).expect("it waits");
    signal("TERM", process.id());
    assert_eq!(process.wait().unwrap().code(), Some(0));
    let epoch = records(&run).last().unwrap()["epoch"].as_u64().unwrap();
    assert_eq!(epoch % 2, 1, "every second one is evaluated");
    assert_eq!(
        lines.last().unwrap(),
        format!("stopped after epoch {epoch}; go on with: elbow train --resume {}", run.display())
    );
    assert!(run.join(format!("checkpoints/checkpoint-{epoch}/manifest.json")).exists());

    server = desk.server();
    succeed(resume(&run).current_dir(desk.root.path()));
    assert_same(&desk.run("straight"), &run);
    server.kill();
}

#[test]
fn without_its_server_a_run_stops_or_goes_on_as_it_was_told() {
    let Some(desk) = Desk::new() else { return };
    let mut server = desk.server();
    let lose = |name: &str, on_missing: &str, server: &mut Server| {
        let process = desk.train(name, on_missing).spawn().unwrap();
        trained(&desk.run(name), 1);
        server.kill();
        process.wait_with_output().unwrap()
    };
    let output = lose("stopped", "stop", &mut server);
    let told = text(&output);
    assert!(
        !output.status.success() && told.contains("rewards `sum` are missing") && told.contains("look: "),
        "{told}"
    );
    assert!(told.contains("--resume"), "{told}");
    server = desk.server();
    succeed(resume(&desk.run("stopped")).current_dir(desk.root.path()));

    let output = lose("onward", "go-on", &mut server);
    assert!(output.status.success(), "{}", text(&output));
    for run in ["stopped", "onward"] {
        let samples = samples(&desk.run(run));
        assert_eq!(samples.len(), 4 * 24, "{run}");
        let unavailable = samples.iter().filter(|line| line["status"] == "unavailable");
        let lost =
            unavailable.inspect(|line| assert!(line["trained"] == false && line["reward"].is_null(), "{line}")).count();
        assert_eq!(lost > 0, run == "onward");
        for line in samples.iter().filter(|line| line["status"] == "scored") {
            let part = |name: &str| line["parts"][name].as_f64().unwrap();
            assert!((line["reward"].as_f64().unwrap() - part("scene") - 0.5 * part("look")).abs() < 1e-12, "{line}");
        }
    }
}

#[test]
fn pictures_are_scored_again_and_by_themselves() {
    let root = tempfile::tempdir().unwrap();
    let run = root.path().join("run");
    // What only watches is measured, and not trained on.
    let watching = "eval.rewards=[{ name = \"size\", reward = { kind = \"jpeg\", aim = \"incompress\" } }]";
    let more = ["epochs=1", "keep.pictures=true", "reward.kind=\"jpeg\"", "eval.measure.every=0", watching];
    succeed(elbow(["train", "--run"]).arg(&run).args(sets(&SMALL)).args(sets(&more)));
    let result: Value = serde_json::from_slice(&fs::read(run.join("result.json")).unwrap()).unwrap();
    for when in ["base", "tuned"] {
        let number = |name: &str| result[when][format!("eval_reward_{name}")].as_f64().unwrap();
        assert!(number("size") > 0.6 && (number("size") + number("jpeg")).abs() < 1e-9, "{result}");
    }
    let score = |arguments: &[&str]| -> Vec<Value> {
        let printed = succeed(elbow(["reward", "score"]).args(arguments).args(sets(&["reward.kind=\"jpeg\""])));
        printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let again = score(&["--run", run.to_str().unwrap()]);
    let trained = samples(&run);
    assert_eq!(again.len(), 6);
    for (again, trained) in again.iter().zip(&trained) {
        assert_eq!((&again["reward"], &again["prompt"]), (&trained["reward"], &trained["prompt"]));
    }
    let prompts = root.path().join("prompts.txt");
    fs::write(&prompts, "one prompt for all").unwrap();
    let folder = run.join("samples/epoch-00001");
    let alone = score(&[folder.to_str().unwrap(), "--prompts", prompts.to_str().unwrap()]);
    let rewards = |lines: &[Value]| lines.iter().map(|line| line["reward"].clone()).collect::<Vec<_>>();
    assert_eq!(rewards(&alone), rewards(&trained));
    assert_eq!(alone[0]["prompt"], "one prompt for all");
}
