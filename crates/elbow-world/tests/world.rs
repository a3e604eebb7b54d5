//! Prompts, split, vocabulary and scenes agree with one another.

use elbow_rewards::geneval::{Mode, Rules, score::score};
use elbow_world::{Color, Object, Scene, Task, prompts, splitmix, vocabulary};
use std::collections::HashSet;

#[test]
fn tasks_have_all_their_combinations() {
    let counts = Task::ALL.map(|t| prompts::records_of(t).len());
    assert_eq!(counts, [16, 16 * 15, 16 * 3, 16 * 6, 16 * 15 * 4, 16 * 15 * 6 * 5]);
    let distinct: HashSet<_> = prompts::all_records().into_iter().map(|r| r.prompt).collect();
    assert_eq!(distinct.len(), counts.iter().sum::<usize>());
    assert!(prompts::all_records().iter().all(|r| r.validate().is_ok()));
}

#[test]
fn templates_are_genevals() {
    let all: HashSet<_> = prompts::all_records().into_iter().map(|r| r.prompt).collect();
    for prompt in [
        "a photo of an elephant",
        "a photo of a cat and an apple",
        "a photo of three wine glasses",
        "a photo of a purple umbrella",
        "a photo of a car left of a boat",
        "a photo of a tv below an airplane",
        "a photo of a black bird and a red pizza",
    ] {
        assert!(all.contains(prompt), "{prompt}");
    }
}

#[test]
fn the_split_is_disjoint_and_holds_out_combinations() {
    let (train, test) = (prompts::train_records(), prompts::test_records());
    assert_eq!(train.len() + test.len(), prompts::all_records().len());
    for task in Task::ALL {
        let held_out = test.iter().filter(|r| r.tag == task).count() as f64;
        let part = held_out / prompts::records_of(task).len() as f64;
        assert!((0.1..0.45).contains(&part), "{task}: {part} held out");
    }
    let find = |prompt: &str| {
        let record = prompts::all_records().into_iter().find(|r| r.prompt == prompt).expect("a prompt of the world");
        prompts::is_held_out(&record)
    };
    for (a, b) in [("a cat", "a car"), ("a tv", "a bird"), ("an apple", "a boat"), ("a pizza", "a chair")] {
        let same = |x: &str, y: &str| assert_eq!(find(&format!("a photo of {x}")), find(&format!("a photo of {y}")));
        same(&format!("{a} and {b}"), &format!("{b} and {a}"));
        same(&format!("{a} left of {b}"), &format!("{b} right of {a}"));
        same(&format!("{a} above {b}"), &format!("{b} below {a}"));
    }
}

#[test]
fn held_out_numbers_are_pinned() {
    let counts = Task::ALL.map(|t| prompts::records_of(t).iter().filter(|r| prompts::is_held_out(r)).count());
    assert_eq!(counts, [3, 40, 9, 22, 184, 2926]);
}

#[test]
fn training_draws_follow_the_weights_and_never_leave_the_split() {
    let train = prompts::TrainPrompts::new(prompts::TaskWeights::default());
    let mut rng = splitmix(7);
    let draws: Vec<_> = (0..18_000).map(|_| train.sample(&mut rng)).collect();
    assert!(draws.iter().all(|r| !prompts::is_held_out(r)));
    for (task, weight) in Task::ALL.into_iter().zip([1, 1, 5, 1, 7, 3]) {
        let seen = draws.iter().filter(|r| r.tag == task).count() as f64;
        assert!((seen / (1000.0 * f64::from(weight)) - 1.0).abs() < 0.15, "{task}: {seen}");
    }
    let zero = prompts::TaskWeights { position: 0.0, counting: 0.0, ..Default::default() };
    let train = prompts::TrainPrompts::new(zero);
    assert!((0..1000).all(|_| !matches!(train.sample(&mut rng).tag, Task::Position | Task::Counting)));
}

#[test]
fn the_benchmark_is_balanced_and_held_out() {
    let list = prompts::benchmark(40);
    assert!(list.iter().all(prompts::is_held_out));
    assert!(Task::ALL.iter().all(|&t| list.iter().filter(|r| r.tag == t).count() == 40));
    assert_eq!(list, prompts::benchmark(40));
}

