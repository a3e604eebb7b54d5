//! Studies through the library: what runs they are made of, what they refuse, and what their report says of cells that are known.

use elbow_run::{Device, Recipe, recipe};
use elbow_study::{
    Cell, Finished, Report, Stage, Store, Study, StudyFile, Workshop,
    cell::Point,
    cost,
    file::{Budget, Cost, flat},
    passes::{self, Passes},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    sync::Arc,
};

/// Methods that take no time to plan.
const SMALL: &str = "name = 'small'
seeds = [0, 1, 2, 3, 4]
budget = { samples = 48 }
threshold = 0.6
points = 2
[set]
batch = { groups = 2, group_size = 6 }
";

fn study(text: &str) -> Study {
    let file: StudyFile = toml::from_str(text).expect("TOML");
    assert_eq!(file.problems(), Vec::<String>::new());
    Study::new(file, Path::new("")).unwrap_or_else(|error| panic!("{}", error.chain()))
}

/// What is wrong with a study.
fn refused(text: &str) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("study.toml");
    fs::write(&path, text).expect("written");
    let error = Study::read(&path).err().expect("something is wrong");
    assert!(error.hint().is_some(), "no hint: {}", error.chain());
    error.chain()
}

fn load(name: &str, changes: &[&str]) -> Recipe {
    let changes: Vec<String> = changes.iter().map(|&change| change.to_owned()).collect();
    recipe::load(Some(Path::new(name)), &changes).expect("a recipe").1
}

fn counted(name: &str, changes: &[&str]) -> Passes {
    let recipe = load(name, changes);
    passes::count(&recipe.method, recipe.setting.model.schedule()).expect("it runs")
}

/// Images times steps, and what the objective asks at each point, by hand.
#[test]
fn passes_are_counted_as_they_are_made() {
    let batch = ["batch.groups=2", "batch.group_size=6"];
    // PEPG of the weights that drew: at 2 of 10 times the current weights with gradient, and the reference for the penalty.
    let pepg = Passes { drawn: 12.0, images: 12.0, draw: 120.0, trained: 12.0, forward: 24.0, backward: 24.0 };
    assert_eq!(counted("nano-geneval", &batch), pepg);
    let without = counted("nano-geneval", &[&batch[..], &["kl.weight=0"]].concat());
    assert_eq!(without, Passes { forward: 0.0, ..pepg });
    // Guidance makes every evaluation two.
    let guided = counted("nano-geneval", &[&batch[..], &["kl.weight=0", "sampler.guidance=3"]].concat());
    assert_eq!(guided, Passes { draw: 240.0, forward: 0.0, backward: 48.0, ..pepg });
    // A behavior policy that lags is asked too.
    let lagging = counted("nano-diffusion-nft", &batch);
    assert_eq!(lagging, Passes { forward: 48.0, ..pepg });
    // Of 96 cheap samples of three steps a prompt the best and the worst are drawn in full.
    let prefilter = counted("nano-sol-rl", &batch);
    assert_eq!((prefilter.drawn, prefilter.images, prefilter.draw), (12.0, 204.0, 120.0 + 192.0 * 3.0));
    // DDPO scores all steps that are noisy; its history is the only other thing it asks.
    let ddpo = counted("nano-ddpo-sf", &batch);
    assert_eq!((ddpo.draw, ddpo.backward), (120.0, 108.0));
    // Half of the samples are trained on, two thirds drawn.
    let part = pepg.of(8.0, 6.0);
    assert_eq!((part.images, part.draw, part.forward, part.backward), (8.0, 80.0, 12.0, 12.0));
    assert!((part.evaluations() - 104.0).abs() < 1e-12);
}

#[test]
fn every_recipe_of_the_embedded_model_is_counted() {
    for (name, _) in recipe::library::ALL.iter().filter(|(name, _)| name.starts_with("nano") || name.starts_with("abl"))
    {
        // Some split a prompt's samples by 24.
        let passes = counted(name, &["batch.groups=24", "batch.group_size=24"]);
        assert!(passes.drawn > 0.0 && passes.images >= passes.drawn && passes.draw > 0.0, "{name}: {passes:?}");
        assert!(passes.trained > 0.0 && passes.backward > 0.0, "{name}: {passes:?}");
    }
}

