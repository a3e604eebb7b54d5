//! A recipe through the library, from outside: what it tells, and that a run that was stopped ends as one that was not.

use elbow::train::depends_on_machine;
use elbow_run::{Components, Device, Event, Finished, Recipe, Run, Status, recipe};
use elbow_runlog::{RunFolder, metrics};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, atomic::Ordering},
};

/// A run of three epochs that takes seconds.
fn tiny() -> Recipe {
    let changes = [
        "epochs=3",
        "batch.groups=2",
        "batch.group_size=2",
        "batch.reuse_velocities=false",
        "sampler.steps=2",
        "eval.prompts_per_task=1",
        "eval.measure.images_per_prompt=1",
        "eval.measure.sampler.steps=2",
        "eval.measure.every=2",
        "keep.checkpoint_every=2",
        "keep.checkpoints=9",
        "keep.images_every=1",
    ];
    recipe::load(None, &changes.map(str::to_owned)).expect("a recipe").1
}

/// Every file below a folder, by relative path.
fn files(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let (mut found, mut folders) = (BTreeMap::new(), vec![root.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(root).expect("below").to_owned();
                found.insert(name, fs::read(&path).expect("a file"));
            }
        }
    }
    found
}

/// The records without what depends on the machine's speed.
fn numbers(run: &Path) -> Vec<metrics::Record> {
    let mut records = metrics::read(&run.join("metrics.jsonl")).expect("records");
    for record in &mut records {
        record.retain(|key, _| !depends_on_machine(key));
    }
    records
}

/// What a run told.
#[derive(Default)]
struct Told {
    events: Mutex<Vec<String>>,
    phases: Mutex<BTreeSet<&'static str>>,
}

impl Told {
    fn add(&self, event: Event<'_>) {
        let text = match event {
            Event::Progress { phase, done, total } => {
                assert!(done <= total, "{phase}: {done} of {total}");
                self.phases.lock().expect("no panic").insert(phase);
                return;
            }
            Event::Evaluation { epoch, .. } => format!("evaluation {epoch}"),
            Event::Epoch { epoch, record, samples, .. } => {
                assert_eq!((record["epoch"].as_u64(), samples.len()), (Some(epoch), 4));
                format!("epoch {epoch}")
            }
            Event::Pictures { epoch, path } => {
                assert!(path.is_file());
                format!("pictures {epoch}")
            }
            Event::Checkpoint { epoch, path } => {
                assert!(path.join("manifest.json").is_file());
                format!("checkpoint {epoch}")
            }
            Event::Finished { .. } => "finished".to_owned(),
            other => panic!("{other:?} is not expected"),
        };
        self.events.lock().expect("no panic").push(text);
    }

    /// The events so far, which are forgotten.
    fn take(&self) -> String {
        std::mem::take(&mut *self.events.lock().expect("no panic")).join(", ")
    }
}

#[test]
fn a_run_tells_what_happens_and_stopped_and_resumed_is_the_same_run() {
    let root = tempfile::tempdir().expect("a folder");
    let (straight, stopped) = (root.path().join("straight"), root.path().join("stopped"));
    let told = Told::default();
    let watch = |event: Event<'_>| told.add(event);
    let recipe = tiny();
    let components = Components::load(&recipe, &Device::flex(), &watch).expect("components");

    let mut run = Run::create(&straight, recipe.clone(), &components, &watch).expect("a run");
    assert_eq!(run.steps().expect("trains"), Status::Done);
    assert_eq!(run.epoch(), 3);
    let results = run.finish().expect("results");
    assert_eq!(results.base.images.len(), results.tuned.images.len());
    assert_eq!(
        told.take(),
        "evaluation 0, pictures 1, epoch 1, evaluation 2, pictures 2, epoch 2, checkpoint 2, pictures 3, epoch 3, checkpoint 3, evaluation 3, finished"
    );
    assert_eq!(*told.phases.lock().expect("no panic"), BTreeSet::from(["evaluation", "rollout", "update"]));

    // Another run on the same components, stopped after an epoch that has no checkpoint of its own.
    let mut run = Run::create(&stopped, recipe.clone(), &components, &watch).expect("a run");
    assert_eq!(run.step().expect("trains"), Status::Training);
    run.stop.store(true, Ordering::SeqCst);
    assert_eq!(run.steps().expect("stops"), Status::Stopped);
    drop(run);
    assert_eq!(told.take(), "evaluation 0, pictures 1, epoch 1, checkpoint 1");

    // Everything is read again, from the folder.
    let folder = RunFolder::open(&stopped).expect("a run folder");
    let saved = recipe::of_run(&folder, None, &[]).expect("its recipe");
    assert_eq!(saved, recipe);
    let components = Components::load(&saved, &Device::flex(), &watch).expect("components");
    let mut run = Run::resume(folder, saved, &components, &watch).expect("a run");
    assert_eq!(run.epoch(), 1);
    assert_eq!(run.steps().expect("trains"), Status::Done);
    run.finish().expect("results");
    assert_eq!(
        told.take(),
        "evaluation 0, evaluation 2, pictures 2, epoch 2, checkpoint 2, pictures 3, epoch 3, checkpoint 3, evaluation 3, finished"
    );
    assert_same(&straight, &stopped);
}

