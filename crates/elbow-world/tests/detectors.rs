//! Both detectors on images whose truth is known: right, wrong in one attribute, degraded, and nonsense.

use elbow_rewards::geneval::{Detector, Mode, Rules, score::score};
use elbow_world::draw::{index, unit};
use elbow_world::{Color, Object, Placement, Record, Scene, SceneDetector, SceneJudge, Task, prompts, splitmix};
use image::{Rgb, RgbImage};
use rayon::prelude::*;
use std::f64::consts::TAU;
use std::fmt::Write as _;

const PER_TASK: usize = 500;

/// A pair per layout: the held-out record and its scene.
fn held_out(task: Task) -> Vec<(Record, Scene)> {
    let records: Vec<_> = prompts::records_of(task).iter().filter(|r| prompts::is_held_out(r)).collect();
    let mut rng = splitmix(0x5eed + task as u64);
    let one = |i: usize| {
        let record = records[if records.len() < PER_TASK { i % records.len() } else { index(records.len(), &mut rng) }];
        (record.clone(), Scene::sample(record, &mut rng).expect("showable"))
    };
    (0..PER_TASK).map(one).collect()
}

/// The scene with exactly one attribute made wrong.
fn spoiled(record: &Record, scene: Scene, rng: &mut impl FnMut() -> u64) -> Scene {
    let mut wrong = scene;
    let full: Vec<usize> = (0..4).filter(|&a| scene.areas[a].is_some()).collect();
    let empty: Vec<usize> = (0..4).filter(|&a| scene.areas[a].is_none()).collect();
    let at = full[index(full.len(), rng)];
    let old = scene.areas[at].expect("occupied");
    let attribute = match record.tag {
        Task::SingleObject | Task::TwoObject | Task::Counting => index(2, rng),
        _ => index(3, rng),
    };
    match attribute {
        0 => {
            let others: Vec<_> =
                Object::ALL.into_iter().filter(|o| record.include.iter().all(|c| c.class != o.name())).collect();
            wrong.areas[at] = Some(Placement { object: others[index(others.len(), rng)], ..old });
        }
        1 if empty.is_empty() || rng().is_multiple_of(2) => wrong.areas[at] = None,
        1 => wrong.areas[empty[index(empty.len(), rng)]] = Some(old),
        _ if record.tag == Task::Position => wrong.areas.swap(full[0], full[1]),
        _ => {
            let others: Vec<_> = Color::ALL.into_iter().filter(|&c| Some(c) != old.color).collect();
            wrong.areas[at] = Some(Placement { color: Some(others[index(others.len(), rng)]), ..old });
        }
    }
    wrong
}

fn gaussian(rng: &mut impl FnMut() -> u64) -> f64 {
    (-2.0 * (1.0 - unit(rng)).ln()).sqrt() * (TAU * unit(rng)).cos()
}

fn noisy(image: &RgbImage, std: f64, rng: &mut impl FnMut() -> u64) -> RgbImage {
    let mut out = image.clone();
    out.iter_mut().for_each(|c| *c = (f64::from(*c) + 255.0 * std * gaussian(rng)).round().clamp(0.0, 255.0) as u8);
    out
}

/// A 3×3 filter: 0.6 in the middle, 0.05 around.
fn blurred(image: &RgbImage) -> RgbImage {
    RgbImage::from_fn(32, 32, |x, y| {
        let at = |dx: i32, dy: i32, c: usize| {
            let near = |v: u32, d: i32| (v as i32 + d).clamp(0, 31) as u32;
            f64::from(image.get_pixel(near(x, dx), near(y, dy)).0[c])
        };
        let sum = |c: usize| {
            (-1..=1).flat_map(|dy| (-1..=1).map(move |dx| (dx, dy))).map(|(dx, dy)| at(dx, dy, c)).sum::<f64>()
        };
        Rgb([0, 1, 2].map(|c| (0.55 * at(0, 0, c) + 0.05 * sum(c)).round() as u8))
    })
}

