//! Rewards that are a user's own: a Python function, or a program in any language.
//!
//! Each worker is a child process that reads requests as lines of JSON on its stdin and answers on its stdout
//! (`docs/rewards-protocol.md`). [`Python`] hands the interpreter a runner that calls the user's function; [`Command`] is a program
//! that speaks the protocol itself. A child that crashes or hangs costs the pictures of its call, which are
//! [unavailable](RewardError::Unavailable), and is started again.

mod process;
mod shared;

use crate::{Log, side_by_side::side_by_side};
use base64::{Engine, prelude::BASE64_STANDARD};
use elbow::{
    Request, Reward, RewardError, RgbImage, Score,
    reward::{Needs, Part},
};
use image::{ExtendedColorType, ImageEncoder, codecs::png};
use process::{Launch, Limit, Process};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// A Python function: `score(images, prompts, metadata)` returns one entry a picture, each a number, a dict of named numbers, or
/// None. The file may have `setup(device)`, `sleep()` and `wake()` too. `elbow reward new my_reward.py` writes an example.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Python {
    /// The file with the function. Its folder is where it imports from.
    pub file: String,
    /// Name of the function.
    pub function: String,
    /// The interpreter, Python 3.8 or later with Pillow, such as `".venv/bin/python"`.
    pub python: String,
    /// Processes that score side by side, at least 1. Each has a model of its own in memory.
    pub workers: usize,
    /// Longest time of a call in seconds. A process that takes longer is killed and started again.
    pub timeout: f64,
    /// Longest time in seconds from the start of a process to the end of `setup`, and of `sleep` and `wake`.
    pub setup_timeout: f64,
    /// How often in a row a process is started again without scoring in between.
    pub restarts: u32,
    /// What `setup` is called with.
    pub device: String,
    /// Most pictures a call; 0 is as many as come.
    pub batch: usize,
    /// Whether calls have whole groups, all samples of a prompt that are compared; `batch` then never cuts one. The function may
    /// take `groups` as a fourth argument, an integer a picture.
    pub whole_groups: bool,
    /// How much each part of a dict counts; 1 if it is not named, and 0 is only logged.
    pub weights: BTreeMap<String, f64>,
}

impl Default for Python {
    fn default() -> Self {
        Self {
            file: "my_reward.py".into(),
            function: "score".into(),
            python: "python3".into(),
            workers: 1,
            timeout: 120.0,
            setup_timeout: 600.0,
            restarts: 3,
            device: "cpu".into(),
            batch: 0,
            whole_groups: false,
            weights: BTreeMap::new(),
        }
    }
}

/// A program that speaks `docs/rewards-protocol.md` on its stdin and stdout.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Command {
    /// The program and its arguments.
    pub program: Vec<String>,
    /// Processes that score side by side, at least 1.
    pub workers: usize,
    /// Longest time of a call in seconds. A process that takes longer is killed and started again.
    pub timeout: f64,
    /// Longest time in seconds from the start of a process until it is ready, and of `sleep` and `wake`.
    pub setup_timeout: f64,
    /// How often in a row a process is started again without scoring in between.
    pub restarts: u32,
    /// Most pictures a call; 0 is as many as come.
    pub batch: usize,
    /// Whether calls have whole groups, all samples of a prompt that are compared; `batch` then never cuts one.
    pub whole_groups: bool,
    /// How much each part of a score with named parts counts; 1 if it is not named, and 0 is only logged.
    pub weights: BTreeMap<String, f64>,
    /// How pictures travel.
    pub pictures: Pictures,
}

impl Default for Command {
    fn default() -> Self {
        let Python { workers, timeout, setup_timeout, restarts, batch, whole_groups, weights, .. } = Python::default();
        let (program, pictures) = (vec!["./judge".into()], Pictures::Png);
        Self { program, workers, timeout, setup_timeout, restarts, batch, whole_groups, weights, pictures }
    }
}