#[test]
fn methods_are_matched_by_what_they_spend() {
    let methods = "[[method]]\nname = 'pepg'\n[[method]]\nname = 'sol-rl'\nrecipe = 'nano-sol-rl'\nset = { collection.count = 12 }";
    let epochs = |budget: &str| -> Vec<u64> {
        let study = study(&(SMALL.replace("samples = 48", budget) + methods));
        study.variants.iter().map(|v| study.cell(v, 0, 0).expect("a cell").recipe.method.epochs).collect()
    };
    // 12 images an epoch, and 24 + 12 of them.
    assert_eq!(epochs("samples = 72"), [6, 2]);
    // 168 evaluations an epoch, and 96 more.
    assert_eq!(epochs("evaluations = 528"), [3, 2]);
    assert_eq!(epochs("epochs = 5"), [5, 5]);
}

#[test]
fn a_grid_runs_every_method_with_every_combination() {
    let study = study(&format!(
        "{SMALL}[grid]\n'batch.updates' = [1, 2]\n'objective.kind' = ['epg', 'pepg']\n[[method]]\nname = 'a'\n[[method]]\nname = 'b'\nset = \
         {{ optimizer.learning_rate = 1e-3 }}"
    ));
    let names: Vec<&str> = study.variants.iter().map(|variant| &*variant.name).collect();
    assert_eq!(names.len(), 8);
    assert_eq!(names[..2], ["a, updates=1, kind=epg", "a, updates=1, kind=pepg"]);
    assert_eq!(study.variants[2].levels["batch.updates"], "2");
    let keys: BTreeSet<String> = study.variants.iter().map(|v| study.cell(v, 0, 0).expect("a cell").key).collect();
    assert_eq!(keys.len(), 8, "each a key of its own");
    let cell = study.cell(&study.variants[7], 0, 3).expect("a cell");
    assert_eq!((cell.recipe.method.batch.updates, cell.recipe.method.seed, cell.recipe.method.epochs), (2, 3, 4));
    assert_eq!((cell.recipe.method.optimizer.learning_rate, cell.recipe.setting.eval.measure.every), (1e-3, 2));
}

#[test]
fn a_key_is_of_what_decides_the_numbers() {
    let key = |set: &str, trial: bool| {
        let study = study(&format!(
            "{SMALL}{set}\n[[method]]\nname = 'a'\n[tune]\nfields = {{ 'kl.weight' = [0.0] }}\nbudget = 2\nseeds = [9]\nshare = 1.0"
        ));
        let variant = &study.variants[0];
        let cell = if trial {
            study.trials(variant, 0).expect("trials").remove(0)
        } else {
            study.cell(variant, 0, 9).expect("a cell")
        };
        cell.key
    };
    let plain = key("", false);
    assert_eq!(plain.len(), 16);
    assert_eq!(plain, key("keep.checkpoint_every = 3", false), "what a folder keeps changes no number");
    assert_ne!(plain, key("optimizer.learning_rate = 1e-3", false));
    assert_ne!(plain, key("", true), "a trial has other prompts");
}

/// Every method has as many trials, its own values among them, and none on a seed of the comparison.
#[test]
fn every_method_is_tuned_alike() {
    let tune = "[tune]\nfields = { 'optimizer.learning_rate' = [1e-4, 3e-4, 1e-3], 'kl.weight' = [0.0, 0.15] }\nbudget = 6\nseeds = [7, 8]\n";
    let study = study(&format!(
        "{SMALL}{tune}[[method]]\nname = 'own values in the grid'\n[[method]]\nname = 'and not'\nset = {{ optimizer.learning_rate = 5e-4 \
         }}\n[[method]]\nname = 'other fields'\ntune = {{ fields = {{ 'objective.ratio' = [true, false], 'batch.updates' = [1, 2] }} }}"
    ));
    assert_eq!(study.stages(), [Stage::Published, Stage::Tuned]);
    for variant in &study.variants {
        assert_eq!(variant.candidates.len(), 3, "{}", variant.name);
        assert_eq!(variant.candidates[0], Vec::<String>::new());
        let recipes: Vec<Recipe> = (0..3).map(|i| variant.recipe(i).expect("a recipe")).collect();
        assert!(recipes[0] != recipes[1] && recipes[1] != recipes[2] && recipes[0] != recipes[2], "{}", variant.name);
        let trials: Vec<Cell> = (0..3).flat_map(|i| study.trials(variant, i).expect("trials")).collect();
        let seeds: Vec<u64> = trials.iter().map(|cell| cell.recipe.method.seed).collect();
        assert_eq!(seeds, [7, 8, 7, 8, 7, 8]);
        assert!(trials.iter().all(|cell| cell.trial && cell.recipe.method.epochs == 2), "half of the budget");
    }
}