fn cast(image: &RgbImage) -> RgbImage {
    let gain = [0.97, 0.94, 0.9];
    RgbImage::from_fn(32, 32, |x, y| {
        let p = image.get_pixel(x, y).0;
        Rgb([0, 1, 2].map(|c| (f64::from(p[c]) * gain[c]).round() as u8))
    })
}

type Change = fn(&Record, &Scene, u64) -> RgbImage;

/// Strict score by task.
fn accuracy(detector: &dyn Detector, change: Change, layouts: usize) -> [f64; 6] {
    Task::ALL.map(|task| {
        let one = |(i, (record, scene)): (usize, (Record, Scene))| {
            let image = change(&record, &scene, i as u64);
            f64::from(score(&record, &detector.detect(&image, &record), Mode::Strict, Rules::default()))
        };
        let scenes = held_out(task).into_par_iter().take(layouts);
        scenes.enumerate().map(one).sum::<f64>() / layouts as f64
    })
}

const TRUE: Change = |_, scene, _| scene.render();
const WRONG: Change = |record, scene, i| spoiled(record, *scene, &mut splitmix(i)).render();
const NOISY: Change = |_, scene, i| noisy(&scene.render(), 0.05, &mut splitmix(i));
const BLURRED: Change = |_, scene, _| blurred(&scene.render());
const BOTH: Change = |_, scene, i| noisy(&blurred(&scene.render()), 0.05, &mut splitmix(i));
const CAST: Change = |_, scene, _| cast(&scene.render());
const UNIFORM: Change = |_, _, i| {
    let mut rng = splitmix(i);
    RgbImage::from_fn(32, 32, |_, _| Rgb([0; 3].map(|_: u8| rng() as u8)))
};
const GRAY_NOISE: Change = |_, _, i| noisy(&RgbImage::from_pixel(32, 32, Rgb([128; 3])), 0.25, &mut splitmix(i));
const WHITE_NOISE: Change = |_, _, i| noisy(&RgbImage::from_pixel(32, 32, Rgb([255; 3])), 0.1, &mut splitmix(i));
/// Each sprite averaged with another one.
const MIXED: Change = |_, scene, i| {
    let mut rng = splitmix(i);
    let other = scene.areas.map(|p| {
        p.map(|p| Placement { object: Object::ALL[(p.object as usize + 1 + index(15, &mut rng)) % 16], color: p.color })
    });
    let (a, b) = (scene.render(), Scene { areas: other }.render());
    RgbImage::from_fn(32, 32, |x, y| {
        let (a, b) = (a.get_pixel(x, y).0, b.get_pixel(x, y).0);
        Rgb([0, 1, 2].map(|c: usize| a[c].midpoint(b[c])))
    })
};
/// The upper half of each sprite.
const HALF: Change = |_, scene, _| {
    let image = scene.render();
    RgbImage::from_fn(32, 32, |x, y| if y % 16 < 8 { *image.get_pixel(x, y) } else { Rgb([255; 3]) })
};
/// A soft disc of the sprite's mean color in place of each sprite.
const DISCS: Change = |_, scene, i| {
    let image = scene.render();
    let radius = 4.0 + 3.0 * unit(&mut splitmix(i));
    RgbImage::from_fn(32, 32, |x, y| {
        let area = |p: u32| p / 16 * 16;
        let block = (1..15)
            .flat_map(|v| (1..15).map(move |u| (u, v)))
            .map(|(u, v)| image.get_pixel(area(x) + u, area(y) + v).0);
        let inked: Vec<_> = block.filter(|p| p.iter().any(|&c| c < 200)).collect();
        let off = |p: u32| f64::from(p % 16) - 7.5;
        let alpha = (radius + 0.5 - off(x).hypot(off(y))).clamp(0.0, 1.0);
        let mean = |c: usize| inked.iter().map(|p| f64::from(p[c])).sum::<f64>() / inked.len().max(1) as f64;
        Rgb([0, 1, 2].map(|c| if inked.is_empty() { 255 } else { (255.0 + alpha * (mean(c) - 255.0)).round() as u8 }))
    })
};

