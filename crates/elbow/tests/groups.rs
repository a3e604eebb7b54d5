//! What an epoch does with its groups: several rewards at once, and further groups in place of those that say nothing.

use burn::tensor::Device;
use elbow::{
    Policy, Prompt, Request, Reward, RewardError, RgbImage, Score,
    advantage::{Deviation, Several, Softmax, Standard},
    batch::{Batch, Sample},
    behavior::BehaviorLag,
    collection::{Collected, DynamicSampling},
    config::{BatchConfig, Config, MicroBatch},
    kl::Proximal,
    reward::{Part, Shape, Sum, Weighted},
    toy::{Toy, point},
    train::Trainer,
};
use serde_json::{Map, Value};
use std::{collections::BTreeSet, sync::Arc};

/// A function of the point, or nothing.
struct Judge {
    name: &'static str,
    score: fn([f32; 2], &str) -> Option<f32>,
}

impl Reward for Judge {
    fn name(&self) -> &str {
        self.name
    }

    fn score(&self, request: &Request<'_>) -> Vec<Result<Score, RewardError>> {
        let score = |(image, prompt): (&RgbImage, &Arc<Prompt>)| {
            let score = (self.score)(point(image), &prompt.text);
            score.map(Score::from).ok_or_else(|| RewardError::Failed("out of sight".into()))
        };
        request.images.iter().zip(request.prompts).map(score).collect()
    }
}

fn weighted(name: &str, weight: f64, score: fn([f32; 2], &str) -> Option<f32>) -> Weighted {
    let reward = Box::new(Judge { name: "part", score });
    Weighted { name: name.into(), weight, shape: Shape::default(), reward }
}

/// 2 x − ½ y; y is missing far to the right.
fn two() -> Sum {
    let parts =
        vec![weighted("right", 2.0, |[x, _], _| Some(x)), weighted("low", -0.5, |[x, y], _| (x < 0.6).then_some(y))];
    Sum { name: "sum".into(), parts }
}

fn config() -> Config {
    Config {
        batch: BatchConfig {
            groups: 4,
            group_size: 8,
            updates: 2,
            micro_batch: MicroBatch::Size(6),
            ..BatchConfig::default()
        },
        advantage: Standard { deviation: Deviation::Group, ..Standard::default() }.into(),
        max_missing: 0.9,
        ..Config::default()
    }
}

fn prompts() -> Vec<Prompt> {
    ["a", "b", "c", "d", "e"].into_iter().map(Prompt::from).collect()
}

/// A trainer of the toy; `prompts` are [`prompts`].
fn trainer<'a>(config: &Config, policy: &'a Toy, prompts: &'a Vec<Prompt>, reward: &'a dyn Reward) -> Trainer<'a> {
    let method = config.build(policy.schedule()).expect("valid");
    Trainer::new(method, policy, prompts, reward, Device::flex()).expect("valid")
}

fn epoch(config: &Config, reward: &dyn Reward) -> (Map<String, Value>, Vec<f32>) {
    let (policy, prompts) = (Toy::default(), prompts());
    let mut trainer = trainer(config, &policy, &prompts, reward);
    let record = trainer.epoch(&()).expect("an epoch").record;
    (record, trainer.state.current.values().to_vec())
}

#[test]
fn a_sum_is_missing_where_a_part_is() {
    let images: Vec<RgbImage> = [[100, 140, 0], [200, 90, 0]].map(|p| RgbImage::from_pixel(1, 1, image::Rgb(p))).into();
    let prompts: Vec<Arc<Prompt>> = prompts().into_iter().take(2).map(Arc::new).collect();
    let scores = two().score(&Request { images: &images, prompts: &prompts, latents: None, groups: &[0, 1] });
    let [x, y] = point(&images[0]).map(f64::from);
    let part = |name: &str, weight, value| Part { name: name.into(), weight, value };
    let first = scores[0].as_ref().expect("both parts are there");
    assert_eq!(first.parts, [part("right", 2.0, x), part("low", -0.5, y)]);
    assert!((first.value - (2.0 * x - 0.5 * y)).abs() < 1e-12, "{first:?}");
    let error = scores[1].as_ref().expect_err("far to the right").to_string();
    assert!(error.contains("low") && error.contains("out of sight"), "{error}");
}

#[test]
fn each_reward_of_a_sum_is_reported_by_its_name() {
    let (record, weights) = epoch(&config(), &two());
    let number = |key: &str| record[key].as_f64().unwrap_or_else(|| panic!("{key}: {record:?}"));
    let expected = 2.0 * number("reward_right") - 0.5 * number("reward_low");
    assert!((number("reward_sum") - expected).abs() < 1e-6, "{record:?}");
    assert!(number("reward_right_std") > 0.0 && number("reward_low_std") > 0.0);
    assert!(number("reward_missing") > 0.0 && number("trained_samples") + number("reward_missing") <= 32.0);
    // How they are summed is part of the method.
    let standard = |several| Standard { deviation: Deviation::Group, several, ..Standard::default() }.into();
    for several in [Several::Normalize, Several::Decouple] {
        let (_, other) = epoch(&Config { advantage: standard(several), ..config() }, &two());
        assert_ne!(weights, other, "{several:?}");
    }
}