#[test]
fn a_study_that_cannot_run_says_why() {
    let method = "[[method]]\nname = 'a'\n";
    for (text, parts) in [
        (
            "name = 'a b'\nseeds = [1, 1]\nbudget = { samples = 0 }\npoints = 0".to_owned() + "\nmethod = []",
            &["5 problems", "name = \"a b\"", "seeds = [1, 1]", "budget: must", "points = 0", "no [[method]]"][..],
        ),
        (format!("{SMALL}{method}{method}"), &["method name \"a\""]),
        (format!("against = 'b'\n{SMALL}{method}"), &["against = \"b\": there are methods a"]),
        (format!("{SMALL}seed = 3\n{method}"), &["set: \"seed\" follows from"]),
        (format!("{SMALL}{method}[[variance]]\nfactors = ['x', 'y']"), &["no method has a factor \"x\""]),
        (
            format!("{SMALL}{method}[tune]\nfields = {{ 'kl.weight' = [1] }}\nbudget = 2\nseeds = [0]"),
            &["none of which is one of the comparison"],
        ),
        (
            format!("{SMALL}{method}[tune]\nfields = {{ 'kl.weight' = [0.15] }}\nbudget = 2"),
            &["method `a`", "1 different candidates"],
        ),
        (
            format!("{SMALL}{method}[tune]\nfields = {{ 'kl.weigth' = [0.15] }}\nbudget = 2"),
            &["method `a`", "unknown field `kl.weigth`"],
        ),
        (format!("{SMALL}{method}set = {{ batch.group = 3 }}"), &["method `a`", "unknown field `batch.group`"]),
        (format!("{SMALL}{method}recipe = 'absent'"), &["method `a`", "cannot read recipe absent"]),
        (
            format!("measure = 'beauty'\n{SMALL}{method}"),
            &["measure = \"beauty\": its held-out images are measured by geneval, judge, geneval_dense"],
        ),
        (format!("{}{method}", SMALL.replace("48", "11")), &["an epoch takes 12 samples, and a run may spend 11"]),
        (format!("{SMALL}{method}cost = 3"), &["unknown field `cost`"]),
        (format!("{SMALL}{method}[cost]\nforward = -1.0\nbackward = 1.0\nfrom = ''"), &["cost.forward = -1"]),
        ("name = 'a'\nseeds =".to_owned(), &["study.toml"]),
    ] {
        let told = refused(&text);
        for part in parts {
            assert!(told.contains(part), "{part:?} is not in\n{told}");
        }
    }
    let error = Study::read(Path::new("absent/study.toml")).err().expect("not there");
    assert!(error.chain().contains("cannot read study absent/study.toml"), "{}", error.chain());
}

/// A made-up run: the measure at its three points, and the training reward.
fn finished(cell: &Cell, values: [f64; 3], rewards: [f64; 3], judge: [f64; 3]) -> Finished {
    let passes = cell.passes;
    let point = |i: usize| {
        let epoch = i as u64 * cell.recipe.method.epochs.div_ceil(2);
        let of = |each: f64| (each * epoch as f64) as u64;
        Point {
            epoch,
            images: of(passes.images),
            forward: of(passes.draw + passes.forward),
            backward: of(passes.backward),
            reward: (i > 0).then_some(rewards[i]),
            held_out: BTreeMap::from([("geneval".into(), values[i]), ("judge".into(), judge[i])]),
        }
    };
    Finished {
        format: 1,
        key: cell.key.clone(),
        seed: cell.recipe.method.seed,
        trial: cell.trial,
        stopped: None,
        made_by: serde_json::Value::Null,
        points: (0..3).map(point).collect(),
    }
}