fn check(name: &str, detector: &dyn Detector) {
    // What is shown, layouts per task, bounds of the strict score in every task. Of two sprites at half opacity one can dominate: that is no error.
    let table: [(&str, Change, usize, f64, f64); 12] = [
        ("true", TRUE, PER_TASK, 0.98, 1.0),
        ("one attribute wrong", WRONG, PER_TASK, 0.0, 0.02),
        ("noise 0.05", NOISY, PER_TASK, 0.95, 1.0),
        ("blur", BLURRED, PER_TASK, 0.95, 1.0),
        ("blur + noise", BOTH, PER_TASK, 0.95, 1.0),
        ("color cast", CAST, 100, 0.95, 1.0),
        ("uniform noise", UNIFORM, 100, 0.0, 0.0),
        ("gray noise", GRAY_NOISE, 100, 0.0, 0.0),
        ("noise on white", WHITE_NOISE, 100, 0.0, 0.0),
        ("two sprites mixed", MIXED, 100, 0.0, 0.15),
        ("upper halves", HALF, 100, 0.0, 0.02),
        ("discs", DISCS, 100, 0.0, 0.02),
    ];
    let mut report = String::new();
    let mut good = true;
    for (what, change, layouts, low, high) in table {
        let scores = accuracy(detector, change, layouts);
        let fits = scores.iter().all(|s| (low..=high).contains(s));
        good &= fits;
        let columns: Vec<_> = scores.iter().map(|s| format!("{s:.3}")).collect();
        let mark = if fits { "" } else { "   <- outside" };
        writeln!(report, "{what:22} {}{mark}", columns.join("  ")).expect("a string grows");
    }
    assert!(good, "{name}\n{report}");
    std::io::Write::write_all(&mut std::io::stdout(), format!("{name}\n{report}").as_bytes()).expect("stdout");
}

#[test]
fn the_detector_sees_what_is_there() {
    check("SceneDetector", &SceneDetector::new());
}

#[test]
fn the_judge_sees_what_is_there() {
    check("SceneJudge", &SceneJudge::new());
}

#[test]
fn images_of_another_size_show_nothing() {
    let record = &prompts::records_of(Task::SingleObject)[0];
    assert!(SceneDetector::new().detect(&RgbImage::new(31, 32), record).is_empty());
    assert!(SceneJudge::new().detect(&RgbImage::new(64, 64), record).is_empty());
}

#[test]
fn a_shift_of_one_pixel_is_tolerated() {
    let (detector, judge) = (SceneDetector::new(), SceneJudge::new());
    let (mut hits, mut seen, mut total) = (0, 0, 0);
    for (record, scene) in held_out(Task::ColorAttr).into_iter().take(100) {
        let image = scene.render();
        let moved = RgbImage::from_fn(32, 32, |x, y| *image.get_pixel((x + 31) % 32, (y + 1) % 32));
        let strict = |d: &dyn Detector| score(&record, &d.detect(&moved, &record), Mode::Strict, Rules::default());
        hits += usize::from(strict(&detector) > 0.5);
        seen += usize::from(strict(&judge) > 0.5);
        total += 1;
    }
    assert!(hits * 100 >= 98 * total && seen * 100 >= 90 * total, "detector {hits}, judge {seen} of {total}");
}

#[test]
#[ignore = "a timing"]
fn milliseconds_per_image() {
    let images: Vec<_> = held_out(Task::Counting).into_iter().map(|(r, s)| (s.render(), r)).collect();
    let time = |d: &dyn Detector| {
        let start = std::time::Instant::now();
        let found: usize = images.iter().map(|(image, record)| d.detect(image, record).len()).sum();
        assert!(found > 0);
        start.elapsed().as_secs_f64() * 1e3 / images.len() as f64
    };
    let (detector, judge) = (SceneDetector::new(), SceneJudge::new());
    let text = format!("detector {:.3} ms, judge {:.3} ms per image\n", time(&detector), time(&judge));
    std::io::Write::write_all(&mut std::io::stdout(), text.as_bytes()).expect("stdout");
}
