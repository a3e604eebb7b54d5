//! What an epoch does with its groups: several rewards at once, and further groups in place of those that say nothing.

use burn::tensor::Device;
use elbow::{
    Prompt, Reward, RewardError, RgbImage,
    advantage::{AdvantageKind, Deviation, Several, Softmax, Standard},
    behavior::BehaviorLag,
    config::{Batch, Config},
    kl::Proximal,
    reward::{self, Sum, Weighted},
    toy::{Toy, point},
    train::{TopUp, Trainer},
};
use serde_json::{Map, Value};

/// A function of the point, or nothing.
struct Of {
    name: &'static str,
    score: fn([f32; 2], &str) -> Option<f32>,
}

impl Reward for Of {
    fn name(&self) -> &str {
        self.name
    }

    fn score(&self, images: &[RgbImage], prompts: &[Prompt]) -> Vec<Result<f32, RewardError>> {
        let one = |(image, prompt): (&RgbImage, &Prompt)| {
            (self.score)(point(image), &prompt.text).ok_or_else(|| RewardError::Failed("out of sight".into()))
        };
        images.iter().zip(prompts).map(one).collect()
    }
}

fn weighted(name: &str, weight: f64, score: fn([f32; 2], &str) -> Option<f32>) -> Weighted {
    Weighted { name: name.into(), weight, reward: Box::new(Of { name: "part", score }) }
}

/// 2 x − ½ y; y is missing far to the right.
fn two() -> Sum {
    let parts =
        vec![weighted("right", 2.0, |[x, _], _| Some(x)), weighted("low", -0.5, |[x, y], _| (x < 0.6).then_some(y))];
    Sum { name: "sum".into(), parts }
}

fn config() -> Config {
    Config {
        batch: Batch { groups: 4, group_size: 8, updates: 2, rows: 6 },
        advantage: AdvantageKind::Standard(Standard { deviation: Deviation::Group, ..Standard::default() }),
        max_missing: 0.9,
        ..Config::default()
    }
}

fn prompts() -> Vec<Prompt> {
    ["a", "b", "c", "d", "e"].into_iter().map(Prompt::from).collect()
}

fn epoch(config: Config, reward: &dyn Reward) -> (Map<String, Value>, Vec<f32>) {
    let (policy, prompts) = (Toy::default(), prompts());
    let mut trainer = Trainer::new(config, &policy, &prompts, reward, Device::flex()).expect("valid");
    let record = trainer.epoch(&()).expect("an epoch").record;
    (record, trainer.state.current.values().to_vec())
}

#[test]
fn a_sum_is_missing_where_a_part_is() {
    let images: Vec<RgbImage> = [[100, 140, 0], [200, 90, 0]].map(|p| RgbImage::from_pixel(1, 1, image::Rgb(p))).into();
    let sum = two();
    let scores = reward::score(&sum, &images, &prompts()[..2]);
    let [x, y] = point(&images[0]);
    let first = scores[0].as_ref().expect("both parts are there");
    assert_eq!(first.parts, [x, y]);
    assert!((first.total - (2.0 * x - 0.5 * y)).abs() < 1e-6, "{first:?}");
    let error = scores[1].as_ref().expect_err("far to the right").to_string();
    assert!(error.contains("low") && error.contains("out of sight"), "{error}");
    let totals = sum.score(&images, &prompts()[..2]);
    assert!(totals[0].as_ref().is_ok_and(|t| t.to_bits() == first.total.to_bits()) && totals[1].is_err());
}

#[test]
fn each_reward_of_a_sum_is_reported_by_its_name() {
    let (record, weights) = epoch(config(), &two());
    let number = |key: &str| record[key].as_f64().unwrap_or_else(|| panic!("{key}: {record:?}"));
    let expected = 2.0 * number("reward_right") - 0.5 * number("reward_low");
    assert!((number("reward_sum") - expected).abs() < 1e-6, "{record:?}");
    assert!(number("reward_right_std") > 0.0 && number("reward_low_std") > 0.0);
    assert!(number("reward_missing") > 0.0 && number("trained_samples") + number("reward_missing") <= 32.0);
    // How they are summed is part of the method.
    let standard =
        |several| AdvantageKind::Standard(Standard { deviation: Deviation::Group, several, ..Standard::default() });
    for several in [Several::Normalize, Several::Decouple] {
        let (_, other) = epoch(Config { advantage: standard(several), ..config() }, &two());
        assert_ne!(weights, other, "{several:?}");
    }
}

/// All images of prompts other than `b` and `d` score alike.
const SOME_AGREE: Of =
    Of { name: "near", score: |[x, y], prompt| Some(if "bd".contains(prompt) { -x * x - y * y } else { 0.5 }) };