/// How pictures travel to a program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Pictures {
    /// As PNG in base64 within the request.
    #[default]
    Png,
    /// As raw RGB in a shared file, which is faster.
    Shared,
}

/// Workers that cannot be started: what is wrong, with the file or program, any traceback, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct StartError(pub String);

/// A commented example of a file for [`Python`].
pub fn template() -> &'static str {
    include_str!("template.py")
}

impl Python {
    /// What is wrong with the fields, a sentence each.
    pub fn validate(&self) -> Vec<String> {
        let mut problems = self.common().validate();
        for (field, value) in [("file", &self.file), ("function", &self.function), ("python", &self.python)] {
            if value.is_empty() {
                problems.push(format!("reward.{field} is empty"));
            }
        }
        problems
    }

    /// Starts the workers and waits until all are set up. The name is that of the reward in metrics and in the log.
    pub fn start(&self, name: &str, log: Log) -> Result<Worker, StartError> {
        valid(&self.validate())?;
        let Self { file, function, python, device, whole_groups, .. } = self;
        if !Path::new(file).is_file() {
            let folder = std::env::current_dir().unwrap_or_default();
            return Err(StartError(format!(
                "reward.file = {file:?}: no such file in {}: `elbow reward new {file}` writes an example",
                folder.display()
            )));
        }
        let arguments = json!({ "file": file, "function": function, "device": device, "groups": whole_groups });
        Worker::start(Job {
            name: name.into(),
            log,
            launch: Launch {
                what: file.clone(),
                program: vec![python.clone(), "-c".into(), include_str!("runner.py").into()],
                environment: &[
                    ("PYTHONUNBUFFERED", "1"),
                    ("PYTHONIOENCODING", "utf-8:backslashreplace"),
                    // A crash in C code tells where.
                    ("PYTHONFAULTHANDLER", "1"),
                ],
                traces: true,
                advice: "set `reward.python` to a Python 3.8 or later that has Pillow",
            },
            hello: json!({ "elbow": 1, "pictures": "shared", "python": arguments }),
            pictures: Pictures::Shared,
            common: self.common(),
        })
    }

    fn common(&self) -> Common {
        let Self { workers, timeout, setup_timeout, restarts, batch, whole_groups, ref weights, .. } = *self;
        Common { workers, timeout, setup_timeout, restarts, batch, whole_groups, weights: weights.clone() }
    }
}

impl Command {
    /// What is wrong with the fields, a sentence each.
    pub fn validate(&self) -> Vec<String> {
        let mut problems = self.common().validate();
        if self.program.first().is_none_or(String::is_empty) {
            problems.push("reward.program is empty: it is a list of the program and its arguments".into());
        }
        problems
    }

    /// Starts the workers and waits until all are ready. The name is that of the reward in metrics and in the log.
    pub fn start(&self, name: &str, log: Log) -> Result<Worker, StartError> {
        valid(&self.validate())?;
        Worker::start(Job {
            name: name.into(),
            log,
            launch: Launch {
                what: self.program[0].clone(),
                program: self.program.clone(),
                environment: &[],
                traces: false,
                advice: "`reward.program` is a list of the program and its arguments",
            },
            hello: json!({ "elbow": 1, "pictures": self.pictures }),
            pictures: self.pictures,
            common: self.common(),
        })
    }

    fn common(&self) -> Common {
        let Self { workers, timeout, setup_timeout, restarts, batch, whole_groups, ref weights, .. } = *self;
        Common { workers, timeout, setup_timeout, restarts, batch, whole_groups, weights: weights.clone() }
    }
}

fn valid(problems: &[String]) -> Result<(), StartError> {
    if problems.is_empty() { Ok(()) } else { Err(StartError(problems.join("\n"))) }
}

/// The fields that both kinds have.
struct Common {
    workers: usize,
    timeout: f64,
    setup_timeout: f64,
    restarts: u32,
    batch: usize,
    whole_groups: bool,
    weights: BTreeMap<String, f64>,
}

