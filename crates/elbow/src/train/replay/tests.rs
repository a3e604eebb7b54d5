use super::*;
use crate::{
    Reward, RewardError, RgbImage,
    advantage::{AdvantageKind, Standard},
    config::Batch,
    gaussian::Reduction,
    likelihood::Trajectory,
    noise::{self, Key, Purpose},
    optimizer::OptimizerConfig,
    policy::Policy,
    sampler::{self, FlowSde, Sampling},
    toy::{Toy, point},
};
use serde_json::Value;

/// −‖p − (1, 0)‖².
struct Near;

impl Reward for Near {
    fn name(&self) -> &'static str {
        "near"
    }

    fn score(&self, images: &[RgbImage], _: &[Prompt]) -> Vec<Result<f32, RewardError>> {
        let near = |[x, y]: [f32; 2]| -(x - 1.0).powi(2) - y.powi(2);
        images.iter().map(|image| Ok(near(point(image)))).collect()
    }
}

fn config() -> Config {
    Config {
        batch: Batch { groups: 4, group_size: 8, updates: 1, rows: 10 },
        sampler: Sampling { rule: SamplerKind::FlowSde(FlowSde::default()), ..Sampling::default() },
        likelihood: LikelihoodKind::Trajectory(Trajectory { fraction: 0.6, ..Trajectory::default() }),
        advantage: AdvantageKind::Standard(Standard::default()),
        optimizer: OptimizerConfig { learning_rate: 0.02, ..OptimizerConfig::default() },
        replay: Replay { prompts: 3, groups: 2, images: 2, max_weight: 2.0 },
        ..Config::default()
    }
}

fn prompts() -> Vec<Prompt> {
    ["a", "b", "c", "d", "e", "f"].into_iter().map(Prompt::from).collect()
}

#[test]
fn the_best_stand_above_their_group() {
    let some = |rewards: &[f64]| rewards.iter().map(|&r| Some(r)).collect::<Vec<_>>();
    assert_eq!(best(&some(&[0.0, 3.0, 1.0, 0.0]), 2), None, "the second best is at the mean");
    assert_eq!(best(&some(&[0.0, 4.0, 3.0, 1.0]), 2), Some((1.5, vec![1, 2])));
    assert_eq!(best(&some(&[1.0, 0.0, 1.0, 1.0]), 2), Some((0.25, vec![0, 2])), "the first of equals");
    assert_eq!(best(&some(&[0.5; 4]), 1), None, "they agree");
    assert_eq!(best(&[None, Some(-1.0), None, Some(-3.0)], 1), Some((1.0, vec![1])), "missing is not zero");
    assert_eq!(best(&[None, Some(-1.0)], 2), None, "too few");
}

#[test]
fn slots_are_spread_over_the_updates() {
    let kept: Vec<Kept> =
        prompts()[..3].iter().map(|p| Kept { prompt: p.clone(), margin: 0.0, images: Vec::new() }).collect();
    let given = |groups: usize, kept: &[Kept]| -> Vec<Option<String>> {
        let replay = Replay { groups: 2, images: 1, ..Replay::default() };
        replay.slots(kept, groups).into_iter().map(|slot| slot.map(|k| k.prompt.text.clone())).collect()
    };
    let [a, b] = ["a", "b"].map(|text| Some(text.to_owned()));
    assert_eq!(given(4, &kept), [a.clone(), None, b, None]);
    assert_eq!(given(3, &kept[..1]), [a, None, None]);
    assert_eq!(given(2, &[]), [None, None]);
}