#[test]
fn groups_that_agree_are_replaced_by_further_ones() {
    let number = |record: &Map<String, Value>, key: &str| record[key].as_f64().expect("a number");
    let (plain, _) = epoch(config(), &SOME_AGREE);
    assert!(!plain.contains_key("extra_groups"));
    let agree = number(&plain, "zero_std_ratio");
    assert!((0.2..0.8).contains(&agree), "{plain:?}");
    let (record, _) = epoch(Config { top_up: TopUp { groups: 40 }, ..config() }, &SOME_AGREE);
    assert!(number(&record, "zero_std_ratio") < 1e-9 && number(&record, "trained_samples") > 31.9, "{record:?}");
    let (extra, unused) = (number(&record, "extra_groups"), number(&record, "extra_groups_unused"));
    assert!((extra - unused - 4.0 * agree).abs() < 1e-9 && extra < 40.0, "{record:?}");
    // What is trained on scores lower than what was drawn, here where images that agree score best.
    assert!(number(&record, "reward_near") < number(&record, "reward_near_drawn"));
}

#[test]
fn further_groups_have_a_bound_and_numbers_of_their_own() {
    let (policy, prompts, nothing) = (Toy::default(), prompts(), Of { name: "flat", score: |_, _| Some(1.0) });
    let draw = |groups: usize, reward: &dyn Reward| {
        let config = Config { top_up: TopUp { groups }, ..config() };
        Trainer::new(config, &policy, &prompts, reward, Device::flex()).expect("valid").draw(&()).expect("drawn")
    };
    let bounded = draw(3, &nothing);
    assert_eq!((bounded.extra.groups, bounded.extra.unused), (3, 3));
    assert_eq!(bounded.extra.rewards, [1.0; 7 * 8]);
    // The batch is what it is without: the same images, the same prompts.
    let plain = draw(0, &nothing);
    assert_eq!(bounded.images, plain.images);
    assert_eq!(bounded.rewards, plain.rewards);
    // Groups that say something stay where they are; those in place of the others are new.
    let (before, after) = (draw(0, &SOME_AGREE), draw(40, &SOME_AGREE));
    let speaks = |p: &Prompt| "bd".contains(&p.text);
    for (g, prompt) in before.prompts.iter().enumerate() {
        let of = |images: &[RgbImage]| images[g * 8..(g + 1) * 8].to_vec();
        assert_eq!(of(&before.images) == of(&after.images), speaks(prompt), "group {g}");
        assert!(speaks(&after.prompts[g]));
    }
    let keys: std::collections::BTreeSet<u64> = after.rollout.keys.iter().map(|k| k.sample).collect();
    assert_eq!(keys.len(), 32);
    for (g, keys) in after.rollout.keys.chunks(8).enumerate() {
        assert!(after.rollout.group_keys[g * 8..(g + 1) * 8].iter().all(|k| *k == keys[0]), "group {g}");
    }
    let wrong =
        Config { top_up: TopUp { groups: 1 }, advantage: AdvantageKind::Softmax(Softmax::default()), ..config() };
    let problems = wrong.validate().expect_err("every group says something").problems;
    assert!(problems[0].contains("top_up.groups = 1"), "{problems:?}");
}

#[test]
fn lagged_weights_may_serve_a_penalty_alone() {
    let near = Of { name: "near", score: |[x, y], _| Some(-(x - 1.0).powi(2) - y * y) };
    let (policy, prompts) = (Toy::default(), prompts());
    let run = |on_policy: bool, weight: f64| {
        let behavior = BehaviorLag { start: 0, rate: 1.0, max: 0.9, on_policy };
        let batch = Batch { updates: 1, ..config().batch };
        let config = Config { batch, behavior, proximal: Proximal { weight, clean: false }, ..config() };
        let mut trainer = Trainer::new(config, &policy, &prompts, &near, Device::flex()).expect("valid");
        let records: Vec<_> = (0..4).map(|_| trainer.epoch(&()).expect("an epoch").record).collect();
        (records, trainer.state)
    };
    let (records, state) = run(true, 0.0);
    assert_ne!(state.behavior, state.current, "they lag");
    // Rollouts are those of the current weights: no ratio but 1, and the same numbers as without a lag.
    assert!(records.iter().all(|r| r["logratio_max"].as_f64() == Some(0.0)), "{records:?}");
    let (off, _) = run(false, 0.0);
    assert!(off[3]["logratio_max"].as_f64().is_some_and(|m| m > 0.0));
    // The penalty holds the weights near their average.
    let distance = |state: &elbow::train::State| {
        let pairs = state.current.values().iter().zip(state.behavior.values());
        pairs.map(|(a, b)| (a - b).powi(2)).sum::<f32>()
    };
    let (_, held) = run(true, 1e3);
    assert!(distance(&held) < distance(&state), "{} {}", distance(&held), distance(&state));
    let wrong = Config { behavior: BehaviorLag { on_policy: true, ..BehaviorLag::default() }, ..config() };
    let problems = wrong.validate().expect_err("two updates").problems;
    assert!(problems[0].contains("behavior.on_policy") && problems[0].contains("batch.updates = 2"), "{problems:?}");
}