impl Common {
    fn validate(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.workers == 0 {
            problems.push("reward.workers = 0: at least 1".into());
        }
        for (field, seconds) in [("timeout", self.timeout), ("setup_timeout", self.setup_timeout)] {
            if !(seconds > 0.0 && seconds <= 1e6) {
                problems.push(format!("reward.{field} = {seconds}: must be above 0 and at most a million seconds"));
            }
        }
        for (part, weight) in self.weights.iter().filter(|(_, weight)| !weight.is_finite()) {
            problems.push(format!("reward.weights.{part} = {weight}: must be finite"));
        }
        problems
    }
}

/// What workers do.
struct Job {
    name: String,
    log: Log,
    launch: Launch,
    /// The first line to each.
    hello: Value,
    pictures: Pictures,
    common: Common,
}

impl Job {
    /// A process that is set up.
    fn process(&self) -> Result<Process, String> {
        let mut process = Process::start(&self.launch, &self.name, &self.log)?;
        process.greet(&self.hello, self.setup_limit())?;
        Ok(process)
    }

    /// Of what may load a model.
    fn setup_limit(&self) -> Limit {
        Limit { field: "setup_timeout", seconds: self.common.setup_timeout }
    }

    fn say(&self, text: &str) {
        text.lines().for_each(|line| self.log.say(&self.name, line));
    }

    /// What becomes of one entry of an answer.
    fn score(&self, entry: &Value) -> Result<Score, RewardError> {
        let what = &self.launch.what;
        let Value::Object(entries) = entry else {
            let score = number(entry).map_err(|lack| RewardError::Failed(format!("`{what}`: the score {lack}")))?;
            return self.whole(Score::from(score));
        };
        if entries.is_empty() {
            return Err(RewardError::Failed(format!("`{what}` gave a score without any part")));
        }
        let part = |(name, value): (&String, &Value)| {
            let value =
                number(value).map_err(|lack| RewardError::Failed(format!("`{what}`: the part `{name}` {lack}")))?;
            let weight = self.common.weights.get(name).copied().unwrap_or(1.0);
            Ok(Part { name: name.as_str().into(), weight, value })
        };
        self.whole(Score::sum(entries.iter().map(part).collect::<Result<_, _>>()?))
    }

    /// The score, if it has every part that has a weight: one that is missing is never taken for 0.
    fn whole(&self, score: Score) -> Result<Score, RewardError> {
        let what = &self.launch.what;
        let has = |name: &str| score.parts.iter().any(|part| &*part.name == name);
        if let Some(missing) = self.common.weights.keys().find(|name| !has(name)) {
            let there: Vec<&str> = score.parts.iter().map(|part| &*part.name).collect();
            let there = if there.is_empty() { "a number without parts".into() } else { there.join(", ") };
            return Err(RewardError::Failed(format!(
                "`{what}` gave no part `{missing}`, which reward.weights names, but {there}"
            )));
        }
        if score.value.is_finite() {
            Ok(score)
        } else {
            Err(RewardError::Failed(format!("`{what}`: the sum of the parts is {}", score.value)))
        }
    }
}

/// A number of an answer, or what it lacks.
fn number(value: &Value) -> Result<f64, String> {
    match value {
        Value::Null => Err("is None: there is none for this picture".into()),
        Value::String(odd) if matches!(odd.as_str(), "NaN" | "Infinity" | "-Infinity") => Err(format!("is {odd}")),
        Value::Number(number) => number.as_f64().ok_or_else(|| format!("is {number}, which is no number of 64 bits")),
        other => Err(format!("is {other}, which is no number")),
    }
}

/// A reward that child processes compute.
pub struct Worker {
    job: Job,
    pool: Mutex<Pool>,
    /// A seat came back, or is given up.
    returned: Condvar,
}

/// The seats that nobody uses now.
struct Pool {
    free: Vec<Seat>,
    /// Seats that are not given up, free or not.
    alive: usize,
    /// Why the last one was given up.
    reason: String,
}