/// Kept images come back as they were, and count by how much likelier the weights of now make them.
#[test]
fn a_replayed_image_is_the_kept_one_with_its_weight() {
    let (policy, prompts) = (Toy::default(), prompts());
    let mut trainer = Trainer::new(config(), &policy, &prompts, &Near, Device::flex()).expect("valid");
    assert!(trainer.draw(&()).expect("an epoch").replayed.is_empty(), "nothing is kept yet");
    trainer.epoch(&()).expect("an epoch");
    let kept = trainer.state.kept.clone();
    assert!(kept.len() == 3 && kept.windows(2).all(|k| k[0].margin >= k[1].margin), "{kept:?}");

    let drawn = trainer.draw(&()).expect("an epoch");
    assert_eq!(drawn.replayed, [6, 7, 22, 23]);
    assert_eq!([&drawn.prompts[0], &drawn.prompts[2]], [&kept[0].prompt, &kept[1].prompt]);
    let images: Vec<&Image> = kept[..2].iter().flat_map(|k| &k.images).collect();
    let again = drawn.rollout.select(&drawn.replayed);
    for (k, point) in again.points.iter().enumerate() {
        let expected: Vec<f32> = images.iter().flat_map(|i| i.points[2 * k..2 * k + 2].to_vec()).collect();
        assert_eq!(point.clone().into_data().iter::<f32>().collect::<Vec<_>>(), expected);
    }
    // The reward of the picture is the kept one, and both sides of the ratio are the sampler's densities.
    let field = trainer.field(Some(trainer.drawing()));
    let moved = log_probs(trainer.config.likelihood.get(), &again, &*field);
    for ((&row, image), now) in drawn.replayed.iter().zip(&images).zip(moved) {
        let [x, y] = point(&drawn.images[row]);
        assert_eq!(drawn.rewards.rewards[row], Some(image.reward));
        assert!((image.reward - f64::from(-(x - 1.0).powi(2) - y.powi(2))).abs() < 1e-6);
        let weight = drawn.rollout.importance[row];
        assert!(
            (weight - (now - image.log_prob).exp().min(2.0)).abs() < 1e-12 && (weight - 1.0).abs() > 1e-9,
            "{weight}"
        );
    }
    assert!(
        (0..32).all(|row| drawn.replayed.contains(&row) || drawn.rollout.importance[row].to_bits() == 1f64.to_bits())
    );
    // Replayed once: what is left is the third, unless its prompt was drawn again, and what is new.
    let after = super::kept(&trainer, &drawn);
    assert!(!after.is_empty() && !after.contains(&kept[0]) && !after.contains(&kept[1]));
    assert!(after.contains(&kept[2]) || drawn.prompts.contains(&kept[2].prompt));
}

/// Under the weights that drew it, an image counts as any other.
#[test]
fn without_a_change_of_weights_the_weight_is_one() {
    let (policy, prompts) = (Toy::default(), prompts());
    let mut trainer = Trainer::new(config(), &policy, &prompts, &Near, Device::flex()).expect("valid");
    let drawn = trainer.draw(&()).expect("an epoch");
    trainer.state.kept = super::kept(&trainer, &drawn);
    trainer.state.epoch = 1;
    let drawn = trainer.draw(&()).expect("an epoch");
    assert_eq!(drawn.replayed.len(), 4);
    assert!(drawn.replayed.iter().all(|&row| (drawn.rollout.importance[row] - 1.0).abs() < 1e-12));
}

/// E[π_b/π_c] = 1 over paths from c: what makes the weighted mean that of b.
#[test]
fn importance_weights_have_mean_one() {
    let (policy, device, count) = (Toy::default(), Device::flex(), 20_000);
    let mut other = policy.initial();
    other.values_mut().iter_mut().enumerate().for_each(|(i, w)| *w += 0.05 * (i as f32).sin());
    let bind = |weights: &Params| policy.bind(Some(&weights.tensors(&device)));
    let (old, now) = (bind(&policy.initial()), bind(&other));
    let keys: Vec<Key> = (0..count).map(|i| Key::new(1, Purpose::Step, 0).sample(i)).collect();
    let start = keys.iter().map(|&key| Key { purpose: Purpose::Start, ..key });
    let start = noise::normal(start, policy.latent_shape(), &device);
    let cond = policy.encode(&vec!["a point".into(); count as usize]).expect("any prompt");
    let (sampling, schedule) = (config().sampler, config().schedule);
    let points = sampler::sample(&*old, &sampling, schedule, start, &cond, &keys, true);
    let importance = vec![1.0; keys.len()];
    let rollout = Rollout { points, cond, group_keys: keys.clone(), keys, importance, sampling, schedule };
    let likelihood = Trajectory { reduction: Reduction::Sum, ..Trajectory::default() };
    let [old, now] = [old, now].map(|field| log_probs(&likelihood, &rollout, &*field));
    let weights: Vec<f64> = now.iter().zip(&old).map(|(now, old)| (now - old).exp()).collect();
    let moments = Moments::of(&weights);
    let error = moments.std / (count as f64).sqrt();
    assert!(moments.std > 0.1 && (moments.mean - 1.0).abs() < 4.0 * error, "{moments:?}, {error}");
}