/// All samples of prompts other than `b` and `d` score alike.
const SOME_AGREE: Judge =
    Judge { name: "near", score: |[x, y], prompt| Some(if "bd".contains(prompt) { -x * x - y * y } else { 0.5 }) };

/// Up to `extra_groups` further groups in place of those that agree.
fn further(extra_groups: usize) -> Config {
    Config { collection: DynamicSampling { extra_groups }.into(), ..config() }
}

#[test]
fn groups_that_agree_are_replaced_by_further_ones() {
    let number = |record: &Map<String, Value>, key: &str| record[key].as_f64().expect("a number");
    let (plain, _) = epoch(&config(), &SOME_AGREE);
    assert!(!plain.contains_key("extra_groups"));
    let agree = number(&plain, "zero_std_ratio");
    assert!((0.2..0.8).contains(&agree), "{plain:?}");
    let (record, _) = epoch(&further(40), &SOME_AGREE);
    assert!(number(&record, "zero_std_ratio") < 1e-9 && number(&record, "trained_samples") > 31.9, "{record:?}");
    let (extra, unused) = (number(&record, "extra_groups"), number(&record, "extra_groups_unused"));
    assert!((extra - unused - 4.0 * agree).abs() < 1e-9 && extra < 40.0, "{record:?}");
    // What is trained on scores lower than what was drawn, here where samples that agree score best.
    assert!(number(&record, "reward_near") < number(&record, "reward_near_drawn"));
}

#[test]
fn further_groups_have_a_bound_and_numbers_of_their_own() {
    let (policy, prompts, nothing) = (Toy::default(), prompts(), Judge { name: "flat", score: |_, _| Some(1.0) });
    let collect = |config: &Config, reward: &dyn Reward| -> Collected {
        trainer(config, &policy, &prompts, reward).collect(&()).expect("collected")
    };
    let images = |batch: &Batch| -> Vec<Arc<RgbImage>> { batch.samples.iter().map(|s| Arc::clone(&s.image)).collect() };
    let rewards = |batch: &Batch| -> Vec<Option<f64>> { batch.samples.iter().map(Sample::value).collect() };
    let bounded = collect(&further(3), &nothing);
    let log: Map<String, Value> = bounded.log.iter().cloned().collect();
    assert_eq!((log["extra_groups"].as_u64(), log["extra_groups_unused"].as_u64()), (Some(3), Some(3)));
    assert_eq!((bounded.drawn, log["reward_flat_drawn"].as_f64()), (7 * 8, Some(1.0)));
    // The batch is what it is without: the same samples, the same prompts.
    let plain = collect(&config(), &nothing);
    assert_eq!(images(&bounded.batch), images(&plain.batch));
    assert_eq!(rewards(&bounded.batch), rewards(&plain.batch));
    // Groups that say something stay where they are; those in place of the others are new.
    let (before, after) = (collect(&config(), &SOME_AGREE).batch, collect(&further(40), &SOME_AGREE).batch);
    let speaks = |p: &Prompt| "bd".contains(&p.text);
    for (g, (old, new)) in before.samples.chunks(8).zip(after.samples.chunks(8)).enumerate() {
        let same = old.iter().zip(new).all(|(old, new)| old.image == new.image);
        assert_eq!(same, speaks(&old[0].prompt), "group {g}");
        assert!(new.iter().all(|sample| speaks(&sample.prompt) && sample.group == g), "group {g}");
        assert!(new.iter().all(|sample| sample.shared_key == new[0].key), "group {g}");
    }
    let keys: BTreeSet<u64> = after.samples.iter().map(|sample| sample.key.sample).collect();
    assert_eq!((before.len(), after.len(), keys.len()), (32, 32, 32));
    let refused = |config: Config| config.build(policy.schedule()).err().expect("refused").problems;
    let problems = refused(Config { advantage: Softmax::default().into(), ..further(1) });
    assert!(problems[0].contains("`dynamic-sampling`") && problems[0].contains("every group says"), "{problems:?}");
    let problems = refused(further(0));
    assert!(problems[0].contains("collection.extra_groups = 0"), "{problems:?}");
}

#[test]
fn lagged_weights_may_serve_a_penalty_alone() {
    let near = Judge { name: "near", score: |[x, y], _| Some(-(x - 1.0).powi(2) - y * y) };
    let (policy, prompts) = (Toy::default(), prompts());
    let run = |on_policy: bool, weight: f64| {
        let behavior = BehaviorLag { start: 0, rate: 1.0, max: 0.9, on_policy };
        let batch = BatchConfig { updates: 1, ..config().batch };
        let config = Config { batch, behavior, proximal: Proximal { weight, clean: false }, ..config() };
        let mut trainer = trainer(&config, &policy, &prompts, &near);
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
    let problems = wrong.build(policy.schedule()).err().expect("two updates").problems;
    assert!(problems[0].contains("behavior.on_policy") && problems[0].contains("batch.updates = 2"), "{problems:?}");
}