/// Four methods with known numbers: one is better with every seed, and one of its seeds never arrives.
fn known(folder: &Path) -> (Study, Store) {
    let study = study(&format!(
        "{SMALL}[[method]]\nname = 'good'\nfactors = {{ a = '1', b = '1' }}\n[[method]]\nname = 'bad'\nfactors = {{ a = '2', b = '1' }}\nset = {{ \
         optimizer.learning_rate = 1e-3 }}\n[[method]]\nname = 'third'\nfactors = {{ a = '1', b = '2' }}\nset = {{ optimizer.learning_rate = 2e-3 }}\n\
         [[method]]\nname = 'fourth'\nfactors = {{ a = '2', b = '2' }}\nset = {{ optimizer.learning_rate = 3e-3 \
         }}\n[[variance]]\nfactors = ['a', 'b']\n[cost]\nforward = 0.5\nbackward = 2.0\nimage = 1.0\nfrom = 'here'"
    ));
    let store = Store::new(folder.join("cells"));
    for (m, variant) in study.variants.iter().enumerate() {
        for seed in 0..5u64 {
            let cell = study.cell(variant, 0, seed).expect("a cell");
            let small = 0.01 * seed as f64;
            let last = [0.8, 0.4, 0.7, 0.3][m] + small;
            let values = if (m, seed) == (0, 4) { [0.3, 0.4, 0.59] } else { [0.3, last - 0.05, last] };
            // The second's reward rises while its judge falls, with three seeds.
            let judge = if m == 1 && seed < 3 { [0.3, 0.5, 0.4] } else { [0.3, 0.5, 0.6] };
            store.write(&finished(&cell, values, [0.0, 0.5, 0.6], judge)).expect("written");
        }
    }
    (study, store)
}