/// Whoever must end the process saves what is finished while the next epoch is under way, and no bit of it is of that epoch.
#[test]
fn what_is_finished_is_saved_from_another_thread_within_an_epoch() {
    let root = tempfile::tempdir().expect("a folder");
    let (straight, left) = (root.path().join("straight"), root.path().join("left"));
    let (_, mut recipe) = recipe::load(None, &["keep.checkpoint_every=100".to_owned()]).expect("a recipe");
    (recipe.method, recipe.setting.eval) = (tiny().method, tiny().setting.eval);
    let components = Components::load(&recipe, &Device::flex(), &|_| {}).expect("components");

    let mut run = Run::create(&straight, recipe.clone(), &components, &|_| {}).expect("a run");
    assert_eq!(run.planned(), None);
    run.step().expect("trains");
    assert_eq!(run.planned(), Some(seconds(&straight, 1)));
    run.step().expect("trains");
    let two = run.finished().save().expect("writes").expect("it was not saved");
    assert_eq!((two.0, run.finished().save().expect("nothing to write")), (2, None));
    drop(run);

    let (saving, path) = (Mutex::new(None::<Finished>), Mutex::new(None));
    let watch = |event: Event<'_>| {
        let finished = saving.lock().expect("no panic").clone();
        let Some(finished) = finished else { return };
        match event {
            // The weights of the epoch have moved already where its update is over.
            Event::Progress { phase: "update", done, total } if done == total => {
                let saved = std::thread::scope(|scope| scope.spawn(|| finished.save()).join().expect("no panic"));
                *path.lock().expect("no panic") = saved.expect("writes");
            }
            Event::Epoch { epoch, left, .. } => assert_eq!((epoch, left.is_zero()), (3, true)),
            _ => {}
        }
    };
    let mut run = Run::create(&left, recipe.clone(), &components, &watch).expect("a run");
    run.step().expect("trains");
    run.step().expect("trains");
    *saving.lock().expect("no panic") = Some(run.finished());
    run.step().expect("trains");
    let (epoch, path) = path.lock().expect("no panic").take().expect("it was not saved");
    assert_eq!(epoch, 2);
    // The last epoch has its own by now, and what was saved in between was no regular one.
    assert!(!path.exists() && left.join("checkpoints/checkpoint-3").exists());
    drop(run);

    // Left within the third epoch, the run goes on after the second.
    fs::remove_dir_all(&left).expect("removed");
    *saving.lock().expect("no panic") = None;
    let mut run = Run::create(&left, recipe.clone(), &components, &watch).expect("a run");
    run.step().expect("trains");
    run.step().expect("trains");
    assert!(left.join("lock.json").exists());
    assert_eq!(run.finished().leave().expect("writes"), 2);
    assert!(!left.join("lock.json").exists());
    let of = |run: &Path| files(&run.join("checkpoints/checkpoint-2"));
    assert!(of(&straight).len() > 3 && of(&straight) == of(&left), "the checkpoint differs");
}

/// Seconds that rollout and updates of an epoch took.
fn seconds(run: &Path, epoch: usize) -> f64 {
    let record = &metrics::read(&run.join("metrics.jsonl")).expect("records")[epoch];
    ["time_rollout", "time_update"].map(|key| record[key].as_f64().expect("a number")).iter().sum()
}

