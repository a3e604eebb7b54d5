//! A run that was stopped, in whatever way and at whatever moment, ends with the bytes of one that was not.

#![expect(clippy::print_stdout, reason = "shown where a test fails")]
#![expect(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

mod common;
#[path = "../../elbow-models/tests/diffusers/model_folder.rs"]
mod model_folder;

use common::{
    assert_same, copy, elbow, files, finished, numbers, resume, sets, signal, succeed, text, train, wait_for,
};
use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Lines of the record so far.
fn lines(folder: &Path) -> usize {
    fs::read_to_string(folder.join("metrics.jsonl")).map_or(0, |text| text.lines().count())
}

#[test]
fn the_same_command_makes_the_same_bytes() {
    let root = tempfile::tempdir().unwrap();
    let again = root.path().join("again");
    succeed(&mut train(&again, 4));
    assert_same(finished(), &again);
    assert!(
        numbers(&again).iter().any(|r| r.get("grad_norm").is_some_and(|g| g.as_f64() > Some(0.0))),
        "nothing learned"
    );
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let root = tempfile::tempdir().unwrap();
    for threads in ["1", "2", "3"] {
        let folder = root.path().join(threads);
        succeed(train(&folder, 4).env("RAYON_NUM_THREADS", threads));
        assert_eq!(numbers(finished()), numbers(&folder), "{threads} threads");
        let last = |run: &Path| files(&run.join("checkpoints/checkpoint-4"));
        assert!(last(finished()) == last(&folder), "{threads} threads: the last checkpoint differs");
    }
}

#[test]
fn killed_at_any_moment_and_resumed_is_the_same_run() {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos();
    for attempt in 0..3u32 {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("run");
        let mut command = train(&folder, 4);
        for kill in 0..2u32 {
            // A record that must be there, and a time after it: somewhere in an update, an evaluation or a checkpoint.
            let (records, delay) = ((attempt + kill) as usize, (clock >> (4 * attempt + kill)) % 400);
            println!("attempt {attempt}: SIGKILL {delay} ms after {records} records");
            let mut process = command.spawn().unwrap();
            wait_for("a record", || folder.join("config.toml").exists() && lines(&folder) >= records);
            std::thread::sleep(Duration::from_millis(delay.into()));
            process.kill().unwrap();
            process.wait().unwrap();
            command = resume(&folder);
        }
        succeed(&mut command);
        assert_same(finished(), &folder);
    }
}

#[test]
fn what_a_kill_leaves_half_written_is_cleared_away() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("run");
    copy(finished(), &folder);
    let checkpoints = folder.join("checkpoints");
    // As if killed while checkpoint 4 was written: its record is there, the line after it torn.
    fs::rename(checkpoints.join("checkpoint-4"), checkpoints.join(".checkpoint-4.tmp")).unwrap();
    fs::remove_file(checkpoints.join(".checkpoint-4.tmp/manifest.json")).unwrap();
    let record = folder.join("metrics.jsonl");
    fs::write(&record, fs::read_to_string(&record).unwrap() + "{\"epoch\":5,\"rew").unwrap();
    // A picture of an epoch that is trained again and leaves none this time.
    fs::write(folder.join("images/epoch-00004.png"), "").unwrap();
    assert!(succeed(&mut resume(&folder)).contains("4 epochs from 3"));
    assert_same(finished(), &folder);
}

#[test]
fn a_signal_finishes_the_epoch_and_saves_it() {
    for name in ["INT", "TERM", "HUP"] {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("run");
        let mut command = train(&folder, 4);
        let process = command.args(["--set", "keep.checkpoint_every=100"]).spawn().unwrap();
        wait_for("a record", || lines(&folder) >= 2);
        signal(name, process.id());
        let output = process.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{name}: {}", text(&output));
        let printed = String::from_utf8(output.stdout).unwrap();
        let line = printed.lines().last().unwrap();
        assert!(line.ends_with(&format!("go on with: elbow train --resume {}", folder.display())), "{name}: {printed}");
        assert!(String::from_utf8(output.stderr).unwrap().contains("a second Ctrl-C or signal stops at once"));
        let epoch = numbers(&folder).last().unwrap()["epoch"].as_u64().unwrap();
        assert!((1..4).contains(&epoch), "{name}: {epoch}");
        assert!(folder.join(format!("checkpoints/checkpoint-{epoch}/manifest.json")).exists());

        succeed(&mut resume(&folder));
        assert_eq!(numbers(finished()), numbers(&folder), "{name}");
        let last = |run: &Path| files(&run.join("checkpoints/checkpoint-4"));
        assert!(last(finished()) == last(&folder), "{name}: the last checkpoint differs");
    }
}

