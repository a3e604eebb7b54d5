//! One child process and what is said with it: lines of JSON on its stdin and stdout (`docs/rewards-protocol.md`).

use super::shared::Shared;
use crate::Log;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, kill_process_group, waitid},
};
use serde_json::{Map, Value};
use std::{
    collections::VecDeque,
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::process::CommandExt,
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// How a child is started.
pub(super) struct Launch {
    /// What messages call it: the user's file or program.
    pub what: String,
    /// The program and its arguments.
    pub program: Vec<String>,
    /// Set on top of the environment.
    pub environment: &'static [(&'static str, &'static str)],
    /// Whether SIGUSR1 has it write where it is to its stderr.
    pub traces: bool,
    /// What to do where the program cannot be started.
    pub advice: &'static str,
}

/// A child in a process group of its own, which ends with this value.
pub(super) struct Process {
    what: String,
    traces: bool,
    child: Child,
    /// None once the child is told to end.
    input: Option<ChildStdin>,
    output: ChildStdout,
    /// What the child said beyond the lines that are taken.
    said: Vec<u8>,
    /// Number of the last request.
    asked: u64,
    errors: Option<JoinHandle<()>>,
    last_lines: LastLines,
    ended: bool,
    /// Where its pictures travel.
    pub shared: Shared,
}

/// The longest time that an answer may take.
#[derive(Clone, Copy)]
pub(super) struct Limit {
    /// What the user sets it by.
    pub field: &'static str,
    /// The time.
    pub seconds: f64,
}

/// The last lines of its stderr, for messages.
type LastLines = Arc<Mutex<VecDeque<String>>>;

/// How many of them.
const LAST_LINES: usize = 30;

/// How long a child whose stdin or stdout is closed may take to end by itself.
const GRACE: Duration = Duration::from_secs(1);

impl Process {
    /// Starts the program; what it writes to stderr goes to the log.
    pub(super) fn start(launch: &Launch, name: &str, log: &Log) -> Result<Self, String> {
        let cannot = |error: io::Error| format!("cannot start `{}`: {error}: {}", launch.program[0], launch.advice);
        let mut command = Command::new(&launch.program[0]);
        command.args(&launch.program[1..]).envs(launch.environment.iter().copied()).process_group(0);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(cannot)?;
        let (input, output) = (child.stdin.take(), child.stdout.take().expect("invariant: stdout is a pipe"));
        let errors = child.stderr.take().expect("invariant: stderr is a pipe");
        let (last_lines, name, log) = (LastLines::default(), name.to_owned(), log.clone());
        let listening = Arc::clone(&last_lines);
        let process = Self {
            what: launch.what.clone(),
            traces: launch.traces,
            child,
            input,
            output,
            said: Vec::new(),
            asked: 0,
            errors: Some(std::thread::spawn(move || listen(errors, &listening, &name, &log))),
            last_lines,
            ended: false,
            shared: Shared::new(),
        };
        // A child that does not read must not hold the writer beyond the time limit.
        let input = process.input.as_ref().expect("invariant: stdin is a pipe");
        rustix::io::ioctl_fionbio(input, true).map_err(|error| cannot(error.into()))?;
        Ok(process)
    }

    /// Whether it ended by itself.
    pub(super) fn exited(&self) -> bool {
        // It is not reaped yet, so that its number stays that of its group.
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        self.ended || matches!(waitid(WaitId::Pid(Pid::from_child(&self.child)), options), Ok(Some(_)))
    }

    /// Says hello and waits until the child is ready.
    pub(super) fn greet(&mut self, hello: &Value, limit: Limit) -> Result<(), String> {
        let line = self.exchange(hello, limit)?;
        let answer = parse(&line).unwrap_or_default();
        if let Some(Value::String(error)) = answer.get("error") {
            self.end();
            return Err(error.clone());
        }
        if answer.get("elbow") != Some(&1.into()) || answer.get("ready") != Some(&true.into()) {
            let problem = format!(
                "answered {} where {{\"elbow\": 1, \"ready\": true}} is due: it has to speak docs/rewards-protocol.md, version 1, on \
                 its stdout, and nothing else",
                quote(&line)
            );
            return Err(self.broken(&problem));
        }
        Ok(())
    }

    /// Sends a request and waits for its answer, which has the number of the request and what is `due`, or an `error`. Any other
    /// end is one of the child too, told in the `Err`.
    pub(super) fn ask(
        &mut self,
        mut request: Map<String, Value>,
        due: Option<&str>,
        limit: Limit,
    ) -> Result<Map<String, Value>, String> {
        self.asked += 1;
        request.insert("id".into(), self.asked.into());
        let line = self.exchange(&request.into(), limit)?;
        self.shared.opened();
        let wrong = match parse(&line) {
            Some(answer) if answer.get("id") != Some(&self.asked.into()) => format!("has not the `id` {}", self.asked),
            Some(answer) if answer.get("error").is_some_and(Value::is_string) => return Ok(answer),
            Some(answer) => match due {
                Some(due) if !answer.get(due).is_some_and(Value::is_array) => {
                    format!("has neither a list `{due}` nor a text `error`")
                }
                _ => return Ok(answer),
            },
            None => "is no JSON object".into(),
        };
        Err(self.broken(&format!("gave an answer that {wrong}: {}: see docs/rewards-protocol.md", quote(&line))))
    }

    /// Sends one line and waits for one.
    fn exchange(&mut self, message: &Value, limit: Limit) -> Result<String, String> {
        let Limit { field, seconds } = limit;
        let deadline = Instant::now() + Duration::from_secs_f64(seconds);
        let line = format!("{message}\n");
        let mut unsent = line.as_bytes();
        loop {
            let end = self.said.iter().position(|&byte| byte == b'\n');
            if let (Some(end), true) = (end, unsent.is_empty()) {
                let line: Vec<u8> = self.said.drain(..=end).collect();
                return Ok(String::from_utf8_lossy(&line).trim().to_owned());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                if self.traces {
                    _ = kill_process(Pid::from_child(&self.child), Signal::USR1);
                    std::thread::sleep(Duration::from_millis(100));
                }
                return Err(
                    self.broken(&format!("gave no answer within {seconds} s (`reward.{field}`) and was killed"))
                );
            }
            // First, so that what it said before it ended is read.
            let exited = self.exited();
            let (readable, writable) = self.wait(!unsent.is_empty(), left);
            if let (true, Some(input)) = (writable, &mut self.input) {
                match input.write(unsent) {
                    Ok(sent) => unsent = &unsent[sent..],
                    Err(error) if is_passing(&error) => {}
                    // It reads no more; what it says may tell why.
                    Err(_) => unsent = &[],
                }
            }
            let mut chunk = [0; 1 << 14];
            let gone = match readable.then(|| self.output.read(&mut chunk)) {
                Some(Ok(count)) => {
                    self.said.extend_from_slice(&chunk[..count]);
                    count == 0
                }
                Some(Err(error)) => !is_passing(&error),
                // A child of the child may hold the pipe open.
                None => exited,
            };
            if gone {
                return Err(self.gone());
            }
        }
    }

    /// Until there is something to read or, if asked for, room to write; not much longer than a child may be gone unnoticed.
    fn wait(&self, to_write: bool, left: Duration) -> (bool, bool) {
        let mut ends = vec![PollFd::new(&self.output, PollFlags::IN)];
        if let (true, Some(input)) = (to_write, &self.input) {
            ends.push(PollFd::new(input, PollFlags::OUT));
        }
        let slice = left.min(Duration::from_millis(100));
        let slice = Timespec { tv_sec: 0, tv_nsec: slice.subsec_nanos().into() };
        // Interrupted is nothing ready.
        let ready = poll(&mut ends, Some(&slice)).unwrap_or(0) > 0;
        let ready = |end: &PollFd<'_>| ready && !end.revents().is_empty();
        (ready(&ends[0]), ends.get(1).is_some_and(ready))
    }

    /// Why a child that says no more is of no use.
    fn gone(&mut self) -> String {
        let said = std::mem::take(&mut self.said);
        let half = String::from_utf8_lossy(&said);
        let half =
            if half.trim().is_empty() { String::new() } else { format!(" after it said {}", quote(half.trim())) };
        if self.exits_within(GRACE) {
            self.broken(&format!("ended{half}"))
        } else {
            self.broken(&format!("closed its stdout{half}"))
        }
    }

    /// Ends it, and says what happened, how it ended if by itself, and its last lines.
    pub(super) fn broken(&mut self, what_happened: &str) -> String {
        let by_itself = self.exited();
        let status = self.end();
        let status = match status {
            Some(status) if by_itself => format!(" ({status})"),
            _ => String::new(),
        };
        let mut lines = self.last_lines.lock().unwrap_or_else(PoisonError::into_inner);
        let lines = match lines.make_contiguous().join("\n  ") {
            none if none.is_empty() => none,
            some => format!("; its last lines:\n  {some}"),
        };
        format!("`{}` {what_happened}{status}{lines}", self.what)
    }

    fn exits_within(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while !self.exited() {
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        true
    }

    /// Kills it and its children.
    fn end(&mut self) -> Option<std::process::ExitStatus> {
        if self.ended {
            return None;
        }
        self.ended = true;
        self.input = None;
        // There may be none left.
        _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        let status = self.child.wait().ok();
        if let Some(errors) = self.errors.take() {
            // A process that left the group may hold the pipe open.
            let deadline = Instant::now() + Duration::from_millis(300);
            while !errors.is_finished() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        status
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.ended {
            self.input = None;
            self.exits_within(GRACE);
            self.end();
        }
    }
}

/// An error of a pipe after which it may be tried again.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// Passes what a child writes to its stderr on, until that is closed.
fn listen(errors: ChildStderr, last_lines: &Mutex<VecDeque<String>>, name: &str, log: &Log) {
    let mut errors = BufReader::new(errors);
    let mut bytes = Vec::new();
    // A longer line is passed on in pieces.
    while let Ok(1..) = errors.by_ref().take(1 << 16).read_until(b'\n', &mut bytes) {
        let text = String::from_utf8_lossy(&bytes);
        // A progress bar writes over itself: only how it looks at the end counts.
        let line = text.trim_end().rsplit('\r').next().unwrap_or_default();
        if !line.is_empty() {
            log.say(name, line);
            let mut lines = last_lines.lock().unwrap_or_else(PoisonError::into_inner);
            if lines.len() == LAST_LINES {
                lines.pop_front();
            }
            lines.push_back(line.to_owned());
        }
        bytes.clear();
    }
}

/// A line of an answer, for a message.
fn quote(line: &str) -> String {
    let short: String = line.chars().take(200).collect();
    format!("{short:?}{}", if short.len() < line.len() { "…" } else { "" })
}

/// An object of JSON, in which NaN, Infinity and -Infinity, as Python writes them, become strings.
fn parse(line: &str) -> Option<Map<String, Value>> {
    serde_json::from_str(line).or_else(|_| serde_json::from_str(&quote_odd_numbers(line))).ok()
}

fn quote_odd_numbers(line: &str) -> String {
    let mut text = String::with_capacity(line.len() + 16);
    let (mut rest, mut in_string) = (line, false);
    while let Some(first) = rest.chars().next() {
        let odd = ["NaN", "Infinity", "-Infinity"].into_iter().find(|odd| !in_string && rest.starts_with(odd));
        let length = match (odd, first) {
            (Some(odd), _) => odd.len(),
            (None, '\\') => 1 + rest[1..].chars().next().map_or(0, char::len_utf8),
            (None, _) => first.len_utf8(),
        };
        in_string ^= first == '"';
        match odd {
            Some(odd) => text.extend(["\"", odd, "\""]),
            None => text.push_str(&rest[..length]),
        }
        rest = &rest[length..];
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn numbers_that_json_lacks_become_strings_and_strings_stay() {
        let line = r#"{"scores": [NaN, -Infinity, 1.5, {"a": Infinity}], "text": "NaN \" Infinity \\"}"#;
        let expected = json!({
            "scores": ["NaN", "-Infinity", 1.5, { "a": "Infinity" }],
            "text": "NaN \" Infinity \\",
        });
        assert_eq!(parse(line).map(Value::Object), Some(expected));
        assert_eq!(parse("[1]"), None);
        assert_eq!(parse("{\"a\": nan}"), None);
    }
}