#[test]
fn a_report_says_what_the_numbers_allow() {
    let folder = tempfile::tempdir().expect("a folder");
    let (study, store) = known(folder.path());
    let report = Report::make(&study, &store).expect("a report");
    let [good, bad, ..] = &report.arms[..] else { panic!("four methods") };
    assert_eq!((good.seeds.len(), good.values[4], bad.hacked.len(), good.hacked.len()), (5, Some(0.59), 3, 0));
    assert_eq!(good.base, Some(0.3));
    assert!((good.last.expect("values").value - (0.8 + 0.81 + 0.82 + 0.83 + 0.59) / 5.0).abs() < 1e-12);
    assert_eq!(good.curve.iter().map(|band| band.epoch).collect::<Vec<_>>(), [0, 2, 4]);
    // 12 images an epoch; the threshold is reached at the first measurement, after two.
    let images = &good.arrivals[0];
    assert_eq!((images.arrived, images.median.value, images.until), (4, 24.0, 48.0));
    assert!((images.restricted_mean.value - (4.0 * 24.0 + 48.0) / 5.0).abs() < 1e-9);
    assert_eq!((bad.arrivals[0].arrived, bad.arrivals[0].median.value), (0, f64::INFINITY));
    // 144 evaluations without gradient an epoch and 24 with.
    let seconds = &good.arrivals[2];
    assert!((seconds.median.value - 2.0 * (12.0 + 0.5 * 144.0 + 2.0 * 24.0)).abs() < 1e-9, "{seconds:?}");

    assert_eq!(report.comparisons.len(), 6);
    let first = &report.comparisons[0];
    assert_eq!((&*first.one, &*first.other, &*first.verdict), ("good", "bad", "better"));
    assert!(first.corrected.expect("tested") >= first.p.expect("tested"));
    assert_eq!((&*first.ways[0].verdict, first.ways[0].censored), ("sooner", [1, 5]));
    assert!((first.ways[0].ratio.value - 48.0 / 28.8).abs() < 1e-9, "{:?}", first.ways[0].ratio);
    let third = report.comparisons.iter().find(|c| c.one == "good" && c.other == "third").expect("compared");
    assert_eq!(third.verdict, "not told apart");

    let split = &report.variances[0];
    let parts = split.parts.expect("balanced");
    assert!(parts.first.eta > 0.8 && parts.first.p < 1e-6 && parts.second.eta < 0.1, "{parts:?}");
    assert!(split.eta.is_some_and(|[first, ..]| first.low <= first.value && first.value <= first.high));

    report.write(folder.path()).expect("written");
    let again = Report::make(&study, &store).expect("a report");
    let text = report.markdown();
    assert_eq!(
        (again.markdown(), again.seeds_csv(), again.curves_csv()),
        (text.clone(), report.seeds_csv(), report.curves_csv())
    );
    for part in [
        "| good | 5 of 5 | 4 | 48 | 672 | 528 | 0.300 |",
        "| good | bad |",
        "| bad | 0 of 5 | images | more than 48 |",
        "### Variance by a and b",
        "1.00e0 an image (here)",
    ] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    assert_eq!(report.seeds_csv().lines().count(), 21);
    let json: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(folder.path().join("results.json")).expect("written")).expect("JSON");
    assert_eq!(json["arms"][1]["arrivals"][0]["median"]["value"], serde_json::Value::Null);

    // A run that stopped early is censored like the others, and shortens nobody's time.
    let cell = study.cell(&study.variants[0], 0, 4).expect("a cell");
    let whole = store.read(&cell.key).expect("whole").expect("finished");
    let early = Finished { stopped: Some("diverged".into()), points: whole.points[..2].to_vec(), ..whole };
    store.write(&early).expect("written");
    let stopped = Report::make(&study, &store).expect("a report").arms.swap_remove(0);
    let images = &stopped.arrivals[0];
    assert_eq!((stopped.stopped, images.times[4].time, images.until), (vec![4], 48.0, 48.0));
    assert_eq!(stopped.values[4], Some(0.4));

    // With four seeds nothing is called better.
    for variant in &study.variants {
        fs::remove_file(store.path(&study.cell(variant, 0, 4).expect("a cell").key)).expect("removed");
    }
    let few = Report::make(&study, &store).expect("a report");
    assert!(few.comparisons.iter().all(|c| c.verdict == "fewer than five seeds"));
    // An unbalanced grid is refused, and the rest is told.
    fs::remove_file(store.path(&study.cell(&study.variants[0], 0, 3).expect("a cell").key)).expect("removed");
    let unbalanced = Report::make(&study, &store).expect("a report");
    assert!(unbalanced.variances[0].refused.as_ref().is_some_and(|why| why.contains("not balanced")));
    assert!(unbalanced.markdown().contains("No shares: the grid is not balanced"));
    // And so is nothing at all.
    let nothing = Report::make(&study, &Store::new(folder.path().join("nothing"))).expect("a report");
    assert!(nothing.markdown().contains("| good | 0 of 5 |"));
}

/// The page is made of what was written, and says the same.
#[test]
fn a_page_says_what_the_numbers_allow() {
    let folder = tempfile::tempdir().expect("a folder");
    let (study, store) = known(folder.path());
    let report = Report::make(&study, &store).expect("a report");
    report.write(folder.path()).expect("written");
    let page = fs::read_to_string(folder.path().join("report.html")).expect("written");
    assert_eq!(page, report.html());
    assert_eq!(page, Report::read(folder.path()).expect("a report").html());
    for part in [
        "good is better than bad, fourth; it is not told apart from the others (p corrected for all pairs).",
        "aria-label=\"Held-out geneval against images drawn, as in the recipe\"",
        "aria-label=\"Share of seeds that have reached 0.6 against evaluations of the network, as in the recipe\"",
        "<b class=\"right\">better</b>",
        "more than 48",
        "Share of the variance (η²)",
    ] {
        assert!(page.contains(part), "{part:?} is not on the page\n{page}");
    }

    for variant in &study.variants {
        fs::remove_file(store.path(&study.cell(variant, 0, 4).expect("a cell").key)).expect("removed");
    }
    let few = Report::make(&study, &store).expect("a report");
    let page = few.html();
    assert!(page.contains("nothing is said of who is better") && !page.contains("is better than"), "{page}");
    assert!(
        page.contains("The study is not finished. Seeds of methods so far: good, as in the recipe: 4 of 5;"),
        "{page}"
    );
    let nothing = Report::make(&study, &Store::new(folder.path().join("nothing"))).expect("a report");
    assert!(nothing.html().contains("no run is finished."));
    for (text, wrong) in
        [("{}", "holds no report of a study"), ("{\"format\": 0}", "of another version"), ("", "holds no report")]
    {
        fs::write(folder.path().join("results.json"), text).expect("written");
        let error = Report::read(folder.path()).expect_err("damaged");
        assert!(error.chain().contains(wrong) && error.hint().is_some(), "{}", error.chain());
    }
}