/// A step that dominates the gradient is told before anything is trained, and whether the rollout's velocities are used again is written down.
#[test]
fn a_run_warns_of_a_step_that_owns_the_gradient() {
    let root = tempfile::tempdir().expect("a folder");
    for (grid, warned) in [("diffusers", true), ("uniform", false)] {
        let changes = [
            format!("sampler.grid={grid}"),
            "epochs=1".into(),
            "batch.groups=4".into(),
            "batch.group_size=2".into(),
            "eval.prompts_per_task=1".into(),
            "eval.measure.images_per_prompt=1".into(),
            "eval.measure.sampler.steps=2".into(),
        ];
        let (_, recipe) = recipe::load(Some(Path::new("nano-ddpo-is")), &changes).expect("a recipe");
        let told = Mutex::new(Vec::new());
        let watch = |event: Event<'_>| match event {
            Event::Warning { text } => told.lock().expect("no panic").push(text.to_owned()),
            Event::Epoch { .. } => told.lock().expect("no panic").push("an epoch".to_owned()),
            _ => {}
        };
        let components = Components::load(&recipe, &Device::flex(), &watch).expect("components");
        let mut run = Run::create(root.path().join(grid), recipe, &components, &watch).expect("a run");
        run.steps().expect("trains");
        let told = told.lock().expect("no panic").clone();
        assert_eq!(told[0].starts_with("step 9 (t = 0.112 to 0.001)"), warned, "{told:?}");
        assert_eq!(told.iter().any(|text| text.contains("|ln ρ| is up to")), warned, "{told:?}");
        let config = fs::read_to_string(root.path().join(grid).join("config.toml")).expect("a recipe");
        assert!(config.contains("reuse_velocities = true"), "{config}");
        // The recipe that it was made of may stand beside it, with what was open there.
        let folder = RunFolder::open(root.path().join(grid)).expect("a run folder");
        recipe::of_run(&folder, Some(Path::new("nano-ddpo-is")), &changes).expect("it says the same");
    }
}

/// Asserts that two runs ended with the same bytes.
fn assert_same(one: &Path, other: &Path) {
    let last = |run: &Path| files(&run.join("checkpoints/checkpoint-3"));
    assert!(last(one).len() > 3 && last(one) == last(other), "the last checkpoint differs");
    assert!(files(&one.join("images")) == files(&other.join("images")), "pictures differ");
    for file in ["config.toml", "result.json"] {
        let read = |run: &Path| fs::read_to_string(run.join(file)).expect("a file");
        assert_eq!(read(one), read(other), "{file}");
    }
    assert_eq!(numbers(one), numbers(other));
}

#[test]
fn a_run_refuses_another_recipe_and_a_folder_that_is_used() {
    let root = tempfile::tempdir().expect("a folder");
    let recipe = tiny();
    let components = Components::load(&recipe, &Device::flex(), &|_| {}).expect("components");
    Run::create(root.path(), recipe.clone(), &components, &|_| {}).expect("a run");
    let before = files(root.path());

    let error = Run::create(root.path(), recipe, &components, &|_| {}).err().expect("the folder is used");
    assert!(error.to_string().contains("exists and is not empty") && error.hint().is_some(), "{error}");
    let folder = RunFolder::open(root.path()).expect("a run folder");
    let error = recipe::of_run(&folder, None, &["seed=1".to_owned()]).expect_err("another seed");
    assert!(error.to_string().contains("seed: 0 → 1"), "{error}");
    assert!(error.hint().is_some_and(|hint| hint.contains("epochs")));
    assert!(before == files(root.path()), "something was written");
}

#[test]
fn a_recipe_that_cannot_run_names_all_its_problems() {
    let changes = ["sed=1", "objective.kind=npo", "batch.groups=x"].map(str::to_owned);
    let error = recipe::load(None, &changes).expect_err("three problems");
    let text = error.chain();
    for part in ["cannot use --set: 3 problems", "`sed`", "`objective.kind` = \"npo\"", "`batch.groups` = \"x\""] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    assert!(error.hint().is_some());
}