/// A run of long epochs, none of which has a checkpoint of its own accord.
fn long_epochs(folder: &Path, grace: u64) -> Command {
    let mut command = train(folder, 50);
    command.args(sets(&["keep.checkpoint_every=100", "batch.groups=12", "batch.group_size=8", "sampler.steps=6"]));
    // A checkpoint is written in a moment.
    command.args(sets(&["model.tuning={kind='lora', rank=4}"]));
    command.args(["--set", &format!("keep.grace_seconds={grace}")]);
    command
}

/// The epoch of the only checkpoint.
fn saved(folder: &Path) -> u64 {
    let all = elbow_runlog::checkpoint::all(&folder.join("checkpoints")).unwrap();
    let [(epoch, _)] = &all[..] else { panic!("{all:?}") };
    *epoch
}

#[test]
fn an_epoch_that_outlasts_the_grace_is_lost_and_what_was_finished_is_not() {
    for (name, code) in [("TERM", 143), ("HUP", 129)] {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("run");
        let process = long_epochs(&folder, 0).spawn().unwrap();
        wait_for("two epochs", || lines(&folder) >= 3);
        let finished = numbers(&folder).last().unwrap()["epoch"].as_u64().unwrap();
        signal(name, process.id());
        let output = process.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{name}: {}", text(&output));
        let epoch = saved(&folder);
        assert!(epoch >= finished && epoch < 50, "{name}: {finished} were finished, {epoch} are saved");
        let printed = String::from_utf8(output.stdout).unwrap();
        let line = printed.lines().last().unwrap();
        let told =
            format!("this epoch did not end within 0 s of SIG{name} (keep.grace_seconds); stopped after epoch {epoch}");
        assert!(line.starts_with(&told), "{printed}");
        assert!(line.ends_with(&format!("go on with: elbow train --resume {}", folder.display())), "{printed}");
        assert!(!folder.join("lock.json").exists());

        // It goes on from there, with another grace where it is wanted.
        let mut again = resume(&folder);
        let printed = succeed(again.args(sets(&["keep.grace_seconds=5", &format!("epochs={}", epoch + 1)])));
        assert!(printed.contains(&format!("epochs from {epoch}; ")), "{printed}");
        assert!(fs::read_to_string(folder.join("config.toml")).unwrap().contains("\ngrace_seconds = 5\n"));
    }
}

#[test]
fn a_second_signal_stops_at_once_and_signals_of_one_event_are_one() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("run");
    let start = |grace| {
        let mut process = long_epochs(&folder, grace).spawn().unwrap();
        wait_for("two records", || lines(&folder) >= 2);
        let mut told = BufReader::new(process.stderr.take().unwrap()).lines();
        signal("TERM", process.id());
        let heard = told.find(|line| line.as_ref().unwrap().contains("a second Ctrl-C or signal stops at once"));
        assert!(heard.is_some());
        (process, told)
    };
    let (process, _told) = start(60);
    signal("INT", process.id());
    let output = process.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", text(&output));
    let epoch = saved(&folder);
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(
        printed.lines().last().unwrap().starts_with(&format!("stopped at once; stopped after epoch {epoch}; go on"))
    );

    // A closed terminal sends several within a moment.
    fs::remove_dir_all(&folder).unwrap();
    let (process, _told) = start(60);
    signal("HUP", process.id());
    signal("HUP", process.id());
    let output = process.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert_eq!(numbers(&folder).last().unwrap()["epoch"], saved(&folder));
}

#[test]
fn a_signal_that_is_ignored_from_the_start_stays_so() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("run");
    let command = train(&folder, 4);
    // As `nohup` does.
    let mut shell = Command::new("sh");
    shell.args(["-c", "trap '' HUP; exec \"$0\" \"$@\""]).arg(command.get_program()).args(command.get_args());
    let process = shell.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for("a record", || lines(&folder) >= 1);
    signal("HUP", process.id());
    let output = process.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    assert_same(finished(), &folder);
}