/// The place of one process, from one start to the next.
struct Seat {
    /// Counted from 1, for the log.
    number: usize,
    process: Option<Process>,
    /// In a row, without scoring in between.
    failures: u32,
    /// What the last one was.
    reason: String,
}

impl Seat {
    /// Its process, which is started again if need be, unless that is given up.
    fn process(&mut self, job: &Job) -> Option<&mut Process> {
        if let Some(process) = self.process.as_mut().filter(|process| process.exited()) {
            let reason = process.broken("ended between two calls");
            self.fail(job, reason);
        }
        while self.process.is_none() && !self.is_given_up(job) {
            std::thread::sleep(pause(self.failures));
            let restarts = job.common.restarts;
            job.say(&format!("worker {} is started again ({} of {restarts})", self.number, self.failures));
            match job.process() {
                Ok(process) => self.process = Some(process),
                Err(reason) => self.fail(job, reason),
            }
        }
        self.process.as_mut()
    }

    fn is_given_up(&self, job: &Job) -> bool {
        self.failures > job.common.restarts
    }

    fn gave_up(&self, job: &Job) -> String {
        format!("gave up after {} restarts: {}", job.common.restarts, self.reason)
    }

    fn fail(&mut self, job: &Job, reason: String) {
        (self.process, self.reason) = (None, reason);
        self.failures += 1;
        if self.is_given_up(job) {
            job.say(&format!("worker {} {}", self.number, self.gave_up(job)));
        } else {
            job.say(&format!("worker {}: {}", self.number, self.reason));
        }
    }
}

/// Before a process is started again: none at first, then longer each time.
fn pause(failures: u32) -> Duration {
    match failures {
        0 | 1 => Duration::ZERO,
        more => Duration::from_millis(250 << (more - 1).min(7)),
    }
}

