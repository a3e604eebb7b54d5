//! The full screen of `elbow train --tui`, on a terminal that Python plays.

#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

mod common;
#[path = "../../elbow-rewards/tests/common/mod.rs"]
mod interpreter;

use common::{SMALL, assert_same, elbow, refused, resume, sets, succeed, train};
use interpreter::python;
use std::process::{Command, Stdio};

/// Runs a program on a terminal of 80 × 24, presses each key after its text was shown, and prints all that it wrote. The status is the program's.
const TERMINAL: &str = r#"
import fcntl, json, os, pty, select, struct, sys, termios, time
steps, program = json.loads(sys.argv[1]), sys.argv[2:]
child, terminal = pty.fork()
if child == 0:
    fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    os.execv(program[0], program)
shown, end = b"", time.time() + 300
while time.time() < end:
    if not select.select([terminal], [], [], 1)[0]:
        continue
    try:
        part = os.read(terminal, 65536)
    except OSError:
        break
    if not part:
        break
    shown += part
    if steps and steps[0][0].encode() in shown:
        os.write(terminal, steps.pop(0)[1].encode())
else:
    os.kill(child, 9)
sys.stdout.buffer.write(shown)
sys.stdout.flush()
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) % 256)
"#;

/// What `elbow` with arguments shows on a terminal, where keys are pressed, each once a text was shown, and its status.
fn on_a_terminal(python: &str, keys: &[(&str, &str)], args: &[&str]) -> (String, Option<i32>) {
    let keys = serde_json::to_string(keys).unwrap();
    let mut command = Command::new(python);
    command.args(["-c", TERMINAL, &keys, env!("CARGO_BIN_EXE_elbow")]).args(args).stdin(Stdio::null());
    let output = command.env("TERM", "xterm-256color").output().unwrap();
    (String::from_utf8_lossy(&output.stdout).into_owned(), output.status.code())
}

/// What was printed after the full screen.
#[track_caller]
fn after_the_screen(shown: &str) -> &str {
    assert!(shown.contains("\x1b[?1049h"), "no full screen: {shown:?}");
    let (before, after) = shown.rsplit_once("\x1b[?1049l").unwrap_or_else(|| panic!("it is not left: {shown:?}"));
    assert!(!after.contains("\x1b[?1049h") && !before.contains("\x1b[?1049l"), "left twice: {shown:?}");
    after
}

#[test]
fn a_run_on_the_full_screen_stops_and_goes_on() {
    let Some(python) = python() else { return };
    let root = tempfile::tempdir().unwrap();
    let (folder, straight) = (root.path().join("run"), root.path().join("straight"));
    let path = folder.to_str().unwrap();
    let mut args = vec!["train", "--tui", "--run", path, "--set", "epochs=20", "--set", "keep.images_every=1"];
    args.extend(sets(&SMALL));
    let (shown, status) = on_a_terminal(&python, &[("epoch-00001.png", "q")], &args);
    assert_eq!(status, Some(0), "{shown:?}");
    let after = after_the_screen(&shown);
    assert!(after.contains("writing to ") && after.contains("stopped after epoch "), "{after:?}");
    assert!(!after.contains("run folder: "), "it ran to its end: {after:?}");

    let args = ["train", "--tui", "--resume", path, "--set", "epochs=21"];
    let (shown, status) = on_a_terminal(&python, &[], &args);
    assert_eq!(status, Some(0), "{shown:?}");
    assert!(after_the_screen(&shown).contains("run folder: "), "{shown:?}");
    succeed(train(&straight, 21).args(["--set", "keep.images_every=1"]));
    assert_same(&straight, &folder);
}

#[test]
fn a_second_key_and_an_error_restore_the_terminal() {
    let Some(python) = python() else { return };
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("run");
    let path = folder.to_str().unwrap();
    let mut args = vec!["train", "--tui", "--run", path];
    args.extend(sets(&SMALL));
    // An epoch takes seconds.
    args.extend(sets(&["batch.groups=96"]));
    let (shown, status) = on_a_terminal(&python, &[("update ", "\u{3}"), ("Ctrl-C", "q")], &args);
    assert_eq!(status, Some(130), "{shown:?}");
    let after = after_the_screen(&shown);
    assert!(after.contains("stopped at once; no epoch was finished; go on with"), "{after:?}");

    let other = root.path().join("other");
    let args = ["train", "--tui", "--run", other.to_str().unwrap(), "--set", "model.weights=none.safetensors"];
    let (shown, status) = on_a_terminal(&python, &[], &args);
    assert_eq!(status, Some(1), "{shown:?}");
    let after = after_the_screen(&shown);
    assert!(after.contains("error: ") && after.contains("hint: "), "{after:?}");
}

#[test]
fn sparklines_stay_below_the_lines_of_a_terminal() {
    let Some(python) = python() else { return };
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("run");
    let mut args =
        vec!["train", "--run", folder.to_str().unwrap(), "--set", "epochs=2", "--set", "keep.images_every=1"];
    args.extend(sets(&SMALL));
    let (shown, status) = on_a_terminal(&python, &[], &args);
    assert_eq!(status, Some(0), "{shown:?}");
    for part in
        ["epoch    1/2  reward ", "reward_geneval ", "eval_reward_judge ", "zero_std_ratio ", "/images/epoch-00002.png"]
    {
        assert!(shown.contains(part), "{part:?} is not in {shown:?}");
    }
    assert!(!shown.contains("\x1b[?1049h"), "{shown:?}");
}

#[test]
fn without_a_terminal_nothing_begins() {
    let root = tempfile::tempdir().unwrap();
    refused(&mut elbow(["train", "--tui"]), root.path(), &["--tui needs a terminal", "leave --tui out"]);
    let mut resumed = resume(&root.path().join("none"));
    refused(resumed.arg("--tui"), root.path(), &["--tui needs a terminal"]);
}