#[test]
fn a_damaged_cell_is_named() {
    let study = study(&format!("{SMALL}[[method]]\nname = 'a'"));
    let folder = tempfile::tempdir().expect("a folder");
    let store = Store::new(folder.path());
    let key = study.cell(&study.variants[0], 0, 0).expect("a cell").key;
    for text in ["", "{", "{\"format\": 1}", "[]"] {
        fs::write(store.path(&key), text).expect("written");
        let error = Report::make(&study, &store).expect_err("damaged");
        assert!(
            error.chain().contains(&format!("{key}.json is damaged")) && error.hint().is_some(),
            "{}",
            error.chain()
        );
    }
}

/// The studies of the repository: all their recipes are valid, and a run costs what is said.
#[test]
fn the_studies_of_the_repository_can_be_planned() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../studies");
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(folder).expect("studies") {
        let path = entry.expect("an entry").path();
        let study = Study::read(&path).unwrap_or_else(|error| panic!("{}", error.chain()));
        assert_eq!(path.file_stem().and_then(|stem| stem.to_str()), Some(&*study.file.name));
        assert!(!study.file.limits.is_empty(), "{}: what it cannot decide", study.file.name);
        assert!(study.file.seeds.len() >= 5, "{}: a word on a difference needs five seeds", study.file.name);
        let cell = study.cell(&study.variants[0], 0, study.file.seeds[0]).expect("a cell");
        let cost: &Cost = study.file.cost.as_ref().expect("hours are told");
        assert!(cost::seconds(&cell, cost).expect("known") > 1.0);
        assert!(!matches!(study.file.budget, Budget::Epochs(_)), "{}: matched", study.file.name);
        names.insert(study.file.name.clone());
    }
    assert_eq!(names, ["efficiency", "first", "methods", "paper-table", "updates"].map(str::to_owned).into());
}

/// Of every study of the repository the first cell runs, at a size that takes seconds.
#[test]
fn the_first_cell_of_every_study_runs() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../studies");
    let root = tempfile::tempdir().expect("a folder");
    for entry in fs::read_dir(&folder).expect("studies") {
        let mut file = StudyFile::read(&entry.expect("an entry").path()).expect("valid");
        let tiny = "batch = { groups = 2, group_size = 2, micro_batch = 4 }
                    sampler.steps = 5
                    eval = { prompts_per_task = 1, measure = { images_per_prompt = 1, sampler = { steps = 2 } } }";
        file.set = toml::from_str(tiny).expect("TOML");
        (file.budget, file.points, file.tune) = (Budget::Epochs(2), 1, None);
        file.grid.values_mut().for_each(|values| values.truncate(1));
        file.methods.truncate(1);
        (file.variances, file.against) = (Vec::new(), None);
        let study = Study::new(file, &folder).expect("valid");
        let store = Store::new(root.path().join(&study.file.name));
        let shop = Workshop {
            store: store.clone(),
            runs: root.path().join("runs"),
            device: Device::flex(),
            stop: Arc::default(),
            most: 1,
            watch: &|_| {},
        };
        let standing = study.run(&shop).unwrap_or_else(|error| panic!("{}: {}", study.file.name, error.chain()));
        assert!(standing.finished == 1 && standing.left > 0 && !standing.stopped, "{standing:?}");
        let cell = study.cell(&study.variants[0], 0, study.file.seeds[0]).expect("a cell");
        let finished = store.read(&cell.key).expect("whole").expect("finished");
        let last = finished.points.last().expect("measured");
        assert_eq!((finished.points.len(), last.epoch, last.images), (2, 2, 8));
        // Groups may agree, which saves passes of updates and none of rollouts.
        let (least, most) = (2.0 * cell.passes.draw, 2.0 * cell.passes.evaluations());
        assert!(least <= last.evaluations() && last.evaluations() <= most, "{last:?} and {:?}", cell.passes);
        assert!(finished.last("geneval").is_some() && finished.last("judge").is_some() && last.reward.is_some());
        let report = Report::make(&study, &store).expect("a report");
        assert_eq!(report.arms[0].seeds, study.file.seeds[..1]);
    }
}