impl Worker {
    fn start(job: Job) -> Result<Self, StartError> {
        let workers = job.common.workers;
        let started: Result<Vec<Process>, String> = std::thread::scope(|scope| {
            let starting: Vec<_> = (0..workers).map(|_| scope.spawn(|| job.process())).collect();
            starting
                .into_iter()
                .map(|one| one.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect()
        });
        let seat = |(i, process)| Seat { number: i + 1, process: Some(process), failures: 0, reason: String::new() };
        let pool = match started {
            Ok(processes) => Pool {
                free: processes.into_iter().enumerate().map(seat).collect(),
                alive: workers,
                reason: String::new(),
            },
            Err(reason) => return Err(StartError(format!("reward `{}` cannot start: {reason}", job.name))),
        };
        Ok(Self { job, pool: pool.into(), returned: Condvar::new() })
    }

    fn pool(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A seat that nobody uses. Waits for one, unless all are given up.
    fn take(&self) -> Result<Seat, String> {
        let waits = |pool: &mut Pool| pool.free.is_empty() && pool.alive > 0;
        let mut pool = self.returned.wait_while(self.pool(), waits).unwrap_or_else(PoisonError::into_inner);
        pool.free.pop().ok_or_else(|| pool.reason.clone())
    }

    /// All seats that are not given up, once nobody uses them.
    fn take_all(&self) -> Vec<Seat> {
        let waits = |pool: &mut Pool| pool.free.len() < pool.alive;
        let mut pool = self.returned.wait_while(self.pool(), waits).unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut pool.free)
    }

    fn give_back(&self, seat: Seat) {
        let mut pool = self.pool();
        if seat.is_given_up(&self.job) {
            pool.alive -= 1;
            pool.reason = seat.gave_up(&self.job);
        } else {
            pool.free.push(seat);
        }
        self.returned.notify_all();
    }

    /// The scores of the chosen pictures, by one call.
    fn call(&self, request: &Request<'_>, chosen: &[usize]) -> Vec<Result<Score, RewardError>> {
        let all = |error: RewardError| vec![Err(error); chosen.len()];
        let images: Vec<&RgbImage> = chosen.iter().map(|&i| &request.images[i]).collect();
        let mut message = Map::from_iter([
            ("do".into(), "score".into()),
            ("prompts".into(), chosen.iter().map(|&i| Value::from(&*request.prompts[i].text)).collect()),
            ("metadata".into(), chosen.iter().map(|&i| Value::from(request.prompts[i].metadata.clone())).collect()),
            ("groups".into(), chosen.iter().map(|&i| Value::from(request.groups[i])).collect()),
        ]);
        if self.job.pictures == Pictures::Png {
            match images.par_iter().map(|image| encode(image)).collect::<Result<Vec<Value>, _>>() {
                Ok(pictures) => message.insert("pictures".into(), pictures.into()),
                Err(error) => return all(RewardError::Failed(format!("cannot encode a PNG: {error}"))),
            };
        }

        let mut seat = match self.take() {
            Ok(seat) => seat,
            Err(reason) => return all(RewardError::Unavailable(reason)),
        };
        let answer = self.ask(&mut seat, message, &images);
        self.give_back(seat);
        match answer {
            Ok(entries) => entries.iter().map(|entry| self.job.score(entry)).collect(),
            Err(error) => all(error),
        }
    }

    /// The entries that one process answers with, as many as there are pictures.
    fn ask(
        &self,
        seat: &mut Seat,
        mut message: Map<String, Value>,
        images: &[&RgbImage],
    ) -> Result<Vec<Value>, RewardError> {
        let limit = Limit { field: "timeout", seconds: self.job.common.timeout };
        let Some(process) = seat.process(&self.job) else {
            return Err(RewardError::Unavailable(seat.gave_up(&self.job)));
        };
        if self.job.pictures == Pictures::Shared {
            message.insert("pictures".into(), process.shared.write(images).map_err(RewardError::Unavailable)?.into());
            if let Some(path) = process.shared.new_file() {
                message.insert("file".into(), path.to_string_lossy().into());
            }
        }
        let mut answer = process.ask(message, Some("scores"), limit).map_err(|reason| {
            seat.fail(&self.job, reason);
            RewardError::Unavailable(seat.reason.clone())
        })?;
        seat.failures = 0;
        match (answer.remove("scores"), answer.remove("error")) {
            (_, Some(Value::String(error))) => Err(RewardError::Failed(error)),
            (Some(Value::Array(entries)), _) if entries.len() == images.len() => Ok(entries),
            (entries, _) => Err(RewardError::Failed(format!(
                "`{}` gave {} scores for {} pictures",
                self.job.launch.what,
                entries.as_ref().and_then(Value::as_array).map_or(0, Vec::len),
                images.len()
            ))),
        }
    }

    /// Has every process do the same, side by side.
    fn all(&self, what: &str) {
        let tell = |seat: &mut Seat| {
            // None is started only to sleep.
            if what == "sleep" && seat.process.is_none() {
                return;
            }
            let Some(process) = seat.process(&self.job) else { return };
            match process.ask(Map::from_iter([("do".into(), what.into())]), None, self.job.setup_limit()) {
                Ok(answer) => {
                    if let Some(Value::String(error)) = answer.get("error") {
                        self.job.say(&format!("worker {}: {what}: {error}", seat.number));
                    }
                }
                Err(reason) => seat.fail(&self.job, reason),
            }
        };
        let mut seats = self.take_all();
        std::thread::scope(|scope| seats.iter_mut().for_each(|seat| drop(scope.spawn(|| tell(seat)))));
        for seat in seats {
            self.give_back(seat);
        }
    }
}

impl Reward for Worker {
    fn name(&self) -> &str {
        &self.job.name
    }

    fn needs(&self) -> Needs {
        let Common { workers, whole_groups, .. } = self.job.common;
        Needs { latents: false, whole_groups, in_flight: workers }
    }

