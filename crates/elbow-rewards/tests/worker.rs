//! Rewards in child processes: what a user's function or program may do, and what becomes of it.

#![expect(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

mod common;

use elbow::{Prompt, Request, Reward, RewardError, RgbImage, Score};
use elbow_rewards::{
    Log, Worker,
    worker::{Command, Pictures, Python, template},
};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use sha2::{Digest, Sha256};
use std::{
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};
use tempfile::TempDir;

type Scores = Vec<Result<Score, RewardError>>;

/// A folder with the user's file, and the log.
struct Desk {
    folder: TempDir,
    python: String,
    log: Log,
}

impl Desk {
    /// None where there is no Python. `HERE` in the source is the folder.
    fn new(source: &str) -> Option<Self> {
        let desk = Self { folder: tempfile::tempdir().unwrap(), python: common::python()?, log: Log::default() };
        let here = format!("HERE = {:?}\n", desk.folder.path().to_str().unwrap());
        fs::write(desk.path("mine.py"), here + source).unwrap();
        Some(desk)
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().into()
    }

    /// Fields that suit most tests: a failure shows soon.
    fn fields(&self) -> Python {
        let (file, python) = (self.path("mine.py"), self.python.clone());
        Python { file, python, timeout: 20.0, setup_timeout: 60.0, ..Python::default() }
    }

    fn start(&self, change: impl FnOnce(&mut Python)) -> Result<Worker, String> {
        let mut fields = self.fields();
        change(&mut fields);
        fields.start("mine", self.log.clone()).map_err(|error| error.to_string())
    }

    /// The user's file as a program with an argument.
    fn program(&self, argument: &str, change: impl FnOnce(&mut Command)) -> Result<Worker, String> {
        let program = vec![self.python.clone(), self.path("mine.py"), argument.into()];
        let mut fields = Command { program, timeout: 20.0, setup_timeout: 60.0, ..Command::default() };
        change(&mut fields);
        fields.start("mine", self.log.clone()).map_err(|error| error.to_string())
    }
}

/// The scores of small black pictures of the given prompts, all of one group.
fn ask(worker: &Worker, prompts: &[&str]) -> Scores {
    score(worker, &vec![RgbImage::new(2, 2); prompts.len()], prompts, &vec![0; prompts.len()])
}

fn score(worker: &Worker, images: &[RgbImage], prompts: &[&str], groups: &[usize]) -> Scores {
    let prompts: Vec<Arc<Prompt>> = prompts.iter().map(|&text| Prompt::from(text).into()).collect();
    worker.score(&Request { images, prompts: &prompts, latents: None, groups })
}

fn values(scores: Scores) -> Vec<f64> {
    scores.into_iter().map(|score| score.unwrap().value).collect()
}

/// The text of the error that all samples have in common.
fn failed(scores: &Scores) -> &str {
    match &scores[0] {
        Err(RewardError::Failed(text)) if scores.iter().all(|score| score == &scores[0]) => text,
        _ => panic!("{scores:?}"),
    }
}

fn unavailable(scores: &Scores) -> &str {
    match &scores[0] {
        Err(RewardError::Unavailable(text)) if scores.iter().all(|score| score == &scores[0]) => text,
        _ => panic!("{scores:?}"),
    }
}

/// The process that scored, where the score is its number.
fn pid(scores: Scores) -> Pid {
    Pid::from_raw(values(scores)[0] as i32).unwrap()
}

/// Kills a process of a worker and waits until it is dead.
fn kill(pid: Pid) {
    kill_process(pid, Signal::KILL).unwrap();
    // The worker still has to find it so.
    waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT).unwrap();
}