/// A weight scales the policy's part of the loss, sample by sample, and its gradient.
#[test]
fn the_loss_of_an_image_counts_by_its_weight() {
    let (policy, prompts) = (Toy::default(), prompts());
    let run = |weights: [f64; 2]| {
        let mut trainer = Trainer::new(config(), &policy, &prompts, &Near, Device::flex()).expect("valid");
        let mut drawn = trainer.draw(&()).expect("an epoch");
        drawn.rollout.importance = (0..32).map(|i| weights[i % 2]).collect();
        trainer.update(&drawn.rollout, &drawn.rewards, &()).expect("an update")
    };
    let (even, double, mixed) = (run([1.0, 1.0]), run([2.0, 2.0]), run([1.0, 2.0]));
    assert!((double.grad_norms[0] / even.grad_norms[0] - 2.0).abs() < 1e-5);
    // Parts of 10 images, six scored steps each.
    for (i, loss) in mixed.policy_losses.iter().enumerate() {
        let image = i / 60 * 10 + i % 60 % if i < 180 { 10 } else { 2 };
        let expected = even.policy_losses[i] * if image % 2 == 0 { 1.0 } else { 2.0 };
        assert!((loss - expected).abs() < 1e-12, "{i}");
    }
}

#[test]
fn the_log_tells_new_rewards_from_replayed_ones() {
    let (policy, prompts) = (Toy::default(), prompts());
    let mut trainer = Trainer::new(config(), &policy, &prompts, &Near, Device::flex()).expect("valid");
    let first = trainer.epoch(&()).expect("an epoch").record;
    assert_eq!([&first["replayed"], &first["replay_weight"]], [&Value::from(0), &Value::Null]);
    let drawn = trainer.draw(&()).expect("an epoch");
    let second = trainer.epoch(&()).expect("an epoch").record;
    let new = (0..32).filter(|row| !drawn.replayed.contains(row)).filter_map(|row| drawn.rewards.rewards[row]);
    let new = Moments::of(&new.collect::<Vec<_>>());
    assert_eq!((&second["reward_near"], &second["replayed"]), (&new.mean.into(), &4.into()));
    assert!(second["reward_missing"] == 0 && second["replay_weight_max"].as_f64() <= Some(2.0));
}

#[test]
fn what_does_not_go_together_is_told() {
    assert_eq!(config().validate(), Ok(()));
    let with = |replay: Replay| Config { replay, ..config() };
    let off = Replay { prompts: 0, groups: 99, images: 0, max_weight: 0.0 };
    assert_eq!(with(off).validate(), Ok(()), "off");
    let many = with(Replay { groups: 4, images: 8, max_weight: 0.5, ..config().replay });
    let problems = many.validate().expect_err("too many").problems;
    assert_eq!(problems.len(), 3, "{problems:?}");
    assert!(problems[0].contains("groups = 4") && problems[1].contains("images = 8") && problems[2].contains("0.5"));
    let elbo = Config { likelihood: LikelihoodKind::default(), ..config() };
    let shared = Config { start_noise: StartNoise::PerGroup, ..config() };
    for (wrong, word) in [(elbo, "likelihood `trajectory`"), (shared, "per-group")] {
        let problems = wrong.validate().expect_err("does not fit").problems;
        assert!(problems.len() == 1 && problems[0].contains(word), "{problems:?}");
    }
}