    fn score(&self, request: &Request<'_>) -> Vec<Result<Score, RewardError>> {
        let Common { workers, batch, whole_groups, .. } = self.job.common;
        let calls = calls(request.groups, batch, whole_groups);
        let scores = side_by_side(calls.len(), workers, |k| self.call(request, &calls[k]));
        let mut scored: Vec<_> = calls.iter().flatten().zip(scores.into_iter().flatten()).collect();
        scored.sort_by_key(|(i, _)| **i);
        scored.into_iter().map(|(_, score)| score).collect()
    }

    fn wake(&self) {
        self.all("wake");
    }

    fn sleep(&self) {
        self.all("sleep");
    }
}

/// The samples of each call, of the group of each sample: at most `batch` of them, 0 for all, where that cuts no whole group.
fn calls(groups: &[usize], batch: usize, whole_groups: bool) -> Vec<Vec<usize>> {
    let batch = if batch == 0 { usize::MAX } else { batch };
    let mut units: Vec<Vec<usize>> = Vec::new();
    for (i, group) in groups.iter().enumerate() {
        match units.iter_mut().find(|unit| whole_groups && groups[unit[0]] == *group) {
            Some(unit) => unit.push(i),
            None => units.push(vec![i]),
        }
    }
    let mut calls: Vec<Vec<usize>> = Vec::new();
    for unit in units {
        match calls.last_mut().filter(|call| call.len().saturating_add(unit.len()) <= batch) {
            Some(call) => call.extend(unit),
            None => calls.push(unit),
        }
    }
    calls
}

/// A PNG in base64, fast rather than small.
fn encode(image: &RgbImage) -> Result<Value, image::ImageError> {
    let mut file = Vec::new();
    png::PngEncoder::new_with_quality(&mut file, png::CompressionType::Fast, png::FilterType::Sub).write_image(
        image,
        image.width(),
        image.height(),
        ExtendedColorType::Rgb8,
    )?;
    Ok(BASE64_STANDARD.encode(file).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_cut_by_the_batch_but_never_through_a_whole_group() {
        let groups = [0, 0, 0, 1, 1, 2];
        assert_eq!(calls(&groups, 0, false), [vec![0, 1, 2, 3, 4, 5]]);
        assert_eq!(calls(&groups, 4, false), [vec![0, 1, 2, 3], vec![4, 5]]);
        assert_eq!(calls(&groups, 4, true), [vec![0, 1, 2], vec![3, 4, 5]]);
        assert_eq!(calls(&groups, 2, true), [vec![0, 1, 2], vec![3, 4], vec![5]]);
        // A group whose samples lie apart.
        assert_eq!(calls(&[7, 8, 7, 8], 2, true), [vec![0, 2], vec![1, 3]]);
        assert!(calls(&[], 2, true).is_empty());
    }

    #[test]
    fn fields_that_make_no_sense_are_named() {
        assert!(Python::default().validate().is_empty() && Command::default().validate().is_empty());
        let weights = [("look".to_owned(), f64::NAN)].into();
        let python = Python { workers: 0, timeout: 0.0, file: String::new(), weights, ..Python::default() };
        assert_eq!(
            python.validate(),
            [
                "reward.workers = 0: at least 1",
                "reward.timeout = 0: must be above 0 and at most a million seconds",
                "reward.weights.look = NaN: must be finite",
                "reward.file is empty",
            ]
        );
        let command = Command { program: Vec::new(), setup_timeout: f64::INFINITY, ..Command::default() };
        assert_eq!(command.validate().len(), 2);
    }

    #[test]
    fn pauses_start_with_the_second_restart_grow_and_end_at_32_seconds() {
        let pauses: Vec<u128> = [1, 2, 3, 4, 8, 9, u32::MAX].map(|failures| pause(failures).as_millis()).into();
        assert_eq!(pauses, [0, 500, 1000, 2000, 32_000, 32_000, 32_000]);
    }
}