#[test]
fn numbers_come_in_order_with_prompts_and_metadata() {
    let source = r#"
def score(images, prompts, metadata):
    return (len(p) + image.width + m.get("bonus", 0) for image, p, m in zip(images, prompts, metadata))
"#;
    let Some(desk) = Desk::new(source) else { return };
    let worker = desk.start(|_| ()).unwrap();
    assert_eq!((worker.name(), worker.needs().in_flight, worker.needs().whole_groups), ("mine", 1, false));
    assert_eq!(values(ask(&worker, &["a", "Käse 🧀", "\u{2028}\"\n\\"])), [3.0, 8.0, 6.0]);

    let prompt: Prompt = serde_json::from_str(r#"{"prompt": "cat", "bonus": 100}"#).unwrap();
    let images = [RgbImage::new(5, 1)];
    let request = Request { images: &images, prompts: &[prompt.into()], latents: None, groups: &[0] };
    assert_eq!(worker.score(&request), [Ok(108.0.into())]);
}

#[test]
fn a_score_is_whatever_has_a_float() {
    let source = "
class Tensor:
    def __init__(self, *values):
        self.values = values

    def __iter__(self):
        return (Tensor(value) for value in self.values)

    def __float__(self):
        return float(*self.values)

def score(images, prompts, metadata):
    return Tensor(0.5, -2)
";
    let Some(desk) = Desk::new(source) else { return };
    assert_eq!(values(ask(&desk.start(|_| ()).unwrap(), &["p", "q"])), [0.5, -2.0]);
}

#[test]
fn parts_are_weighted_and_none_is_taken_for_zero() {
    let source = r#"
ANSWERS = {
    "both": {"ocr": 1, "look": 0.5}, "more": {"look": 2.0, "ocr": 3.0, "tidy": 10.0}, "lacks": {"look": 1.0},
    "plain": 4.0, "empty": {}, "none": {"ocr": None, "look": 1.0}, "nan": {"ocr": float("nan"), "look": 1.0},
}

def score(images, prompts, metadata):
    return [ANSWERS[prompt] for prompt in prompts]
"#;
    let Some(desk) = Desk::new(source) else { return };
    let worker = desk.start(|fields| fields.weights = [("ocr".into(), 2.0), ("look".into(), 0.0)].into()).unwrap();
    let scores = ask(&worker, &["both", "more", "lacks", "plain", "empty", "none", "nan"]);
    let parts: Vec<_> = scores[1].as_ref().unwrap().parts.iter().map(|p| (&*p.name, p.weight, p.value)).collect();
    assert_eq!(parts, [("look", 0.0, 2.0), ("ocr", 2.0, 3.0), ("tidy", 1.0, 10.0)]);
    assert_eq!(values(scores[..2].to_vec()), [2.0, 16.0]);
    for (score, expected) in scores[2..].iter().zip([
        "gave no part `ocr`, which reward.weights names, but look",
        "gave no part `look`, which reward.weights names, but a number without parts",
        "gave a score without any part",
        "the part `ocr` is None",
        "the part `ocr` is NaN",
    ]) {
        assert!(failed(&vec![score.clone()]).contains(expected), "{score:?} {expected}");
    }
}

#[test]
fn none_nan_and_infinity_are_failures_of_that_picture_alone() {
    let source = "
def score(images, prompts, metadata):
    return [1, None, float('nan'), float('-inf'), 2.5]
";
    let Some(desk) = Desk::new(source) else { return };
    let scores = ask(&desk.start(|_| ()).unwrap(), &["p"; 5]);
    assert_eq!((&scores[0], &scores[4]), (&Ok(1.0.into()), &Ok(2.5.into())));
    for (score, expected) in scores[1..4].iter().zip(["the score is None", "is NaN", "is -Infinity"]) {
        assert!(failed(&vec![score.clone()]).contains(expected), "{score:?}");
    }
}

#[test]
fn what_is_no_list_of_scores_fails_with_what_it_was() {
    let source = r#"
def deep(text):
    raise ValueError("no " + text)

def score(images, prompts, metadata):
    if prompts[0] == "raise":
        deep("ink")
    if prompts[0] == "exit":
        raise SystemExit(3)
    return eval(prompts[0])
"#;
    let Some(desk) = Desk::new(source) else { return };
    let worker = desk.start(|_| ()).unwrap();
    for (prompt, expected) in [
        ("[1]", "`score` returned 1 scores for 2 pictures"),
        ("[1, 2, 3]", "`score` returned 3 scores for 2 pictures"),
        ("'ab'", "`score` returned 'ab' (str): it returns a list"),
        ("{'ocr': [1, 2], 'look': [3, 4]}", "(dict): it returns a list with one entry a picture"),
        ("7", "`score` returned 7 (int)"),
        ("[1, '2']", "`score` returned '2' (str) as a score"),
        ("[1, {'ocr': []}]", "`score` returned [] (list) as a score"),
        ("[1, '\\udcff']", "returned '\\udcff' (str) as a score"),
        ("exit", "SystemExit: 3"),
    ] {
        let scores = ask(&worker, &[prompt, ""]);
        assert!(failed(&scores).contains(expected), "{prompt}: {scores:?}");
    }
    let scores = ask(&worker, &["raise"]);
    let trace = failed(&scores);
    let at = |line: usize, function| format!("{}\", line {line}, in {function}", desk.path("mine.py"));
    assert!(trace.contains(&at(8, "score")) && trace.contains(&at(4, "deep")), "{trace}");
    assert!(trace.ends_with("ValueError: no ink") && !trace.contains("<string>"), "{trace}");
    assert_eq!(values(ask(&worker, &["[1, True]", ""])), [1.0, 1.0], "the process still works");
}

#[test]
fn what_it_prints_is_logged_and_harms_nothing() {
    let source = r#"
import ctypes, os, subprocess, sys

print("at import: Käse")

def score(images, prompts, metadata):
    print('{"id": 1, "scores": [9]}')
    ctypes.CDLL(None).puts(b"from C") and ctypes.CDLL(None).fflush(None)
    os.write(1, b"raw\n")
    subprocess.run([sys.executable, "-c", "print('from a child')"])
    assert sys.stdin.read() == "", "the protocol is not on stdin"
    print("30 %\r60 %\r90 %", file=sys.stderr)
    sys.stdout.write("no newline")
    return [1.0]
"#;
    let Some(desk) = Desk::new(source) else { return };
    let worker = desk.start(|_| ()).unwrap();
    assert_eq!(values(ask(&worker, &["p"])), [1.0]);
    assert_eq!(values(ask(&worker, &["p"])), [1.0]);
    drop(worker);
    let lines = desk.log.take();
    let once = ["{\"id\": 1, \"scores\": [9]}", "from C", "raw", "from a child", "90 %"];
    let mut expected: Vec<String> = vec!["at import: Käse".into()];
    expected.extend(once.map(str::to_owned));
    expected.push(format!("no newline{}", once[0]));
    expected.extend(once[1..].iter().map(|&line| line.to_owned()));
    expected.push("no newline".into());
    let expected: Vec<String> = expected.into_iter().map(|line| format!("mine: {line}\n")).collect();
    assert_eq!(lines, expected);
}

#[test]
fn a_hang_is_killed_and_the_next_call_works() {
    let source = "
import os, time

def score(images, prompts, metadata):
    if prompts[0] == 'hang':
        print('thinking')
        time.sleep(60)
    return [os.getpid()]
";
    let Some(desk) = Desk::new(source) else { return };
    let worker = desk.start(|fields| fields.timeout = 1.5).unwrap();
    let first = values(ask(&worker, &["p"]));
    let start = Instant::now();
    let scores = ask(&worker, &["hang"]);
    let text = unavailable(&scores);
    assert!(text.contains("gave no answer within 1.5 s (`reward.timeout`) and was killed"), "{text}");
    assert!(text.contains("its last lines:\n  thinking\n"), "{text}");
    assert!(text.contains(&format!("  File \"{}\", line 8 in score", desk.path("mine.py"))), "where it hung: {text}");
    assert!(start.elapsed() < Duration::from_secs(5));
    assert_ne!(values(ask(&worker, &["p"])), first);
    let lines = desk.log.take().concat();
    assert!(lines.contains("mine: worker 1: `") && lines.contains("worker 1 is started again (1 of 3)"), "{lines}");
}

#[test]
fn a_kill_costs_the_pictures_of_its_call_and_between_calls_none() {
    let source = "
import os, time

def setup(device):
    print('set up on', device)

def score(images, prompts, metadata):
    if prompts[0] == 'hang':
        with open(HERE + '/pid', 'w') as file:
            file.write(str(os.getpid()) + '.')
        time.sleep(60)
    return [os.getpid()]
";
    let Some(desk) = Desk::new(source) else { return };
    let worker = desk.start(|fields| (fields.restarts, fields.device) = (1, "cuda:7".into())).unwrap();
    let first = pid(ask(&worker, &["p"]));
    kill(first);
    let second = pid(ask(&worker, &["p"]));
    assert_ne!(first, second);

    let scores = std::thread::scope(|scope| {
        let asked = scope.spawn(|| ask(&worker, &["hang", "and one more"]));
        while !fs::read_to_string(desk.path("pid")).is_ok_and(|pid| pid == format!("{}.", second.as_raw_nonzero())) {
            std::thread::sleep(Duration::from_millis(5));
        }
        kill_process(second, Signal::KILL).unwrap();
        asked.join().unwrap()
    });
    assert_eq!(scores.len(), 2);
    assert!(unavailable(&scores).contains("ended (signal: 9 (SIGKILL))"), "{scores:?}");
    assert_ne!(pid(ask(&worker, &["p"])), second, "a success in between gave it its restart back");
    drop(worker);
    let lines = desk.log.take().concat();
    assert_eq!(lines.matches("mine: set up on cuda:7\n").count(), 3, "{lines}");
}

#[test]
fn a_crash_every_time_ends_the_restarts_soon() {
    let source = "
import os, sys

def score(images, prompts, metadata):
    print('about to leave', file=sys.stderr)
    os._exit(7)
";
    let Some(desk) = Desk::new(source) else { return };
    let worker = desk.start(|fields| fields.restarts = 2).unwrap();
    let start = Instant::now();
    for _ in 0..3 {
        let scores = ask(&worker, &["p", "q"]);
        let text = unavailable(&scores);
        assert!(text.contains("mine.py` ended (exit status: 7); its last lines:\n  about to leave"), "{text}");
    }
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    let start = Instant::now();
    for _ in 0..100 {
        let scores = ask(&worker, &["p"]);
        let text = unavailable(&scores);
        assert!(text.starts_with("gave up after 2 restarts: `") && text.contains("exit status: 7"), "{text}");
    }
    worker.wake();
    worker.sleep();
    assert!(start.elapsed() < Duration::from_secs(1));
    assert!(desk.log.take().concat().contains("mine: worker 1 gave up after 2 restarts: `"));
}

#[test]
fn a_crash_in_setup_fails_the_start_and_counts_as_a_restart_later() {
    let source = "
import os

def setup(device):
    if os.path.exists(HERE + '/broken'):
        os._exit(4)

def score(images, prompts, metadata):
    open(HERE + '/broken', 'w').close()
    os._exit(5)
";
    let Some(desk) = Desk::new(source) else { return };
    let worker = desk.start(|fields| fields.restarts = 2).unwrap();
    assert!(unavailable(&ask(&worker, &["p"])).contains("exit status: 5"));
    let scores = ask(&worker, &["p"]);
    assert!(unavailable(&scores).starts_with("gave up after 2 restarts: "), "{scores:?}");
    assert!(unavailable(&scores).contains("exit status: 4"), "{scores:?}");
    let error = desk.start(|_| ()).map(drop).unwrap_err();
    assert!(error.starts_with("reward `mine` cannot start: `") && error.contains("exit status: 4"), "{error}");
}

#[test]
fn a_crash_whose_own_child_holds_the_pipes_is_noticed() {
    let source = "
import os, time

def score(images, prompts, metadata):
    if os.fork() == 0:
        time.sleep(60)
    os._exit(5)
";
    let Some(desk) = Desk::new(source) else { return };
    let worker = desk.start(|_| ()).unwrap();
    let start = Instant::now();
    assert!(unavailable(&ask(&worker, &["p"])).contains("ended (exit status: 5)"));
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_start_that_fails_says_what_to_do() {
    let Some(desk) = Desk::new("def judge(images, prompts, metadata):\n    return []\n\ndef other(): pass\n") else {
        return;
    };
    let fails = |change: &dyn Fn(&mut Python), expected: &[&str]| {
        let error = desk.start(|fields| change(fields)).map(drop).unwrap_err();
        assert!(expected.iter().all(|expected| error.contains(expected)), "{error}\n{expected:?}");
    };
    let write = |source: &str| fs::write(desk.path("mine.py"), source).unwrap();
    fails(&|fields| fields.file = "absent.py".into(), &["reward.file = \"absent.py\": no such file in /"]);
    fails(&|fields| fields.python = "no-such-python".into(), &["cannot start `no-such-python`", "set `reward.python`"]);
    fails(&|_| (), &["no function `score` in ", "mine.py", "`reward.function`", "judge, other"]);
    fails(&|fields| fields.workers = 0, &["reward.workers = 0"]);
    write("def score(images, prompts, metadata, groups):\n    return []\n");
    fails(&|_| (), &["`score` takes `groups`: set `reward.whole_groups = true`"]);
    write("\ndef score(:\n");
    fails(&|_| (), &["mine.py\", line 2", "SyntaxError"]);
    write("import no_such_module\n");
    fails(&|_| (), &["mine.py\", line 1", "ModuleNotFoundError"]);
    write("def setup(device):\n    raise RuntimeError('no ' + device)\n\ndef score(*a): pass\n");
    fails(&|_| (), &["mine.py\", line 2, in setup", "RuntimeError: no cpu"]);
    write("import time\ntime.sleep(60)\n");
    fails(&|fields| fields.setup_timeout = 0.5, &["gave no answer within 0.5 s (`reward.setup_timeout`)"]);
}

#[test]
fn without_pillow_the_start_says_how_to_install_it() {
    let Some(desk) = Desk::new("def score(*a): pass\n") else { return };
    // The folder that Python starts in comes first among those that it imports from.
    let program = desk.path("python");
    fs::write(&program, format!("#!/bin/sh\ncd {}\nexec {} \"$@\"\n", desk.folder.path().display(), desk.python))
        .unwrap();
    fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    fs::write(desk.path("PIL.py"), "raise ImportError('no PIL')").unwrap();
    let error = desk.start(|fields| fields.python = program).map(drop).unwrap_err();
    assert!(error.contains("Pillow is missing (no PIL)") && error.contains("-m pip install pillow"), "{error}");
}

#[test]
fn workers_score_side_by_side() {
    let source = "
import os, time

def score(images, prompts, metadata):
    time.sleep(0.3)
    return [os.getpid() for _ in images]
";
    let Some(desk) = Desk::new(source) else { return };
    let worker = desk.start(|fields| (fields.workers, fields.batch) = (2, 2)).unwrap();
    assert_eq!(worker.needs().in_flight, 2);
    let different = |mut pids: Vec<f64>| {
        pids.sort_by(f64::total_cmp);
        pids.dedup();
        pids.len()
    };
    // Two calls of one request.
    let start = Instant::now();
    assert_eq!(different(values(ask(&worker, &["p"; 4]))), 2);
    assert!(start.elapsed() < Duration::from_millis(550), "{:?}", start.elapsed());
    // Two requests.
    let start = Instant::now();
    let pids = std::thread::scope(|scope| {
        let asked = [(); 2].map(|()| scope.spawn(|| values(ask(&worker, &["p"]))[0]));
        asked.map(|asked| asked.join().unwrap()).into()
    });
    assert_eq!(different(pids), 2);
    assert!(start.elapsed() < Duration::from_millis(550), "{:?}", start.elapsed());
}

#[test]
fn where_one_worker_is_given_up_the_other_goes_on() {
    let source = "
import os

def score(images, prompts, metadata):
    if prompts[0] == 'crash':
        os._exit(1)
    return [os.getpid()]
";
    let Some(desk) = Desk::new(source) else { return };
    let worker = desk.start(|fields| (fields.workers, fields.restarts) = (2, 0)).unwrap();
    assert!(unavailable(&ask(&worker, &["crash"])).contains("exit status: 1"));
    let left = values(ask(&worker, &["p"]));
    for _ in 0..5 {
        assert_eq!(values(ask(&worker, &["p"])), left);
    }
    worker.sleep();
    assert!(unavailable(&ask(&worker, &["crash"])).contains("exit status: 1"));
    assert!(unavailable(&ask(&worker, &["p"])).starts_with("gave up after 0 restarts"));
}

#[test]
fn calls_have_at_most_batch_pictures_or_whole_groups() {
    let source = "
def score(images, prompts, metadata, *, groups=None):
    return [100 * len(images) + (10 * len(set(groups)) + groups[i] if groups else 99) for i in range(len(images))]
";
    let Some(desk) = Desk::new(source) else { return };
    let (images, groups) = (vec![RgbImage::new(1, 1); 5], [4, 4, 4, 7, 7]);
    let ask = |worker: &Worker| values(score(worker, &images, &["p"; 5], &groups));
    let cut = desk.start(|fields| fields.batch = 2).unwrap();
    assert_eq!(ask(&cut), [299.0, 299.0, 299.0, 299.0, 199.0]);
    let whole = desk.start(|fields| (fields.batch, fields.whole_groups) = (2, true)).unwrap();
    assert!(whole.needs().whole_groups);
    assert_eq!(ask(&whole), [314.0, 314.0, 314.0, 217.0, 217.0]);
}

/// The first 48 bits of SHA-256, which a score holds exactly.
fn hash(image: &RgbImage) -> f64 {
    let digest = Sha256::digest(image.as_raw());
    digest[..6].iter().fold(0.0, |sum, &byte| sum * 256.0 + f64::from(byte))
}

fn noise(width: u32, height: u32) -> RgbImage {
    let mut state = width * 7919 + height;
    RgbImage::from_fn(width, height, |_, _| {
        image::Rgb(std::array::from_fn(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        }))
    })
}

/// Calls of odd sizes, which need more room, less, and a lot more.
fn sheets() -> [Vec<RgbImage>; 4] {
    [
        vec![noise(1, 1), noise(3, 5), noise(17, 31)],
        vec![noise(200, 101), noise(1, 64)],
        vec![noise(7, 7)],
        vec![noise(513, 511), noise(33, 2), noise(640, 480)],
    ]
}

#[test]
fn pictures_arrive_bit_for_bit_and_stay() {
    let source = "
import hashlib

kept = []

def score(images, prompts, metadata):
    if prompts[0] == 'again':
        images = kept
    kept.extend(image for image in images if image not in kept)
    assert all(image.mode == 'RGB' for image in images)
    return [int.from_bytes(hashlib.sha256(image.tobytes()).digest()[:6], 'big') for image in images]
";
    let Some(desk) = Desk::new(source) else { return };
    let worker = desk.start(|_| ()).unwrap();
    let sheets = sheets();
    for images in &sheets {
        let expected: Vec<f64> = images.iter().map(hash).collect();
        assert_eq!(values(score(&worker, images, &vec!["p"; images.len()], &vec![0; images.len()])), expected);
    }
    // What the function kept are copies.
    let all = sheets.concat();
    let expected: Vec<f64> = all.iter().map(hash).collect();
    let blank: Vec<RgbImage> = all.iter().map(|image| RgbImage::new(image.width(), image.height())).collect();
    assert_eq!(values(score(&worker, &blank, &vec!["again"; all.len()], &vec![0; all.len()])), expected);
}

#[test]
fn a_program_gets_the_same_pictures_as_png_and_shared() {
    let source = "
import base64, hashlib, io, json, sys

def pixels(picture):
    if isinstance(picture, str):
        from PIL import Image
        return Image.open(io.BytesIO(base64.b64decode(picture))).tobytes()
    shared.seek(picture['at'])
    return shared.read(3 * picture['width'] * picture['height'])

for line in sys.stdin:
    request = json.loads(line)
    if 'elbow' in request:
        assert request == {'elbow': 1, 'pictures': sys.argv[1]}
        print(json.dumps({'elbow': 1, 'ready': True, 'more': 'is ignored'}), flush=True)
        continue
    if 'file' in request:
        shared = open(request['file'], 'rb', buffering=0)
    hashes = [hashlib.sha256(pixels(picture)).digest()[:6] for picture in request['pictures']]
    print(json.dumps({'id': request['id'], 'scores': [int.from_bytes(h, 'big') for h in hashes]}), flush=True)
";
    let Some(desk) = Desk::new(source) else { return };
    for (pictures, argument) in [(Pictures::Png, "png"), (Pictures::Shared, "shared")] {
        let worker = desk.program(argument, |fields| fields.pictures = pictures).unwrap();
        for images in sheets() {
            let expected: Vec<f64> = images.iter().map(hash).collect();
            assert_eq!(values(score(&worker, &images, &vec!["p"; images.len()], &vec![0; images.len()])), expected);
        }
    }
}

#[test]
fn sleep_and_wake_come_in_order() {
    let source = "
import os

done = ''

def setup(device):
    global done
    done = '1'

def score(images, prompts, metadata):
    global done
    if prompts[0] == 'crash':
        os._exit(1)
    done += '2'
    return [int(done)]

def sleep():
    global done
    done += '3'
    if done.count('3') == 2:
        raise OSError('not tired')

def wake():
    global done
    done += '4'
";
    let Some(desk) = Desk::new(source) else { return };
    let worker = desk.start(|_| ()).unwrap();
    worker.wake();
    assert_eq!(values(ask(&worker, &["p"])), [142.0]);
    worker.sleep();
    worker.wake();
    assert_eq!(values(ask(&worker, &["p"])), [142_342.0]);
    assert_eq!(desk.log.take(), [""; 0]);
    worker.sleep();
    assert!(desk.log.take().concat().contains("OSError: not tired"));
    assert_eq!(values(ask(&worker, &["p"])), [14_234_232.0]);
    unavailable(&ask(&worker, &["crash"]));
    // None is started only to sleep.
    worker.sleep();
    worker.wake();
    assert_eq!(values(ask(&worker, &["p"])), [142.0]);
}

#[test]
fn files_without_hooks_have_nothing_to_do() {
    let Some(desk) = Desk::new("def score(images, prompts, metadata):\n    return [1.0]\n") else { return };
    let worker = desk.start(|_| ()).unwrap();
    worker.sleep();
    worker.wake();
    assert_eq!(values(ask(&worker, &["p"])), [1.0]);
    assert_eq!(desk.log.take(), [""; 0]);
}

/// Waits until something holds.
fn within(limit: Duration, what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + limit;
    while !holds() {
        assert!(Instant::now() < deadline, "waited for: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What `nothing_is_left` starts and kills.
#[test]
#[ignore = "runs for ever; another test starts it"]
fn parent() {
    let (Some(folder), Some(python)) = (std::env::var_os("ELBOW_TEST_FOLDER"), common::python()) else { return };
    let file = Path::new(&folder).join("mine.py").to_str().unwrap().into();
    let worker = Python { file, python, ..Python::default() }.start("mine", Log::default()).unwrap();
    ask(&worker, &["p"]);
}

#[test]
fn nothing_is_left_when_elbow_is_killed() {
    // Whoever lives holds the lock.
    let source = "
import fcntl, os, subprocess, time

def score(images, prompts, metadata):
    lock = os.open(HERE + '/lock', os.O_CREAT | os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    subprocess.Popen(['sleep', '60'], pass_fds=[lock])
    open(HERE + '/locked', 'w').close()
    time.sleep(60)
";
    let Some(desk) = Desk::new(source) else { return };
    let mut parent = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "parent", "--ignored"])
        .env("ELBOW_TEST_FOLDER", desk.folder.path())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    within(Duration::from_secs(30), "the parent comes to score", || Path::new(&desk.path("locked")).exists());
    let lock = fs::File::open(desk.path("lock")).unwrap();
    assert!(lock.try_lock().is_err(), "the child holds it");
    // SIGKILL.
    parent.kill().unwrap();
    parent.wait().unwrap();
    within(Duration::from_secs(10), "no child is left", || lock.try_lock().is_ok());
}

#[test]
fn nothing_is_left_when_a_worker_is_dropped() {
    let source = "
import fcntl, os, subprocess

def score(images, prompts, metadata):
    lock = os.open(HERE + '/lock', os.O_CREAT | os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    subprocess.Popen(['sleep', '60'], pass_fds=[lock])
    if os.path.exists('/proc/self/maps'):
        maps = [line.strip() for line in open('/proc/self/maps') if '/elbow-' in line]
        assert maps and all(line.endswith('(deleted)') for line in maps), maps
    return [1.0]
";
    let Some(desk) = Desk::new(source) else { return };
    let worker = desk.start(|_| ()).unwrap();
    values(ask(&worker, &["p"]));
    let lock = fs::File::open(desk.path("lock")).unwrap();
    assert!(lock.try_lock().is_err(), "the child holds it");
    let start = Instant::now();
    drop(worker);
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    lock.try_lock().unwrap();
}

#[test]
fn the_template_works_as_written() {
    let Some(desk) = Desk::new("") else { return };
    fs::write(desk.path("mine.py"), template()).unwrap();
    let worker = desk.start(|_| ()).unwrap();
    let images = [[255, 0, 0], [0, 255, 0], [10, 10, 10]].map(|color| RgbImage::from_pixel(4, 3, image::Rgb(color)));
    assert_eq!(values(score(&worker, &images, &["p"; 3], &[0; 3])), [1.0, -0.5, 0.0]);
}

#[test]
fn the_program_of_the_documentation_works_as_written() {
    let text = include_str!("../../../docs/rewards-protocol.md");
    let program = text.split("```python\n").nth(1).unwrap().split("```").next().unwrap();
    let Some(desk) = Desk::new("") else { return };
    fs::write(desk.path("mine.py"), program).unwrap();
    let worker = desk.program("", |_| ()).unwrap();
    worker.wake();
    let sizes = values(score(&worker, &[RgbImage::new(8, 8), noise(64, 64)], &["p"; 2], &[0; 2]));
    worker.sleep();
    assert!(sizes[0] > 60.0 && sizes[0] < 200.0 && sizes[1] > 3.0 * 64.0 * 64.0, "{sizes:?}");
}

#[test]
fn a_program_that_breaks_the_protocol_is_killed_and_told_so() {
    let source = r#"
import json, os, sys, time

mode = sys.argv[1]
print("in the log", file=sys.stderr)
if mode == "banner":
    print("Loading the model", flush=True)
if mode == "refuses":
    os.close(0)
    print('{"error": "no weights"}', flush=True)
    sys.exit()
if mode == "version":
    print('{"elbow": 2, "ready": true}', flush=True)
if mode == "silent":
    sys.exit(6)
sys.stdin.readline()
print('{"elbow": 1, "ready": true}', flush=True)
while mode == "deaf":
    time.sleep(1)
request = json.loads(sys.stdin.readline())
if mode == "garbage":
    print("Segmentation fault", flush=True)
elif mode == "half":
    os.write(1, b'{"id": 1, "sco')
    sys.exit(9)
elif mode == "id":
    print('{"id": 2, "scores": [1]}', flush=True)
elif mode == "empty":
    print('{"id": 1}', flush=True)
elif mode == "closes":
    os.close(1)
elif mode == "nan":
    print('{"id": 1, "scores": [NaN]}', flush=True)
elif mode == "word":
    print('{"id": 1, "scores": ["high"]}', flush=True)
elif mode == "many":
    print('{"id": 1, "scores": [1, 2]}', flush=True)
elif mode == "error":
    print('{"id": 1, "error": "too dark"}', flush=True)
time.sleep(60)
"#;
    let Some(desk) = Desk::new(source) else { return };
    let start = |mode: &str| {
        desk.program(mode, |fields| (fields.restarts, fields.timeout, fields.setup_timeout) = (0, 3.0, 30.0))
    };
    for (mode, expected) in [
        ("banner", r#"answered "Loading the model" where {"elbow": 1, "ready": true} is due"#),
        ("refuses", "reward `mine` cannot start: no weights"),
        ("version", r#"answered "{\"elbow\": 2, \"ready\": true}" where"#),
        ("silent", "ended (exit status: 6); its last lines:\n  in the log"),
    ] {
        let error = start(mode).map(drop).unwrap_err();
        assert!(error.contains(expected), "{mode}: {error}");
    }
    for (mode, expected) in [
        ("garbage", "gave an answer that is no JSON object: \"Segmentation fault\""),
        ("half", r#"ended after it said "{\"id\": 1, \"sco" (exit status: 9)"#),
        ("id", "gave an answer that has not the `id` 1"),
        ("empty", "has neither a list `scores` nor a text `error`"),
        ("closes", "closed its stdout; its last lines:"),
        ("deaf", "gave no answer within 3 s (`reward.timeout`) and was killed"),
    ] {
        let worker = start(mode).unwrap();
        // More than a pipe holds.
        let scores = score(&worker, &[noise(256, 256)], &["p"], &[0]);
        assert!(unavailable(&scores).contains(expected), "{mode}: {scores:?}");
        assert!(unavailable(&ask(&worker, &["p"])).starts_with("gave up after 0 restarts"), "{mode}");
    }
    for (mode, expected) in [
        ("nan", "the score is NaN"),
        ("word", "the score is \"high\", which is no number"),
        ("many", "gave 2 scores for 1 pictures"),
        ("error", "too dark"),
    ] {
        let scores = ask(&start(mode).unwrap(), &["p"]);
        assert!(failed(&scores).contains(expected), "{mode}: {scores:?}");
    }
}

#[test]
#[ignore = "a measurement"]
#[expect(clippy::print_stdout, reason = "its result")]
fn how_long_64_pictures_of_512_by_512_travel() {
    // Pillow's conversion is left out.
    let source = "
from PIL import Image

Image.frombuffer = lambda mode, size, data, *rest: data[0] + data[-1]

def score(images, prompts, metadata):
    return images
";
    let Some(desk) = Desk::new(source) else { return };
    let worker = desk.start(|_| ()).unwrap();
    let images = vec![noise(512, 512); 64];
    let mut times: Vec<Duration> = (0..21)
        .map(|_| {
            let start = Instant::now();
            assert!(values(score(&worker, &images, &["p"; 64], &[0; 64]))[0] > 0.0);
            start.elapsed()
        })
        .collect();
    let first = times.remove(0);
    times.sort();
    println!("there and back, median of 20: {:?}; {:?} to {:?}; the first {first:?}", times[10], times[0], times[19]);
}