/// A run whose samples are not finite is a result: it counts with its last measurement, and a trial like that is never chosen.
#[test]
fn a_run_that_diverges_is_told_and_not_chosen() {
    let study = study(
        "name = 'wild'\nseeds = [0]\nbudget = { epochs = 6 }\npoints = 6\n[set]\nbatch = { groups = 2, group_size = 2, micro_batch = 4 }\n\
         objective = { kind = 'epg', ratio = false }\nsampler.steps = 2\nlikelihood.timesteps = { kind = 'one' }\n\
         optimizer = { max_grad_norm = 1e30, weight_decay = 0.0 }\nreward = { kind = 'jpeg' }\nadvantage = { kind = 'standard' }\n\
         eval = { prompts_per_task = 1, measure = { images_per_prompt = 1, sampler = { steps = 2 } } }\n\
         [[method]]\nname = 'wild'\nset = { optimizer.learning_rate = 1e30 }\n\
         [tune]\nfields = { 'optimizer.learning_rate' = [1e-4] }\nbudget = 2\nshare = 1.0",
    );
    let root = tempfile::tempdir().expect("a folder");
    let store = Store::new(root.path().join("cells"));
    let shop = Workshop {
        store: store.clone(),
        runs: root.path().join("runs"),
        device: Device::flex(),
        stop: Arc::default(),
        most: usize::MAX,
        watch: &|_| {},
    };
    study.run(&shop).unwrap_or_else(|error| panic!("{}", error.chain()));
    let report = Report::make(&study, &store).expect("a report");
    let [published, tuned] = &report.arms[..] else { panic!("two stages") };
    assert_eq!((published.seeds.clone(), published.stopped.clone()), (vec![0], vec![0]));
    assert!(published.last.is_some(), "it was measured before");
    let cell = study.cell(&study.variants[0], 0, 0).expect("a cell");
    let stopped = store.read(&cell.key).expect("whole").expect("finished").stopped.expect("it stopped");
    assert!(stopped.ends_with("the first: the sample is not finite"), "{stopped}");
    assert_eq!((report.tuning[0].chosen, report.tuning[0].candidates[0].1), (Some(1), None));
    assert!(tuned.stopped.is_empty() && tuned.seeds == [0]);
    let gain = report.gains.first().expect("another candidate was chosen");
    assert_eq!(
        (&*gain.one, &*gain.other, &*gain.verdict),
        ("wild, tuned", "wild, as in the recipe", "fewer than five seeds")
    );
    assert!(report.markdown().contains("as in the recipe: stopped; `optimizer.learning_rate=0.0001`: "));
}

/// The example of the documentation is a study, and names every field of one.
#[test]
fn the_documented_study_has_every_field() {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/studies.md")).expect("a page");
    let example = page.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).expect("an example");
    let study = study(example);
    assert_eq!(study.variants.len(), 6);
    let written = toml::Table::try_from(&study.file).expect("plain data");
    let told: toml::Table = toml::from_str(example).expect("TOML");
    let fields = |table: &toml::Table| flat(table).into_iter().map(|(field, _)| field).collect::<BTreeSet<_>>();
    let missing: Vec<String> = fields(&written).difference(&fields(&told)).cloned().collect();
    assert!(missing.is_empty(), "{missing:?} are not in the example");
    let defaults =
        "name = 'a'\nseeds = [0]\nbudget = { samples = 1000 }\n[[method]]\nname = 'a'\n[tune]\nfields = {}\nbudget = 1";
    let defaults: StudyFile = toml::from_str(defaults).expect("TOML");
    assert_eq!((defaults.recipe, defaults.points, defaults.measure), (study.file.recipe.clone(), 10, "geneval".into()));
    assert_eq!(defaults.hacking, study.file.hacking);
    let (own, told) = (defaults.tune.expect("given"), study.file.tune.as_ref().expect("given"));
    assert_eq!((own.seeds, own.share, own.before), (told.seeds.clone(), told.share, told.before));
}