#[test]
fn one_process_works_in_a_folder_and_one_that_was_killed_leaves_it_free() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("run");
    let mut process = train(&folder, 4).args(["--set", "keep.checkpoint_every=1"]).spawn().unwrap();
    wait_for("a record", || lines(&folder) >= 1);
    for mut second in [resume(&folder), train(&folder, 4)] {
        let output = second.output().unwrap();
        let text = text(&output);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.lines().last().unwrap().starts_with("hint: "), "{text}");
        if second.get_args().any(|arg| arg == "--resume") {
            let told = format!("error: process {} on host ", process.id());
            assert!(
                text.contains(&told) && text.contains(&format!("works in the run folder {}", folder.display())),
                "{text}"
            );
        }
    }
    process.kill().unwrap();
    process.wait().unwrap();
    assert!(folder.join("lock.json").exists(), "it was not killed, or ended before");
    let printed = succeed(&mut resume(&folder));
    let told = format!("warning: process {}, which took the run folder {} at 2", process.id(), folder.display());
    assert!(printed.contains(&told) && printed.contains("is gone from this host"), "{printed}");
    assert_same(finished(), &folder);
    assert!(!folder.join("lock.json").exists());
}

#[test]
fn a_folder_of_another_host_is_refused_with_what_to_remove() {
    let root = tempfile::tempdir().unwrap();
    copy(finished(), &root.path().join("run"));
    let lock = root.path().join("run/lock.json");
    fs::write(&lock, r#"{"process":7,"host":"node-3","since":"2026-11-29T07:33:00Z"}"#).unwrap();
    let parts = ["process 7 on host node-3 took the run folder run at 2026-11-29T07:33:00Z", "remove its lock.json"];
    common::refused(resume(Path::new("run")).args(sets(&["epochs=5"])), root.path(), &parts);
    fs::remove_file(lock).unwrap();
    succeed(resume(Path::new("run")).args(sets(&["epochs=5"])).current_dir(root.path()));
}

#[test]
fn a_run_goes_on_with_its_model_elsewhere() {
    let root = tempfile::tempdir().unwrap();
    let model = model_folder::whole("sd3");
    fs::write(root.path().join("prompts.txt"), "a red cat\nhorse\n").unwrap();
    let small = ["model.resolution=32", "reward.kind=jpeg", "eval.rewards=[]", "batch.updates=1", "model.cache=cache"];
    let prompts = ["prompts.train=prompts.txt", "prompts.test=prompts.txt", "batch.group_size=2"];
    let run = |name: &str, epochs: u64| {
        let mut command = elbow(["train", "sd3.5-geneval", "--run", name]);
        command.args(sets(&common::SMALL)).args(sets(&small)).args(sets(&prompts)).current_dir(root.path());
        let model = format!("model.path={}", model.path().display());
        command.args(sets(&[&model, &format!("epochs={epochs}")]));
        command
    };
    succeed(&mut run("straight", 2));
    succeed(&mut run("moved", 1));
    let elsewhere = root.path().join("elsewhere");
    copy(model.path(), &elsewhere);
    fs::remove_dir_all(model.path()).unwrap();
    let go_on = |changes: &[&str]| {
        let mut command = resume(Path::new("moved"));
        command.args(sets(&["epochs=2"])).args(sets(changes)).current_dir(root.path());
        command
    };
    let output = go_on(&[]).output().unwrap();
    assert!(!output.status.success() && text(&output).contains("cannot use model"), "{}", text(&output));
    // Another model under the name.
    let weights = elsewhere.join("transformer/diffusion_pytorch_model.safetensors");
    let whole = fs::read(&weights).unwrap();
    let mut other = whole.clone();
    *other.last_mut().unwrap() ^= 1;
    fs::write(&weights, other).unwrap();
    let output = go_on(&["model.path=elsewhere"]).output().unwrap();
    assert!(!output.status.success() && text(&output).contains("the base weights differ"), "{}", text(&output));
    fs::write(&weights, whole).unwrap();
    succeed(&mut go_on(&["model.path=elsewhere"]));
    assert_eq!(numbers(&root.path().join("straight")), numbers(&root.path().join("moved")));
    let last = |name: &str| files(&root.path().join(name).join("checkpoints/checkpoint-2"));
    assert!(last("straight") == last("moved"), "the last checkpoint differs");
}

#[test]
fn runs_that_start_together_take_a_name_each() {
    let root = tempfile::tempdir().unwrap();
    let start = |seed: u32| {
        let mut command = elbow(["train"]);
        command.args(sets(&common::SMALL)).args(["--set", "epochs=1", "--set", &format!("seed={seed}")]);
        command.current_dir(root.path()).spawn().unwrap()
    };
    let running: Vec<_> = (0..3).map(start).collect();
    for process in running {
        let output = process.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
    }
    let seeds: std::collections::BTreeSet<u64> = (1..=3)
        .map(|number| {
            let manifest = fs::read(root.path().join(format!("runs/nano-geneval-{number}/manifest.json"))).unwrap();
            serde_json::from_slice::<serde_json::Value>(&manifest).unwrap()["seed"].as_u64().unwrap()
        })
        .collect();
    assert_eq!(seeds, [0, 1, 2].into());
    // A name is free again if its run cannot start.
    let mut command = elbow(["train", "--set", "reward.kind=python", "--set", "reward.file=absent.py"]);
    assert!(!command.current_dir(root.path()).output().unwrap().status.success());
    assert!(!root.path().join("runs/nano-geneval-4").exists());
}

#[test]
fn a_run_goes_on_where_its_files_were_moved_to() {
    let root = tempfile::tempdir().unwrap();
    let place = |name: &str| root.path().join(name);
    for folder in ["here", "there"] {
        fs::create_dir(place(folder)).unwrap();
        fs::write(place(folder).join("prompts.txt"), "a photo of a cat\na photo of a bird\n").unwrap();
    }
    fs::write(place("there").join("others.txt"), "a photo of a boat\n").unwrap();
    let files = ["prompts.kind=files", "prompts.train=prompts.txt", "prompts.test=prompts.txt", "reward.kind=jpeg"];
    let run = |name: &str, epochs: u64| {
        let mut command = train(&place("here").join(name), epochs);
        command.args(sets(&files)).current_dir(place("here"));
        command
    };
    succeed(&mut run("straight", 2));
    succeed(&mut run("moved", 1));
    fs::rename(place("here/moved"), place("there/moved")).unwrap();
    fs::rename(place("there/prompts.txt"), place("there/p.txt")).unwrap();
    let go_on = |prompts: &str| {
        let mut command = resume(Path::new("moved"));
        let (train, test) = (format!("prompts.train={prompts}"), format!("prompts.test={prompts}"));
        command.args(sets(&[&train, &test, "epochs=2"])).current_dir(place("there"));
        command
    };
    let lost = resume(Path::new("moved")).current_dir(place("there")).output().unwrap();
    assert!(text(&lost).contains("hint: a path is relative to the folder that the command runs in"), "{}", text(&lost));
    let refused = go_on("others.txt").output().unwrap();
    assert!(!refused.status.success() && text(&refused).contains("prompts differ"), "{}", text(&refused));
    succeed(&mut go_on("p.txt"));
    assert_eq!(numbers(&place("here/straight")), numbers(&place("there/moved")));
}

#[test]
fn another_configuration_is_refused_and_nothing_is_touched() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("run");
    copy(finished(), &folder);
    let before = files(&folder);
    for (change, part) in [
        ("objective.kind=grpo", "objective.kind: \"pepg\" → \"grpo\""),
        ("seed=1", "seed: 0 → 1"),
        ("model.tuning.kind=lora", "model.tuning.rank: nothing → 32"),
        ("epochs=2", "has finished 4 epochs already, and epochs = 2"),
    ] {
        let output = resume(&folder).args(["--set", change]).output().unwrap();
        let text = text(&output);
        assert_eq!(output.status.code(), Some(1), "{change}: {text}");
        assert!(text.contains(part) && text.contains("hint: "), "{change}: {text}");
        assert!(before == files(&folder), "{change}: something was written");
    }
}

#[test]
fn a_finished_run_trains_on() {
    let root = tempfile::tempdir().unwrap();
    let (straight, longer) = (root.path().join("straight"), root.path().join("longer"));
    copy(finished(), &longer);
    succeed(&mut train(&straight, 6));
    let printed = succeed(resume(&longer).args(["--set", "epochs=6"]));
    let told = |epoch: &str| printed.lines().find(|line| line.starts_with(epoch)).unwrap().to_owned();
    assert!(told("epoch    5/6").ends_with(" s to go)") && told("epoch    6/6").ends_with(" so far)"), "{printed}");
    assert_same(&straight, &longer);
    assert!(fs::read_to_string(longer.join("config.toml")).unwrap().contains("\nepochs = 6\n"));
}