#[test]
fn jsonl_reads_back_as_prompts() {
    let path = std::env::temp_dir().join(format!("elbow-world-{}.jsonl", std::process::id()));
    let records = prompts::benchmark(3);
    prompts::write_jsonl(&records, &mut std::fs::File::create(&path).expect("writable")).expect("written");
    let back = elbow::prompts::read(&path).expect("readable");
    std::fs::remove_file(&path).expect("removable");
    let back: Vec<_> = back.iter().map(|p| elbow_world::Record::try_from(p).expect("a record")).collect();
    assert_eq!(back, records);
}

#[test]
fn every_prompt_fits_the_vocabulary_and_stays_distinct() {
    let mut seen = HashSet::new();
    for record in prompts::all_records() {
        let ids = vocabulary::encode(&record.prompt).expect("known words");
        assert!((1..=vocabulary::MAX_WORDS).contains(&ids.len()), "{}", record.prompt);
        assert!(ids.iter().all(|&id| id > 0 && usize::from(id) < vocabulary::size()));
        assert!(seen.insert(ids), "{} has the ids of another prompt", record.prompt);
    }
    assert_eq!(vocabulary::encode("A photo of an Airplane."), Ok(vec![1]));
    assert_eq!(vocabulary::size(), 1 + 17 + 16 + 6 + 3 + 5);
    let error = vocabulary::encode("a photo of a yak").expect_err("no yaks").to_string();
    assert!(error.contains("unknown word `yak`") && error.contains("giraffe"), "{error}");
}

#[test]
fn sampled_scenes_show_exactly_their_record_and_reach_every_layout() {
    let mut rng = splitmix(1);
    for record in prompts::all_records() {
        let scene = Scene::sample(&record, &mut rng).expect("showable");
        assert!(score(&record, &scene.detections(), Mode::Strict, Rules::default()) > 0.5, "{}", record.prompt);
        let shown = scene.areas.iter().flatten().count();
        assert_eq!(shown, record.include.iter().map(|c| c.count).sum::<usize>());
    }
    let left = prompts::records_of(Task::Position).iter().find(|r| r.prompt.contains("left")).expect("one");
    let layouts: HashSet<_> = (0..200).map(|_| Scene::sample(left, &mut rng).expect("showable")).collect();
    assert_eq!(layouts.len(), 4);
}

#[test]
fn impossible_records_are_refused_with_the_reason() {
    let mut record = prompts::records_of(Task::Counting)[0].clone();
    let says = |r: &elbow_world::Record| Scene::sample(r, &mut splitmix(0)).expect_err("impossible").to_string();
    record.include[0].count = 5;
    assert!(says(&record).contains("no layout of 4 areas"));
    record.include[0].class = "yak".into();
    assert!(says(&record).contains("no object `yak`") && says(&record).contains("wine glass"));
    let mut record = prompts::records_of(Task::Colors)[0].clone();
    record.include[0].color = Some("mauve".into());
    assert!(says(&record).contains("no color `mauve`") && says(&record).contains("purple"));
}

#[test]
fn rendering_is_white_outside_the_sprites_and_tints_keep_the_shape() {
    let blank = Scene::default().render();
    assert!(blank.pixels().all(|p| p.0 == [255; 3]));
    for object in Object::ALL {
        assert_eq!(Object::from_name(object.name()), Some(object));
        let mut scene = Scene::default();
        scene.areas[3] = Some(elbow_world::Placement { object, color: Some(Color::Blue) });
        let image = scene.render();
        let ink = |(x, y): (u32, u32)| image.get_pixel(x, y).0 != [255; 3];
        let inked: Vec<_> = (0..32).flat_map(|y| (0..32).map(move |x| (x, y))).filter(|&p| ink(p)).collect();
        assert!(inked.len() > 30 && inked.iter().all(|&(x, y)| (17..31).contains(&x) && (17..31).contains(&y)));
    }
}
